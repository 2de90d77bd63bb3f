//! What the user's side and the cloud's side of Lacuna must agree on.
//!
//! # Layout
//!
//! The U-Net, written once:
//! - [`unet`]: its layers from a config, and the walk over them; no weights.
//! - [`executor`]: the operations that the walk asks for.
//! - [`whole`]: the executor over the whole tensor on one device.
//!
//! What it is made of:
//! - [`layers`]: a layer's name, sizes, parameters and work.
//! - [`config`]: reading a config without ignoring a key.
//! - [`weights`]: weight files, and weights on a device by name.
//! - [`ops`]: tensor operations.
//! - [`host`]: tensors in host memory.
//! - [`stats`]: group statistics that merge exactly.
//! - [`error`]: everything that can go wrong.
#![deny(missing_docs)]

pub mod config;
pub mod error;
pub mod executor;
pub mod host;
pub mod layers;
pub mod ops;
pub mod stats;
pub mod unet;
pub mod weights;
pub mod whole;

pub use error::{Error, Result};

//! What the user's side and the cloud's side of Lacuna must agree on.
//!
//! # Layout
//!
//! The U-Net, written once:
//! - [`unet`]: its layers from a config, and the walk over them; no weights.
//! - [`executor`]: the operations that the walk asks for.
//! - [`whole`]: the executor over the whole tensor on one device.
//! - [`survey`]: the executor over bare shapes, for counting.
//!
//! What splitting it takes:
//! - [`partition`]: strips of rows with their halo.
//! - [`stats`]: group statistics that merge exactly.
//! - [`placement`]: who computes what a strip alone cannot.
//! - [`exchange`]: what a strip needs from outside, and what travels for it.
//! - [`wire`]: the messages between orchestrator and worker.
//!
//! What it is made of:
//! - [`layers`]: a layer's name, sizes, parameters and work.
//! - [`config`]: reading a config without ignoring a key.
//! - [`weights`]: weight files, and weights on a device by name.
//! - [`ops`]: tensor operations.
//! - `unfold`: convolution as a product of matrices, for GPUs.
//! - [`kernels`]: those that burn's CPU backend does slowly, over plain slices.
//! - [`host`]: tensors in host memory.
//! - [`device`]: choosing and opening a device.
//! - [`speed`]: how fast a device computes.
//! - [`memory`]: how much of it this machine has, and processes took.
//! - [`selftest`]: a device against the CPU, before it is trusted.
//! - [`error`]: everything that can go wrong.
#![deny(missing_docs)]

pub mod config;
pub mod device;
pub mod error;
pub mod exchange;
pub mod executor;
pub mod host;
pub mod kernels;
pub mod layers;
pub mod memory;
pub mod ops;
pub mod partition;
pub mod placement;
pub mod selftest;
pub mod speed;
pub mod stats;
pub mod survey;
pub mod unet;
mod unfold;
pub mod weights;
pub mod whole;
pub mod wire;

pub use error::{Error, Result};

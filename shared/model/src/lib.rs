//! The U-Net, and what computes it on one device.
//!
//! # Layout
//!
//! The U-Net, written once:
//! - [`unet`]: its layers from a config, and the walk over them; no weights.
//! - [`executor`]: the operations that the walk asks for.
//! - [`whole`]: the executor over the whole tensor on one device.
//! - [`survey`]: the executor over bare shapes, for counting.
//! - [`partition`]: strips of rows with their halo.
//!
//! What it is made of:
//! - [`layers`]: a layer's name, sizes, parameters and work.
//! - [`parts`]: what is more than a layer and less than a network.
//! - [`config`]: reading a config without ignoring a key.
//! - [`weights`]: weight files, and weights on a device by name.
//! - [`ops`]: tensor operations.
//! - `unfold`: convolution as a product of matrices, for GPUs.
//! - [`integer`]: products of integers.
//! - [`dense`]: tensors of the CPU device as slices, for `lacuna_kernels`.
//! - [`host`]: tensors to a device and back.
//!
//! Devices:
//! - [`device`]: choosing and opening one.
//! - [`speed`]: how fast it computes.
//! - [`selftest`]: it against the CPU, before it is trusted.
//! - [`memory`]: how much of it this machine has, and processes took.
//!
//! - [`error`]: everything that can go wrong.
#![forbid(unsafe_code)]

pub mod config;
pub mod dense;
pub mod device;
pub mod error;
pub mod executor;
pub mod host;
pub mod integer;
pub mod layers;
pub mod memory;
pub mod ops;
pub mod partition;
pub mod parts;
pub mod selftest;
pub mod speed;
pub mod survey;
pub mod unet;
mod unfold;
pub mod weights;
pub mod whole;

pub use error::{Error, Result};

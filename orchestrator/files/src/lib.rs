//! Files that a person writes: how they are read, and the one that lists the workers. Nothing here computes, so that
//! it is fuzzed without what does.
//!
//! # Layout
//!
//! - [`small`]: how such a file is read, and what is said of one that is wrong.
//! - [`fleet`]: which workers there are.
//! - [`address`]: names of machines.
//! - [`reach`]: on this machine, or over a network that others share.
//! - [`error`]: everything that can go wrong.

pub mod address;
pub mod error;
pub mod fleet;
pub mod reach;
pub mod small;

pub use error::{Error, Result};

//! Additive shares of features: what the scheme `blind` stands on, without a layer, a tensor or a worker.
//!
//! A feature is quantised to an integer and split into a mask and what is left of it modulo a power of two. Each of two
//! workers gets one of the two, multiplies it with public weights and returns rounded products modulo another power of
//! two. Their sum is the product of the feature: whoever has one share alone has words that are uniform whatever the
//! feature is.
//!
//! - [`kind`]: which shares there are: with carries, or of a ring.
//! - [`precision`]: how many bits everything has, of shares with carries.
//! - [`ring`]: the same of a ring, and its weights, which are integers.
//! - [`stream`]: masks from keys that are used once.
//! - `norms`: what products are divided by.
//! - [`pack`]: words of any width as bytes.
//! - [`bands`]: the rows of a tensor, some after the others.
//! - [`split`]: a tensor of features to shares and carries.
//! - [`join`]: the workers' products to the layer's output.
//! - [`check`]: whether a worker multiplied as it should have.
//! - [`error`]: everything that can go wrong.
#![forbid(unsafe_code)]

pub mod bands;
pub mod check;
pub mod error;
pub mod join;
pub mod kind;
mod norms;
pub mod pack;
pub mod precision;
pub mod ring;
pub mod split;
pub mod stream;

pub use error::{Error, Result};
pub use kind::Shares;
pub use precision::Precision;
pub use ring::Ring;

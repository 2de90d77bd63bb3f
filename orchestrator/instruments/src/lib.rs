//! The instruments: how good pictures are, what they cost, and what they give away.
//!
//! - [`metrics`]: pictures against reference pictures, one by one or as sets.
//! - [`evaluation`]: many prompts under several settings.
//! - [`mod@bench`]: schemes side by side, with their seconds and bytes.
//! - [`audit`]: what a provider can make of what it sees.
//! - `markup`: text and bytes inside HTML and SVG.
//! - [`error`]: everything that can go wrong.
#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod audit;
pub mod bench;
pub mod error;
pub mod evaluation;
mod markup;
pub mod metrics;

pub use error::{Error, Result};

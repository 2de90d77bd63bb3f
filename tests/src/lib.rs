//! What the end-to-end tests share.
//!
//! - [`golden`]: numbers of the reference library, and how close is close enough.
//! - [`model_copy`]: a tiny model with something changed.
#![deny(missing_docs)]

pub mod golden;
pub mod model_copy;

//! What the end-to-end tests share.
//!
//! - [`golden`]: numbers of the reference library, and how close is close enough.
#![deny(missing_docs)]

pub mod golden;

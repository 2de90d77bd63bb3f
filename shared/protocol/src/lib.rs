//! What the user and a worker say to each other, above the bytes of `lacuna_wire`.
//!
//! - [`session`]: what a worker says of itself, sessions, and the headers of tensor messages.
//! - [`placement`]: who computes what a strip alone cannot.
//! - [`exchange`]: what a strip needs from outside, and what travels for it.
//! - [`version`]: versions of all this, and the one that two sides have in common.
//! - [`script`]: which exchange comes when, for both sides.
//! - [`shares`]: sessions in which shares of features are multiplied.
//! - [`models`]: models that a worker is sent and keeps.
//! - [`statistics`]: group statistics in messages.
//! - [`error`]: everything that can go wrong.
#![forbid(unsafe_code)]

pub mod error;
pub mod exchange;
pub mod models;
pub mod placement;
pub mod script;
pub mod session;
pub mod shares;
pub mod statistics;
pub mod version;

pub use error::{Error, Result};

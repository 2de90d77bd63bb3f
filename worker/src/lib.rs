//! The cloud's side of Lacuna: computes layers on strips of feature maps, over HTTP.
//!
//! A worker holds a U-Net and knows of no prompt, no picture and no other worker.
//!
//! # Layout
//!
//! - [`model`]: the U-Net that the worker holds, and one piece of work on one strip.
//! - [`compute`]: the thread that computes single layers, apart from those that serve.
//! - [`strip`]: the U-Net over the worker's own rows.
//! - [`ground`]: a model on the device, with what follows from its sizes.
//! - [`program`]: what is done in a session, by its kind.
//! - [`bounds`]: what the largest picture bounds.
//! - [`sessions`]: who is talking, and what they were last told.
//! - [`streamed`]: requests that are answered while they come.
//! - [`intake`]: requests' bodies as they come, bounded in bytes and time.
//! - [`turns`]: who computes next.
//! - [`store`]: models that were sent here, in a folder.
//! - [`shelf`]: the models that sessions may have, loaded when one asks.
//! - [`pushes`]: the HTTP routes of the store.
//! - [`tokens`]: whom the worker lets in.
//! - [`visitors`]: who is connected.
//! - [`metrics`]: what is counted.
//! - `held`: what the device's memory holds.
//! - [`options`]: how a worker behaves.
//! - [`service`]: the HTTP routes.
//! - [`mod@serve`]: runs the service on a socket until told to stop.
//! - [`doctor`]: what this machine has for a worker, and lacks.
//! - [`error`]: what is refused, and with which status.
#![forbid(unsafe_code)]

pub mod bounds;
pub mod compute;
pub mod doctor;
pub mod error;
pub mod ground;
mod held;
pub mod intake;
pub mod metrics;
pub mod model;
pub mod options;
pub mod program;
pub mod pushes;
pub mod serve;
pub mod service;
pub mod sessions;
pub mod shelf;
pub mod store;
pub mod streamed;
pub mod strip;
pub mod tokens;
pub mod turns;
pub mod visitors;

pub use model::{Model, Operand};
pub use options::Options;
pub use serve::{Door, serve, serve_while_loading, watch};
pub use service::Service;

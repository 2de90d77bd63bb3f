//! What the end-to-end tests share.
//!
//! - [`golden`]: numbers of the reference library, and how close is close enough.
//! - [`mod@reference`]: the arithmetic of the layers as plain loops in f64.
//! - [`metric_inputs`]: pictures, features and weights that the goldens of metrics are made of.
//! - [`model_copy`]: a tiny model with something changed.
//! - [`low_rank`]: an adapter of one.
//! - [`scheme`]: schemes by their names.
//! - [`journey`]: `lacuna generate` from its command line to its files.
//! - [`workers`]: workers in this process, good and bad.
//! - [`bad_workers`]: journeys of which one worker is bad.
//! - [`caller`]: bare requests to a worker.
//! - [`processes`]: workers as processes of their own.
//! - [`relay`]: a connection with latency, and with faults that are chosen or drawn.

pub mod bad_workers;
pub mod caller;
pub mod golden;
pub mod journey;
pub mod low_rank;
pub mod metric_inputs;
pub mod model_copy;
pub mod processes;
pub mod reference;
pub mod relay;
pub mod scheme;
pub mod workers;

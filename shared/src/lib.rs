//! The crates of this folder under one roof: `lacuna-kernels`, `lacuna-wire`, `lacuna-model` and
//! `lacuna-protocol`, for who has use for all of them.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub use lacuna_kernels::{self as kernels, stats, vectorised};
pub use lacuna_model::{
    Error, Result, config, device, error, executor, layers, memory, ops, partition, selftest,
    speed, survey, unet, weights, whole, whole_does_the_rest,
};
pub use lacuna_protocol::{self as protocol, exchange, placement, script, statistics};

/// Tensors in host memory.
pub mod host {
    pub use lacuna_model::host::OnDevice;
    pub use lacuna_wire::host::*;
}

/// What goes over HTTP.
pub mod wire {
    pub use lacuna_protocol::session::*;
    pub use lacuna_protocol::version::*;
    pub use lacuna_wire::*;
}

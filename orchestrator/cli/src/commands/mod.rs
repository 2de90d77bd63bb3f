//! The commands of the `lacuna` binary, one file each. They read arguments and print; what they do is done
//! elsewhere.

pub mod audit;
mod before;
pub mod bench;
pub mod cost;
pub mod eval;
pub mod generate;
pub mod metrics;
pub mod models;
pub mod plan;
pub mod unet;
pub mod workers;

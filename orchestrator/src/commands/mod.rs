//! The commands of the `lacuna` binary, one file each.

pub mod bench;
pub mod generate;
pub mod workers;

use std::path::PathBuf;

use clap::Args;
use shared::device::DeviceChoice;

/// Which model, and where the user's part of it runs.
#[derive(Args, Clone, Debug)]
pub struct ModelArguments {
    /// A diffusers model directory.
    #[arg(long, env = "LACUNA_MODEL", default_value = "assets/demo-model")]
    pub model: PathBuf,
    /// Weight file variant, e.g. fp16.
    #[arg(long, env = "LACUNA_VARIANT")]
    pub variant: Option<String>,
    /// auto, cpu or wgpu: where your own part is computed, and workers started here.
    #[arg(long, env = "LACUNA_DEVICE", default_value_t)]
    pub device: DeviceChoice,
    /// Accept a GPU that is emulated in software (llvmpipe).
    #[arg(long, env = "LACUNA_ALLOW_SOFTWARE")]
    pub allow_software: bool,
}

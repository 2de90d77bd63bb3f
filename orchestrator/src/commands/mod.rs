//! The commands of the `lacuna` binary, one file each.

pub mod bench;
pub mod cost;
pub mod generate;
pub mod workers;

use std::path::PathBuf;

use clap::Args;
use serde::de::DeserializeOwned;
use shared::device::DeviceChoice;
use shared::exchange::{Placement, Prompt, SelfAttention, Wire};

use crate::schemes::ppidm::GroupNormMode;
use crate::schemes::{Scheme, Setting};

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

/// How a scheme computes.
#[derive(Args, Clone, Debug)]
pub struct SchemeArguments {
    /// ppidm: how strips' statistics become a group normalisation; all but exact lose quality.
    #[arg(long, value_enum, default_value_t)]
    pub groupnorm: GroupNormMode,
    /// resident: who attends to the whole picture. The user: paired (with the cross-attention, in one
    /// exchange), tokens or qkv (by what workers send). Workers: broadcast (gives the picture away).
    #[arg(long, default_value = "paired", value_parser = by_name::<SelfAttention>)]
    pub self_attention: SelfAttention,
    /// resident: whether workers may know the prompt: hidden or shared.
    #[arg(long, default_value = "hidden", value_parser = by_name::<Prompt>)]
    pub workers_prompt: Prompt,
    /// resident: number type of features on the wire: f32 (exact), f16 or bf16.
    #[arg(long, default_value = "f32", value_parser = by_name::<Wire>)]
    pub wire: Wire,
}

impl SchemeArguments {
    /// `scheme` with these settings.
    pub fn setting(&self, scheme: Scheme, latents: [usize; 3], tokens: usize) -> Setting {
        Setting {
            scheme,
            groupnorm: self.groupnorm,
            placement: Placement {
                self_attention: self.self_attention,
                prompt: self.workers_prompt,
                wire: self.wire,
            },
            latents,
            tokens,
        }
    }
}

/// A value by the name that it has in messages and files.
fn by_name<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    serde_json::from_value(name.into()).map_err(|e| e.to_string())
}

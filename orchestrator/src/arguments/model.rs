//! Which model, and opening it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use lacuna_model::config::ConfigReader;
use lacuna_model::device::{self, DeviceChoice, OpenDevice, Precision};
use lacuna_model::selftest;
use lacuna_model::unet::UNetConfig;
use lacuna_model::weights::AdapterFile;
use tokio::task::spawn_blocking;

use crate::error::{Error, Result};
use crate::pipeline::Pipeline;

/// Which model, and where the user's part of it runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArguments {
    /// A diffusers model directory.
    #[arg(
        short,
        long,
        value_name = "DIR",
        env = "LACUNA_MODEL",
        default_value = "assets/demo-model"
    )]
    pub model: PathBuf,
    /// Weight file variant, e.g. fp16.
    #[arg(long, env = "LACUNA_VARIANT")]
    pub variant: Option<String>,
    /// A low-rank adapter of the U-Net (LoRA, safetensors in the names of diffusers or PEFT), with its strength behind a
    /// colon if that is not 1; repeat it for several. Workers must be started with the same; under --scheme blind without.
    #[arg(long, value_name = "FILE[:STRENGTH]")]
    pub lora: Vec<AdapterFile>,
    /// auto, cpu or wgpu: where your own part is computed, and workers started here.
    #[arg(long, env = "LACUNA_DEVICE", default_value_t)]
    pub device: DeviceChoice,
    /// Accept a GPU that is emulated in software (llvmpipe).
    #[arg(long, env = "LACUNA_ALLOW_SOFTWARE")]
    pub allow_software: bool,
}

/// Configs of U-Nets that this program knows by name: what `configs/models` has.
const KNOWN_MODELS: [(&str, &str); 2] = [
    (
        "sd15",
        include_str!("../../../configs/models/sd15/unet/config.json"),
    ),
    (
        "sdxl",
        include_str!("../../../configs/models/sdxl/unet/config.json"),
    ),
];

/// The config of a U-Net: of a known name, else of the file that `path` makes of it.
///
/// # Errors
/// Those of the config.
pub fn unet_config(
    name: &Path,
    path: impl FnOnce() -> PathBuf,
) -> std::result::Result<UNetConfig, lacuna_model::Error> {
    match KNOWN_MODELS
        .iter()
        .find(|(known, _)| name == Path::new(known))
    {
        Some((known, text)) => {
            let value = serde_json::from_str(text)
                .map_err(|cause| lacuna_model::Error::json(Path::new(known), text, cause))?;
            UNetConfig::read(ConfigReader::new(*known, value)?)
        }
        None => {
            let mut keys = ConfigReader::from_file(&path())?;
            // Another file's keys would all be strays, and the U-Net that of the defaults.
            match keys.optional::<String>("_class_name")? {
                Some(class) if class != "UNet2DConditionModel" => {
                    let hint = "only the config of a UNet2DConditionModel is";
                    Err(keys.unsupported("_class_name", &class.into(), hint))
                }
                _ => UNetConfig::read(keys),
            }
        }
    }
}

/// The model must be a directory.
///
/// # Errors
/// [`Error::Request`], saying what to do.
pub fn check_model(arguments: &ModelArguments) -> Result<()> {
    if arguments.model.is_dir() {
        return Ok(());
    }
    Err(Error::Request(format!(
        "there is no model in {}; give --model a diffusers directory \
         (this repository's own is assets/demo-model)",
        arguments.model.display()
    )))
}

/// Opens the device and the model.
///
/// # Errors
/// Those of the device, its self-test and the model's files.
pub async fn load(arguments: &ModelArguments) -> anyhow::Result<(Arc<Pipeline>, OpenDevice)> {
    let arguments = arguments.clone();
    spawn_blocking(move || {
        let device = device::open(arguments.device, arguments.allow_software)?;
        // Not inside the macro: that evaluates nothing unless the line is logged.
        let report = selftest::run(&device, Precision::F32)?;
        tracing::debug!("self-test: {report}");
        let pipeline = Pipeline::open(
            &arguments.model,
            arguments.variant.as_deref(),
            &arguments.lora,
            &device.device,
        )
        .with_context(|| format!("cannot load the model {}", arguments.model.display()))?;
        Ok((Arc::new(pipeline), device))
    })
    .await?
}

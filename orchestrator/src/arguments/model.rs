//! Which model, and opening it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use lacuna_model::config::ConfigReader;
use lacuna_model::device::{self, DeviceChoice, OpenDevice, Precision};
use lacuna_model::selftest;
use lacuna_model::unet::{UNetConfig, original};
use lacuna_model::weights::{AdapterFile, DigestCache};
use tokio::task::spawn_blocking;

use crate::error::{Error, Result};
use crate::model::ModelFiles;
use crate::pipeline::Pipeline;
use crate::text::EmbeddingFile;
use crate::unet_source::UNetSource;

/// Which model, and where the user's part of it runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArguments {
    /// A diffusers model directory, a model's one file (.safetensors), or hf:OWNER/NAME of the hub's cache.
    #[arg(
        short,
        long,
        value_name = "MODEL",
        env = "LACUNA_MODEL",
        default_value = "assets/demo-model"
    )]
    pub model: PathBuf,
    /// Weight file variant, e.g. fp16.
    #[arg(long, env = "LACUNA_VARIANT")]
    pub variant: Option<String>,
    /// Of a model in one file: a model directory of the same kind, whose configs, scheduler and tokenizers are taken
    /// [default: what the file's tensors tell, and what was published].
    #[arg(long, value_name = "DIR", env = "LACUNA_MODEL_CONFIG")]
    pub model_config: Option<PathBuf>,
    /// Of a model in one file: CLIP's vocabulary, as a model directory, a tokenizer's, or bpe_simple_vocab_16e6.txt.gz
    /// [default: beside the file, or in the hub's cache].
    #[arg(long, value_name = "PATH", env = "LACUNA_TOKENIZER")]
    pub tokenizer: Option<PathBuf>,
    /// Another autoencoder than the model's: its directory or its file.
    #[arg(long, value_name = "PATH", env = "LACUNA_VAE")]
    pub vae: Option<PathBuf>,
    /// A low-rank adapter (LoRA, safetensors in the names of diffusers, PEFT or kohya's tools) of the U-Net and the text
    /// encoders, with its strength behind a colon if that is not 1; repeat it for several. Workers are started with the same, or
    /// are sent what it changes of the U-Net (--store, and a token that may push); under --scheme blind it stays here.
    #[arg(long, value_name = "FILE[:STRENGTH]")]
    pub lora: Vec<AdapterFile>,
    /// An embedding of textual inversion (safetensors), with the token that prompts call it by behind a colon if that is not
    /// the file's own; repeat it for several. It stays with you.
    #[arg(long, value_name = "FILE[:TOKEN]")]
    pub embedding: Vec<EmbeddingFile>,
    /// auto, cpu, wgpu or cuda: where your own part is computed, and workers started here.
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

/// The config of a U-Net: of a known name; of a model in one file the one at `model_config`, or what its tensors tell; else of the file
/// that `path` makes of it.
///
/// # Errors
/// Those of the config.
pub fn unet_config(
    name: &Path,
    model_config: Option<&Path>,
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
        None if name
            .extension()
            .is_some_and(|ending| ending == "safetensors") =>
        {
            Ok(original::open(name, model_config)?.0)
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

/// The model must be there.
///
/// # Errors
/// [`Error::Request`], saying what to do.
pub fn check_model(arguments: &ModelArguments) -> Result<()> {
    arguments.files().map(drop)
}

/// A model's U-Net, opened, without its other parts.
pub struct OpenUNet {
    /// What its config says.
    pub config: UNetConfig,
    /// Its layers, and where their weights come from.
    pub source: Arc<UNetSource>,
    /// Whether any adapter holds something that is not the U-Net's, which is not used.
    pub adapters_hold_more: bool,
    /// Where it is computed.
    pub device: OpenDevice,
}

/// Opens the device and the model's U-Net, of a directory that may hold nothing else.
///
/// # Errors
/// Those of the device, its self-test and the U-Net's files; [`Error::Request`] for flags that are about other parts.
pub async fn load_unet(arguments: &ModelArguments) -> anyhow::Result<OpenUNet> {
    let arguments = arguments.clone();
    let others = [
        ("--vae", arguments.vae.is_some()),
        ("--tokenizer", arguments.tokenizer.is_some()),
        ("--embedding", !arguments.embedding.is_empty()),
    ];
    if let Some((flag, _)) = others.into_iter().find(|(_, given)| *given) {
        let reason = format!("{flag}: of the model the U-Net alone is used; leave it out");
        return Err(Error::Request(reason).into());
    }
    spawn_blocking(move || {
        let device = arguments.open_device()?;
        let open = || -> Result<_> {
            let (config, stored, adapters) = arguments.files()?.open_adapted(&arguments.lora)?;
            let more = adapters.iter().any(|it| it.check_taken().is_err());
            let source = UNetSource::of_files(stored, &device.device)?;
            Ok((config, Arc::new(source), more))
        };
        let opened = open();
        let (config, source, adapters_hold_more) = opened
            .with_context(|| format!("cannot load the model {}", arguments.model.display()))?;
        Ok(OpenUNet {
            config,
            source,
            adapters_hold_more,
            device,
        })
    })
    .await?
}

impl ModelArguments {
    fn open_device(&self) -> Result<OpenDevice, lacuna_model::Error> {
        let device = device::open(self.device, self.allow_software)?;
        // Not inside the macro: that evaluates nothing unless the line is logged.
        let report = selftest::run(&device, Precision::F32)?;
        tracing::debug!("self-test: {report}");
        Ok(device)
    }

    /// Where the model and its parts lie.
    ///
    /// # Errors
    /// [`Error::Request`] where there is none, saying what to do.
    pub fn files(&self) -> Result<ModelFiles> {
        let files = ModelFiles {
            model: find(&self.model)?,
            variant: self.variant.clone(),
            config: self.model_config.clone(),
            tokenizer: self.tokenizer.clone(),
            vae: self.vae.clone(),
            digests: DigestCache::of_user(),
        };
        files.check()?;
        Ok(files)
    }
}

/// The folder of a model that is named as in the hub, `hf:OWNER/NAME`; any other path as it is.
///
/// # Errors
/// [`Error::Request`] where the hub's cache has no such model, saying what to do.
pub fn resolve(model: &Path) -> Result<PathBuf> {
    let Some(name) = model.to_str().and_then(|name| name.strip_prefix("hf:")) else {
        return Ok(model.to_owned());
    };
    let repository = hf_hub::Cache::from_env().model(name.to_owned());
    let index = repository.get("model_index.json");
    let folder = index.as_deref().and_then(Path::parent);
    folder.map(Path::to_owned).ok_or_else(|| {
        Error::Request(format!(
            "hf:{name}: the hub's cache has no such model; get it by `hf download {name}`, which keeps it there"
        ))
    })
}

/// The folder or file of a model, which must be there.
fn find(model: &Path) -> Result<PathBuf> {
    let model = resolve(model)?;
    match model.is_dir() || model.is_file() {
        true => Ok(model),
        false => Err(Error::Request(format!(
            "there is no model in {}; give --model a diffusers directory, or a model's one file \
             (this repository's own is assets/demo-model)",
            model.display()
        ))),
    }
}

/// Opens the device and the model.
///
/// # Errors
/// Those of the device, its self-test and the model's files.
pub async fn load(arguments: &ModelArguments) -> anyhow::Result<(Arc<Pipeline>, OpenDevice)> {
    let arguments = arguments.clone();
    spawn_blocking(move || {
        let device = arguments.open_device()?;
        let parts = arguments.files()?.open();
        let opened = parts.and_then(|parts| Pipeline::of(parts, &arguments.lora, &device.device));
        let opened = opened.and_then(|pipeline| pipeline.with_embeddings(&arguments.embedding));
        let pipeline = opened
            .with_context(|| format!("cannot load the model {}", arguments.model.display()))?;
        Ok((Arc::new(pipeline), device))
    })
    .await?
}

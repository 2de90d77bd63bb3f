//! A model in one file, in the layout in which Stable Diffusion was published.
//!
//! Which model it is is told by its tensors: SDXL has two text encoders, of Stable Diffusion 2 the text encoder is
//! OpenCLIP's, of 1 it is CLIP's. The U-Net is read by [`original`], which workers have, too.

use std::path::Path;

use lacuna_model::config::ConfigReader;
use lacuna_model::unet::{UNetConfig, original};
use lacuna_model::weights::{Checkpoint, Stored, View};
use serde_json::{Value, json};

use super::dir::ModelDir;
use super::vocabulary;
use super::{ModelFiles, ModelParts};
use crate::error::{Error, Result};
use crate::family::Family;
use crate::schedulers::SchedulerConfig;
use crate::text::{ClipTextConfig, ClipTextEncoder, ClipTextLayers, PooledConfig};
use crate::vae::{Vae, VaeConfig, VaeLayers};

/// What the autoencoder's tensors begin with.
const VAE: &str = "first_stage_model.";
/// What begins the tensors of a text encoder in the names of the reference, and of OpenCLIP, by family.
const CLIP: &str = "cond_stage_model.transformer.";
const OPEN_CLIP: &str = "cond_stage_model.model.";
const XL_FIRST: &str = "conditioner.embedders.0.transformer.";
const XL_SECOND: &str = "conditioner.embedders.1.model.";

/// Beginnings of what a file may hold beside the networks that are used.
const LEFT_OVER: [&str; 14] = [
    // Running averages of training, and what belongs to the training's loss.
    "model_ema.",
    "first_stage_model.loss.",
    "global_step",
    // The schedule, which the scheduler makes itself.
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_alphas_cumprod",
    "posterior_",
    "denoiser.sigmas",
    "logvar",
    "scale_factor",
    "lvlb_weights",
    // Markers, which are read.
    "v_pred",
    "ztsnr",
];

/// The published scheduler of a family, but for what it predicts.
fn published_scheduler(family: Family) -> (Value, &'static str) {
    let mut config = json!({
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
        "num_train_timesteps": 1000, "clip_sample": false, "set_alpha_to_one": false,
    });
    match family {
        Family::StableDiffusionXl => {
            config["timestep_spacing"] = json!("leading");
            config["interpolation_type"] = json!("linear");
            (config, "EulerDiscreteScheduler")
        }
        Family::StableDiffusion | Family::LatentConsistency => {
            config["skip_prk_steps"] = json!(true);
            (config, "PNDMScheduler")
        }
    }
}

/// A model's one file while it is opened.
pub struct OneFile<'a> {
    files: &'a ModelFiles,
    checkpoint: Checkpoint,
    family: Family,
    /// Whether the text encoder is Stable Diffusion 2's.
    second: bool,
}

impl OneFile<'_> {
    /// Opens every part of the file `files.model`.
    ///
    /// # Errors
    /// Each names the file, key or tensor that is missing, damaged or not supported.
    pub fn open(files: &ModelFiles) -> Result<ModelParts> {
        let path = &files.model;
        if path
            .extension()
            .is_none_or(|ending| ending != "safetensors")
        {
            return Err(Error::Input {
                path: path.clone(),
                reason: "a model in one file is a .safetensors file; of a .ckpt or .bin, whose reading may run code, make one \
                         with safetensors' own convert.py, or take the model's folder"
                    .into(),
            });
        }
        let checkpoint = Checkpoint::open_file(path)?;
        let has = |start: &str| checkpoint.names().any(|name| name.starts_with(start));
        let second = has(OPEN_CLIP);
        let one = OneFile {
            files,
            family: match has(XL_SECOND) {
                true => Family::StableDiffusionXl,
                false => Family::StableDiffusion,
            },
            second,
            checkpoint,
        };
        one.parts()
    }

    fn parts(&self) -> Result<ModelParts> {
        // First, as it says best what a file is not.
        let (unet_config, unet) = self.unet()?;
        self.name_strays();
        let dir = self
            .files
            .config
            .as_deref()
            .map(ModelDir::open)
            .transpose()?;
        if let Some(dir) = dir.as_ref().filter(|dir| dir.family != self.family) {
            return Err(Error::Request(format!(
                "--model-config {}: it is of {:?}, the file is of {:?}",
                self.files
                    .config
                    .as_deref()
                    .unwrap_or(Path::new(""))
                    .display(),
                dir.family,
                self.family
            )));
        }
        let (scheduler, scheduler_class) = match &dir {
            Some(dir) => (dir.read_scheduler()?, dir.scheduler_class.clone()),
            None => {
                let (mut config, class) = published_scheduler(self.family);
                self.mark(&mut config);
                let config = SchedulerConfig::from_value(config)?;
                (config, class.to_owned())
            }
        };
        Ok(ModelParts {
            family: self.family,
            text: self.text(dir.as_ref())?,
            vae: self.vae(dir.as_ref())?,
            zeros_for_no_prompt: match &dir {
                Some(dir) => dir.zeros_for_no_prompt,
                None => self.family == Family::StableDiffusionXl,
            },
            scheduler,
            scheduler_class,
            guidance_scale: dir.as_ref().and_then(|dir| dir.guidance_scale),
            whole_words: dir.as_ref().is_some_and(|dir| dir.whole_words),
            unet_config,
            unet,
        })
    }

    fn unet(&self) -> Result<(UNetConfig, Checkpoint)> {
        let config = self.files.config.as_ref();
        let config = config.map(|dir| dir.join("unet/config.json"));
        Ok(original::open(&self.files.model, config.as_deref())?)
    }

    /// What the model predicts, by the markers that its makers put into the file; of Stable Diffusion 2 by the number of
    /// its training steps, as the reference has it.
    fn mark(&self, config: &mut Value) {
        let has = |name: &str| self.checkpoint.shape(name).is_some();
        let base = self.checkpoint.read("global_step");
        let base = base.is_ok_and(|step| step.data == [875_000.0]);
        if has("v_pred") || (self.second && !base) {
            config["prediction_type"] = json!("v_prediction");
        }
        if has("ztsnr") {
            config["rescale_betas_zero_snr"] = json!(true);
            config["timestep_spacing"] = json!("trailing");
        }
    }

    /// Warns of tensors that are of nothing known.
    fn name_strays(&self) {
        let known = [original::PREFIX, VAE, CLIP, OPEN_CLIP, XL_FIRST, XL_SECOND];
        let is_known = |name: &&str| {
            known
                .iter()
                .chain(&LEFT_OVER)
                .any(|start| name.starts_with(start))
        };
        let mut strays = self.checkpoint.names().filter(|name| !is_known(name));
        if let Some(first) = strays.next() {
            let path = self.files.model.display();
            let others = strays.count();
            tracing::warn!("{path}: not read, as nothing known: {first}, and {others} others");
        }
    }

    /// The file again, for another part.
    fn again(&self) -> Result<Checkpoint> {
        Ok(Checkpoint::open_file(&self.files.model)?)
    }

    fn text(
        &self,
        dir: Option<&ModelDir>,
    ) -> Result<Vec<(crate::text::ClipTokenizer, Stored<ClipTextLayers>)>> {
        let (starts, paddings): (&[(&str, bool)], &[&str]) = match (self.family, self.second) {
            (Family::StableDiffusionXl, _) => (
                &[(XL_FIRST, false), (XL_SECOND, true)],
                &["<|endoftext|>", "!"],
            ),
            (_, true) => (&[(OPEN_CLIP, true)], &["!"]),
            (_, false) => (&[(CLIP, false)], &["<|endoftext|>"]),
        };
        let tokenizers = vocabulary::tokenizers(self.files, paddings)?;
        let mut text = Vec::with_capacity(starts.len());
        for (i, (tokenizer, (start, open))) in tokenizers.into_iter().zip(starts).enumerate() {
            let mut checkpoint = self.again()?;
            let pooling = self.family == Family::StableDiffusionXl && i == 1;
            // Stable Diffusion 2 is told the states before the last layer, which its file has all the same.
            let left_out = usize::from(*open && !pooling);
            match open {
                true => checkpoint.view(|name, shape| match name.strip_prefix(start) {
                    Some(name) => of_open_clip(name, shape),
                    None => Vec::new(),
                }),
                false => checkpoint.adapt(|name, _| name.strip_prefix(start).map(str::to_owned)),
            }
            let config = dir
                .and_then(|dir| dir.text.get(i))
                .map(|part| part.encoder.join("config.json"));
            let reader = || match &config {
                Some(path) => ConfigReader::from_file(path),
                None => {
                    let source = format!("{} (from its tensors)", self.files.model.display());
                    ConfigReader::new(source, text_config(&checkpoint, *open, left_out))
                }
            };
            let source = self.files.model.display().to_string();
            let mut layers = ClipTextConfig::read(reader()?, &source)?.build();
            if pooling {
                layers = layers.pooling(PooledConfig::read(reader()?)?);
            }
            let depth = layers.depth();
            checkpoint.adapt(|name, _| (!is_beyond(name, depth)).then(|| name.to_owned()));
            text.push((tokenizer, ClipTextEncoder::stored(layers, checkpoint)?));
        }
        Ok(text)
    }

    fn vae(&self, dir: Option<&ModelDir>) -> Result<Stored<VaeLayers>> {
        let config = dir.map(|dir| dir.vae.join("config.json"));
        stored_vae(
            self.again()?,
            &self.files.model,
            config.as_deref(),
            self.family,
        )
    }
}

/// Whether a tensor is of a layer that the model does not have.
fn is_beyond(name: &str, depth: usize) -> bool {
    let bare = name.strip_prefix("text_model.").unwrap_or(name);
    let number = bare
        .strip_prefix("encoder.layers.")
        .and_then(|rest| rest.split('.').next());
    number.is_some_and(|number| number.parse().is_ok_and(|number: usize| number >= depth))
}

/// A tensor of OpenCLIP's text model as those of the reference.
fn of_open_clip(name: &str, shape: &[usize]) -> Vec<View> {
    let whole = |name: String| vec![View::whole(name, shape)];
    match name {
        "token_embedding.weight" => return whole("embeddings.token_embedding.weight".into()),
        "positional_embedding" => return whole("embeddings.position_embedding.weight".into()),
        "text_projection" => {
            let turned: Vec<usize> = shape.iter().rev().copied().collect();
            return vec![View {
                transposed: true,
                ..View::whole("text_projection.weight", &turned)
            }];
        }
        _ => {}
    }
    if let Some(tensor) = name.strip_prefix("ln_final.") {
        return whole(format!("final_layer_norm.{tensor}"));
    }
    let Some((number, inner)) = name
        .strip_prefix("transformer.resblocks.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return Vec::new();
    };
    let layer = format!("encoder.layers.{number}");
    if let Some(kind) = inner.strip_prefix("attn.in_proj_") {
        let [three, rest @ ..] = shape else {
            return Vec::new();
        };
        let each: Vec<usize> = std::iter::once(three / 3)
            .chain(rest.iter().copied())
            .collect();
        let values: usize = each.iter().product();
        let projections = ["q", "k", "v"].iter().enumerate();
        let view = |(i, letter)| View {
            from: i * values,
            ..View::whole(format!("{layer}.self_attn.{letter}_proj.{kind}"), &each)
        };
        return projections.map(view).collect();
    }
    let layers = [
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("attn.out_proj.", "self_attn.out_proj."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ];
    let renamed = layers.iter().find_map(|(old, new)| {
        let tensor = inner.strip_prefix(old)?;
        Some(format!("{layer}.{new}{tensor}"))
    });
    renamed.map(whole).unwrap_or_default()
}

/// As the `config.json` of a text encoder would have it, whose tensors are in the reference's names by now.
fn text_config(checkpoint: &Checkpoint, open: bool, left_out: usize) -> Value {
    let size = |name: &str, axis: usize| {
        let named = [name.to_owned(), format!("text_model.{name}")];
        let shape = named.iter().find_map(|name| checkpoint.shape(name));
        shape
            .and_then(|shape| shape.get(axis))
            .copied()
            .unwrap_or(0)
    };
    let layers =
        (0..).take_while(|i| size(&format!("encoder.layers.{i}.layer_norm1.weight"), 0) > 0);
    let width = size("embeddings.token_embedding.weight", 1);
    let mut config = json!({
        "vocab_size": size("embeddings.token_embedding.weight", 0),
        "max_position_embeddings": size("embeddings.position_embedding.weight", 0),
        "hidden_size": width,
        "intermediate_size": size("encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers": layers.count() - left_out,
        "num_attention_heads": (width / 64).max(1),
        "hidden_act": if open { "gelu" } else { "quick_gelu" },
        "eos_token_id": 2,
    });
    let projection = size("text_projection.weight", 0);
    if projection > 0 {
        config["projection_dim"] = json!(projection);
    }
    config
}

/// Another autoencoder: a folder of the reference's, or a file in its layout or the original one.
///
/// # Errors
/// Each names the file, key or tensor that is missing, damaged or not supported.
pub fn open_vae(path: &Path, family: Family) -> Result<Stored<VaeLayers>> {
    if path.is_dir() {
        let nested = path.join("vae");
        let dir = if nested.is_dir() { &nested } else { path };
        return Vae::open(dir, None);
    }
    stored_vae(Checkpoint::open_file(path)?, path, None, family)
}

fn stored_vae(
    mut checkpoint: Checkpoint,
    path: &Path,
    config: Option<&Path>,
    family: Family,
) -> Result<Stored<VaeLayers>> {
    // In the original layout the tensors may be alone in their file, without what begins them elsewhere.
    let start = match checkpoint.names().any(|name| name.starts_with(VAE)) {
        true => VAE,
        false => "",
    };
    let levels = (0..)
        .take_while(|i| {
            checkpoint
                .shape(&format!("{start}decoder.up.{i}.block.0.conv1.weight"))
                .is_some()
        })
        .count();
    let original = levels > 0;
    checkpoint.adapt(|name, _| {
        let bare = name.strip_prefix(start)?;
        let ours = ["encoder.", "decoder.", "quant_conv.", "post_quant_conv."];
        if !ours.iter().any(|part| bare.starts_with(part)) {
            return None;
        }
        Some(if original {
            of_original_vae(bare, levels)
        } else {
            bare.to_owned()
        })
    });
    let config = match config {
        Some(config) => VaeConfig::from_file(config)?,
        None => {
            let source = format!("{} (from its tensors)", path.display());
            VaeConfig::read(ConfigReader::new(source, vae_config(&checkpoint, family))?)?
        }
    };
    Vae::stored(&config, checkpoint)
}

/// A tensor of the original autoencoder, of so many levels, by the reference's name.
fn of_original_vae(name: &str, levels: usize) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let rest = |from: usize| parts.get(from..).unwrap_or_default().join(".");
    let resnet = |from: usize| rest(from).replace("nin_shortcut", "conv_shortcut");
    match parts.as_slice() {
        [side, "norm_out", ..] => format!("{side}.conv_norm_out.{}", rest(2)),
        [side, "mid", "block_1", ..] => format!("{side}.mid_block.resnets.0.{}", resnet(3)),
        [side, "mid", "block_2", ..] => format!("{side}.mid_block.resnets.1.{}", resnet(3)),
        [side, "mid", "attn_1", layer, tensor] => {
            let layer = match *layer {
                "norm" => "group_norm",
                "q" => "query",
                "k" => "key",
                "v" => "value",
                "proj_out" => "proj_attn",
                other => other,
            };
            format!("{side}.mid_block.attentions.0.{layer}.{tensor}")
        }
        [side, "down", level, "block", number, ..] => {
            format!("{side}.down_blocks.{level}.resnets.{number}.{}", resnet(5))
        }
        [side, "down", level, "downsample", ..] => {
            format!("{side}.down_blocks.{level}.downsamplers.0.{}", rest(4))
        }
        [side, "up", level, kind, ..] => {
            // Numbered from fine to coarse there, as they are walked here.
            let level = level
                .parse()
                .map_or(0, |level: usize| levels.saturating_sub(1 + level));
            match *kind {
                "block" => format!(
                    "{side}.up_blocks.{level}.resnets.{}.{}",
                    rest(4).split('.').next().unwrap_or(""),
                    resnet(5)
                ),
                _ => format!("{side}.up_blocks.{level}.upsamplers.0.{}", rest(4)),
            }
        }
        _ => name.to_owned(),
    }
}

/// As `vae/config.json` would have it, for tensors in the reference's names.
fn vae_config(checkpoint: &Checkpoint, family: Family) -> Value {
    let size = |name: &str, axis: usize| {
        let shape = checkpoint.shape(name);
        shape
            .and_then(|shape| shape.get(axis))
            .copied()
            .unwrap_or(0)
    };
    let channel = |i: usize| {
        size(
            &format!("encoder.down_blocks.{i}.resnets.0.conv1.weight"),
            0,
        )
    };
    let channels: Vec<usize> = (0..)
        .map(channel)
        .take_while(|channels| *channels > 0)
        .collect();
    let layer = |j: &usize| {
        size(
            &format!("encoder.down_blocks.0.resnets.{j}.conv1.weight"),
            0,
        ) > 0
    };
    let attention = ["to_q", "query"]
        .map(|layer| size(&format!("decoder.mid_block.attentions.0.{layer}.weight"), 0) > 0);
    json!({
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; channels.len()],
        "up_block_types": vec!["UpDecoderBlock2D"; channels.len()],
        "layers_per_block": (0..).take_while(layer).count(),
        "latent_channels": size("decoder.conv_in.weight", 1),
        "in_channels": size("encoder.conv_in.weight", 1),
        "out_channels": size("decoder.conv_out.weight", 0),
        "mid_block_add_attention": attention.contains(&true),
        "use_quant_conv": size("quant_conv.weight", 0) > 0,
        "use_post_quant_conv": size("post_quant_conv.weight", 0) > 0,
        "scaling_factor": match family {
            Family::StableDiffusionXl => 0.13025,
            Family::StableDiffusion | Family::LatentConsistency => 0.18215,
        },
    })
}

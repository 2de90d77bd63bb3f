//! What the reference's pipeline corrects after it has read a model's files.
//!
//! A model is more than its files: `StableDiffusionPipeline`'s constructor changes some of what it is
//! handed, because early files were wrong. A picture without these changes is another picture. The
//! constructor as of diffusers 0.42.1 (those of SDXL and of latent consistency models change nothing), and what `from_config` makes of it where another scheduler is
//! chosen (`--scheduler`, there `pipe.scheduler = X.from_config(pipe.scheduler.config)`):
//!
//! | the reference | here |
//! |---|---|
//! | The class of each part is that of `model_index.json`; `_class_name` of a part's config is not looked at. | [`ModelDir`](crate::model::dir::ModelDir) |
//! | `steps_offset` of the scheduler becomes 1, whatever the file or the class says. | [`scheduler`] |
//! | `clip_sample` of the scheduler becomes false where it is true. | [`scheduler`] |
//! | Another scheduler is given the keys that the file has, as corrected; the others take that class's own default. This holds for the model's own class as well, where it is chosen by name. | [`scheduler`] |
//! | A whole number below 64 as the U-Net's `sample_size` becomes 64 where `_diffusers_version` is below 0.9.0. | [`sample_size`] |
//! | Keys listed in a config's `_use_default_values` count as absent. | [`ConfigReader`](lacuna_model::config::ConfigReader), [`SchedulerConfig`] |
//! | The DPM-Solvers read `solver_type` `logrho`, `bh1` and `bh2` as `midpoint`, `algorithm_type` `deis` as `dpmsolver++`; DEIS and UniPC read the others' likewise as their own. | [`schedulers`](crate::schedulers) |
//! | The singlestep DPM-Solver turns `lower_order_final` on where its groups do not come out even, or lead to no noise. | [`schedulers`](crate::schedulers) |
//! | `eta` is 0 where nobody says otherwise, for TCD, too. | `--eta` |
//! | Pixels per latent are 2 to the power of the autoencoder's levels less one. | [`VaeLayers`](crate::vae::VaeLayers) |
//! | A prompt's token of textual inversion stands for all of its vectors. | [`ClipTokenizer`](crate::text::ClipTokenizer) |
//! | Weights of a variant are read in the parts that have them, the others without. | [`Checkpoint`](lacuna_model::weights::Checkpoint) |
//! | A safety checker, where there is one, blackens some pictures. | none is run |
//! | Sizes that are no multiple of 8 are refused. | refused are those that are no multiple of the pixels per latent |

use lacuna_model::config::WithoutEffect;
use lacuna_model::unet::{SampleSize, UNetConfig};
use serde_json::json;

use crate::error::Result;
use crate::family::Family;
use crate::schedulers::SchedulerConfig;

/// Keys that their classes read and this pipeline leaves without effect.
pub const OVERRULED: WithoutEffect = &[
    (
        "steps_offset",
        "1 in the model's own scheduler; counts where another is chosen",
    ),
    (
        "clip_sample",
        "off in the model's own scheduler; counts where another is chosen",
    ),
    (
        "clip_sample_range",
        "nothing is clipped by the model's own scheduler",
    ),
    (
        "addition_time_embed_dim",
        "only read with addition_embed_type, which this pipeline refuses",
    ),
    (
        "projection_class_embeddings_input_dim",
        "only read with addition_embed_type, which this pipeline refuses",
    ),
    ("use_quant_conv", "only for pictures to latents"),
    ("latents_mean", "only read by SDXL's pipeline"),
    ("latents_std", "only read by SDXL's pipeline"),
];

/// The latents' rows and columns that early files should have named.
const EARLY_SIDE: usize = 64;

/// The scheduler's config after the pipeline's corrections: for the model's own scheduler, or for one
/// `chosen` by name. Only the first family's pipeline corrects anything.
pub fn scheduler(read: &SchedulerConfig, family: Family, chosen: bool) -> SchedulerConfig {
    let mut config = read.clone();
    if family != Family::StableDiffusion {
        return config;
    }
    // What the file does not say is corrected, but not handed on.
    if !chosen || config.steps_offset.is_some() {
        config.steps_offset = Some(1);
    }
    if !chosen || config.clip_sample == Some(true) {
        config.clip_sample = Some(false);
    }
    config
}

/// Rows and columns of the latents where nobody asks for others.
///
/// # Errors
/// [`lacuna_model::Error::UnsupportedConfig`] when `_diffusers_version` is no version.
pub fn sample_size(config: &UNetConfig, family: Family) -> Result<Option<[usize; 2]>> {
    let early = match &config.diffusers_version {
        Some(version) if family == Family::StableDiffusion => {
            is_early(version).ok_or_else(|| lacuna_model::Error::UnsupportedConfig {
                config: "unet/config.json".into(),
                key: "_diffusers_version".into(),
                value: json!(version).to_string(),
                hint: "a version such as 0.6.0 is expected".into(),
            })?
        }
        _ => false,
    };
    Ok(config.sample_size.map(|size| match size {
        SampleSize::Square(side) if early && side < EARLY_SIDE => [EARLY_SIDE; 2],
        size => size.sides(),
    }))
}

/// Whether a version is below 0.9.0, its pre-releases taken for the release; none for no version.
fn is_early(version: &str) -> Option<bool> {
    let version = version.trim().trim_start_matches(['v', 'V']);
    let (epoch, version) = version.split_once('!').unwrap_or(("0", version));
    let digits = |part: &str| {
        let end = part.find(|c: char| !c.is_ascii_digit());
        part[..end.unwrap_or(part.len())].to_owned()
    };
    let mut parts = version.split('.').map(digits);
    let epoch: u64 = epoch.parse().ok()?;
    let major: u64 = parts.next()?.parse().ok()?;
    let minor: u64 = parts.next().map_or(0, |minor| minor.parse().unwrap_or(0));
    Some((epoch, major, minor) < (0, 0, 9))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_model::config::ConfigReader;
    use serde_json::Value;

    fn size(config: Value) -> Result<Option<[usize; 2]>> {
        sample_size(
            &UNetConfig::read(ConfigReader::new("unet/config.json", config)?)?,
            Family::StableDiffusion,
        )
    }

    #[test]
    fn early_files_name_too_small_a_size() {
        for (version, side, want) in [
            ("0.6.0", 32, 64),
            ("0.8.1.dev0", 63, 64),
            ("0.6.0", 96, 96),
            ("0.9.0.dev0", 32, 32),
            ("0.42.1", 32, 32),
            ("1.0", 32, 32),
        ] {
            let config = json!({"_diffusers_version": version, "sample_size": side});
            assert_eq!(size(config).unwrap(), Some([want; 2]), "{version} {side}");
        }
        let two = json!({"_diffusers_version": "0.6.0", "sample_size": [32, 24]});
        assert_eq!(size(two).unwrap(), Some([32, 24]));
        assert_eq!(size(json!({"sample_size": 32})).unwrap(), Some([32; 2]));
        assert_eq!(size(json!({"_diffusers_version": "0.6.0"})).unwrap(), None);
        let error = size(json!({"_diffusers_version": "new"})).unwrap_err();
        assert!(error.to_string().contains("_diffusers_version"), "{error}");
    }

    #[test]
    fn what_the_file_says_is_handed_on_corrected_and_nothing_else() {
        let config = |value| SchedulerConfig::from_value(value).unwrap();
        let of = |config: &SchedulerConfig, chosen| {
            let corrected = scheduler(config, Family::StableDiffusion, chosen);
            (corrected.steps_offset, corrected.clip_sample)
        };
        let silent = config(json!({}));
        assert_eq!(of(&silent, false), (Some(1), Some(false)));
        assert_eq!(of(&silent, true), (None, None));
        let wrong = config(json!({"steps_offset": 0, "clip_sample": true}));
        assert_eq!(of(&wrong, true), (Some(1), Some(false)));
        let off = config(json!({"steps_offset": null, "clip_sample": null}));
        assert_eq!(of(&off, true), (Some(1), Some(false)));
    }
}

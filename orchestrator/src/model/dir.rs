//! A model on disk, in the folder layout of `diffusers`.

use std::path::{Path, PathBuf};

use lacuna_model::config::{ConfigReader, WithoutEffect};
use lacuna_model::weights::Checkpoint;

use crate::error::{Error, Result};
use crate::family::{Family, PIPELINES};
use crate::schedulers::SchedulerConfig;
use crate::vae::ASYMMETRIC;

/// Pipelines that people are likely to try, and what each lacks here.
const NOT_YET: [(&str, &str); 3] = [
    (
        "StableDiffusionXLImg2ImgPipeline",
        "a refiner has one text encoder and takes an aesthetic score, which is not supported yet",
    ),
    (
        "StableDiffusion3Pipeline",
        "it has a transformer in place of the U-Net",
    ),
    ("FluxPipeline", "it has a transformer in place of the U-Net"),
];

/// Keys of `model_index.json` that never change the picture.
pub const WITHOUT_EFFECT: WithoutEffect = &[
    (
        "feature_extractor",
        "prepares pictures for the safety checker",
    ),
    (
        "add_watermarker",
        "no watermark is drawn; the reference draws one where a library for it is there",
    ),
    ("image_encoder", "only for prompts that are pictures"),
    ("requires_safety_checker", "no safety checker is run"),
    ("safety_checker", "no safety checker is run"),
];

/// A model's directories, checked to be those of a supported pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDir {
    /// Which pipeline it is for.
    pub family: Family,
    /// `UNet2DConditionModel`.
    pub unet: PathBuf,
    /// `AutoencoderKL`, or the asymmetric one.
    pub vae: PathBuf,
    /// Text encoders with their tokenizers, in the order in which the U-Net takes what they give.
    pub text: Vec<TextPart>,
    /// Whether no negative prompt means zeros in place of an empty text.
    pub zeros_for_no_prompt: bool,
    /// Holds `scheduler_config.json`.
    pub scheduler: PathBuf,
    /// The scheduler's class, e.g. `PNDMScheduler`, whatever class its config was written for.
    pub scheduler_class: String,
    /// The guidance scale that its makers recommend, where they do.
    pub guidance_scale: Option<f32>,
    /// Whether the model knows only words that are one token each.
    pub whole_words: bool,
}

/// Classes of tokenizers that build CLIP's from its vocabulary.
const CLIP_TOKENIZERS: [&str; 2] = ["CLIPTokenizer", "CLIPTokenizerFast"];
/// Those that are what `tokenizer.json` says; the latter is the newer name.
const AS_WRITTEN: [&str; 2] = ["PreTrainedTokenizerFast", "TokenizersBackend"];

/// A text encoder and its tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub struct TextPart {
    /// `CLIPTokenizer`, or one that is as its file says.
    pub tokenizer: PathBuf,
    /// Whether it is the latter: `PreTrainedTokenizerFast`.
    pub as_written: bool,
    /// `CLIPTextModel`, or `CLIPTextModelWithProjection`.
    pub encoder: PathBuf,
    /// Whether it also gives the whole text as one vector: `CLIPTextModelWithProjection`.
    pub pooling: bool,
}

impl ModelDir {
    /// Reads `dir/model_index.json` and looks for the parts that it names.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] for another pipeline or class of a part,
    /// [`Error::MissingPart`] for a directory that is not there, else a [`lacuna_model::Error`] naming
    /// the file or key.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("model_index.json");
        let mut index = Index {
            keys: ConfigReader::from_file(&path)?,
            path,
            dir,
        };
        let family = index.family()?;
        let (diffusers, transformers) = ("diffusers", "transformers");
        let unet = index.part("unet", diffusers, &["UNet2DConditionModel"])?.0;
        let vae = index
            .part("vae", diffusers, &["AutoencoderKL", ASYMMETRIC])?
            .0;
        let mut text = Vec::new();
        let parts = [
            ("tokenizer", "text_encoder", "CLIPTextModel"),
            (
                "tokenizer_2",
                "text_encoder_2",
                "CLIPTextModelWithProjection",
            ),
        ];
        let encoders = match family {
            Family::StableDiffusion | Family::LatentConsistency => 1,
            Family::StableDiffusionXl => 2,
        };
        for (i, (tokenizer, encoder, class)) in parts.into_iter().enumerate().take(encoders) {
            let classes = [&CLIP_TOKENIZERS[..], &AS_WRITTEN].concat();
            let encoder = index.part(encoder, transformers, &[class])?.0;
            let (tokenizer, class) = index.part(tokenizer, transformers, &classes)?;
            text.push(TextPart {
                encoder,
                tokenizer,
                as_written: AS_WRITTEN.contains(&class.as_str()),
                pooling: i == 1,
            });
        }
        let zeros_for_no_prompt = match family {
            Family::StableDiffusionXl => {
                let keys = &mut index.keys;
                keys.only("requires_aesthetics_score", &[false.into()])?;
                keys.flag("force_zeros_for_empty_prompt", true)?
            }
            Family::StableDiffusion | Family::LatentConsistency => false,
        };
        // Which schedulers there are is for the schedulers to say.
        let (scheduler, scheduler_class) = index.part("scheduler", diffusers, &[])?;
        index.keys.ignore(WITHOUT_EFFECT);
        index.keys.finish();
        let (guidance_scale, whole_words) = recommended(dir)?;
        Ok(Self {
            family,
            unet,
            vae,
            text,
            zeros_for_no_prompt,
            scheduler,
            scheduler_class,
            guidance_scale,
            whole_words,
        })
    }

    /// Checks that a variant (`fp16`, say) is there: of some part, as the others are read without.
    ///
    /// # Errors
    /// [`Error::Request`] when no part has it.
    pub fn check_variant(&self, variant: Option<&str>) -> Result<()> {
        let text = self.text.iter().map(|part| &part.encoder);
        let mut parts = [&self.unet, &self.vae].into_iter().chain(text);
        match variant {
            Some(variant) if !parts.any(|dir| Checkpoint::has_variant(dir, variant)) => {
                Err(Error::Request(format!(
                    "--variant {variant}: no part of the model has such files; leave it out"
                )))
            }
            _ => Ok(()),
        }
    }
}

impl ModelDir {
    /// The scheduler's config.
    ///
    /// # Errors
    /// [`Error::Input`], naming the file.
    pub fn read_scheduler(&self) -> Result<SchedulerConfig> {
        let path = self.scheduler.join("scheduler_config.json");
        let input_error = |reason: String| Error::Input {
            path: path.clone(),
            reason,
        };
        let text = std::fs::read_to_string(&path).map_err(|e| input_error(e.to_string()))?;
        SchedulerConfig::from_json(&text).map_err(|e| input_error(e.to_string()))
    }
}

/// The guidance scale that the makers of the model in `dir` recommend, where they do; none where it is no directory.
///
/// # Errors
/// Those of the file that says so.
pub fn recommended_guidance(dir: &Path) -> Result<Option<f32>> {
    Ok(recommended(dir)?.0)
}

/// `guidance_scale` of the file in which a model's makers may leave recommended settings; and our own `whole_words`:
/// that the model knows only words that are one token each.
fn recommended(dir: &Path) -> Result<(Option<f32>, bool)> {
    let path = dir.join("generation_config.json");
    if !path.is_file() {
        return Ok((None, false));
    }
    let mut keys = ConfigReader::from_file(&path)?;
    let guidance = keys.optional("guidance_scale")?;
    let whole_words = keys.flag("whole_words", false)?;
    // Such files hold a language model's settings, too.
    keys.finish();
    Ok((guidance, whole_words))
}

/// `model_index.json` while it is read.
struct Index<'a> {
    keys: ConfigReader,
    path: PathBuf,
    dir: &'a Path,
}

impl Index<'_> {
    fn family(&mut self) -> Result<Family> {
        let class: String = self.keys.required("_class_name")?;
        if let Some((_, family)) = PIPELINES.iter().find(|(name, _)| *name == class) {
            return Ok(*family);
        }
        let known = NOT_YET.iter().find(|(name, _)| *name == class);
        let hint = match known {
            Some((_, why)) => (*why).to_owned(),
            None => format!("only {} are", PIPELINES.map(|(name, _)| name).join(", ")),
        };
        Err(self.unsupported(class, hint))
    }

    /// The directory and class of a part out of `library`; `classes` are those that are supported, or
    /// none for any.
    fn part(
        &mut self,
        part: &'static str,
        library: &str,
        classes: &[&str],
    ) -> Result<(PathBuf, String)> {
        let (from, class): (Option<String>, Option<String>) = self.keys.required(part)?;
        let class = class.unwrap_or_else(|| "null".into());
        if let Some(from) = from.filter(|from| from != library) {
            let hint = format!("as {part}, only classes of {library} are");
            return Err(self.unsupported(format!("{from}.{class}"), hint));
        }
        if class == "null" || !(classes.is_empty() || classes.contains(&class.as_str())) {
            let hint = match classes.first() {
                Some(only) => format!("as {part}, only {only} is"),
                None => format!("a model needs a {part}"),
            };
            return Err(self.unsupported(class, hint));
        }
        let path = self.dir.join(part);
        if !path.is_dir() {
            return Err(Error::MissingPart {
                model: self.dir.to_owned(),
                part,
            });
        }
        Ok((path, class))
    }

    fn unsupported(&self, class: String, hint: String) -> Error {
        Error::UnsupportedModel {
            path: self.path.clone(),
            class,
            hint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A directory with the index as published, changed by `change`, and empty parts.
    fn model(change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut index = json!({
            "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0",
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"]
        });
        change(&mut index);
        std::fs::write(dir.path().join("model_index.json"), index.to_string()).unwrap();
        for part in ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
        }
        dir
    }

    fn error(dir: &tempfile::TempDir) -> String {
        ModelDir::open(dir.path()).unwrap_err().to_string()
    }

    #[test]
    fn a_published_index_is_read() {
        let dir = model(|_| {});
        let parts = ModelDir::open(dir.path()).unwrap();
        assert_eq!(parts.scheduler_class, "PNDMScheduler");
        assert_eq!(parts.family, Family::StableDiffusion);
        let [text] = &parts.text[..] else {
            panic!("{parts:?}");
        };
        assert_eq!(text.encoder, dir.path().join("text_encoder"));
    }

    #[test]
    fn sdxl_has_two_text_encoders() {
        let xl = |index: &mut Value| index["_class_name"] = json!("StableDiffusionXLPipeline");
        let message = error(&model(xl));
        assert!(message.contains("text_encoder_2"), "{message}");
        let dir = model(|index| {
            xl(index);
            index["text_encoder_2"] = json!(["transformers", "CLIPTextModelWithProjection"]);
            index["tokenizer_2"] = json!(["transformers", "CLIPTokenizer"]);
        });
        for part in ["text_encoder_2", "tokenizer_2"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
        }
        let parts = ModelDir::open(dir.path()).unwrap();
        assert_eq!(parts.family, Family::StableDiffusionXl);
        assert!(parts.zeros_for_no_prompt);
        let pooling: Vec<bool> = parts.text.iter().map(|part| part.pooling).collect();
        assert_eq!(pooling, [false, true]);
    }

    #[test]
    fn a_recommended_guidance_is_read_and_nothing_else() {
        let dir = model(|_| {});
        let open = || ModelDir::open(dir.path());
        assert_eq!(open().unwrap().guidance_scale, None);
        let config = dir.path().join("generation_config.json");
        std::fs::write(&config, r#"{"guidance_scale": 2.5}"#).unwrap();
        assert_eq!(open().unwrap().guidance_scale, Some(2.5));
        let stray = r#"{"bos_token_id": 0, "guidance_scale": 3, "transformers_version": "5"}"#;
        std::fs::write(&config, stray).unwrap();
        assert_eq!(open().unwrap().guidance_scale, Some(3.0));
        for wrong in [r#"{"guidance_scale": "much"}"#, "[]", "{"] {
            std::fs::write(&config, wrong).unwrap();
            let message = open().unwrap_err().to_string();
            assert!(message.contains("generation_config.json"), "{message}");
        }
    }

    #[test]
    fn null_parts_that_are_not_needed_are_fine() {
        let dir = model(|index| index["safety_checker"] = json!([null, null]));
        ModelDir::open(dir.path()).unwrap();
    }

    #[test]
    fn other_pipelines_are_named_with_what_they_lack() {
        let other = model(|index| index["_class_name"] = json!("StableDiffusion3Pipeline"));
        let message = error(&other);
        assert!(message.contains("StableDiffusion3Pipeline"), "{message}");
        assert!(message.contains("a transformer"), "{message}");
        let other = model(|index| index["_class_name"] = json!("KandinskyPipeline"));
        let message = error(&other);
        assert!(
            message.contains("KandinskyPipeline is not supported"),
            "{message}"
        );
    }

    #[test]
    fn other_parts_are_named() {
        let dir = model(|index| index["vae"] = json!(["diffusers", "AutoencoderTiny"]));
        assert!(error(&dir).contains("AutoencoderTiny"), "{}", error(&dir));
        let dir = model(|index| index["unet"] = json!([null, null]));
        assert!(error(&dir).contains("as unet"), "{}", error(&dir));
        let dir = model(|index| index["unet"] = json!(["mine", "UNet2DConditionModel"]));
        assert!(error(&dir).contains("mine.UNet2D"), "{}", error(&dir));
        let dir = model(|index| index["scheduler"] = json!([null, null]));
        assert!(error(&dir).contains("needs a scheduler"), "{}", error(&dir));
    }

    #[test]
    fn parts_that_the_pipeline_does_not_have_are_ignored() {
        let dir = model(|index| index["controlnet"] = json!(["diffusers", "ControlNetModel"]));
        ModelDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_variant_of_one_part_is_enough_and_one_of_none_is_refused() {
        let dir = model(|_| {});
        let parts = ModelDir::open(dir.path()).unwrap();
        let error = parts.check_variant(Some("fp16")).unwrap_err().to_string();
        assert!(error.contains("--variant fp16"), "{error}");
        let file = parts.vae.join("diffusion_pytorch_model.fp16.safetensors");
        std::fs::write(file, "").unwrap();
        parts.check_variant(Some("fp16")).unwrap();
        parts.check_variant(None).unwrap();
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = model(|_| {});
        std::fs::remove_dir(dir.path().join("scheduler")).unwrap();
        assert!(
            error(&dir).contains("part scheduler is missing"),
            "{}",
            error(&dir)
        );
        let empty = tempfile::tempdir().unwrap();
        assert!(
            error(&empty).contains("model_index.json"),
            "{}",
            error(&empty)
        );
    }
}

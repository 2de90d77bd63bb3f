//! From a prompt to a picture: what stays with the user, around any scheme's U-Net calls.
//!
//! `sampler` goes from noise to latents, `latents` reads and writes these.

mod latents;
mod sampler;

pub use latents::{read_latents, write_latents};
pub use sampler::{FromImage, Origin, Reached, Sampling, Start, Step, go_on};

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use lacuna_model::host::OnDevice;
use lacuna_model::unet::UNet;
use lacuna_model::weights::{Adapter, AdapterFile, Network, Stored};
use lacuna_model::whole::{Conditioning, Guidance};
use lacuna_wire::HostTensor;

use crate::corrections;
use crate::error::{Error, Result};
use crate::family::Family;
use crate::limits;
use crate::model::{ModelFiles, ModelParts};
use crate::noise::TorchRng;
use crate::picture::Picture;
use crate::schedulers::{
    self, Begin, PredictionType, Scheduler, SchedulerConfig, SchedulerKind, SchedulerOption,
};
use crate::text::{EmbeddingFile, Prompt, PromptOptions, TextEncoders};
use crate::unet_source::UNetSource;
use crate::vae::{ASYMMETRIC, Vae, VaeLayers};

/// What latents are drawn from: a normal distribution for each, before the scaling factor.
#[derive(Clone, Debug)]
pub struct Latents {
    mean: Vec<f32>,
    std: Vec<f32>,
}

/// A model whose parts are loaded to the user's device when they are needed, and dropped after.
pub struct Pipeline {
    family: Family,
    text: TextEncoders,
    vae: Stored<VaeLayers>,
    unet: Arc<UNetSource>,
    /// The guidance scale that the model's makers recommend, where they do.
    guidance_scale: Option<f32>,
    /// Whether the model knows only words that are one token each.
    whole_words: bool,
    /// Rows and columns of the latents where nobody asks for others.
    sample_size: Option<[usize; 2]>,
    /// As read.
    scheduler: SchedulerConfig,
    /// Of the model's own scheduler.
    scheduler_class: String,
    /// Of each.
    adapters: Vec<String>,
    /// Of each.
    embeddings: Vec<String>,
    device: Device,
}

impl Pipeline {
    /// Opens every part of a diffusers model directory or of a model's one file, and merges `adapters`, and checks
    /// that they are whole and fit each other.
    ///
    /// # Errors
    /// Each names the file, key or tensor that is missing, damaged or not supported.
    pub fn open(
        model: &Path,
        variant: Option<&str>,
        adapters: &[AdapterFile],
        device: &Device,
    ) -> Result<Self> {
        let files = ModelFiles {
            variant: variant.map(str::to_owned),
            ..ModelFiles::of(model)
        };
        Self::of(files.open()?, adapters, device)
    }

    /// The pipeline of these `parts`, with `adapters` of the U-Net and the text encoders.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of(parts: ModelParts, adapters: &[AdapterFile], device: &Device) -> Result<Self> {
        let config = parts.unet_config;
        let unet = Stored::new(config.build(), parts.unet)?;
        let mut adapters = AdapterFile::open_all(adapters)?;
        let unet = unet.with_adapters(Adapter::take_all(&mut adapters, Network::UNet))?;
        let mut text = Vec::with_capacity(parts.text.len());
        for (i, (tokenizer, stored)) in parts.text.into_iter().enumerate() {
            let own = Adapter::take_all(&mut adapters, Network::Text(i));
            text.push((tokenizer, stored.with_adapters(own)?));
        }
        adapters.iter().try_for_each(Adapter::check_taken)?;
        let family = parts.family;
        let pipeline = Self {
            family,
            text: TextEncoders::new(family, text, parts.zeros_for_no_prompt),
            vae: parts.vae,
            scheduler: parts.scheduler,
            scheduler_class: parts.scheduler_class,
            guidance_scale: parts.guidance_scale,
            whole_words: parts.whole_words,
            sample_size: corrections::sample_size(&config, family)?,
            unet: Arc::new(UNetSource::of_files(unet, device)?),
            adapters: adapters.iter().map(|it| it.digest().to_owned()).collect(),
            embeddings: Vec::new(),
            device: device.clone(),
        };
        pipeline.check()?;
        Ok(pipeline)
    }

    /// The same, whose prompts may call embeddings of textual inversion.
    ///
    /// # Errors
    /// As [`TextEncoders::add`].
    pub fn with_embeddings(mut self, files: &[EmbeddingFile]) -> Result<Self> {
        for file in files {
            self.embeddings.push(self.text.add(file)?);
        }
        Ok(self)
    }

    /// The parts must fit each other.
    fn check(&self) -> Result<()> {
        let unfit = |what: &str, got: usize, unet: usize| {
            Err(Error::Request(format!(
                "the model's parts do not fit: {what} {got}, the U-Net takes {unet}"
            )))
        };
        let (unet, vae) = (self.unet(), self.vae.layers());
        self.text.check(unet)?;
        if vae.latent_channels() != unet.latent_channels() {
            let channels = vae.latent_channels();
            return unfit(
                "the VAE's latent channels are",
                channels,
                unet.latent_channels(),
            );
        }
        if unet.in_channels != unet.latent_channels() && !self.takes_mask() {
            let (takes, latents) = (unet.in_channels, unet.latent_channels());
            return Err(Error::Request(format!(
                "the U-Net takes {takes} channels, and latents have {latents}: only {latents}, and {} of an inpainting model, \
                 are supported",
                2 * latents + 1
            )));
        }
        // The others are loaded before anything is sent, the decoder after all was computed.
        Ok(self.vae.check_values(&vae.of_decoding())?)
    }

    /// The U-Net's layers.
    pub fn unet(&self) -> &UNet {
        self.unet.layers()
    }

    /// Whether adapters change the U-Net, and not the text encoders alone.
    pub fn adapts_unet(&self) -> bool {
        self.unet.is_adapted()
    }

    /// Whether the U-Net takes a mask and the latents of what it leaves behind those of the picture: an inpainting model.
    pub fn takes_mask(&self) -> bool {
        self.unet().in_channels == 2 * self.unet().latent_channels() + 1
    }

    /// Which of the reference's pipelines it follows.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Digest of the U-Net's weights (see [`Checkpoint::digest`](lacuna_model::weights::Checkpoint::digest)).
    pub fn digest(&self) -> &str {
        self.unet.digest()
    }

    /// Identifies each of the adapters with its strength, those of text encoders among them, in their order.
    pub fn adapters(&self) -> &[String] {
        &self.adapters
    }

    /// Identifies each of the embeddings with its name, in their order.
    pub fn embeddings(&self) -> &[String] {
        &self.embeddings
    }

    /// The U-Net, and where its weights come from.
    pub fn source(&self) -> &Arc<UNetSource> {
        &self.unet
    }

    /// Rows (and columns) of the picture for each row of the latents.
    pub fn pixels_per_latent(&self) -> usize {
        self.vae.layers().pixels_per_latent()
    }

    /// Latents of `[1, C, H, W]` for a picture of `width` x `height` pixels, or of the model's own
    /// size.
    ///
    /// # Errors
    /// [`Error::Request`] when no latents make such a picture.
    pub fn latent_shape(&self, width: Option<usize>, height: Option<usize>) -> Result<[usize; 4]> {
        let pixels = self.pixels_per_latent();
        let own = self
            .sample_size
            .map(|size| size.map(|side| side.saturating_mul(pixels)));
        let latents = |name: &str, size: Option<usize>| match size {
            Some(size) => {
                limits::check_side(&format!("--{name}"), size, pixels)?;
                Ok(size / pixels)
            }
            None => Err(Error::Request(
                "the model names no size; give --size".into(),
            )),
        };
        let rows = latents("height", height.or(own.map(|[rows, _]| rows)))?;
        let columns = latents("width", width.or(own.map(|[_, columns]| columns)))?;
        limits::check_latents("--size", [1, rows, columns])?;
        let vae = self.vae.layers();
        limits::check_memory("--size", vae.least_memory(rows * columns * pixels * pixels))?;
        Ok([1, self.unet().latent_channels(), rows, columns])
    }

    /// Tokens `T` of every prompt that is one chunk.
    pub fn tokens(&self) -> usize {
        self.text.tokens()
    }

    /// The embeddings that `prompt` does not call.
    ///
    /// # Errors
    /// As [`TextEncoders::unused`].
    pub fn unused_embeddings(&self, prompt: &Prompt) -> Result<Vec<&str>> {
        self.text.unused(prompt)
    }

    /// The words of a prompt that the model's makers say it does not know.
    ///
    /// # Errors
    /// As [`TextEncoders::split_words`].
    pub fn unknown_words(&self, prompt: &Prompt) -> Result<Vec<String>> {
        match self.whole_words {
            true => self.text.split_words(prompt),
            false => Ok(Vec::new()),
        }
    }

    /// How a picture is sampled in `steps`, with the guidance scale `guidance`, or that which the model's makers
    /// recommend, or the usual one of its kind.
    pub fn sampling(&self, steps: usize, guidance: Option<f32>) -> Sampling {
        let guidance = guidance.or(self.guidance_scale);
        Sampling {
            scheduler: None,
            options: Vec::new(),
            steps,
            guidance: guidance.unwrap_or_else(|| self.family.usual_guidance()),
            embedded: self.unet().time.guidance.is_some(),
            eta: 0.0,
            from: None,
        }
    }

    /// What the U-Net is told of a picture of `prompt`, whose latents are of `shape` `[1, C, H, W]`: texts `[B, T, D]` and
    /// what belongs to them, the negative prompt's first where the sampling is guided. The text encoders are read for it.
    ///
    /// # Errors
    /// [`Error::Prompt`] when a tokenizer refuses; as [`Stored::load_part`].
    pub fn encode(
        &self,
        prompt: &Prompt,
        sampling: &Sampling,
        shape: [usize; 4],
    ) -> Result<Conditioning> {
        let [_, _, rows, columns] = shape;
        let size = [rows, columns].map(|side| side.saturating_mul(self.pixels_per_latent()));
        let text = &self.text;
        let conditioning = text.encode(prompt, sampling.guided(), size, &self.device)?;
        Ok(Conditioning {
            guidance: (sampling.embedded).then_some(Guidance::Scale(sampling.guidance)),
            ..conditioning
        })
    }

    /// U-Net calls of a picture.
    ///
    /// # Errors
    /// Those of the scheduler's settings.
    pub fn calls(&self, sampling: &Sampling) -> Result<usize> {
        let scheduler = self.scheduler(sampling)?;
        Ok(scheduler.timesteps().len() - scheduler.first())
    }

    /// The scheduler's config, as the reference's `from_config` makes it where anything of it is chosen.
    fn scheduler_config(&self, sampling: &Sampling) -> SchedulerConfig {
        let chosen = sampling.scheduler.is_some() || !sampling.options.is_empty();
        let config = corrections::scheduler(&self.scheduler, self.family, chosen);
        SchedulerOption::apply_all(&sampling.options, config)
    }

    /// What the network's output means.
    fn prediction(&self, sampling: &Sampling) -> Result<PredictionType> {
        Ok(self.scheduler_config(sampling).prediction_type()?)
    }

    /// The scheduler of one picture.
    fn scheduler(&self, sampling: &Sampling) -> Result<Box<dyn Scheduler>> {
        let kind = match sampling.scheduler {
            Some(kind) => {
                SchedulerKind::check_origin(&self.scheduler_class)?;
                kind
            }
            None => SchedulerKind::from_class_name(&self.scheduler_class)?,
        };
        sampling
            .options
            .iter()
            .try_for_each(|option| option.check(kind))?;
        let config = self.scheduler_config(sampling);
        let (steps, eta) = (sampling.steps, sampling.eta);
        let begin = match (sampling.from, self.family) {
            (None, _) => Begin::Noise,
            (Some(from), Family::LatentConsistency) if !from.masked => {
                Begin::PictureOfTeacher(from.strength)
            }
            (Some(from), _) => Begin::Picture(from.strength),
        };
        Ok(schedulers::build_from(begin, kind, &config, steps, eta)?)
    }

    /// Checks that prompts can be read with such options, before any work is done.
    ///
    /// # Errors
    /// As [`TextEncoders::check_options`].
    pub fn check_prompts(&self, options: &PromptOptions) -> Result<()> {
        self.text.check_options(options)
    }

    /// Checks that pictures can be sampled so, before any work is done.
    ///
    /// # Errors
    /// [`Error::Scheduler`], naming the setting; [`Error::Request`] for a guidance scale that is no number, and where an inpainting model has nothing to
    /// fill in.
    pub fn check_sampling(&self, sampling: &Sampling) -> Result<()> {
        if !sampling.guidance.is_finite() {
            return Err(Error::Request(format!(
                "guidance {}: it must be a number (--guidance, or guidance_scale in generation_config.json)",
                sampling.guidance
            )));
        }
        if self.takes_mask() && !sampling.from.is_some_and(|from| from.masked) {
            return Err(Error::Request(
                "this model fills in a part of a picture: lacuna generate makes one with --init-image and --mask (a white mask has all of it painted anew)".into(),
            ));
        }
        let masked = sampling.from.is_some_and(|from| from.masked);
        if masked && self.vae.layers().wants_what_is_kept() {
            return Err(Error::Request(format!(
                "--mask: this model's autoencoder, an {ASYMMETRIC}, would be shown what is kept of the picture, which is not supported; give \
                 --vae of a model with an AutoencoderKL"
            )));
        }
        self.scheduler(sampling).map(drop)
    }

    /// Pictures `[1, 3, height, width]` in -1..1 to what their latents are drawn from. The VAE's encoder is loaded for it.
    ///
    /// # Errors
    /// Those of the device; as [`Stored::load_part`]; [`Error::Request`] for a VAE of other channels.
    pub fn encode_image(&self, picture: HostTensor) -> Result<Latents> {
        let channels = self.vae.layers().picture_channels();
        if channels != 3 {
            return Err(Error::Request(format!(
                "the model's VAE takes {channels} channels, where pictures have 3 (--init-image, --preview); take another model, or \
                 another --vae"
            )));
        }
        let picture = picture.into_device::<4>(&self.device)?;
        let vae = Vae::load_encoder(&self.vae, &self.device)?;
        let posterior = vae.encode(picture)?;
        let mean = HostTensor::from_device(posterior.mean)?;
        mean.check_finite("the picture's latents")?;
        let log_variance = HostTensor::from_device(posterior.log_variance)?.data;
        // Between the bounds of the reference (DiagonalGaussianDistribution).
        let std = |x: f32| (0.5 * x.clamp(-30.0, 20.0)).exp();
        Ok(Latents {
            mean: mean.data,
            std: log_variance.into_iter().map(std).collect(),
        })
    }

    /// One picture's latents, `[1, C, H, W]`, as the U-Net has them.
    pub fn draw(&self, latents: &Latents, rng: &mut TorchRng) -> Vec<f32> {
        let noise = rng.randn(latents.mean.len());
        let distributions = latents.mean.iter().zip(&latents.std);
        let drawn = distributions.zip(noise);
        self.scaled(drawn.map(|((mean, std), x)| mean + std * x).collect())
    }

    /// The most likely latents, `[1, C, H, W]`, as the U-Net has them.
    pub fn most_likely(&self, latents: &Latents) -> Vec<f32> {
        self.scaled(latents.mean.clone())
    }

    /// What the VAE encodes, as the U-Net has it. (The reference's pipeline for SDXL's inpainting leaves mean and standard deviation out
    /// here, and not when it decodes.)
    fn scaled(&self, mut latents: Vec<f32>) -> Vec<f32> {
        let layers = self.vae.layers();
        match self.family {
            Family::StableDiffusionXl => layers.normalise(&mut latents),
            Family::StableDiffusion | Family::LatentConsistency => layers.scale(&mut latents),
        }
        latents
    }

    /// Latents `[1, C, H, W]` to a picture. The VAE's decoder is loaded for it.
    ///
    /// # Errors
    /// Those of the device; as [`Stored::load_part`].
    pub fn decode(&self, latents: HostTensor) -> Result<Picture> {
        let latents = latents.into_device::<4>(&self.device)?;
        let vae = Vae::load_decoder(&self.vae, &self.device)?;
        let layers = self.vae.layers();
        let latents = match self.family {
            Family::StableDiffusionXl => layers.unnormalised(latents),
            Family::StableDiffusion | Family::LatentConsistency => layers.unscaled(latents),
        };
        let decoded = vae.decode(latents)?;
        drop(vae);
        Picture::from_decoded(HostTensor::from_device(decoded)?)
    }
}

fn input_error(path: &Path, reason: impl ToString) -> Error {
    Error::Input {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

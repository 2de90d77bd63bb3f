//! From a prompt to a picture: what stays with the user, around any scheme's U-Net calls.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use lacuna_model::host::OnDevice;
use lacuna_model::unet::{UNet, UNetConfig};
use lacuna_model::weights::{AdapterFile, Checkpoint, Library, Stored};
use lacuna_wire::HostTensor;

use crate::corrections;
use crate::error::{Error, Result};
use crate::fleet::tally::Traffic;
use crate::interrupt;
use crate::limits;
use crate::model_dir::ModelDir;
use crate::noise::TorchRng;
use crate::picture::Picture;
use crate::schedulers::{self, Scheduler, SchedulerConfig, SchedulerKind};
use crate::schemes::Predictor;
use crate::text::{ClipTextEncoder, ClipTextLayers, ClipTokenizer};
use crate::unet_source::UNetSource;
use crate::vae::{Vae, VaeLayers};

/// A model whose parts are loaded to the user's device when they are needed, and dropped after.
pub struct Pipeline {
    tokenizer: ClipTokenizer,
    text_encoder: Stored<ClipTextLayers>,
    vae: Stored<VaeLayers>,
    unet: Arc<UNetSource>,
    /// The guidance scale that the model's makers recommend, where they do.
    pub guidance_scale: Option<f32>,
    /// Whether the model knows only words that are one token each.
    whole_words: bool,
    /// Rows and columns of the latents where nobody asks for others.
    sample_size: Option<[usize; 2]>,
    /// As read.
    scheduler: SchedulerConfig,
    /// Of the model's own scheduler.
    scheduler_class: String,
    device: Device,
}

/// Noise of the strongest schedules is some 10^4.
const LARGEST_LATENT: f32 = 1e9;

/// How the sampler goes from noise to latents.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Another scheduler than the model's own.
    pub scheduler: Option<SchedulerKind>,
    /// Sampler steps.
    pub steps: usize,
    /// Guidance scale; above 1 the U-Net runs on a batch of two.
    pub guidance: f32,
    /// DDIM's and TCD's amount of fresh noise, 0 to 1.
    pub eta: f32,
}

impl Sampling {
    /// Whether the prediction is guided away from the negative prompt (Ho and Salimans 2022).
    pub fn guided(&self) -> bool {
        self.guidance > 1.0
    }

    /// Batch entries of one U-Net call.
    pub fn batch(&self) -> usize {
        if self.guided() { 2 } else { 1 }
    }
}

/// What the sampler begins with.
pub struct Start<'a> {
    /// `[1, C, H, W]`, of standard deviation 1.
    pub noise: HostTensor,
    /// Fresh noise, where the scheduler adds any, goes on from here.
    pub rng: &'a mut TorchRng,
    /// Guided predictions `[1, C, H, W]` of the first steps, where these were made before.
    pub made: Vec<Vec<f32>>,
}

impl<'a> Start<'a> {
    /// A beginning of which nothing was made before.
    pub fn new(noise: HostTensor, rng: &'a mut TorchRng) -> Self {
        Self {
            noise,
            rng,
            made: Vec::new(),
        }
    }
}

/// Where the sampler is.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// U-Net calls done.
    pub done: usize,
    /// U-Net calls in all; some schedulers make more than there are steps.
    pub of: usize,
    /// How long the last call took.
    pub took: Duration,
    /// What the workers were sent and sent so far; none without workers.
    pub traffic: Option<Traffic>,
}

/// What a step led to.
#[derive(Clone, Copy, Debug)]
pub struct Reached<'a> {
    /// The guided prediction, `[1, C, H, W]`. From all of them, and the noise, the latents follow.
    pub prediction: &'a [f32],
    /// The latents after it, `[1, C, H, W]`.
    pub latents: &'a [f32],
}

impl Pipeline {
    /// Opens every part of a diffusers model directory, and `adapters` of its U-Net, and checks that they are whole and
    /// fit each other.
    ///
    /// # Errors
    /// Each names the file, key or tensor that is missing, damaged or not supported.
    pub fn open(
        dir: &Path,
        variant: Option<&str>,
        adapters: &[AdapterFile],
        device: &Device,
    ) -> Result<Self> {
        let dir = ModelDir::open(dir)?;
        dir.check_variant(variant)?;
        let config = UNetConfig::from_file(&dir.unet.join("config.json"))?;
        let checkpoint = Checkpoint::open(&dir.unet, Library::Diffusers, variant)?;
        let unet = Stored::new(config.build(), checkpoint)?;
        let unet = unet.with_adapters(AdapterFile::open_all(adapters)?)?;
        let pipeline = Self {
            tokenizer: ClipTokenizer::load(&dir.tokenizer)?,
            text_encoder: ClipTextEncoder::open(&dir.text_encoder, variant)?,
            vae: Vae::open(&dir.vae, variant)?,
            scheduler: read_scheduler(&dir.scheduler)?,
            scheduler_class: dir.scheduler_class,
            guidance_scale: dir.guidance_scale,
            whole_words: dir.whole_words,
            sample_size: corrections::sample_size(&config)?,
            unet: Arc::new(UNetSource::of_files(unet, device)?),
            device: device.clone(),
        };
        pipeline.check()?;
        Ok(pipeline)
    }

    /// The parts must fit each other.
    fn check(&self) -> Result<()> {
        let unfit = |what: &str, got: usize, unet: usize| {
            Err(Error::Request(format!(
                "the model's parts do not fit: {what} {got}, the U-Net takes {unet}"
            )))
        };
        let (unet, vae) = (self.unet(), self.vae.layers());
        let text = self.text_encoder.layers().width();
        if text != unet.context_width {
            return unfit(
                "the text encoder gives a width of",
                text,
                unet.context_width,
            );
        }
        if vae.latent_channels() != unet.latent_channels() {
            let channels = vae.latent_channels();
            return unfit(
                "the VAE's latent channels are",
                channels,
                unet.latent_channels(),
            );
        }
        if unet.time.added.is_some() {
            return Err(Error::Request(
                "the U-Net's addition_embed_type is text_time, which needs the pooled text of a second \
                 text encoder; it is not supported yet"
                    .into(),
            ));
        }
        if self.tokens() > self.text_encoder.layers().places() {
            let places = self.text_encoder.layers().places();
            return Err(Error::Tokens(format!(
                "model_max_length is {}, max_position_embeddings {places}",
                self.tokens()
            )));
        }
        if unet.in_channels != unet.latent_channels() {
            return unfit(
                "the U-Net's in_channels are",
                unet.in_channels,
                unet.latent_channels(),
            );
        }
        // The others are loaded before anything is sent, the decoder after all was computed.
        Ok(self.vae.check_values(&vae.of_decoding())?)
    }

    /// The U-Net's layers.
    pub fn unet(&self) -> &UNet {
        self.unet.layers()
    }

    /// Digest of the U-Net's weights (see [`Checkpoint::digest`]).
    pub fn digest(&self) -> &str {
        self.unet.digest()
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

    /// Tokens `T` of every prompt.
    pub fn tokens(&self) -> usize {
        self.tokenizer.length()
    }

    /// The words of a prompt that the model's makers say it does not know.
    ///
    /// # Errors
    /// [`Error::Prompt`] when the tokenizer refuses.
    pub fn unknown_words<'a>(&self, prompt: &'a str) -> Result<Vec<&'a str>> {
        match self.whole_words {
            true => self.tokenizer.split_words(prompt),
            false => Ok(Vec::new()),
        }
    }

    /// What the U-Net is told of the prompt: `[B, 77, D]`, the negative prompt's first if `guided`. The
    /// text encoder is loaded for it.
    ///
    /// # Errors
    /// [`Error::Prompt`] when the tokenizer refuses; as [`Stored::load_part`].
    pub fn encode(&self, prompt: &str, negative: &str, guided: bool) -> Result<Tensor<3>> {
        let mut prompts = Vec::with_capacity(2);
        if guided {
            prompts.push(self.tokenizer.encode(negative)?);
        }
        prompts.push(self.tokenizer.encode(prompt)?);
        ClipTextEncoder::load_stored(&self.text_encoder, &self.device)?.encode(&prompts, 0)
    }

    /// U-Net calls of a picture.
    ///
    /// # Errors
    /// Those of the scheduler's settings.
    pub fn calls(&self, sampling: &Sampling) -> Result<usize> {
        Ok(self.scheduler(sampling)?.timesteps().len())
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
        let config = corrections::scheduler(&self.scheduler, sampling.scheduler.is_some());
        let (steps, eta) = (sampling.steps, sampling.eta);
        Ok(schedulers::build(kind, &config, steps, eta)?)
    }

    /// Checks that pictures can be sampled so, before any work is done.
    ///
    /// # Errors
    /// [`Error::Scheduler`], naming the setting; [`Error::Request`] for a guidance scale that is no number.
    pub fn check_sampling(&self, sampling: &Sampling) -> Result<()> {
        if !sampling.guidance.is_finite() {
            return Err(Error::Request(format!(
                "guidance {}: it must be a number (--guidance, or guidance_scale in generation_config.json)",
                sampling.guidance
            )));
        }
        self.scheduler(sampling).map(drop)
    }

    /// From noise to latents `[1, C, H, W]`, calling `predictor` on every step that was not made before and `watch` after
    /// each, which may end it.
    ///
    /// # Errors
    /// Those of the scheduler's settings and of the scheme; [`Error::Interrupted`].
    pub fn sample(
        &self,
        predictor: &mut dyn Predictor,
        sampling: &Sampling,
        start: Start<'_>,
        watch: &mut dyn FnMut(Step, Reached<'_>) -> ControlFlow<()>,
    ) -> Result<HostTensor> {
        self.sample_held(predictor, sampling, start, &mut |_, _| {}, watch)
    }

    /// The same, where `hold` may change the latents `[1, C, H, W]` before every step, and those at the end: it is given
    /// the weights of clean latents and of noise in them ([`Scheduler::level`]).
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn sample_held(
        &self,
        predictor: &mut dyn Predictor,
        sampling: &Sampling,
        start: Start<'_>,
        hold: &mut dyn FnMut([f32; 2], &mut [f32]),
        watch: &mut dyn FnMut(Step, Reached<'_>) -> ControlFlow<()>,
    ) -> Result<HostTensor> {
        let Start { noise, rng, made } = start;
        let mut scheduler = self.scheduler(sampling)?;
        let timesteps = scheduler.timesteps().to_vec();
        let [_, c, h, w] = noise.dims()?;
        let mut latents = noise.data;
        check_range(&latents, "the initial noise is off (--latents)")?;
        let sigma = scheduler.init_noise_sigma();
        latents.iter_mut().for_each(|x| *x *= sigma);
        let mut made = made.into_iter();
        for (i, &timestep) in timesteps.iter().enumerate() {
            interrupt::check()?;
            let start = Instant::now();
            hold(scheduler.level(i), &mut latents);
            let output = match made.next() {
                Some(output) => output,
                None => {
                    let mut input = latents.clone();
                    scheduler.scale_model_input(i, &mut input);
                    let batch = sampling.batch();
                    let input = HostTensor::new([batch, c, h, w], input.repeat(batch))?;
                    let output = predictor.predict(input, timestep)?;
                    match sampling.guided() {
                        true => guide(&output.data, sampling.guidance),
                        false => output.data,
                    }
                }
            };
            latents = scheduler.step(i, &output, &latents, rng);
            check_range(&latents, "--guidance or the model's config is off")?;
            let step = Step {
                done: i + 1,
                of: timesteps.len(),
                took: start.elapsed(),
                traffic: predictor.traffic(),
            };
            let reached = Reached {
                prediction: &output,
                latents: &latents,
            };
            go_on(watch(step, reached))?;
        }
        hold([1.0, 0.0], &mut latents);
        let latents = HostTensor::new([1, c, h, w], latents)?;
        latents.check_finite("the latents")?;
        Ok(latents)
    }

    /// Latents `[1, C, H, W]` to a picture. The VAE's decoder is loaded for it.
    ///
    /// # Errors
    /// Those of the device; as [`Stored::load_part`].
    pub fn decode(&self, latents: HostTensor) -> Result<Picture> {
        let latents = latents.into_device::<4>(&self.device)?;
        let vae = Vae::load_decoder(&self.vae, &self.device)?;
        let decoded = vae.decode(latents / self.vae.layers().scaling_factor())?;
        drop(vae);
        Picture::from_decoded(HostTensor::from_device(decoded)?)
    }
}

/// Whether whoever watches wants more.
///
/// # Errors
/// [`Error::Interrupted`] when not.
pub fn go_on(answer: ControlFlow<()>) -> Result<()> {
    match answer {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted),
    }
}

/// `u + scale (c - u)` of a batch of two, unconditional first (Ho and Salimans 2022, eq. 6).
fn guide(output: &[f32], scale: f32) -> Vec<f32> {
    let (unconditional, conditional) = output.split_at(output.len() / 2);
    let pairs = unconditional.iter().zip(conditional);
    pairs.map(|(u, c)| u + scale * (c - u)).collect()
}

/// That nobody is asked to compute on values of which no picture is made, and which overflow on the way.
fn check_range(latents: &[f32], reason: &str) -> Result<()> {
    let off = |x: &&f32| x.is_nan() || x.abs() > LARGEST_LATENT;
    match latents.iter().find(off) {
        None => Ok(()),
        Some(x) => Err(Error::Request(format!("a latent is {x:e}: {reason}"))),
    }
}

fn read_scheduler(dir: &Path) -> Result<SchedulerConfig> {
    let path = dir.join("scheduler_config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| input_error(&path, e))?;
    SchedulerConfig::from_json(&text).map_err(|e| input_error(&path, e))
}

fn input_error(path: &Path, reason: impl ToString) -> Error {
    Error::Input {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// Reads latents `[n, C, H, W]` from a safetensors file: its only tensor, or the one called
/// `latents`.
///
/// # Errors
/// [`Error::Input`] when there is no such tensor or it has another number of axes.
pub fn read_latents(path: &Path) -> Result<Vec<HostTensor>> {
    let file = Checkpoint::open_file(path)?;
    let names: Vec<&str> = file.names().collect();
    let name = match names.as_slice() {
        [only] => only,
        _ if names.contains(&"latents") => "latents",
        _ => {
            return Err(input_error(
                path,
                "it holds several tensors, none called latents",
            ));
        }
    };
    let all = file.read(name)?;
    let [n, c, h, w] = all.dims().map_err(|_| {
        input_error(
            path,
            format!("{name} has shape {:?}, not [n, C, H, W]", all.shape),
        )
    })?;
    if n * c * h * w == 0 {
        return Err(input_error(path, format!("{name} is empty")));
    }
    let each = all.data.chunks_exact(c * h * w);
    each.map(|data| Ok(HostTensor::new([1, c, h, w], data.to_vec())?))
        .collect()
}

/// Writes latents `[1, C, H, W]` as the tensor `latents` of a safetensors file.
///
/// # Errors
/// [`Error::Output`].
pub fn write_latents(path: &Path, latents: &HostTensor) -> Result<()> {
    let bytes = lacuna_wire::to_safetensors([("latents", latents)], None)?;
    crate::output::write_whole(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_of_one_is_the_conditional_half() {
        assert_eq!(guide(&[1.0, 2.0, 5.0, 7.0], 1.0), [5.0, 7.0]);
        assert_eq!(guide(&[1.0, 2.0, 5.0, 7.0], 2.0), [9.0, 12.0]);
    }
}

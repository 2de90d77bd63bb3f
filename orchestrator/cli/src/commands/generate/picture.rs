//! Making the pictures of a run.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lacuna_model::weights::AdapterFile;
use lacuna_model::whole::Conditioning;

use super::arguments::Arguments;
use super::noises::Noises;
use lacuna_orchestrator::arguments::sampling::draw_noise;
use lacuna_orchestrator::checkpoint::{Checkpoint, Kept};
use lacuna_orchestrator::error::{Error, Result};
use lacuna_orchestrator::generator::{Begun, Event, Generator, Made, Request};
use lacuna_orchestrator::init_image::InitImage;
use lacuna_orchestrator::interrupt;
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::output::console::{Console, note};
use lacuna_orchestrator::output::numbered;
use lacuna_orchestrator::pipeline::{Reached, Step, write_latents};
use lacuna_orchestrator::preview::Preview;
use lacuna_orchestrator::progress::Progress;
use lacuna_orchestrator::side_by_side::side_by_side;
use lacuna_orchestrator::text::{EmbeddingFile, PromptSyntax};
use lacuna_wire::HostTensor;

/// What all pictures of a run share.
pub(super) struct Run {
    /// What was asked for.
    pub arguments: Arguments,
    /// The model, and where it is computed.
    pub generator: Generator,
    /// What the prompt became.
    conditioning: Conditioning,
    noises: Noises,
    /// What pictures are made from, if that is another picture.
    init_image: Option<InitImage>,
    /// Shows unfinished pictures.
    preview: Option<Preview>,
    checkpoint: Option<Checkpoint>,
    done: Mutex<BTreeMap<usize, Done>>,
}

/// A picture that was written.
pub(super) struct Done {
    /// The file.
    pub path: PathBuf,
    /// The weights of the user's part of the U-Net.
    pub load: Duration,
    /// Latents to picture.
    pub decode: Duration,
}

impl Run {
    /// Nothing is made yet.
    pub(super) fn new(
        arguments: Arguments,
        generator: Generator,
        conditioning: Conditioning,
        noises: Noises,
        init_image: Option<InitImage>,
        preview: Option<Preview>,
        checkpoint: Option<Checkpoint>,
    ) -> Self {
        Self {
            arguments,
            generator,
            conditioning,
            noises,
            init_image,
            preview,
            checkpoint,
            done: Mutex::default(),
        }
    }

    /// The pictures that are written, by their number.
    pub(super) fn done(&self) -> MutexGuard<'_, BTreeMap<usize, Done>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes all pictures; blocks for as long as it takes.
    ///
    /// # Errors
    /// The first picture's that cannot be made, with how to go on.
    pub(super) fn pictures(&self, console: &Console) -> anyhow::Result<()> {
        let Arguments {
            count, parallel, ..
        } = self.arguments;
        let bar = Progress::new("step", count * self.steps());
        let made = side_by_side(parallel, 0..count, |index| {
            self.picture(index, &bar, console)
        });
        drop(bar);
        let made = made.map_err(anyhow::Error::from);
        let made = interrupt::advise(made, interrupt::is_interrupted, || self.rest());
        if let Err(error) = &made
            && error.downcast_ref().is_some_and(Error::is_of_a_worker)
        {
            // A seed that was drawn is told nowhere else.
            note(self.rest());
        }
        made?;
        if let Some(checkpoint) = &self.checkpoint {
            checkpoint.end(count)?;
        }
        if !self.arguments.no_metadata {
            console.line(
                "The file holds the prompt, the negative prompt and the seed as text; --no-metadata leaves them out.",
            );
        }
        Ok(())
    }

    /// Sampler steps that each picture takes: fewer than were asked for where it begins with another one.
    fn steps(&self) -> usize {
        let sampling = &self.generator.sampling;
        let calls = self.generator.pipeline.calls(sampling);
        calls.map_or(sampling.steps, |calls| calls.min(sampling.steps))
    }

    /// Of the `index`-th picture.
    fn seed(&self, index: usize) -> u64 {
        let first = self.arguments.sampling.seed.unwrap_or_default();
        first.wrapping_add(index as u64)
    }

    /// How to go on behind an interrupt.
    fn rest(&self) -> String {
        let count = self.arguments.count;
        let done = self.done();
        let written = format!("{} of {count} pictures are written", done.len());
        if let Some(checkpoint) = &self.checkpoint {
            let folder = checkpoint.folder().display();
            return format!("to go on: lacuna generate --resume {folder} ({written})");
        }
        let index = (0..count).find(|index| !done.contains_key(index));
        let index = index.unwrap_or(count);
        if count == 1 || self.arguments.latents.is_some() {
            let seed = self.seed(0);
            return format!("{written}; the same command with --seed {seed} begins again");
        }
        format!(
            "{written}; for the others give --seed {} --count {} and another --out",
            self.seed(index),
            count - index
        )
    }

    /// Makes and writes one picture; blocks for as long as it takes.
    ///
    /// # Errors
    /// Those of the scheme, the sampler and the files; no picture is written then.
    fn picture(&self, index: usize, bar: &Progress, console: &Console) -> Result<()> {
        let Arguments {
            count,
            save_latents,
            out,
            ..
        } = &self.arguments;
        let mut rng = TorchRng::new(self.seed(index));
        let noise = self.noises.get(index);
        let (noise, origin) = match (&self.init_image, noise) {
            (Some(image), noise) => {
                let (noise, origin) = image.draw(&self.generator.pipeline, &mut rng, noise)?;
                (noise, Some(origin))
            }
            (None, Some(noise)) => (noise, None),
            (None, None) => (draw_noise(&mut rng, self.noises.shape)?, None),
        };
        let path = numbered(out, index, *count);
        let checkpoint = self.checkpoint.as_ref();
        let begun = match checkpoint
            .map(|kept| kept.begin(index, &noise))
            .transpose()?
        {
            None => Begun::default(),
            Some(Kept::Begun(begun)) => begun,
            Some(Kept::Written) => {
                console.line(format_args!("{} (written before)", path.display()));
                let (load, decode) = Default::default();
                self.done().insert(index, Done { path, load, decode });
                return Ok(());
            }
        };
        let before = begun.predictions.len();
        let request = Request {
            begun,
            origin,
            ..Request::new(self.conditioning.clone(), noise, rng)
        };
        let mut load = Duration::ZERO;
        let mut kept = Ok(());
        let made = self.generator.picture(request, &mut |event| {
            kept = match event {
                Event::Loaded(took) => {
                    load = took;
                    Ok(())
                }
                Event::Opening(shown) => {
                    checkpoint.map_or(Ok(()), |kept| kept.keep_shown(index, shown))
                }
                Event::Step(step, reached) => {
                    show(bar, *count, step);
                    let shape = self.noises.shape;
                    let kept = checkpoint.map_or(Ok(()), |kept| {
                        kept.keep_step(index, step.done, shape, reached)
                    });
                    if let Err(error) = self.show_unfinished(index, step, reached) {
                        // No picture is given up for that.
                        tracing::warn!("--preview: {error}");
                    }
                    kept
                }
                // What was computed is not lost, should the decoder fail.
                Event::Denoised(latents) => save_latents.as_ref().map_or(Ok(()), |path| {
                    write_latents(&numbered(path, index, *count), latents)
                }),
            };
            match kept {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        kept?;
        let Made {
            picture,
            denoise,
            decode,
        } = made?;
        picture.write_png(&path, &self.text(index, picture.width, picture.height))?;
        checkpoint.map_or(Ok(()), |kept| kept.written(index))?;
        let before = match before {
            0 => String::new(),
            done => format!(", {done} of them before"),
        };
        console.line(format_args!(
            "{} ({:.1} s for {} steps{before}, seed {})",
            path.display(),
            denoise.as_secs_f64(),
            self.steps(),
            self.seed(index),
        ));
        self.done().insert(index, Done { path, load, decode });
        Ok(())
    }

    /// Writes a preview, where one is wanted after this step.
    ///
    /// # Errors
    /// As [`Preview::write`].
    fn show_unfinished(&self, index: usize, step: Step, reached: Reached<'_>) -> Result<()> {
        let arguments = &self.arguments.preview;
        let (Some(preview), Some(path)) = (&self.preview, &arguments.preview) else {
            return Ok(());
        };
        if step.done < step.of && !step.done.is_multiple_of(arguments.every()) {
            return Ok(());
        }
        let latents = HostTensor::new(self.noises.shape, reached.clean.to_vec())?;
        let [_, _, rows, columns] = self.noises.shape;
        let pixels = self.generator.pipeline.pixels_per_latent();
        let path = numbered(path, index, self.arguments.count);
        preview.write(&path, latents, columns * pixels, rows * pixels)
    }

    /// The picture's parameters, for the PNG; none where they are not wanted.
    fn text(&self, index: usize, width: usize, height: usize) -> Vec<(&'static str, String)> {
        let a = &self.arguments;
        if a.no_metadata {
            return Vec::new();
        }
        let sampling = &a.sampling;
        let scheduler = self.generator.sampling.scheduler_in_words();
        let scheduler = scheduler.unwrap_or_else(|| "the model's own".to_owned());
        let adapter = |file: &AdapterFile| {
            let name = file.path.file_name().unwrap_or_default();
            format!("{}:{}", name.to_string_lossy(), file.strength)
        };
        let adapters: Vec<String> = a.model.lora.iter().map(adapter).collect();
        let mut text = vec![
            (
                "Software",
                concat!("lacuna ", env!("CARGO_PKG_VERSION")).to_owned(),
            ),
            ("prompt", a.prompt().to_owned()),
            ("seed", self.seed(index).to_string()),
            ("steps", sampling.steps.to_string()),
            ("guidance", self.generator.sampling.guidance.to_string()),
            ("scheduler", scheduler),
            ("scheme", a.scheme.scheme.name().to_owned()),
            ("size", format!("{width}x{height}")),
            ("model", self.generator.pipeline.digest().to_owned()),
        ];
        let words = &sampling.words;
        let size = |[width, height]: [usize; 2]| format!("{width}x{height}");
        let name = |path: &PathBuf| path.file_name().map(|it| it.to_string_lossy().into_owned());
        let whole = |number: usize| (number > 0).then(|| number.to_string());
        // Where they are not said, there are none.
        let said = [
            ("negative_prompt", words.negative_prompt.clone()),
            ("clip_skip", whole(words.clip_skip)),
            ("original_size", words.original_size.map(size)),
            ("crop", words.crop.map(size)),
            ("target_size", words.target_size.map(size)),
            ("eta", (a.eta > 0.0).then(|| a.eta.to_string())),
            ("vae", a.model.vae.as_ref().and_then(name)),
        ];
        let said = said.into_iter();
        text.extend(said.filter_map(|(key, value)| Some((key, value?))));
        if let Some(from) = self.generator.sampling.from {
            text.push(("strength", from.strength.to_string()));
        }
        if !adapters.is_empty() {
            text.push(("lora", adapters.join(", ")));
        }
        let embedding = |file: &EmbeddingFile| {
            let name = file.path.file_name().unwrap_or_default();
            let token = file.token.iter().map(|token| format!(":{token}"));
            format!("{}{}", name.to_string_lossy(), token.collect::<String>())
        };
        let embeddings: Vec<String> = a.model.embedding.iter().map(embedding).collect();
        if !embeddings.is_empty() {
            text.push(("embedding", embeddings.join(", ")));
        }
        match sampling.words.prompt_syntax {
            PromptSyntax::Plain => {}
            PromptSyntax::Long => text.push(("prompt_syntax", "long".to_owned())),
            PromptSyntax::Weighted => text.push(("prompt_syntax", "weighted".to_owned())),
        }
        text
    }
}

/// A picture's step; of several pictures, one step more of all.
fn show(bar: &Progress, pictures: usize, step: Step) {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let bytes = step.traffic.map_or(String::new(), |t| {
        let (up, down) = (megabytes(t.bytes_up), megabytes(t.bytes_down));
        format!(", {up:.1} MB up, {down:.1} MB down")
    });
    bar.about(format!("{:.2} s a step{bytes}", step.took.as_secs_f64()));
    match pictures {
        1 => bar.reach(step.done, step.of),
        _ => bar.step(),
    }
}

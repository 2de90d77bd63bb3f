//! The checkpoint of a run: begun, or gone on with.

use std::ffi::OsString;
use std::path::Path;

use super::arguments::Arguments;
use lacuna_orchestrator::checkpoint::{Asked, Checkpoint, Run};
use lacuna_orchestrator::error::{Error, Result};
use lacuna_orchestrator::generator::Generator;
use lacuna_orchestrator::init_image::Digests;

/// The checkpoint that is asked for, if any is, of pictures with latents of `[1, C, H, W]`, made `from` such files.
///
/// # Errors
/// As [`Checkpoint::create`] and [`Checkpoint::go_on`].
pub(super) fn open(
    arguments: &Arguments,
    generator: &Generator,
    latents: [usize; 4],
    from: Option<Digests>,
) -> Result<Option<Checkpoint>> {
    let sampling = &generator.sampling;
    let (init_image, mask) = from.map(|from| (from.image, from.mask)).unzip();
    let asked = Asked {
        model: generator.pipeline.digest().to_owned(),
        adapters: generator.pipeline.adapters().to_vec(),
        embeddings: generator.pipeline.embeddings().to_vec(),
        prompt: arguments.sampling.words.prompt(arguments.prompt()),
        seed: arguments.sampling.seed.unwrap_or_default(),
        count: arguments.count,
        steps: sampling.steps,
        guidance: sampling.guidance,
        eta: sampling.eta,
        scheduler: sampling.scheduler_in_words(),
        latents,
        init_image,
        mask: mask.flatten(),
        strength: sampling.from.map(|from| from.strength),
    };
    match (&arguments.checkpoint, &arguments.resume) {
        (None, None) => Ok(None),
        (_, Some(folder)) => Checkpoint::go_on(folder, &asked).map(Some),
        (Some(folder), None) => {
            let run = Run::new(flags(folder, &arguments.given)?, asked);
            Checkpoint::create(folder, &run).map(Some)
        }
    }
}

/// The flags as text.
fn flags(folder: &Path, given: &[OsString]) -> Result<Vec<String>> {
    let text = |word: &OsString| {
        word.to_str().map(str::to_owned).ok_or_else(|| {
            let word = word.to_string_lossy();
            let reason = format!("{word} is no UTF-8, and could not be given again");
            Error::Checkpoint {
                folder: folder.to_owned(),
                reason,
            }
        })
    };
    given.iter().map(text).collect()
}

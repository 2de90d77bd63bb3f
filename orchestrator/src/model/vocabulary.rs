//! Where CLIP's vocabulary is taken from, which is in no model's one file.

use std::path::{Path, PathBuf};

use super::ModelFiles;
use crate::error::{Error, Result};
use crate::text::ClipTokenizer;

/// CLIP's vocabulary as its makers published it.
const OF_CLIP: &str = "bpe_simple_vocab_16e6.txt.gz";
/// Repositories of the hub that have it, with their folders.
const IN_THE_HUB: [(&str, &str); 5] = [
    ("openai/clip-vit-large-patch14", ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer"),
    ("stabilityai/stable-diffusion-2-1", "tokenizer"),
    ("CompVis/stable-diffusion-v1-4", "tokenizer"),
];

/// The tokenizers of a model in one file, one for each of the tokens that fill a short prompt up: from `--tokenizer`,
/// from the folder of its configs, from beside it, or from the hub's cache.
///
/// # Errors
/// [`Error::Request`] where there is none, saying what to get; [`Error::Tokenizer`].
pub fn tokenizers(files: &ModelFiles, paddings: &[&str]) -> Result<Vec<ClipTokenizer>> {
    let place = match &files.tokenizer {
        Some(given) if given.exists() => given.clone(),
        Some(given) => {
            let reason = format!("--tokenizer {}: there is no such file", given.display());
            return Err(Error::Request(reason));
        }
        None => found(files)?,
    };
    let load = |(i, padding): (usize, &&str)| {
        if place.is_file() {
            return ClipTokenizer::of_clip(&place)?.padded_with(padding);
        }
        // Of a model's folder each of its own, which fills up as it says.
        let own =
            [["tokenizer", "tokenizer_2"][i.min(1)], "tokenizer"].map(|part| place.join(part));
        match own.iter().find(|dir| is_tokenizer(dir)) {
            Some(dir) if *dir == own[0] => ClipTokenizer::load(dir),
            Some(dir) => ClipTokenizer::load(dir)?.padded_with(padding),
            None if place.join(OF_CLIP).is_file() => {
                ClipTokenizer::of_clip(&place.join(OF_CLIP))?.padded_with(padding)
            }
            None => ClipTokenizer::load(&place)?.padded_with(padding),
        }
    };
    paddings.iter().enumerate().map(load).collect()
}

fn is_tokenizer(dir: &Path) -> bool {
    ["tokenizer.json", "vocab.json"]
        .iter()
        .any(|file| dir.join(file).is_file())
}

fn found(files: &ModelFiles) -> Result<PathBuf> {
    let beside = files.model.parent().unwrap_or(Path::new(""));
    let mut places: Vec<PathBuf> = files.config.iter().cloned().collect();
    places.push(beside.to_owned());
    let known = |place: &PathBuf| {
        is_tokenizer(place)
            || is_tokenizer(&place.join("tokenizer"))
            || place.join(OF_CLIP).is_file()
    };
    if let Some(place) = places.into_iter().find(known) {
        return Ok(place);
    }
    let cache = hf_hub::Cache::from_env();
    let cached = IN_THE_HUB.iter().find_map(|(name, folder)| {
        let repository = cache.repo(hf_hub::Repo::model((*name).to_owned()));
        let file = Path::new(folder).join("vocab.json");
        let found = repository.get(&file.to_string_lossy())?;
        found.parent().map(Path::to_owned)
    });
    cached.ok_or_else(|| {
        Error::Request(format!(
            "{} has no tokenizer in it, as no such file has. Give --tokenizer: a model's folder, a folder with vocab.json \
             and merges.txt (of openai/clip-vit-large-patch14, say), or {OF_CLIP} of github.com/openai/CLIP; or put one of \
             these beside the file",
            files.model.display()
        ))
    })
}

//! A run's checkpoint: what is needed to go on with it after an interrupt, a crash or a closed lid.
//!
//! A folder for one run:
//!
//! - `run.json`: the command's flags, and what all pictures depend on;
//! - `picture-0/noise.safetensors`: the first picture's noise;
//! - `picture-0/step-0001.safetensors` and so on: of each sampler step the guided prediction and the latents after it;
//! - `picture-0/shown.json`: what was shown to whom, so that a policy counts what was before;
//! - `picture-0.written`: in place of all these, once the picture's file is there.
//!
//! The sampler goes its first steps again from the noise and the predictions, without a U-Net call. So whatever a
//! scheduler remembers and however far its noise has come is as it was, and no scheduler has to say how it is kept.
//!
//! Predictions and latents are the picture in the clear: files and folders are their owner's alone. Keys of masks are in none
//! of them: sessions that are opened later draw their own.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use lacuna_model::weights::Checkpoint as Tensors;
use lacuna_wire::{HostTensor, to_safetensors};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fleet::tally::Shown;
use crate::generator::Begun;
use crate::pipeline::Reached;
use crate::text::Prompt;

/// Of the files; another one cannot be gone on with.
const FORMAT: u32 = 1;
const RUN: &str = "run.json";
const NOISE: &str = "noise.safetensors";
const SHOWN: &str = "shown.json";
/// How far the latents that the predictions lead to may be from those that were kept, as a part of the largest: fresh noise
/// is drawn by functions of the system's library.
const APART: f32 = 1e-4;

/// A run, as its checkpoint begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Of the files.
    format: u32,
    /// The command's flags with their values, each as one word.
    pub flags: Vec<String>,
    /// What the pictures depend on.
    pub asked: Asked,
}

/// What the pictures of a run depend on: with anything else they would be other ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Digest of the U-Net's weights.
    pub model: String,
    /// Digests of the adapters.
    pub adapters: Vec<String>,
    /// Digests of the embeddings.
    #[serde(default)]
    pub embeddings: Vec<String>,
    /// What to see.
    #[serde(flatten)]
    pub prompt: Prompt,
    /// Of the first picture.
    pub seed: u64,
    /// Number of pictures.
    pub count: usize,
    /// Sampler steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f32,
    /// DDIM's and TCD's amount of fresh noise.
    pub eta: f32,
    /// Another scheduler than the model's own.
    pub scheduler: Option<String>,
    /// `[1, C, H, W]`.
    pub latents: [usize; 4],
    /// Digest of the picture that pictures are made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_image: Option<String>,
    /// Digest of its mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// How far they may go from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
}

impl Asked {
    /// The first thing that is another in `other`, with both values.
    fn difference(&self, other: &Self) -> Option<(String, String, String)> {
        let values = |asked: &Self| match serde_json::to_value(asked) {
            Ok(serde_json::Value::Object(values)) => values,
            _ => serde_json::Map::new(),
        };
        let theirs = values(other);
        let mut pairs = values(self).into_iter();
        pairs.find_map(|(name, value)| {
            let other = theirs.get(&name).cloned().unwrap_or_default();
            let differs = value != other;
            differs.then(|| (name.replace('_', " "), value.to_string(), other.to_string()))
        })
    }
}

/// A checkpoint that is written.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    /// Locked for as long as a process writes here.
    _run: File,
}

/// A picture of a checkpoint.
#[derive(Debug)]
pub enum Kept {
    /// Its file is there.
    Written,
    /// These steps of it are.
    Begun(Begun),
}

impl Run {
    /// The run of a command with these `flags` that is `asked` for.
    pub fn new(flags: Vec<String>, asked: Asked) -> Self {
        Self {
            format: FORMAT,
            flags,
            asked,
        }
    }

    /// Reads the run of the checkpoint in `folder`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where there is none, or it is of another version.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(RUN);
        if !path.is_file() {
            let reason = "it holds no checkpoint (no run.json): it was never begun, or all its pictures are written";
            return Err(refused(folder, reason));
        }
        #[derive(Deserialize)]
        struct Of {
            format: u32,
        }
        let of: Of = read_json(&path)?;
        if of.format != FORMAT {
            let reason = format!(
                "its format is {}, this version of lacuna reads {FORMAT}",
                of.format
            );
            return Err(refused(folder, &reason));
        }
        read_json(&path)
    }
}

impl Checkpoint {
    /// Begins a checkpoint of `run` in `folder`, which is made where it is not there.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where it holds one already; [`Error::Output`].
    pub fn create(folder: &Path, run: &Run) -> Result<Self> {
        make_folder(folder)?;
        let path = folder.join(RUN);
        if path.exists() {
            let reason = format!(
                "it holds a run that did not end; go on with it (lacuna generate --resume {}), or give another folder",
                folder.display()
            );
            return Err(refused(folder, &reason));
        }
        let json = serde_json::to_vec_pretty(run).map_err(|e| refused(folder, &e.to_string()))?;
        write(&path, &json)?;
        Self::lock(folder)
    }

    /// Goes on with the checkpoint in `folder`, which must be of what is `asked` for.
    ///
    /// # Errors
    /// [`Error::Checkpoint`], naming what is not as it was.
    pub fn go_on(folder: &Path, asked: &Asked) -> Result<Self> {
        let run = Run::read(folder)?;
        if let Some((name, was, is)) = run.asked.difference(asked) {
            let reason =
                format!("its {name} is {was}, not {is}: with that they are other pictures");
            return Err(refused(folder, &reason));
        }
        Self::lock(folder)
    }

    fn lock(folder: &Path) -> Result<Self> {
        let path = folder.join(RUN);
        let run = File::open(&path).map_err(|e| input(&path, e))?;
        match run.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refused(folder, "another process goes on with it"));
            }
            // Of a file system that has no locks; it is then up to its owner.
            Err(TryLockError::Error(e)) => tracing::warn!("{}: {e}", path.display()),
        }
        Ok(Self {
            folder: folder.to_owned(),
            _run: run,
        })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn of(&self, index: usize) -> PathBuf {
        self.folder.join(format!("picture-{index}"))
    }

    fn mark(&self, index: usize) -> PathBuf {
        self.folder.join(format!("picture-{index}.written"))
    }

    /// What there is of the `index`-th picture, which begins with `noise` `[1, C, H, W]`; that is kept where nothing is.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where it began with other noise, or a file is damaged; [`Error::Output`].
    pub fn begin(&self, index: usize, noise: &HostTensor) -> Result<Kept> {
        if self.mark(index).exists() {
            return Ok(Kept::Written);
        }
        let folder = self.of(index);
        make_folder(&folder)?;
        let path = folder.join(NOISE);
        if !path.exists() {
            write_tensors(&path, &[("noise", noise)])?;
        }
        if self.read(&path, "noise", &noise.shape)?.data != noise.data {
            let reason = format!("picture {index} began with other noise (--latents)");
            return Err(refused(&self.folder, &reason));
        }
        let mut predictions = Vec::new();
        loop {
            let path = step_path(&folder, predictions.len() + 1);
            if !path.exists() {
                break;
            }
            predictions.push(self.read(&path, "prediction", &noise.shape)?.data);
        }
        let path = folder.join(SHOWN);
        let shown = match path.exists() {
            true => read_json(&path)?,
            false => Vec::new(),
        };
        Ok(Kept::Begun(Begun { predictions, shown }))
    }

    /// Keeps what sessions of the `index`-th picture will have shown, before they are opened.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn keep_shown(&self, index: usize, shown: &[Shown]) -> Result<()> {
        let json = serde_json::to_vec(shown).map_err(|e| refused(&self.folder, &e.to_string()))?;
        write(&self.of(index).join(SHOWN), &json)
    }

    /// Keeps what the `done`-th sampler step led to of the `index`-th picture, or checks that it leads to the latents that were kept, where it was made
    /// before.
    ///
    /// # Errors
    /// [`Error::Output`]; [`Error::Checkpoint`] where it does not.
    pub fn keep_step(
        &self,
        index: usize,
        done: usize,
        shape: [usize; 4],
        reached: Reached<'_>,
    ) -> Result<()> {
        let tensor = |values: &[f32]| HostTensor::new(shape, values.to_vec());
        let (prediction, latents) = (tensor(reached.prediction)?, tensor(reached.latents)?);
        let path = step_path(&self.of(index), done);
        if !path.exists() {
            let tensors = [("prediction", &prediction), ("latents", &latents)];
            return write_tensors(&path, &tensors);
        }
        let kept = self.read(&path, "latents", &shape)?;
        let largest = kept.data.iter().fold(0f32, |most, x| most.max(x.abs()));
        let pairs = kept.data.iter().zip(&latents.data);
        let apart = pairs.fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        if apart > APART * largest {
            let reason = format!(
                "step {done} of picture {index} leads to other latents (by {apart:.1e}): it was made by another version"
            );
            return Err(refused(&self.folder, &reason));
        }
        Ok(())
    }

    /// Marks the `index`-th picture as written, and deletes what was kept of it.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn written(&self, index: usize) -> Result<()> {
        write(&self.mark(index), b"")?;
        delete_picture(&self.of(index))
    }

    /// Deletes all that was kept of `count` pictures, which are all written, and the folder, where nothing else is in it.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn end(&self, count: usize) -> Result<()> {
        for index in 0..count {
            delete_picture(&self.of(index))?;
            delete(&self.mark(index))?;
        }
        delete(&self.folder.join(RUN))?;
        delete_unfinished(&self.folder)?;
        // Somebody's own files may be there, too.
        let _ = std::fs::remove_dir(&self.folder);
        Ok(())
    }

    /// A tensor of a file, of this shape.
    fn read(&self, path: &Path, name: &str, shape: &[usize]) -> Result<HostTensor> {
        let tensor = Tensors::open_file(path)?.read(name)?;
        if tensor.shape != shape {
            let path = path.display();
            let reason = format!("{path}: {name} is of {:?}, not {shape:?}", tensor.shape);
            return Err(refused(&self.folder, &reason));
        }
        tensor.check_finite(name)?;
        Ok(tensor)
    }
}

fn step_path(picture: &Path, step: usize) -> PathBuf {
    picture.join(format!("step-{step:04}.safetensors"))
}

/// Deletes what was kept of a picture: the files that are ours.
fn delete_picture(folder: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let step = name.starts_with("step-") && name.ends_with(".safetensors");
        if step || name == NOISE || name == SHOWN {
            delete(&entry.path())?;
        }
    }
    delete_unfinished(folder)?;
    let _ = std::fs::remove_dir(folder);
    Ok(())
}

/// Begins the name of a file that is not whole yet, and never will be where the program is killed.
const UNFINISHED: &str = ".unfinished-";

/// Deletes what a program that was killed had begun to write.
fn delete_unfinished(folder: &Path) -> Result<()> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut begun = entries.filter(|it| it.file_name().to_string_lossy().starts_with(UNFINISHED));
    begun.try_for_each(|entry| delete(&entry.path()))
}

fn delete(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(output(path, e)),
        _ => Ok(()),
    }
}

/// Makes a folder that is its owner's alone.
fn make_folder(path: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|e| output(path, e))
}

fn write_tensors(path: &Path, tensors: &[(&str, &HostTensor)]) -> Result<()> {
    write(path, &to_safetensors(tensors.iter().copied(), None)?)
}

/// Writes a file that is its owner's alone, and is there whole or not at all, also after a power cut.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // Such a file has the mode 0600.
    let file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(folder);
    let mut file = file.map_err(|e| output(path, e))?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.as_file().sync_all());
    written.map_err(|e| output(path, e))?;
    file.persist(path).map_err(|e| output(path, e.error))?;
    Ok(())
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|e| input(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| input(path, e))
}

fn refused(folder: &Path, reason: &str) -> Error {
    Error::Checkpoint {
        folder: folder.to_owned(),
        reason: reason.to_owned(),
    }
}

fn input(path: &Path, reason: impl ToString) -> Error {
    Error::Input {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn output(path: &Path, reason: impl ToString) -> Error {
    Error::Output {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests;

//! Whether files are the model that they were announced as.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use lacuna_model::layers::Parameter;
use lacuna_model::unet::Source;
use lacuna_model::weights::{Library, Stored, WeightFiles, list};
use lacuna_protocol::models::{Adapted, adapter_file};

use super::{Base, adapter_files, disk, source_of};
use crate::error::{Error, Result};

/// Most bytes of the header of a file of weights: what it says takes several times as much in memory.
const MOST_HEADER: u64 = 8 << 20;

/// That the files in `dir` are the U-Net of `digest`, every one of them a part of it, and that its weights in f32 fit into `memory`.
/// Where it is another one with adapters, `base` finds that by its digest, which is given.
///
/// # Errors
/// [`Error::Invalid`] where it is another, none, or too large, [`Error::Disk`].
pub(super) fn check(
    dir: &Path,
    digest: &str,
    memory: Option<u64>,
    base: &dyn Fn(&str) -> Option<Base>,
) -> Result<Option<String>> {
    let adapted = disk::read_adapted(dir)?;
    let (found, read) = match &adapted {
        None => whole(dir, memory)?,
        Some(adapted) => with_adapters(dir, adapted, memory, base)?,
    };
    if found != digest {
        let reason = format!("it is the model {found}, not the one that was announced");
        return Err(Error::Invalid(reason));
    }
    let read: HashSet<&OsStr> = read.iter().filter_map(|path| path.file_name()).collect();
    for entry in std::fs::read_dir(dir).map_err(disk::failed(dir))? {
        let entry = entry.map_err(disk::failed(dir))?;
        let name = entry.file_name();
        let shown = name.to_string_lossy();
        if shown.ends_with(".safetensors") && !read.contains(name.as_os_str()) {
            return Err(Error::Invalid(format!("{shown} is no part of the model")));
        }
        disk::sync(&entry.path())?;
    }
    disk::sync(dir)?;
    Ok(adapted.map(|adapted| adapted.model))
}

/// The digest of the U-Net in `dir`, and the files that it is read from.
fn whole(dir: &Path, memory: Option<u64>) -> Result<(String, Vec<PathBuf>)> {
    let source = source_of(dir);
    let (weights, index) = match &source {
        Source::Folder { dir, .. } => {
            let files = WeightFiles::locate(dir, Library::Diffusers, None)?;
            (files.weights, files.index)
        }
        Source::File { path, .. } => (vec![path.clone()], None),
    };
    weights.iter().try_for_each(|path| check_header(path))?;
    let (config, checkpoint) = source.files()?;
    let unet = config.build();
    check_memory(&list(&unet), 0, memory)?;
    let digest = Stored::new(unet, checkpoint)?.digest()?.to_owned();
    Ok((digest, [weights, Vec::from_iter(index)].concat()))
}

/// The same of a U-Net that is another one with adapters, whose files are in `dir`.
fn with_adapters(
    dir: &Path,
    adapted: &Adapted,
    memory: Option<u64>,
    base: &dyn Fn(&str) -> Option<Base>,
) -> Result<(String, Vec<PathBuf>)> {
    let Some((source, _lease)) = base(&adapted.model) else {
        let reason = format!(
            "its adapters are of the model {}, which this worker does not hold",
            adapted.model
        );
        return Err(Error::Invalid(reason));
    };
    let unet = source.open(&[])?;
    let files = adapter_files(dir, adapted);
    let mut values = 0;
    for file in &files {
        check_header(&file.path)?;
        let bytes = std::fs::metadata(&file.path).map_err(disk::failed(&file.path))?;
        // There are numbers of one byte.
        values += bytes.len();
    }
    // Before anything of them is read.
    check_memory(&list(unet.layers()), values, memory)?;
    for file in &files {
        let opened = File::open(&file.path).map_err(disk::failed(&file.path))?;
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_reader(opened)
            .map_err(disk::failed(&file.path))?;
        // Else it could be taken for another one that is named so.
        let name = name_of(&file.path);
        if name != adapter_file(&hasher.finalize()) {
            return Err(Error::Invalid(format!("{name} is not named by its digest")));
        }
    }
    let digest = source.open(&files)?.digest_on(&adapted.model);
    Ok((digest, files.into_iter().map(|file| file.path).collect()))
}

/// That `parameters`, and so many `values` more, fit into `memory` in f32.
fn check_memory(parameters: &[Parameter], values: u64, memory: Option<u64>) -> Result<()> {
    let own: usize = parameters.iter().map(Parameter::values).sum();
    let bytes = (own as u64).saturating_add(values);
    let bytes = bytes.saturating_mul(size_of::<f32>() as u64);
    match memory.filter(|memory| bytes > *memory) {
        None => Ok(()),
        Some(memory) => Err(Error::Invalid(format!(
            "its weights take {:.1} GB of memory, this machine has {:.1} GB",
            bytes as f64 / 1e9,
            memory as f64 / 1e9
        ))),
    }
}

/// That the header of the file of weights at `path` is not longer than any.
fn check_header(path: &Path) -> Result<()> {
    let mut size = [0; 8];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut size));
    read.map_err(|error| Error::Invalid(format!("{}: {error}", name_of(path))))?;
    match u64::from_le_bytes(size) {
        0..=MOST_HEADER => Ok(()),
        more => Err(Error::Invalid(format!(
            "{}: a header of {more} bytes; at most {MOST_HEADER}",
            name_of(path)
        ))),
    }
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

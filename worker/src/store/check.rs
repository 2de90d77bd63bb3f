//! Whether files are the model that they were announced as.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use lacuna_model::layers::Parameter;
use lacuna_model::unet::UNetConfig;
use lacuna_model::weights::{Checkpoint, Library, Stored, WeightFiles, list};
use lacuna_protocol::models::CONFIG;

use super::disk;
use crate::error::{Error, Result};

/// Most bytes of the header of a file of weights: what it says takes several times as much in memory.
const MOST_HEADER: u64 = 8 << 20;

/// That the files in `dir` are the U-Net of `digest`, every one of them a part of it, and that its weights in f32 fit into `memory`.
///
/// # Errors
/// [`Error::Invalid`] where it is another, none, or too large, [`Error::Disk`].
pub(super) fn check(dir: &Path, digest: &str, memory: Option<u64>) -> Result<()> {
    let files = WeightFiles::locate(dir, Library::Diffusers, None)?;
    let read: HashSet<OsString> = files
        .weights
        .iter()
        .chain(&files.index)
        .filter_map(|path| Some(path.file_name()?.to_owned()))
        .collect();
    for path in &files.weights {
        check_header(path)?;
    }
    let unet = UNetConfig::from_file(&dir.join(CONFIG))?.build();
    let values: usize = list(&unet).iter().map(Parameter::values).sum();
    let bytes = (values * size_of::<f32>()) as u64;
    if let Some(memory) = memory.filter(|memory| bytes > *memory) {
        return Err(Error::Invalid(format!(
            "its weights take {:.1} GB of memory, this machine has {:.1} GB",
            bytes as f64 / 1e9,
            memory as f64 / 1e9
        )));
    }
    let stored = Stored::new(unet, Checkpoint::open(dir, Library::Diffusers, None)?)?;
    let found = stored.digest()?;
    if found != digest {
        let reason = format!("it is the model {found}, not the one that was announced");
        return Err(Error::Invalid(reason));
    }
    for entry in std::fs::read_dir(dir).map_err(disk::failed(dir))? {
        let entry = entry.map_err(disk::failed(dir))?;
        let name = entry.file_name();
        let shown = name.to_string_lossy();
        if shown.ends_with(".safetensors") && !read.contains(&name) {
            return Err(Error::Invalid(format!("{shown} is no part of the model")));
        }
        disk::sync(&entry.path())?;
    }
    disk::sync(dir)
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

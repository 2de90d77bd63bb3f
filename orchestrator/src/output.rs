//! Writing files so that there is a whole one or none.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes `bytes` to `path` by way of a temporary file beside it.
///
/// # Errors
/// [`Error::Output`].
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = with_suffix(path, ".partial");
    let written = std::fs::File::create(&partial)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|e| {
        // What is left of a failed write is of no use; the first error is the one to report.
        let _ = std::fs::remove_file(&partial);
        failed(path, e)
    })
}

/// Checks, before hours of work, that a file can be written at `path` at the end of it.
///
/// # Errors
/// [`Error::Output`] when its directory is missing or not writable.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(failed(path, "it is a directory"));
    }
    let partial = with_suffix(path, ".partial");
    std::fs::File::create(&partial)
        .and_then(|_| std::fs::remove_file(&partial))
        .map_err(|e| failed(path, e))
}

/// `pic.png` to `pic-2.png` for the third of several; as it is for one alone.
pub fn numbered(path: &Path, index: usize, count: usize) -> PathBuf {
    if count == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(ending) => format!("{stem}-{index}.{}", ending.to_string_lossy()),
        None => format!("{stem}-{index}"),
    };
    path.with_file_name(name)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn failed(path: &Path, reason: impl ToString) -> Error {
    Error::Output {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        check_writable(&path).unwrap();
        assert!(!path.exists());
        write_whole(&path, b"old").unwrap();
        write_whole(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_directory_is_found_out_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing").join("a.png");
        let error = check_writable(&path).unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
        assert!(check_writable(dir.path()).is_err());
    }

    #[test]
    fn several_pictures_are_numbered_from_zero() {
        let path = Path::new("out/pic.png");
        assert_eq!(numbered(path, 0, 1), path);
        assert_eq!(numbered(path, 2, 3), Path::new("out/pic-2.png"));
    }
}

//! Which pictures a folder holds, and which of two folders belong together.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Endings of the files that count as pictures, in small letters.
const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];

/// A picture or pair that could not be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file, or the name of the pair.
    pub picture: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The picture files of a folder, not of those inside it, by their names without ending.
#[derive(Clone, Debug)]
pub struct Folder {
    files: BTreeMap<OsString, PathBuf>,
}

/// Two files to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What rows about it are called.
    pub name: String,
    /// One file.
    pub a: PathBuf,
    /// The other.
    pub b: PathBuf,
}

impl Folder {
    /// Lists `dir`.
    ///
    /// # Errors
    /// [`Error::Input`] when it cannot be listed, holds no picture, or two that differ only in their
    /// endings: neither could be paired.
    pub fn list(dir: &Path) -> Result<Self> {
        let refuse = |reason: String| Error::Input {
            path: dir.to_owned(),
            reason,
        };
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(dir).map_err(|e| refuse(e.to_string()))? {
            let path = entry.map_err(|e| refuse(e.to_string()))?.path();
            let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
            if path.is_dir() || !ENDINGS.iter().any(|e| *e == ending) {
                continue;
            }
            let stem = path.file_stem().unwrap_or_default().to_owned();
            if let Some(other) = files.insert(stem, path.clone()) {
                let name = |path: &Path| path.file_name().map(|n| n.display().to_string());
                let [a, b] = [&other, &path].map(|p| name(p).unwrap_or_default());
                return Err(refuse(format!("{a} and {b} would be one picture")));
            }
        }
        if files.is_empty() {
            return Err(refuse("there is no .png, .jpg or .jpeg file in it".into()));
        }
        Ok(Self { files })
    }

    /// The files, in the order of their names.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.values().cloned().collect()
    }

    /// The files of one name in both folders, and those that the other folder lacks.
    pub fn pair(&self, other: &Self) -> (Vec<Pair>, Vec<Fault>) {
        let pairs = self.files.iter().filter_map(|(stem, a)| {
            let b = other.files.get(stem)?.clone();
            let name = stem.display().to_string();
            Some(Pair {
                name,
                a: a.clone(),
                b,
            })
        });
        let pairs = pairs.collect();
        let alone = |from: &Self, to: &Self| -> Vec<Fault> {
            let missing = from
                .files
                .iter()
                .filter(|(stem, _)| !to.files.contains_key(*stem));
            let fault = |(_, path): (&OsString, &PathBuf)| Fault {
                picture: path.display().to_string(),
                reason: "the other folder has no picture of this name".into(),
            };
            missing.map(fault).collect()
        };
        let faults = [alone(self, other), alone(other, self)].concat();
        (pairs, faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        dir
    }

    #[test]
    fn files_pair_by_name_whatever_their_ending() {
        let a = folder(&["b.png", "a.JPG", "only-a.png", "notes.txt"]);
        let b = folder(&["a.png", "b.jpeg", "only-b.png"]);
        let [a, b] = [&a, &b].map(|dir| Folder::list(dir.path()).unwrap());
        assert_eq!(a.paths().len(), 3);
        let (pairs, faults) = a.pair(&b);
        let names: Vec<&str> = pairs.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(pairs[0].a.ends_with("a.JPG") && pairs[0].b.ends_with("a.png"));
        let named: Vec<bool> = ["only-a.png", "only-b.png"]
            .iter()
            .zip(&faults)
            .map(|(name, fault)| fault.picture.ends_with(name))
            .collect();
        assert_eq!(named, [true, true], "{faults:?}");
    }

    #[test]
    fn a_folder_without_pictures_or_with_twins_is_named() {
        for (names, part) in [
            (&["notes.txt"][..], "no .png"),
            (&["a.png", "a.jpg"], "would be one picture"),
        ] {
            let dir = folder(names);
            let error = Folder::list(dir.path()).unwrap_err().to_string();
            let path = dir.path().display().to_string();
            assert!(error.contains(part) && error.contains(&path), "{error}");
        }
        let error = Folder::list(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}

//! What a command writes: files that are whole or not there, and lines for its user.
//!
//! - [`console`]: the lines.
//! - `place`: what a path names: a file, something that is written in place, or the standard output.
//! - here: writing, and the checks before hours of work.

pub mod console;
mod place;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use place::Place;

/// What the names of unfinished files begin with. A file is named so only while its bytes are written.
pub const UNFINISHED: &str = ".lacuna-";

/// Writes `bytes` to what `path` names.
///
/// A file, or the target of a link, is replaced by a whole new one with the old one's permissions. A device or a
/// FIFO is written in place, and `-` is the standard output.
///
/// # Errors
/// [`Error::Output`], naming the path.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let place = Place::of(path).map_err(|e| failed(path, e))?;
    place.write(bytes).map_err(|e| failed(&place.name(path), e))
}

/// Makes the directory `path`, and checks that files can be written in it.
///
/// # Errors
/// [`Error::Output`], naming the directory.
pub fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path)
        .and_then(|()| place::try_directory(path))
        .map_err(|e| failed(path, e))
}

/// The files that a command will write, each with the flag that names it. To be checked before hours of work.
#[derive(Debug, Default)]
pub struct Outputs {
    files: Vec<(&'static str, PathBuf)>,
    /// What the command reads.
    inputs: Vec<(&'static str, PathBuf)>,
}

/// Endings of the files that a model's directory is read for.
const READ: [&str; 4] = ["json", "safetensors", "txt", "bin"];

impl Outputs {
    /// Adds the file of a flag; several are numbered.
    ///
    /// # Errors
    /// [`Error::Request`] where several files would go to one device, FIFO or standard output.
    pub fn add(&mut self, flag: &'static str, path: &Path, count: usize) -> Result<()> {
        let place = Place::of(path).map_err(|e| failed(path, e))?;
        if count > 1 && !place.is_file() {
            let path = path.display();
            return Err(Error::Request(format!(
                "{flag} {path}: it takes one file, these are {count}; give the name of a file"
            )));
        }
        let each = (0..count).map(|index| (flag, numbered(path, index, count)));
        self.files.extend(each);
        Ok(())
    }

    /// As [`Self::add`] for files of one kind, whose names end in `ending` or in nothing.
    ///
    /// # Errors
    /// [`Error::Request`] for another ending; as [`Self::add`].
    pub fn add_ending(
        &mut self,
        flag: &'static str,
        path: &Path,
        count: usize,
        ending: &str,
    ) -> Result<()> {
        self.add(flag, path, count)?;
        let place = Place::of(path).map_err(|e| failed(path, e))?;
        let other = |own: &std::ffi::OsStr| !own.eq_ignore_ascii_case(ending);
        if place.is_file() && path.extension().is_some_and(other) {
            return Err(Error::Request(format!(
                "{flag} {}: what is written there is {}; give a name that ends in .{ending}",
                path.display(),
                ending.to_uppercase()
            )));
        }
        Ok(())
    }

    /// Adds what a flag has read: a file, or a model's directory. No output may take the place of any of it.
    pub fn reads(&mut self, flag: &'static str, path: &Path) {
        self.inputs.push((flag, path.to_owned()));
    }

    /// The flag whose input is at `output`, if there is one.
    fn input_at(&self, output: &Path) -> Option<&'static str> {
        let output = output.canonicalize().ok()?;
        let ending = output.extension().unwrap_or_default();
        let read = |(_, input): &&(&str, PathBuf)| match input.canonicalize() {
            Ok(input) if input.is_dir() => {
                output.starts_with(input) && READ.iter().any(|read| ending == *read)
            }
            Ok(input) => output == input,
            Err(_) => false,
        };
        self.inputs.iter().find(read).map(|(flag, _)| *flag)
    }

    /// Whether the standard output is one of them, and so not for lines.
    pub fn take_stdout(&self) -> bool {
        let is_stdout = |path: &Path| Place::of(path).is_ok_and(|place| place.is_stdout());
        self.files.iter().any(|(_, path)| is_stdout(path))
    }

    /// Checks that every one can be written, and that no two are one file. Leaves nothing behind.
    ///
    /// # Errors
    /// [`Error::Output`] naming the path; [`Error::Request`] naming both flags.
    pub fn check(&self) -> Result<()> {
        let mut directories = HashSet::new();
        let mut taken: HashMap<PathBuf, &str> = HashMap::new();
        for (flag, path) in &self.files {
            let place = Place::of(path).map_err(|e| failed(path, e))?;
            place.check(&mut directories).map_err(|e| failed(path, e))?;
            let Some(identity) = place.identity().map_err(|e| failed(path, e))? else {
                continue;
            };
            if let Some(input) = self.input_at(&identity) {
                return Err(Error::Request(format!(
                    "{flag} {}: that is a file of {input}, which is read; give another name",
                    path.display()
                )));
            }
            if let Some(other) = taken.insert(identity, flag) {
                return Err(Error::Request(format!(
                    "{flag} {}: {other} writes there, too; give another name",
                    path.display()
                )));
            }
        }
        Ok(())
    }
}

/// `pic.png` to `pic-2.png` for the third of several; as it is for one alone.
pub fn numbered(path: &Path, index: usize, count: usize) -> PathBuf {
    if count == 1 {
        return path.to_owned();
    }
    let mut name = OsString::from(path.file_stem().unwrap_or_default());
    name.push(format!("-{index}"));
    if let Some(ending) = path.extension() {
        name.push(".");
        name.push(ending);
    }
    path.with_file_name(name)
}

fn failed(path: &Path, e: std::io::Error) -> Error {
    let reason = e.to_string();
    // tempfile adds the name of the unfinished file, which says nothing to anybody.
    let reason = reason.split(" at path ").next().unwrap_or(&reason);
    Error::Output {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Writes all and leaves nothing in a buffer.
fn write_out(mut to: impl Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn check(files: &[(&'static str, &Path)]) -> Result<()> {
        let mut outputs = Outputs::default();
        for (flag, path) in files {
            outputs.add(flag, path, 1)?;
        }
        outputs.check()
    }

    #[test]
    fn a_file_is_written_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        std::fs::write(dir.path().join("a.bin.partial"), "precious").unwrap();
        check(&[("--out", &path)]).unwrap();
        assert!(!path.exists());
        write_whole(&path, b"old").unwrap();
        write_whole(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a.bin", "a.bin.partial"]);
    }

    #[test]
    fn many_writers_of_one_file_all_succeed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| write_whole(&path, b"whole").unwrap()));
            }
        });
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(names(dir.path()), ["a.bin"]);
    }

    #[test]
    fn what_cannot_be_written_is_found_out_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing").join("a.png");
        for (error, said) in [
            (
                check(&[("--out", &path)]).unwrap_err(),
                "there is no folder",
            ),
            (write_whole(&path, b"").unwrap_err(), "No such file"),
        ] {
            let error = error.to_string();
            assert!(error.contains(&format!("missing/a.png: {said}")), "{error}");
            assert!(!error.contains(UNFINISHED), "{error}");
        }
        assert!(check(&[("--out", dir.path())]).is_err());
        assert!(check(&[("--out", &dir.path().join("a.png/"))]).is_err());
    }

    #[test]
    fn several_pictures_are_numbered_from_zero() {
        let path = Path::new("out/pic.png");
        assert_eq!(numbered(path, 0, 1), path);
        assert_eq!(numbered(path, 2, 3), Path::new("out/pic-2.png"));
    }

    #[test]
    fn one_file_is_not_given_to_two_flags() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("s.png");
        let roundabout = dir.path().join("..").join(dir.path().file_name().unwrap());
        for report in [out.clone(), roundabout.join("./s.png")] {
            let error = check(&[("--out", &out), ("--report", &report)]).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("--report") && error.contains("--out"),
                "{error}"
            );
        }
        let mut outputs = Outputs::default();
        outputs.add("--out", &out, 3).unwrap();
        outputs.check().unwrap();
        outputs
            .add("--report", &dir.path().join("s-2.png"), 1)
            .unwrap();
        assert!(outputs.check().is_err());
        assert!(check(&[("--out", Path::new("-")), ("--report", Path::new("-"))]).is_err());
    }

    #[test]
    fn a_picture_is_no_jpeg() {
        let dir = tempfile::tempdir().unwrap();
        let ending = |name: &str| {
            let path = dir.path().join(name);
            Outputs::default().add_ending("--out", &path, 1, "png")
        };
        for fits in ["a.png", "a.PNG", "a"] {
            ending(fits).unwrap();
        }
        for other in ["a.jpg", "a.png.webp"] {
            let error = ending(other).unwrap_err().to_string();
            assert!(error.contains("--out") && error.contains(".png"), "{error}");
        }
    }

    #[cfg(unix)]
    mod unix {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        use std::os::unix::fs::{PermissionsExt, symlink};

        use super::*;

        #[test]
        fn a_link_leads_to_the_file_that_is_written() {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            std::fs::create_dir(at("sub")).unwrap();
            std::fs::write(at("sub/target"), "old").unwrap();
            symlink("sub/target", at("first")).unwrap();
            symlink("first", at("link")).unwrap();
            write_whole(&at("link"), b"new").unwrap();
            assert_eq!(std::fs::read(at("sub/target")).unwrap(), b"new");
            assert!(at("link").is_symlink() && at("first").is_symlink());
            // Also where the target is not there yet.
            symlink("sub/later", at("dangling")).unwrap();
            write_whole(&at("dangling"), b"new").unwrap();
            assert_eq!(std::fs::read(at("sub/later")).unwrap(), b"new");
            let error = check(&[("--out", &at("link")), ("--report", &at("sub/target"))]);
            assert!(error.is_err());
            symlink("round", at("round")).unwrap();
            assert!(write_whole(&at("round"), b"").is_err());
        }

        #[test]
        fn permissions_stay_and_new_files_are_like_any_others() {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            let mode = |name: &str| std::fs::metadata(at(name)).unwrap().permissions().mode();
            std::fs::write(at("plain"), "").unwrap();
            write_whole(&at("new"), b"").unwrap();
            assert_eq!(mode("new"), mode("plain"));
            std::fs::set_permissions(at("plain"), PermissionsExt::from_mode(0o640)).unwrap();
            write_whole(&at("plain"), b"").unwrap();
            assert_eq!(mode("plain") & 0o777, 0o640);
            std::fs::set_permissions(at("plain"), PermissionsExt::from_mode(0o440)).unwrap();
            for result in [
                check(&[("--out", &at("plain"))]),
                write_whole(&at("plain"), b""),
            ] {
                let error = result.unwrap_err().to_string();
                assert!(error.contains("read-only"), "{error}");
            }
        }

        #[test]
        fn a_name_keeps_its_bytes() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(OsStr::from_bytes(b"caf\xe9.png"));
            let second = numbered(&path, 1, 2);
            write_whole(&second, b"x").unwrap();
            let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
            let name = names[0].as_ref().unwrap().file_name();
            assert_eq!(name.as_bytes(), b"caf\xe9-1.png");
        }

        #[test]
        fn a_fifo_is_written_in_place_and_takes_one_file() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("q.jpg");
            let made = std::process::Command::new("mkfifo").arg(&path).status();
            assert!(made.unwrap().success());
            let mut outputs = Outputs::default();
            outputs.add_ending("--out", &path, 1, "png").unwrap();
            outputs.check().unwrap();
            assert!(outputs.add("--out", &path, 2).is_err());
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| std::fs::read(&path).unwrap());
                write_whole(&path, b"through").unwrap();
                assert_eq!(reader.join().unwrap(), b"through");
            });
            assert!(!std::fs::metadata(&path).unwrap().is_file());
        }

        #[test]
        #[cfg(target_os = "linux")]
        fn an_open_file_of_this_process_is_written_in_place() {
            use std::os::fd::AsRawFd;
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(b"before ").unwrap();
            let path = format!("/proc/self/fd/{}", file.as_file().as_raw_fd());
            write_whole(Path::new(&path), b"after").unwrap();
            assert_eq!(std::fs::read(file.path()).unwrap(), b"before after");
        }
    }
}

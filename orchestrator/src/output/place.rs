//! What a path names: a file, something that is written in place, or the standard output.

use std::collections::HashSet;
use std::fs::{FileType, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

use super::{UNFINISHED, write_out};

/// Links that are followed: as many as Linux does.
const LINKS: usize = 40;

/// Where bytes go.
pub(super) enum Place {
    /// `-`.
    Stdout,
    /// A file, links followed, with what is there now.
    File {
        path: PathBuf,
        old: Option<Metadata>,
    },
    /// A device, a FIFO or a socket.
    Special { path: PathBuf, kind: FileType },
    /// What is open already, by its number: `/dev/stdout`, `/dev/fd/3`.
    Descriptor(PathBuf),
}

/// Whether a name of the system leads to the standard output (Linux: `/dev/stdout`, `/dev/fd/1`, links to them).
fn is_stdout(path: &Path) -> bool {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let name = path.file_name().unwrap_or_default().to_owned();
        let directory = directory(&path).canonicalize().unwrap_or_default();
        if name == "1" && directory.starts_with("/proc") && directory.ends_with("fd") {
            return true;
        }
        match std::fs::read_link(&path) {
            // Such a link's text (pipe:[7]) need not be a path.
            Ok(_) if directory.starts_with("/proc") => return false,
            Ok(to) => path = directory.join(to),
            Err(_) => return false,
        }
    }
    false
}

/// Whether this process began without a standard output (Linux). Rust then opens the null device in its place, for
/// reading and writing, as nobody does who has the output thrown away.
fn stdout_is_closed() -> bool {
    let null = std::fs::read_link("/proc/self/fd/1").is_ok_and(|to| to == Path::new("/dev/null"));
    let info = std::fs::read_to_string("/proc/self/fdinfo/1").unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    const READ_AND_WRITE: u32 = 2;
    null && flags.is_some_and(|flags| flags & 3 == READ_AND_WRITE)
}

impl Place {
    /// What `path` names.
    ///
    /// # Errors
    /// Directories, links in a circle, and what the system says.
    pub(super) fn of(path: &Path) -> Result<Self> {
        if path == Path::new("-") || is_stdout(path) {
            return Ok(Self::Stdout);
        }
        let slash = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        if slash || path.file_name().is_none() {
            return Err(Error::new(ErrorKind::IsADirectory, "it is a directory"));
        }
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            let there = match std::fs::symlink_metadata(&path) {
                Ok(there) => there,
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    return Ok(Self::File { path, old: None });
                }
                Err(e) => return Err(e),
            };
            let kind = there.file_type();
            if kind.is_dir() {
                return Err(Error::new(ErrorKind::IsADirectory, "it is a directory"));
            }
            if kind.is_file() {
                let old = Some(there);
                return Ok(Self::File { path, old });
            }
            if !kind.is_symlink() {
                return Ok(Self::Special { path, kind });
            }
            // Such a link's text (pipe:[7]) need not be a path.
            if directory(&path).canonicalize()?.starts_with("/proc") {
                return Ok(Self::Descriptor(path));
            }
            path = directory(&path).join(std::fs::read_link(&path)?);
        }
        Err(Error::other("its links lead in a circle"))
    }

    /// Whether it is the standard output, by whatever name.
    pub(super) fn is_stdout(&self) -> bool {
        matches!(self, Self::Stdout)
    }

    /// Whether it is a file, which is replaced as a whole.
    pub(super) fn is_file(&self) -> bool {
        matches!(self, Self::File { .. })
    }

    /// What to call it in messages, where the user says `path`.
    pub(super) fn name(&self, path: &Path) -> PathBuf {
        match self {
            Self::Stdout => "the standard output".into(),
            _ => path.to_owned(),
        }
    }

    /// One path for one place; none where several outputs do no harm to each other.
    pub(super) fn identity(&self) -> Result<Option<PathBuf>> {
        Ok(match self {
            Self::Stdout => Some("-".into()),
            Self::File { path, .. } => {
                let name = path.file_name().unwrap_or_default();
                Some(directory(path).canonicalize()?.join(name))
            }
            Self::Special { path, kind } if is_fifo(kind) => Some(path.canonicalize()?),
            Self::Special { .. } | Self::Descriptor(_) => None,
        })
    }

    /// Whether bytes could be written now, without writing any; `tried` are the directories found so far.
    pub(super) fn check(&self, tried: &mut HashSet<PathBuf>) -> Result<()> {
        let Self::File { path, old } = self else {
            return match self {
                Self::Stdout if stdout_is_closed() => {
                    Err(Error::other("the standard output is closed"))
                }
                _ => Ok(()),
            };
        };
        not_read_only(old.as_ref())?;
        let directory = directory(path);
        if !directory.exists() {
            let reason = format!("there is no folder {}", directory.display());
            return Err(Error::new(ErrorKind::NotFound, reason));
        }
        match tried.insert(directory.clone()) {
            true => try_directory(&directory),
            false => Ok(()),
        }
    }

    /// Writes `bytes`.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Stdout => write_out(std::io::stdout().lock(), bytes),
            Self::File { path, old } => replace(path, old.as_ref(), bytes),
            Self::Special { path, .. } => {
                write_out(OpenOptions::new().write(true).open(path)?, bytes)
            }
            // Behind what was written to it so far.
            Self::Descriptor(path) => write_out(OpenOptions::new().append(true).open(path)?, bytes),
        }
    }
}

/// Finds out whether a file can be made in `directory`; none is left there.
pub(super) fn try_directory(directory: &Path) -> Result<()> {
    tempfile::tempfile_in(directory).map(drop)
}

/// By way of a file beside it, under a name that nobody else uses.
fn replace(path: &Path, old: Option<&Metadata>, bytes: &[u8]) -> Result<()> {
    not_read_only(old)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED);
    #[cfg(unix)]
    {
        // As for any new file: the user's umask says what is left of it.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(directory(path))?;
    if let Some(old) = old {
        file.as_file().set_permissions(old.permissions())?;
    }
    write_out(&mut file, bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

fn not_read_only(old: Option<&Metadata>) -> Result<()> {
    match old.is_some_and(|old| old.permissions().readonly()) {
        true => Err(Error::new(ErrorKind::PermissionDenied, "it is read-only")),
        false => Ok(()),
    }
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => ".".into(),
    }
}

#[cfg(unix)]
fn is_fifo(kind: &FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_fifo(kind)
}

#[cfg(not(unix))]
fn is_fifo(_: &FileType) -> bool {
    false
}

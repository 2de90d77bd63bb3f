//! Digests of large weight files, kept from one run to the next: for the digest all of a network is read, of which a
//! user who has workers computes a part.

use std::fs::{self, File, Metadata};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Of smaller networks the digest is made anew: that takes a moment.
const WORTH_KEEPING: u64 = 256 << 20;
/// A file that changed less than this ago may change again without its times telling; file systems count in up to 2 s.
const SETTLED: Duration = Duration::from_secs(3);
/// A digest in hexadecimal digits.
const DIGITS: usize = 64;

/// A folder of digests, each under a name made of what its files are known by: device, inode, length and the times of
/// their last changes, to the nanosecond. A file that is changed, or another one in its place, has another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestCache {
    folder: PathBuf,
    /// Bytes of the least network whose digest is kept.
    least: u64,
    /// How long its files must have been as they are.
    settled: Duration,
}

/// The name under which a digest is kept.
#[derive(PartialEq, Eq)]
pub(super) struct Key(blake3::Hash);

impl DigestCache {
    /// In `folder`, which is made when it is first needed.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            least: WORTH_KEEPING,
            settled: SETTLED,
        }
    }

    /// At its usual place, `lacuna/digests` of the user's cache folder: `XDG_CACHE_HOME`, else `~/.cache`. None where
    /// neither is known.
    pub fn of_user() -> Option<Self> {
        let folder = |name| std::env::var_os(name).map(PathBuf::from);
        let given = folder("XDG_CACHE_HOME").filter(|given| given.is_absolute());
        let cache = given.or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
        Some(Self::in_folder(cache.join("lacuna").join("digests")))
    }

    /// What `bytes` bytes of tensors are known by: `files` in their order, and `what` of them a network is made of. None
    /// where the digest is not to be kept: of a small network, of files that have just changed, and on systems that do
    /// not tell one file from another.
    pub(super) fn key(&self, bytes: u64, files: &[Metadata], what: &str) -> Option<Key> {
        if bytes < self.least {
            return None;
        }
        let mut hasher = blake3::Hasher::new_derive_key("lacuna 2026-11 files of a digest");
        for file in files {
            hasher.update(identity(file, self.settled)?.as_bytes());
        }
        hasher.update(what.as_bytes());
        Some(Key(hasher.finalize()))
    }

    /// The digest that is kept under `key`.
    pub(super) fn find(&self, key: &Key) -> Option<String> {
        let file = File::open(self.path(key)).ok()?;
        let mut digest = String::new();
        file.take(DIGITS as u64 + 1)
            .read_to_string(&mut digest)
            .ok()?;
        let is_digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        (digest.len() == DIGITS && digest.bytes().all(is_digit)).then_some(digest)
    }

    /// Keeps `digest` under `key`. Where that is not possible it is made anew next time.
    pub(super) fn keep(&self, key: &Key, digest: &str) {
        let path = self.path(key);
        if let Err(error) = write_private(&self.folder, &path, digest) {
            tracing::debug!("{}: {error}; the digest is not kept", path.display());
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(key.0.to_hex().as_str())
    }
}

/// What tells a file from any other, and from itself once it is changed; none of one that was changed within `settled`.
#[cfg(unix)]
fn identity(file: &Metadata, settled: Duration) -> Option<String> {
    use std::os::unix::fs::MetadataExt;

    let changed = file.ctime().max(file.mtime());
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let age = since
        .ok()?
        .as_secs()
        .checked_sub(u64::try_from(changed).ok()?)?;
    let times = [
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
    ];
    (age >= settled.as_secs()).then(|| {
        let (device, inode, length) = (file.dev(), file.ino(), file.size());
        format!("{device} {inode} {length} {times:?} ")
    })
}

#[cfg(not(unix))]
fn identity(_: &Metadata, _: Duration) -> Option<String> {
    None
}

/// Writes the file at `path` in `folder`: there whole or not at all, of the mode 0600.
fn write_private(folder: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use lacuna_wire::{HostTensor, to_safetensors};

    use super::super::{Checkpoint, View};
    use super::*;

    /// A digest that is of no file.
    const MADE_UP: &str = "00000000000000000000000000000000000000000000000000000000deadbeef";

    /// Keeps those of any network at once.
    fn eager(folder: &Path) -> DigestCache {
        DigestCache {
            least: 0,
            settled: Duration::ZERO,
            ..DigestCache::in_folder(folder)
        }
    }

    fn write(path: &Path, value: f32) {
        let tensor = HostTensor::new([2, 2], vec![value; 4]).unwrap();
        fs::write(path, to_safetensors([("x", &tensor)], None).unwrap()).unwrap();
    }

    fn digest(path: &Path, cache: &DigestCache) -> String {
        let checkpoint = Checkpoint::open_file(path).unwrap();
        let checkpoint = checkpoint.with_digests(Some(cache.clone()));
        checkpoint.digest().unwrap().to_owned()
    }

    /// The one file in the cache.
    fn kept(cache: &DigestCache) -> PathBuf {
        let entries = fs::read_dir(&cache.folder).unwrap();
        let entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        let [one] = entries.as_slice() else {
            panic!("{entries:?}")
        };
        one.clone()
    }

    #[test]
    fn a_digest_is_found_again_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cache) = (
            dir.path().join("x.safetensors"),
            eager(&dir.path().join("a/b")),
        );
        write(&path, 1.0);
        let first = digest(&path, &cache);
        let entry = kept(&cache);
        assert_eq!(fs::read_to_string(&entry).unwrap(), first);
        assert_eq!(
            entry.metadata().unwrap().permissions().mode() & 0o777,
            0o600
        );
        // What is kept is what is said, so nothing of the file was read.
        fs::write(&entry, MADE_UP).unwrap();
        assert_eq!(digest(&path, &cache), MADE_UP);
        // Another file of that name, of the same length.
        let other = dir.path().join("other");
        write(&other, 2.0);
        fs::rename(&other, &path).unwrap();
        let second = digest(&path, &cache);
        assert!(second != first && second != MADE_UP);
        // The same file with other content.
        fs::remove_dir_all(&cache.folder).unwrap();
        digest(&path, &cache);
        fs::write(kept(&cache), MADE_UP).unwrap();
        // Longer than the tick by which file systems count.
        std::thread::sleep(Duration::from_millis(50));
        write(&path, 3.0);
        let third = digest(&path, &cache);
        assert!(third != second && third != MADE_UP);
    }

    #[test]
    fn what_is_no_digest_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cache) = (dir.path().join("x"), eager(&dir.path().join("cache")));
        write(&path, 1.0);
        let first = digest(&path, &cache);
        let entry = kept(&cache);
        let long = format!("{MADE_UP}0");
        for bad in ["", &MADE_UP[1..], &long, &MADE_UP.to_uppercase()] {
            fs::write(&entry, bad).unwrap();
            assert_eq!(digest(&path, &cache), first, "{bad}");
            assert_eq!(fs::read_to_string(&entry).unwrap(), first, "{bad}");
        }
    }

    #[test]
    fn another_network_of_the_same_file_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cache) = (dir.path().join("x"), eager(&dir.path().join("cache")));
        write(&path, 1.0);
        let first = digest(&path, &cache);
        fs::write(kept(&cache), MADE_UP).unwrap();
        let checkpoint = Checkpoint::open_file(&path).unwrap();
        let mut checkpoint = checkpoint.with_digests(Some(cache));
        checkpoint.view(|_, shape| vec![View::whole("y", shape)]);
        let second = checkpoint.digest().unwrap();
        assert!(second != first && second != MADE_UP);
    }

    #[test]
    fn small_networks_and_files_that_just_changed_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write(&path, 1.0);
        let folder = dir.path().join("cache");
        let usual = DigestCache::in_folder(&folder);
        let of_any_size = DigestCache {
            least: 0,
            ..usual.clone()
        };
        let at_once = DigestCache {
            settled: Duration::ZERO,
            ..usual.clone()
        };
        for cache in [&usual, &of_any_size, &at_once] {
            digest(&path, cache);
            assert!(!folder.exists(), "{cache:?}");
        }
    }

    #[test]
    fn without_a_place_for_it_the_digest_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write(&path, 1.0);
        let first = digest(&path, &eager(&dir.path().join("cache")));
        // A file is where the folder should be.
        assert_eq!(digest(&path, &eager(&path)), first);
    }
}

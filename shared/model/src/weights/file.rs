//! One safetensors file, read part by part.
//!
//! Not mapped into memory: pages of a map count as the process's own, and a file that is cut short while it
//! is mapped ends the process.

use std::fs::{File, Metadata as FileMetadata};
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;

use crate::error::{Error, Result};

/// Longest header that is read, in bytes; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes read at a time; a multiple of every number's size.
const PART: usize = 1 << 20;

/// An open file whose header was checked against its length.
pub(super) struct WeightFile {
    path: PathBuf,
    file: File,
    /// Where every read moves the file's one position: who has it reads.
    #[cfg(not(unix))]
    position: std::sync::Mutex<()>,
    /// Where the tensors begin.
    data: u64,
}

impl WeightFile {
    /// Opens `path` and reads its header: eight bytes of length, little-endian, then JSON.
    ///
    /// # Errors
    /// [`Error::Read`], or [`Error::BadWeights`] when the header is no safetensors header or does not
    /// describe just the bytes that follow.
    pub(super) fn open(path: &Path) -> Result<(Self, Metadata)> {
        let mut file = File::open(path).map_err(|e| Error::read(path, e))?;
        let length = file.metadata().map_err(|e| Error::read(path, e))?.len();
        let bad = |reason: String| Error::BadWeights {
            path: path.to_owned(),
            reason,
        };
        let mut size = [0; 8];
        if length < size.len() as u64 {
            return Err(bad(format!("{length} bytes are not even a header")));
        }
        file.read_exact(&mut size)
            .map_err(|e| Error::read(path, e))?;
        if let Some(what) = mistaken(size) {
            return Err(bad(format!(
                "it is {what}, not the file itself: download it again"
            )));
        }
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER.min(length - 8) {
            return Err(bad(format!(
                "a header of {size} bytes in a file of {length}; is it a safetensors file?"
            )));
        }
        let mut header = vec![0; size as usize];
        file.read_exact(&mut header)
            .map_err(|e| Error::read(path, e))?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|e| bad(e.to_string()))?;
        let data = 8 + size;
        let (described, held) = (header.data_len() as u64, length - data);
        if described != held {
            return Err(bad(format!(
                "its header describes {described} bytes of tensors, it holds {held}"
            )));
        }
        let file = Self {
            path: path.to_owned(),
            file,
            #[cfg(not(unix))]
            position: std::sync::Mutex::default(),
            data,
        };
        Ok((file, header))
    }

    /// Where the tensors begin.
    pub(super) fn data(&self) -> u64 {
        self.data
    }

    /// What the system knows of the file that is open, whatever now has its name.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub(super) fn metadata(&self) -> Result<FileMetadata> {
        let file = &self.file;
        file.metadata().map_err(|e| Error::read(&self.path, e))
    }

    /// The file is damaged, and why.
    pub(super) fn bad(&self, reason: String) -> Error {
        Error::BadWeights {
            path: self.path.clone(),
            reason,
        }
    }

    /// Shows `bytes` bytes from `offset` on to `look`, part after part; every part but the last has a
    /// length that any number's size divides.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub(super) fn each_part(
        &self,
        offset: u64,
        bytes: usize,
        mut look: impl FnMut(&[u8]),
    ) -> Result<()> {
        let mut buffer = vec![0; bytes.min(PART)];
        for start in (0..bytes).step_by(PART) {
            let part = &mut buffer[..PART.min(bytes - start)];
            self.read(offset + start as u64, part)
                .map_err(|e| Error::read(&self.path, e))?;
            look(part);
        }
        Ok(())
    }

    #[cfg(unix)]
    fn read(&self, offset: u64, part: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, part, offset)
    }

    #[cfg(not(unix))]
    fn read(&self, offset: u64, part: &mut [u8]) -> std::io::Result<()> {
        use std::io::{Seek, SeekFrom};

        // Whoever panicked while reading has left nothing behind but a position.
        let _mine = self.position.lock().unwrap_or_else(|e| e.into_inner());
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(part)
    }
}

/// What a file is that begins with `bytes`, of those that a download leaves in place of the one that was meant.
fn mistaken(bytes: [u8; 8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 3] = [
        (b"version ", "a pointer of Git LFS"),
        (b"<!", "a page of HTML"),
        (b"<html", "a page of HTML"),
    ];
    let found = known
        .iter()
        .find(|(start, _)| bytes.to_ascii_lowercase().starts_with(start));
    found.map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = r#"{"x":{"dtype":"U8","shape":[6],"data_offsets":[0,6]}}"#;

    fn open(header_size: u64, rest: &[u8]) -> Result<(WeightFile, Metadata)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let bytes = [&header_size.to_le_bytes()[..], rest].concat();
        std::fs::write(&path, bytes).unwrap();
        WeightFile::open(&path)
    }

    fn with_header(header: &str, data: &[u8]) -> Result<(WeightFile, Metadata)> {
        open(header.len() as u64, &[header.as_bytes(), data].concat())
    }

    #[test]
    fn bytes_are_shown_in_order_from_where_they_begin() {
        let (file, header) = with_header(HEADER, b"abcdef").unwrap();
        assert_eq!(header.tensors()["x"].shape, [6]);
        let mut seen = Vec::new();
        let from = file.data() + 2;
        file.each_part(from, 3, |part| seen.extend_from_slice(part))
            .unwrap();
        assert_eq!(seen, b"cde");
        // Longer than one part.
        let long = HEADER.replace('6', &(PART + 7).to_string());
        let bytes: Vec<u8> = (0..PART + 7).map(|i| i as u8).collect();
        let (file, _) = with_header(&long, &bytes).unwrap();
        let mut parts = Vec::new();
        file.each_part(file.data(), bytes.len(), |part| parts.push(part.to_vec()))
            .unwrap();
        assert_eq!(parts.len(), 2);
        assert!(parts.concat() == bytes);
    }

    #[test]
    fn what_a_download_leaves_is_named() {
        for (bytes, what) in [
            (
                &b"version https://git-lfs.github.com/spec/v1"[..],
                "Git LFS",
            ),
            (b"<!DOCTYPE html><html>", "HTML"),
            (b"<HTML><head>", "HTML"),
        ] {
            let size = u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
            let error = open(size, &bytes[8..]).err().unwrap().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let gap = HEADER.replace("[0,6]", "[1,7]");
        let huge = HEADER.replace('6', &u64::MAX.to_string());
        for (case, opened) in [
            ("cut short", with_header(HEADER, b"abc")),
            ("bytes to spare", with_header(HEADER, b"abcdefg")),
            ("a hole", with_header(&gap, b"abcdefg")),
            ("sizes that overflow", with_header(&huge, b"abcdef")),
            ("no header", open(HEADER.len() as u64, b"")),
            (
                "a header beyond the file",
                open(u64::MAX, HEADER.as_bytes()),
            ),
            ("not JSON", with_header("{\"x\":", b"")),
            ("not text", open(2, &[0xff, 0xfe])),
        ] {
            let error = opened.err().expect(case).to_string();
            assert!(
                error.contains("x.safetensors is damaged"),
                "{case}: {error}"
            );
        }
    }
}

//! Some of a file's tensors as a file of their own, which is never made: it is sent as it is read.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};

use super::file::WeightFile;
use crate::error::{Error, Result};

/// Headers are filled up with blanks to a multiple of so many bytes.
const ALIGNED: usize = 8;

/// A safetensors file that holds some of the tensors of another one, byte for byte, and nothing else of it.
#[derive(Clone, Debug)]
pub struct Extract {
    path: PathBuf,
    /// Length and header.
    head: Vec<u8>,
    /// Where in the other one what follows lies.
    ranges: Vec<Range<u64>>,
}

impl Extract {
    /// Of the file at `path`, with the tensors whose names `keep` picks.
    ///
    /// # Errors
    /// [`Error::Read`] or [`Error::BadWeights`].
    pub fn of(path: &Path, keep: impl Fn(&str) -> bool) -> Result<Self> {
        let (file, header) = WeightFile::open(path)?;
        let bad = |error: &dyn std::fmt::Display| file.bad(error.to_string());
        let mut kept: Vec<(String, TensorInfo)> = header
            .tensors()
            .into_iter()
            .filter(|(name, _)| keep(name))
            .map(|(name, info)| (name, info.clone()))
            .collect();
        kept.sort_by_key(|(_, info)| info.data_offsets);
        let (mut ranges, mut at) = (Vec::new(), 0);
        for (_, info) in &mut kept {
            let (start, end) = info.data_offsets;
            ranges.push(file.data() + start as u64..file.data() + end as u64);
            info.data_offsets = (at, at + (end - start));
            at = info.data_offsets.1;
        }
        let header = Metadata::new(None, kept).map_err(|e| bad(&e))?;
        let mut header = serde_json::to_vec(&header).map_err(|e| bad(&e))?;
        header.resize(header.len().next_multiple_of(ALIGNED), b' ');
        let head = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
        Ok(Self {
            path: path.to_owned(),
            head,
            ranges,
        })
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        let tensors = self.ranges.iter().map(|range| range.end - range.start);
        self.head.len() as u64 + tensors.sum::<u64>()
    }

    /// At most `most` bytes of it, from `offset` on: none where that is its end.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn read(&self, offset: u64, most: usize) -> Result<Vec<u8>> {
        let failed = |e| Error::read(&self.path, e);
        let mut read = Vec::with_capacity(most);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let head = self.head.get(from..).unwrap_or_default();
        read.extend_from_slice(&head[..head.len().min(most)]);
        let mut skip = offset.saturating_sub(self.head.len() as u64);
        let mut file = File::open(&self.path).map_err(failed)?;
        for range in &self.ranges {
            let bytes = range.end - range.start;
            let passed = skip.min(bytes);
            skip -= passed;
            let wanted = (bytes - passed).min((most - read.len()) as u64);
            if wanted == 0 {
                continue;
            }
            file.seek(SeekFrom::Start(range.start + passed))
                .map_err(failed)?;
            let got = (&mut file).take(wanted).read_to_end(&mut read);
            if got.map_err(failed)? as u64 != wanted {
                let shorter = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(failed(shorter));
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use lacuna_wire::{HostTensor, to_safetensors};

    use super::super::Checkpoint;
    use super::*;

    #[test]
    fn it_is_a_file_of_the_tensors_that_were_picked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all.safetensors");
        let tensors: Vec<(String, HostTensor)> = (0..7_u16)
            .map(|i| {
                let data = (0..50).map(|j| f32::from(100 * i + j)).collect();
                let part = ["unet", "text"][usize::from(i % 2)];
                (
                    format!("{part}.{i}"),
                    HostTensor::new([5, 10], data).unwrap(),
                )
            })
            .collect();
        let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        std::fs::write(&path, to_safetensors(named, None).unwrap()).unwrap();

        let extract = Extract::of(&path, |name| name.starts_with("unet.")).unwrap();
        let whole = extract.read(0, 1 << 20).unwrap();
        assert_eq!(whole.len() as u64, extract.bytes());
        // Cut anywhere it is the same.
        for piece in [1, 7, 64, 333] {
            let mut pieces = Vec::new();
            while (pieces.len() as u64) < extract.bytes() {
                pieces.extend(extract.read(pieces.len() as u64, piece).unwrap());
            }
            assert!(pieces == whole, "{piece}");
        }
        assert!(extract.read(extract.bytes(), 10).unwrap().is_empty());
        let own = dir.path().join("own.safetensors");
        std::fs::write(&own, &whole).unwrap();
        let own = Checkpoint::open_file(&own).unwrap();
        let names: Vec<&str> = own.names().collect();
        assert_eq!(names, ["unet.0", "unet.2", "unet.4", "unet.6"]);
        for (name, tensor) in tensors.iter().step_by(2) {
            assert_eq!(own.read(name).unwrap(), *tensor, "{name}");
        }
        std::fs::write(&path, b"").unwrap();
        assert!(extract.read(whole.len() as u64 - 8, 8).is_err());
    }
}

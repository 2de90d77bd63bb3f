//! Where the files of a U-Net lie.

use std::path::{Path, PathBuf};

use super::{UNet, UNetConfig, original};
use crate::error::Result;
use crate::weights::{Adapter, AdapterFile, Checkpoint, Library, Network, Stored};

/// The files of a U-Net, adapters apart.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory in diffusers' layout: `config.json` and safetensors.
    Folder {
        /// The directory.
        dir: PathBuf,
        /// Which of its weights.
        variant: Option<String>,
    },
    /// A model in one file.
    File {
        /// The file.
        path: PathBuf,
        /// Its config, where its tensors are not to tell it.
        config: Option<PathBuf>,
    },
}

impl Source {
    /// The directory `dir`, of which no variant is asked for.
    pub fn folder(dir: &Path) -> Self {
        Self::Folder {
            dir: dir.to_owned(),
            variant: None,
        }
    }

    /// Opens the files; nothing of the weights is read.
    ///
    /// # Errors
    /// Those of [`UNetConfig::from_file`], [`Checkpoint::open`] and [`original::open`].
    pub fn files(&self) -> Result<(UNetConfig, Checkpoint)> {
        match self {
            Self::Folder { dir, variant } => Ok((
                UNetConfig::from_file(&dir.join("config.json"))?,
                Checkpoint::open(dir, Library::Diffusers, variant.as_deref())?,
            )),
            Self::File { path, config } => original::open(path, config.as_deref()),
        }
    }

    /// Checks the files, and those of `adapters`, which are read; what these hold of other networks is left out.
    ///
    /// # Errors
    /// Those of [`Self::files`], [`AdapterFile::open_all`], [`Stored::new`] and [`Stored::with_adapters`].
    pub fn open(&self, adapters: &[AdapterFile]) -> Result<Stored<UNet>> {
        let (config, checkpoint) = self.files()?;
        let stored = Stored::new(config.build(), checkpoint)?;
        let mut adapters = AdapterFile::open_all(adapters)?;
        stored.with_adapters(Adapter::take_all(&mut adapters, Network::UNet))
    }
}

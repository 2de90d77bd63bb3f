//! Where the files of a U-Net lie.

use std::path::{Path, PathBuf};

use lacuna_model::unet::{UNet, UNetConfig, original};
use lacuna_model::weights::{Adapter, AdapterFile, Checkpoint, Library, Network, Stored};
use lacuna_protocol::models::{CONFIG, ORIGINAL};

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

    /// What was sent to the directory `dir`: either.
    pub fn sent(dir: &Path) -> Self {
        let (path, config) = (dir.join(ORIGINAL), dir.join(CONFIG));
        match path.is_file() {
            true => Self::File {
                path,
                config: config.is_file().then_some(config),
            },
            false => Self::folder(dir),
        }
    }

    /// Checks the files, and those of `adapters`; nothing of the former is loaded.
    ///
    /// # Errors
    /// Those of [`UNetConfig::from_file`], [`Checkpoint::open`], [`original::open`], [`AdapterFile::open_all`] and [`Stored::new`].
    pub fn open(&self, adapters: &[AdapterFile]) -> lacuna_model::Result<Stored<UNet>> {
        let (config, checkpoint) = match self {
            Self::Folder { dir, variant } => (
                UNetConfig::from_file(&dir.join(CONFIG))?,
                Checkpoint::open(dir, Library::Diffusers, variant.as_deref())?,
            ),
            Self::File { path, config } => original::open(path, config.as_deref())?,
        };
        let stored = Stored::new(config.build(), checkpoint)?;
        // What of them is of text encoders is the user's.
        let mut adapters = AdapterFile::open_all(adapters)?;
        stored.with_adapters(Adapter::take_all(&mut adapters, Network::UNet))
    }
}

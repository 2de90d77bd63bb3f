//! Pictures of unfinished pictures.

use std::path::PathBuf;

use clap::Args;

use crate::error::{Error, Result};
use crate::limits;

/// Pictures of unfinished pictures.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Preview")]
pub struct PreviewArguments {
    /// Where to write the unfinished picture every few steps, a PNG; of several pictures numbered.
    #[arg(long, value_name = "FILE")]
    pub preview: Option<PathBuf>,
    /// Write it after so many steps, and after the last one [default: 5].
    #[arg(long, value_name = "N")]
    pub preview_every: Option<usize>,
    /// A TAESD to decode it with, as a diffusers directory or a file, e.g. taesd_decoder.safetensors [default: a linear map
    /// of the latents to colours, fitted to the model's VAE].
    #[arg(long, value_name = "PATH")]
    pub preview_decoder: Option<PathBuf>,
}

impl PreviewArguments {
    /// What can be refused before anything is read.
    ///
    /// # Errors
    /// [`Error::Request`], naming the flag.
    pub fn check(&self) -> Result<()> {
        limits::check("--preview-every", self.every(), limits::COUNT)?;
        let alone = [
            ("--preview-every", self.preview_every.is_some()),
            ("--preview-decoder", self.preview_decoder.is_some()),
        ];
        match alone.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) if self.preview.is_none() => Err(Error::Request(format!(
                "{flag}: no preview is written; give --preview, too"
            ))),
            _ => Ok(()),
        }
    }

    /// Steps between two previews.
    pub fn every(&self) -> usize {
        self.preview_every.unwrap_or(5)
    }
}

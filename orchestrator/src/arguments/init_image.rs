//! Which picture others are made from.

use std::path::PathBuf;

use clap::Args;

use crate::error::{Error, Result};
use crate::init_image::Given;

/// How far a picture goes from another one where nobody says: as the reference's pipelines, without a mask and with one.
const USUAL_STRENGTH: [f64; 2] = [0.8, 1.0];

/// Which picture others are made from.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "A picture to begin with")]
pub struct InitImageArguments {
    /// A PNG, JPEG or WebP file to begin with in place of noise. It is scaled to --size [default: its own size, down to
    /// whole latents], and stays on this machine.
    #[arg(long, value_name = "FILE")]
    pub init_image: Option<PathBuf>,
    /// How far the pictures may go from it, 0 to 1: so large a share of the steps is made [default: 0.8; 1 with --mask].
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub strength: Option<f64>,
    /// White where --init-image is to be painted anew, black where it is to stay; scaled as that is. Needed by inpainting
    /// models.
    #[arg(long, value_name = "FILE")]
    pub mask: Option<PathBuf>,
}

/// Checks how far a picture may go from another one.
///
/// # Errors
/// [`Error::Request`], naming the flag.
pub fn check_strength(strength: f64) -> Result<()> {
    match (0.0..=1.0).contains(&strength) {
        true => Ok(()),
        false => Err(Error::Request(format!(
            "--strength {strength}: give a number from 0 to 1"
        ))),
    }
}

impl InitImageArguments {
    /// What can be refused before anything is read.
    ///
    /// # Errors
    /// [`Error::Request`], naming the flag.
    pub fn check(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::Request(reason));
        self.strength.map_or(Ok(()), check_strength)?;
        let alone = [
            ("--mask", self.mask.is_some()),
            ("--strength", self.strength.is_some()),
        ];
        match alone.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) if self.init_image.is_none() => refuse(format!(
                "{flag}: there is no picture that it is for; give --init-image, too"
            )),
            _ => Ok(()),
        }
    }

    /// Reads the files, if any are given.
    ///
    /// # Errors
    /// As [`Given::read`].
    pub fn read(&self) -> Result<Option<Given>> {
        let usual = USUAL_STRENGTH[usize::from(self.mask.is_some())];
        let strength = self.strength.unwrap_or(usual);
        let image = self.init_image.as_deref();
        let given = image.map(|image| Given::read(image, self.mask.as_deref(), strength));
        given.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_named_with_what_does() {
        let given = |init_image: Option<&str>, mask: Option<&str>, strength| InitImageArguments {
            init_image: init_image.map(Into::into),
            mask: mask.map(Into::into),
            strength,
        };
        for (arguments, said) in [
            (given(None, Some("m.png"), None), "--mask"),
            (given(None, None, Some(0.5)), "--strength"),
            (given(Some("a.png"), None, Some(1.5)), "from 0 to 1"),
            (given(Some("a.png"), None, Some(-0.1)), "from 0 to 1"),
            (given(Some("a.png"), None, Some(f64::NAN)), "from 0 to 1"),
        ] {
            let error = arguments.check().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        given(None, None, None).check().unwrap();
        given(Some("a.png"), Some("m.png"), Some(1.0))
            .check()
            .unwrap();
        assert!(given(None, None, None).read().unwrap().is_none());
    }
}

//! The metrics by name.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::sets::Network;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Peak signal-to-noise ratio, in dB.
    Psnr,
    /// Structural similarity.
    Ssim,
    /// Learned perceptual distance.
    Lpips,
    /// How well a picture fits its prompt, 0 to 100.
    Clip,
    /// Fréchet distance of Inception's features.
    Fid,
    /// Kernel distance of Inception's features; keeps 8 KiB a picture.
    Kid,
    /// Fréchet distance of the demo features. It is not FID.
    Demo,
}

impl Metric {
    /// Whether it compares sets of pictures, not pairs.
    pub fn of_sets(self) -> bool {
        self.network().is_some()
    }

    /// Whose features it is of, where it is of sets.
    pub fn network(self) -> Option<Network> {
        match self {
            Self::Psnr | Self::Ssim | Self::Lpips | Self::Clip => None,
            Self::Fid | Self::Kid => Some(Network::Inception),
            Self::Demo => Some(Network::Demo),
        }
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Psnr => "psnr",
            Self::Ssim => "ssim",
            Self::Lpips => "lpips",
            Self::Clip => "clip",
            Self::Fid => "fid",
            Self::Kid => "kid",
            Self::Demo => "demo",
        })
    }
}

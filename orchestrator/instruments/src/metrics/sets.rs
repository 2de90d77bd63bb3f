//! Sets of pictures, by their features.

use std::path::PathBuf;

use rayon::prelude::*;

use super::decode::Rgb8;
use super::folder::Fault;
use super::frechet::FeatureStatistics;
use super::measure::read;
use crate::error::Result;

/// Pictures of one call of the feature network.
const BATCH: usize = 16;

/// Whose features a set is compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Of photographs.
    Inception,
    /// Of the demo model's pictures.
    Demo,
}

impl Network {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Inception, Self::Demo];

    /// In the names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inception => "inception",
            Self::Demo => "demo",
        }
    }
}

/// A network that makes a vector of a picture.
pub trait FeatureNetwork: Sync {
    /// Values of a vector, `D`.
    fn len(&self) -> usize;

    /// Whether vectors have no values. None has.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A picture of any size as the network's input.
    fn prepare(&self, picture: &Rgb8) -> Vec<f32>;

    /// Vectors `[B, D]`, one after the other, of `B` inputs that [`Self::prepare`] made.
    ///
    /// # Errors
    /// [`lacuna_wire::Error::WrongShape`] for inputs of another size, [`lacuna_model::Error::Device`] when the
    /// device fails.
    fn features(&self, inputs: &[Vec<f32>]) -> Result<Vec<f32>>;
}

/// What a set of pictures is for the distances of sets.
pub struct SetFeatures {
    /// For the Fréchet distance.
    pub statistics: FeatureStatistics,
    /// `[N, D]` where they were to be kept, for the kernel distance.
    pub kept: Vec<f32>,
}

impl SetFeatures {
    /// Features of the pictures in `paths`, kept one by one if `keep`; what is wrong with any goes to
    /// `bad`.
    ///
    /// # Errors
    /// Those of the network, none of a picture.
    pub fn of(
        paths: &[PathBuf],
        network: &dyn FeatureNetwork,
        keep: bool,
        mut bad: impl FnMut(Fault),
    ) -> Result<Self> {
        let mut set = Self {
            statistics: FeatureStatistics::new(network.len()),
            kept: Vec::new(),
        };
        for paths in paths.chunks(BATCH) {
            let prepare = |path: &PathBuf| Ok(network.prepare(&read(path)?));
            let read: Vec<_> = paths.par_iter().map(prepare).collect();
            let inputs = read.into_iter().filter_map(|r| r.map_err(&mut bad).ok());
            let inputs: Vec<Vec<f32>> = inputs.collect();
            if inputs.is_empty() {
                continue;
            }
            let features = network.features(&inputs)?;
            set.statistics.add(&features)?;
            if keep {
                set.kept.extend(features);
            }
        }
        Ok(set)
    }
}

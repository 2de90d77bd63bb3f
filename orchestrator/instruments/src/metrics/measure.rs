//! Many pictures, some at a time: memory does not grow with their number, and a bad one is named and
//! left out.

use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use super::decode::Rgb8;
use super::folder::{Fault, Pair};
use super::lpips::Lpips;
use super::psnr::psnr;
use super::ssim::ssim;
use crate::error::{Error, Result};

/// Pairs that are in memory at once, for each core.
const PAIRS: usize = 2;

/// Which metrics of pairs are wanted.
#[derive(Clone, Copy, Default)]
pub struct PairMetrics<'a> {
    /// Peak signal-to-noise ratio.
    pub psnr: bool,
    /// Structural similarity.
    pub ssim: bool,
    /// Learned perceptual distance.
    pub lpips: Option<&'a Lpips>,
}

/// The metrics of one pair; those that were not wanted are `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PairValues {
    /// Of the files, without ending.
    pub name: String,
    /// In dB; infinite (null in JSON) for equal pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psnr: Option<f64>,
    /// 1 for equal pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssim: Option<f64>,
    /// 0 for equal pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips: Option<f64>,
}

impl PairMetrics<'_> {
    /// Whether there is anything to measure.
    pub fn any(&self) -> bool {
        self.psnr || self.ssim || self.lpips.is_some()
    }

    /// Measures `pairs` and hands the values of each, or what is wrong with it, to `take`, in order.
    pub fn measure(&self, pairs: &[Pair], mut take: impl FnMut(Result<PairValues, Fault>)) {
        for pairs in pairs.chunks(PAIRS * rayon::current_num_threads()) {
            let read: Vec<_> = pairs
                .par_iter()
                .map(|pair| {
                    let pictures = [read(&pair.a)?, read(&pair.b)?];
                    let values = self.pixelwise(&pair.name, &pictures)?;
                    // The network takes the pictures after the others, one by one, on all cores.
                    Ok((values, self.lpips.map(|_| pictures)))
                })
                .collect();
            for measured in read {
                take(measured.and_then(|(mut values, pictures)| {
                    if let (Some(lpips), Some([a, b])) = (self.lpips, pictures) {
                        let distance = lpips.distance(&a, &b);
                        values.lpips = Some(distance.map_err(|e| fault(&values.name, e))?);
                    }
                    Ok(values)
                }));
            }
        }
    }

    fn pixelwise(&self, name: &str, [a, b]: &[Rgb8; 2]) -> Result<PairValues, Fault> {
        let metric = |wanted: bool, of: fn(&Rgb8, &Rgb8) -> Result<f64>| {
            let value = wanted.then(|| of(a, b)).transpose();
            value.map_err(|e| fault(name, e))
        };
        Ok(PairValues {
            name: name.to_owned(),
            psnr: metric(self.psnr, psnr)?,
            ssim: metric(self.ssim, ssim)?,
            lpips: None,
        })
    }
}

/// The mean of the values that it was given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    /// Takes a value in.
    pub fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    /// `None` of no values.
    pub fn get(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// Number of values.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Reads a picture, or says what is wrong with it.
pub(super) fn read(path: &Path) -> Result<Rgb8, Fault> {
    Rgb8::read(path).map_err(|e| match e {
        Error::Input { reason, .. } => fault(&path.display().to_string(), reason),
        other => fault(&path.display().to_string(), other),
    })
}

fn fault(picture: &str, reason: impl ToString) -> Fault {
    Fault {
        picture: picture.to_owned(),
        reason: reason.to_string(),
    }
}

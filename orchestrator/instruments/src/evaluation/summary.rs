//! The means of a run's rows.

use serde::Serialize;

use super::record::{Arm, Outcome, Record};
use super::results::Results;
use crate::error::Result;
use crate::metrics::frechet::frechet_distance;
use crate::metrics::inception::FEATURES;
use crate::metrics::kid::{KernelDistance, kernel_distance};
use crate::metrics::measure::Mean;
use crate::metrics::metric::Metric;
use crate::metrics::sets::{Network, SetFeatures};

/// What was measured, in short.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// In the order in which they were given.
    pub arms: Vec<ArmSummary>,
    /// Pictures that are missing, and why.
    pub failed: Vec<Failed>,
}

/// Of one arm.
#[derive(Debug, Serialize)]
pub struct ArmSummary {
    /// [`Arm::name`].
    pub name: String,
    /// Pictures measured.
    pub pictures: usize,
    /// Of these, identical to the reference.
    pub identical: usize,
    /// Mean over those that are not, in dB.
    pub psnr: Option<f64>,
    /// Mean.
    pub ssim: Option<f64>,
    /// Mean.
    pub lpips: Option<f64>,
    /// Against the reference's pictures or the real ones.
    pub fid: Option<f64>,
    /// Likewise.
    pub kid: Option<KernelDistance>,
    /// Mean CLIP score of the setting's pictures under their prompts.
    pub clip: Option<f64>,
    /// Fréchet distance of the demo features, against the same. It is not FID.
    pub demo: Option<f64>,
    /// Why there is no distance of sets, where there should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_distance: Option<String>,
}

/// A picture that is missing.
#[derive(Debug, Serialize)]
pub struct Failed {
    /// [`Arm::name`].
    pub arm: String,
    /// Which prompt.
    pub index: usize,
    /// Why.
    pub reason: String,
}

impl Summary {
    /// Of a run's results.
    ///
    /// # Errors
    /// Those of the features' files.
    pub fn of(results: &Results) -> Result<Self> {
        let arms = results.record.arms.iter();
        let failed = results.rows.iter().filter_map(|row| match &row.outcome {
            Outcome::Failed { failed } => Some(Failed {
                arm: row.arm.clone(),
                index: row.index,
                reason: failed.clone(),
            }),
            Outcome::Measured(_) => None,
        });
        Ok(Self {
            arms: arms
                .map(|arm| ArmSummary::of(results, arm))
                .collect::<Result<_>>()?,
            failed: failed.collect(),
        })
    }
}

impl ArmSummary {
    fn of(results: &Results, arm: &Arm) -> Result<Self> {
        let [mut psnr, mut ssim, mut lpips, mut clip] = [Mean::default(); 4];
        let (mut pictures, mut identical) = (0, 0);
        for row in results.of_arm(arm) {
            if let Outcome::Measured(values) = &row.outcome {
                pictures += 1;
                identical += usize::from(values.identical);
                values.psnr.into_iter().for_each(|x| psnr.add(x));
                values.ssim.into_iter().for_each(|x| ssim.add(x));
                values.lpips.into_iter().for_each(|x| lpips.add(x));
                values.clip.into_iter().for_each(|x| clip.add(x));
            }
        }
        let mut summary = Self {
            name: arm.name.clone(),
            pictures,
            identical,
            psnr: psnr.get(),
            ssim: ssim.get(),
            lpips: lpips.get(),
            clip: clip.get(),
            fid: None,
            kid: None,
            demo: None,
            no_distance: None,
        };
        for network in Network::ALL {
            let of = |set: &str| results.features(network, set);
            let reference = of(results.record.feature_reference(arm))?;
            if let (Some(own), Some(reference)) = (of(&arm.folder)?, reference) {
                let distances = summary.measure_sets(network, &results.record, &own, &reference);
                if let Err(error) = distances {
                    summary.no_distance = Some(error.to_string());
                }
            }
        }
        Ok(summary)
    }

    fn measure_sets(
        &mut self,
        network: Network,
        record: &Record,
        own: &SetFeatures,
        reference: &SetFeatures,
    ) -> Result<()> {
        let frechet = || frechet_distance(&own.statistics, &reference.statistics);
        match network {
            Network::Demo => self.demo = Some(frechet()?),
            Network::Inception => {
                if record.metrics.contains_key(&Metric::Fid) {
                    self.fid = Some(frechet()?);
                }
                if let Some(subsets) = record.kid {
                    let (own, reference) = (&own.kept, &reference.kept);
                    self.kid = Some(kernel_distance(own, reference, FEATURES, subsets)?);
                }
            }
        }
        Ok(())
    }

    /// The value of a metric, as in the table; a dash where there is none.
    pub(super) fn cell(&self, metric: Metric) -> String {
        let number = |value: Option<f64>, digits: usize| {
            // The distance of equal sets may fall short of zero by its last digits.
            let value = value.map(|x| if x.abs() < 1e-6 { 0.0 } else { x });
            value.map_or("-".into(), |value| format!("{value:.digits$}"))
        };
        match metric {
            Metric::Psnr if self.pictures > 0 && self.identical == self.pictures => {
                "identical".into()
            }
            Metric::Psnr if self.identical > 0 => {
                format!("{} ({} identical)", number(self.psnr, 2), self.identical)
            }
            Metric::Psnr => number(self.psnr, 2),
            Metric::Ssim => number(self.ssim, 4),
            Metric::Lpips => number(self.lpips, 4),
            Metric::Clip => number(self.clip, 2),
            Metric::Fid => number(self.fid, 3),
            Metric::Demo => number(self.demo, 4),
            Metric::Kid => self.kid.map_or("-".into(), |kid| {
                format!("{:.5} +- {:.5}", kid.mean, kid.std)
            }),
        }
    }
}

//! How pictures are sampled.

use clap::Args;
use lacuna_wire::HostTensor;

use super::prompt::PromptArguments;
use crate::error::{Error, Result};
use crate::noise::TorchRng;
use crate::pipeline::{Pipeline, Sampling};
use crate::schedulers::{SchedulerKind, SchedulerOption};

/// How pictures are sampled.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArguments {
    /// How the prompt is read.
    #[command(flatten)]
    pub words: PromptArguments,
    /// Sampler steps.
    #[arg(long, default_value_t = 50)]
    pub steps: usize,
    /// Guidance scale; 1 or less turns guidance off [default: what the model recommends in its
    /// generation_config.json, else 7.5; 5 for SDXL, 8.5 for a latent consistency model].
    #[arg(long, allow_negative_numbers = true)]
    pub guidance: Option<f32>,
    /// Seed of the first picture; the next ones count on. The same noise as torch's CPU generator, for negative
    /// seeds too [default: generate draws one and prints it; eval takes 42].
    #[arg(short, long, allow_negative_numbers = true, value_parser = parse_seed)]
    pub seed: Option<u64>,
    /// Another scheduler than the model's own.
    #[arg(long)]
    pub scheduler: Option<SchedulerKind>,
    /// A key of the scheduler's config in place of the model's, such as timestep_spacing=trailing; repeat it for several.
    #[arg(long, value_name = "KEY=VALUE")]
    pub scheduler_option: Vec<SchedulerOption>,
}

impl SamplingArguments {
    /// What can be refused before anything is loaded.
    ///
    /// # Errors
    /// [`Error::Request`] for a guidance that is no number.
    pub fn check(&self) -> Result<()> {
        match self.guidance {
            Some(guidance) if !guidance.is_finite() => {
                let reason = format!("--guidance {guidance}: it must be a number");
                Err(Error::Request(reason))
            }
            _ => Ok(()),
        }
    }

    /// How the sampler of `pipeline` goes; `eta` is that of DDIM and TCD.
    pub fn settle(&self, pipeline: &Pipeline, eta: f32) -> Sampling {
        Sampling {
            scheduler: self.scheduler,
            options: self.scheduler_option.clone(),
            eta,
            ..pipeline.sampling(self.steps, self.guidance)
        }
    }
}

/// Noise `[1, C, H, W]` of `shape`, as torch draws it.
///
/// # Errors
/// None: the shape has as many numbers as are drawn.
pub fn draw_noise(rng: &mut TorchRng, shape: [usize; 4]) -> Result<HostTensor> {
    Ok(HostTensor::new(shape, rng.randn(shape.iter().product()))?)
}

/// A seed as torch takes it: 64 bits, negative ones by their two's complement.
pub fn parse_seed(text: &str) -> std::result::Result<u64, String> {
    let range = i128::from(i64::MIN)..=i128::from(u64::MAX);
    match text.parse::<i128>() {
        // The bits that are cut off are all alike.
        Ok(seed) if range.contains(&seed) => Ok(seed as u64),
        _ => Err("a whole number from -2^63 to 2^64 - 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_those_of_torch() {
        assert_eq!(parse_seed("-1"), Ok(u64::MAX));
        assert_eq!(parse_seed("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(parse_seed("-9223372036854775808"), Ok(1 << 63));
        for wrong in ["18446744073709551616", "-9223372036854775809", "1.5", ""] {
            assert!(parse_seed(wrong).is_err(), "{wrong}");
        }
    }
}

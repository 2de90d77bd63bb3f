//! How fast a device computes a U-Net, for plans.

use std::time::{Duration, Instant};

use burn::tensor::Tensor;

use crate::device::Target;
use crate::error::Result;
use crate::host::OnDevice;
use crate::layers::Parameter;
use crate::survey::survey;
use crate::unet::{Stage, UNet};
use crate::weights::{Weights, list};
use crate::whole::{Conditioning, Whole};
use lacuna_wire::HostTensor;

/// A level that took so long in all is not timed once more.
const LONG_ENOUGH: Duration = Duration::from_millis(800);
/// More often than this nothing is timed.
const MOST: usize = 4;
/// Of larger latents so many rows and columns are timed: a larger part is no faster.
const SIDE: usize = 64;
/// And so many batch entries, those of guidance.
const BATCH: usize = 2;
/// Transformer blocks of a level that are timed; the others are like them.
const DEPTH: usize = 2;

/// The most bytes that [`gflops`] takes at a time for weights.
pub fn memory(unet: &UNet) -> u64 {
    let parts = unet.down.iter().map(part);
    let bytes = |part: Stage| {
        let values: usize = list(&part).iter().map(Parameter::values).sum();
        (values * size_of::<f32>()) as u64
    };
    parts.map(bytes).max().unwrap_or_default()
}

/// 10^9 operations a second, multiply and add counted as two, of a call of `unet` on latents of `[B, H, W]` with a
/// prompt of `prompt` tokens. Of each level one residual block with its transformer is timed, of random weights; each
/// counts by its level's share of the work.
///
/// # Errors
/// Those of the device.
pub fn gflops(
    unet: &UNet,
    [batch, rows, columns]: [usize; 3],
    prompt: usize,
    target: impl Into<Target>,
) -> Result<f64> {
    let target = target.into();
    let mut sizes = [batch.min(BATCH), rows.min(SIDE), columns.min(SIDE)];
    let operations = survey(unet, sizes, prompt)?;
    let (mut work, mut seconds) = (0.0, 0.0);
    for (level, stage) in unet.down.iter().enumerate() {
        let of_level = operations
            .iter()
            .filter(|o| unet.level_of(&o.layer) == level);
        let flop = of_level.map(|o| o.flop).sum::<u64>() as f64;
        work += flop;
        seconds += flop / rate(unet, stage, sizes, prompt, &target)?;
        if let Some(conv) = &stage.resample {
            let [batch, rows, columns] = sizes;
            sizes = [batch, conv.out_size(rows), conv.out_size(columns)];
        }
    }
    Ok(work / seconds / 1e9)
}

/// The last residual block of a stage, and the transformer behind it.
fn part(stage: &Stage) -> Stage {
    let mut part = stage.clone();
    part.resample = None;
    part.resnets.drain(..part.resnets.len().saturating_sub(1));
    part.transformers
        .drain(..part.transformers.len().saturating_sub(1));
    part.transformers
        .iter_mut()
        .for_each(|t| t.blocks.truncate(DEPTH));
    part
}

/// Operations a second of the last residual block of `stage` and the transformer behind it.
fn rate(
    unet: &UNet,
    stage: &Stage,
    [batch, rows, columns]: [usize; 3],
    prompt: usize,
    target: &Target,
) -> Result<f64> {
    let part = part(stage);
    let channels = part.resnets.first().map_or(0, |resnet| resnet.conv1.c_in);

    let dtype = target.precision.dtype();
    let zeros = |shape: &[usize]| HostTensor::zeros(shape.to_vec());
    let x: Tensor<4> = zeros(&[batch, channels, rows, columns]).into_device(&target.device)?;
    let embedding: Tensor<2> = zeros(&unet.embedding(batch)).into_device(&target.device)?;
    let context = zeros(&[batch, prompt, unet.context_width]).into_device(&target.device)?;
    let (x, embedding) = (x.cast(dtype), embedding.cast(dtype));
    let conditioning = Conditioning::of_text(context.cast(dtype));
    let weights = Weights::random(&part, 0, target.clone())?;
    let mut whole = Whole::new(weights, conditioning);
    let (mut best, mut all) = (f64::INFINITY, Duration::ZERO);
    // The first one makes kernels, and the prompt's keys: it does not count.
    for i in 0..=MOST {
        let (before, start) = (whole.flop(), Instant::now());
        let y = part.block(&mut whole, x.clone(), &embedding, 0)?;
        // Reading a value back waits for the device.
        HostTensor::from_device(y.narrow(2, 0, 1).narrow(3, 0, 1))?;
        let took = start.elapsed();
        if i > 0 {
            best = best.min(took.as_secs_f64() / (whole.flop() - before) as f64);
        }
        all += took;
        if i > 0 && all >= LONG_ENOUGH {
            break;
        }
    }
    Ok(1.0 / best)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::ConfigReader;
    use crate::device::OpenDevice;
    use crate::unet::UNetConfig;

    #[test]
    fn a_device_has_a_speed_for_a_unet() {
        let config = json!({
            "block_out_channels": [8, 16],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "cross_attention_dim": 12,
        });
        let keys = ConfigReader::new("config", config).unwrap();
        let unet = UNetConfig::read(keys).unwrap().build();
        let gflops = gflops(&unet, [2, 10, 200], 5, &OpenDevice::cpu().device).unwrap();
        assert!(gflops.is_finite() && gflops > 0.0, "{gflops}");
    }

    #[test]
    fn every_operation_is_of_a_level() {
        let keys = ConfigReader::new("config", json!({})).unwrap();
        let unet = UNetConfig::read(keys).unwrap().build();
        let level = |layer| unet.level_of(layer);
        assert_eq!(level("conv_in"), 0);
        assert_eq!(level("down_blocks.2.resnets.0.conv1"), 2);
        assert_eq!(level("mid_block.attentions.0.proj_in"), 3);
        assert_eq!(level("up_blocks.0.resnets.1.conv1"), 3);
        assert_eq!(level("up_blocks.3.attentions.1.proj_in"), 0);
        assert_eq!(level("time_embedding.linear_1"), 0);
    }
}

//! Times whole calls of a U-Net with random weights: batch 2 (guidance's two halves) and latents of the config's size or
//! at most 64x64, if nothing else is said; prompts of 77 tokens.
//!
//! `unet_call [config.json [calls [batch [rows and columns]]]]`; with `--wait` each call waits for a line on standard input, so that
//! another program can take turns with it (see `scripts/compare_speed.py`). `--wgpu` computes on the GPU, `--f16`
//! there in half precision.

use std::io::BufRead;
use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Tensor;
use lacuna_kernels::allocator::keep_freed_pages;
use lacuna_model::device::{self, DeviceChoice, OpenDevice, Precision};
use lacuna_model::host::OnDevice;
use lacuna_model::unet::{SampleSize, UNet, UNetConfig};
use lacuna_model::weights::Weights;
use lacuna_model::whole::{AddedConditioning, Conditioning, Guidance, Whole};
use lacuna_wire::HostTensor;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SD15: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../configs/models/sd15/unet/config.json"
);

fn main() -> lacuna_model::Result<()> {
    keep_freed_pages();
    let (flags, values): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|a| a.starts_with("--"));
    let wait = flags.iter().any(|f| f == "--wait");
    let path = PathBuf::from(values.first().map_or(SD15, String::as_str));
    let number = |i: usize| values.get(i).and_then(|n| n.parse::<usize>().ok());
    let (calls, batch) = (number(1).unwrap_or(3), number(2).unwrap_or(2));

    let given = |flag| flags.iter().any(|f| f == flag);
    let opened = match given("--wgpu") {
        true => device::open(DeviceChoice::Wgpu, true)?,
        false => OpenDevice::cpu(),
    };
    let precision = match given("--f16") {
        true => Precision::F16,
        false => Precision::F32,
    };
    let config = UNetConfig::from_file(&path)?;
    let unet = config.build();
    let weights = Weights::random(&unet, 1, (&opened.device, precision))?;
    let own = config.sample_size.map_or([64, 64], SampleSize::sides);
    let [h, w] = match number(3) {
        Some(side) => [side; 2],
        None => own.map(|size| size.min(64)),
    };
    let sample = wave([batch, unet.in_channels, h, w]);
    let sample: Tensor<4> = sample.into_device(&opened.device)?;
    let mut whole = Whole::new(weights, conditioning(&unet, batch, &opened)?);
    eprintln!(
        "{}, {batch}x{}x{h}x{w}, {precision}, {} ({})",
        path.display(),
        unet.in_channels,
        opened.kind,
        opened.adapter
    );

    let mut lines = std::io::stdin().lock().lines();
    for _ in 0..calls {
        if wait && lines.next().is_none() {
            break;
        }
        let before = whole.flop();
        let start = Instant::now();
        let out = HostTensor::from_device(unet.forward(&mut whole, &sample, 500.0)?)?;
        let seconds = start.elapsed().as_secs_f64();
        out.check_finite("the prediction")?;
        let gflop = (whole.flop() - before) as f64 / 1e9;
        println!(
            "{seconds:.3} s, {gflop:.0} GFLOP, {:.0} GFLOP/s",
            gflop / seconds
        );
    }
    Ok(())
}

fn conditioning(
    unet: &UNet,
    batch: usize,
    opened: &OpenDevice,
) -> lacuna_model::Result<Conditioning> {
    let context = wave([batch, 77, unet.context_width]).into_device(&opened.device)?;
    let added = match &unet.time.added {
        None => None,
        Some(added) => {
            let pooled = added.linear_1.d_in - 6 * added.channels;
            Some(AddedConditioning {
                pooled: wave([batch, pooled]).into_device(&opened.device)?,
                sizes: vec![[512.0, 512.0, 0.0, 0.0, 512.0, 512.0]; batch],
            })
        }
    };
    Ok(Conditioning {
        added,
        guidance: unet.time.guidance.is_some().then_some(Guidance::Scale(5.0)),
        ..Conditioning::of_text(context)
    })
}

/// Values between -2 and 2, of variance near one.
fn wave<const D: usize>(shape: [usize; D]) -> HostTensor {
    let mut tensor = HostTensor::zeros(shape);
    for (i, value) in tensor.data.iter_mut().enumerate() {
        let x = i as f32;
        *value = (x * 0.731).sin() + (x * 0.0173).cos();
    }
    tensor
}

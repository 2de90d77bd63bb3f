//! What decoding or encoding a large picture takes, by the shape of published autoencoders (SD's and SDXL's are alike) with random weights.
//!
//!     cargo run --release -p lacuna-orchestrator --no-default-features --example large_picture -- 1024 decode bands
//!     cargo run --release -p lacuna-orchestrator --no-default-features --example large_picture -- 1024 decode whole
//!
//! Prints seconds, the most memory that the process held, and a digest of the result: bands and whole must agree in it.

use std::time::Instant;

use burn::tensor::Device;
use lacuna_model::config::ConfigReader;
use lacuna_model::host::OnDevice;
use lacuna_model::memory;
use lacuna_model::weights::Weights;
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::vae::{Vae, VaeConfig};
use lacuna_wire::HostTensor;
use serde_json::json;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [side, direction, way] = &words[..] else {
        anyhow::bail!("give pixels, decode or encode, and bands or whole");
    };
    let side: usize = side.parse()?;
    let config = json!({
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "down_block_types": vec!["DownEncoderBlock2D"; 4],
        "up_block_types": vec!["UpDecoderBlock2D"; 4]
    });
    let layers = VaeConfig::read(ConfigReader::new("vae/config.json", config)?)?.build();
    let device = Device::flex();
    let weights = Weights::random(&layers, 1, &device)?;
    let vae = Vae::of(layers, weights);
    let vae = match way.as_str() {
        "whole" => vae.bounded(usize::MAX, usize::MAX, 1),
        _ => vae,
    };
    let before = memory::resident().unwrap_or_default();
    let start = Instant::now();
    let out = match direction.as_str() {
        "encode" => vae.encode(random([1, 3, side, side], &device)?)?.mean,
        _ => vae.decode(random([1, 4, side / 8, side / 8], &device)?)?,
    };
    let out = HostTensor::from_device(out)?;
    let bytes: Vec<u8> = out.data.iter().flat_map(|x| x.to_le_bytes()).collect();
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    println!(
        "{direction} {side}x{side}, {way}: {:.0} s, {:.2} GB at the most, {:.2} GB of them before; {}",
        start.elapsed().as_secs_f64(),
        gigabytes(memory::peak().unwrap_or_default()),
        gigabytes(before),
        &blake3::hash(&bytes).to_hex()[..16]
    );
    Ok(())
}

fn random(shape: [usize; 4], device: &Device) -> anyhow::Result<burn::tensor::Tensor<4>> {
    let values = TorchRng::new(2).randn(shape.iter().product());
    Ok(HostTensor::new(shape, values)?.into_device(device)?)
}

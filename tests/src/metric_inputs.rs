//! Pictures, features and weights that scripts/goldens/metrics.py draws in the same way.

use std::path::{Path, PathBuf};

use lacuna_instruments::metrics::decode::Rgb8;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// `count` numbers in [0, 1), of 24 bits: SplitMix64 from the FNV-1a hash of `name`.
pub fn uniform(name: &str, count: usize) -> Vec<f32> {
    let hash = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    let mut next = || {
        state = u64::wrapping_add(state, 0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32
    };
    (0..count).map(|_| next()).collect()
}

/// Ramps that wrap round, with a noise of 6 bits.
pub fn picture([width, height]: [usize; 2], name: &str) -> Rgb8 {
    let noise = uniform(name, width * height * 3);
    let byte = |(i, noise): (usize, f32)| {
        let (y, x, c) = (i / 3 / width, i / 3 % width, i % 3);
        ((3 * x + 5 * y + 40 * c + (noise * 64.0) as usize) % 256) as u8
    };
    Rgb8 {
        width,
        height,
        bytes: noise.into_iter().enumerate().map(byte).collect(),
    }
}

/// `count` vectors of `dim` values that vary more in some directions than in others.
pub fn features(name: &str, count: usize, dim: usize) -> Vec<f32> {
    let values = uniform(name, count * dim).into_iter().enumerate();
    let scaled = values.map(|(i, x)| x * ((1 + i % dim % 7) as f32).powi(2));
    scaled.collect()
}

/// A weight file of tensors by name and shape: kernels with the variance 2 / fan-in, biases of up to
/// 0.1, and channels' weights in [0, 1).
pub fn write_weights(folder: &Path, file: &str, shapes: &[(String, Vec<usize>)]) -> PathBuf {
    let draw = |(name, shape): &(String, Vec<usize>)| {
        let fan_in: usize = shape.iter().skip(1).product();
        let spread = match shape.len() {
            1 => 0.1,
            _ => (6.0 / fan_in as f32).sqrt(),
        };
        let value = |x: f32| match name.starts_with("lin") {
            true => x,
            false => spread * (2.0 * x - 1.0),
        };
        let values = uniform(name, shape.iter().product()).into_iter();
        values.flat_map(|x| value(x).to_le_bytes()).collect()
    };
    let bytes: Vec<Vec<u8>> = shapes.iter().map(draw).collect();
    let views = shapes.iter().zip(&bytes).map(|((name, shape), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    let path = folder.join(file);
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    path
}

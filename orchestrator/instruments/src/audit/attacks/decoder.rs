//! The whole picture from one provider's strips, by a convolutional network that learns from the attacker's own pictures.

use lacuna_wire::HostTensor;

use super::Material;
use super::samples::{CHANNELS, Samples};
use crate::audit::network::{Map, Network, Node};
use crate::audit::ridge::column_means;
use crate::error::Result;

/// The held-out pictures' pixels `[n, 3 H W]` from the maps of one step.
///
/// The network is shaped as a U-Net (Ronneberger et al. 2015): every map comes in where its level is; out come the pixels
/// of each latent's place (Shi et al. 2016), as what they differ by from the training pictures' mean.
///
/// # Errors
/// Those of tensors.
pub fn attack(material: &Material<'_>, samples: &Samples) -> Result<HostTensor> {
    let pixels = material.targets(|run| &run.picture.rgb)?;
    let mean = column_means(&pixels);
    let side = material.pipeline.pixels_per_latent();
    let own = material.runs[..material.train].iter();
    let wanted = own.map(|run| {
        let [_, _, rows, columns] = run.latents.dims()?;
        let pairs = run.picture.rgb.iter().zip(&mean);
        let differences: Vec<f32> = pairs.map(|(x, mean)| x - mean).collect();
        Ok(to_places(&differences, [rows, columns], side))
    });
    let wanted = wanted.collect::<Result<Vec<Map>>>()?;
    let said = wanted.first().map_or(0, |map| map.shape[0]);
    let network = samples.learnt(network(samples, said), &wanted);
    let mut all = Vec::new();
    for inputs in &samples.inputs[material.train..] {
        let guess = from_places(&network.predict(inputs), side);
        all.extend(guess.iter().zip(&mean).map(|(x, mean)| x + mean));
    }
    Ok(HostTensor::new(
        [material.held_out().len(), mean.len()],
        all,
    )?)
}

/// A network that says so many channels of the finest level.
fn network(samples: &Samples, said: usize) -> Network {
    let mut all = samples.encoder();
    let levels = all.levels.clone();
    for beside in levels.into_iter().rev().skip(1) {
        let enlarged = all.add(Node::Up(all.top));
        all.conv(vec![enlarged, beside], CHANNELS, true);
    }
    all.conv(vec![all.top], said, false);
    all.network()
}

/// Pixels `[3, H side, W side]` as `[3 side side, H, W]`.
fn to_places(pixels: &[f32], [rows, columns]: [usize; 2], side: usize) -> Map {
    let shape = [3 * side * side, rows, columns];
    let mut map = Map::zeros(shape);
    for (at, value) in map.data.iter_mut().enumerate() {
        *value = pixels[pixel_of(at, shape, side)];
    }
    map
}

/// The reverse.
fn from_places(map: &Map, side: usize) -> Vec<f32> {
    let mut pixels = vec![0.0; map.data.len()];
    for (at, value) in map.data.iter().enumerate() {
        pixels[pixel_of(at, map.shape, side)] = *value;
    }
    pixels
}

/// Where among the pixels lies what lies at `at` of `[3 side side, H, W]`.
fn pixel_of(at: usize, [_, rows, columns]: [usize; 3], side: usize) -> usize {
    let (place, row, column) = (at / (rows * columns), at / columns % rows, at % columns);
    let (colour, y, x) = (place / (side * side), place / side % side, place % side);
    (colour * rows * side + row * side + y) * columns * side + column * side + x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_come_back_from_their_places() {
        let pixels: Vec<f32> = (0..3 * 8 * 12).map(|x| x as f32).collect();
        let map = to_places(&pixels, [2, 3], 4);
        assert_eq!(map.shape, [48, 2, 3]);
        // The first place of the second latent is its first pixel.
        assert_eq!(map.data[1], 4.0);
        assert_eq!(from_places(&map, 4), pixels);
    }
}

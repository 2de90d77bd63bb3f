//! Other sizes of a picture, as Pillow makes them, to which the reference's pipelines leave this: to the bit, but that its version 13
//! goes along the columns first where these shrink by much more than the rows.
//!
//! Lanczos' windowed sinc of three lobes, as wide as needed where the picture becomes smaller; along the rows first, then along
//! the columns, each time rounded to bytes, with weights in fixed point.

use super::read::Pixels;

/// Lobes on either side.
const LOBES: f64 = 3.0;
/// Bits behind the point of a weight.
const POINT: u32 = 22;

/// `pixels` as `width` x `height`.
pub fn resize(pixels: &Pixels, width: usize, height: usize) -> Pixels {
    let mut out = pixels.clone();
    if width != out.width {
        let weights = Weights::all(out.width, width);
        let rows = out.rgb.chunks_exact(3 * out.width);
        let row = |row: &[u8]| -> Vec<u8> {
            let sums = weights.iter().map(|w| w.sum(|at, c| row[3 * at + c]));
            sums.flatten().collect()
        };
        out.rgb = rows.flat_map(row).collect();
        out.width = width;
    }
    if height != out.height {
        let (weights, stride) = (Weights::all(out.height, height), 3 * width);
        let row = |w: &Weights| -> Vec<u8> {
            let sums = (0..width).map(|x| w.sum(|at, c| out.rgb[at * stride + 3 * x + c]));
            sums.flatten().collect()
        };
        out.rgb = weights.iter().flat_map(row).collect();
        out.height = height;
    }
    out
}

/// What one position is made of.
struct Weights {
    /// The first that counts.
    first: usize,
    /// Of each from there on.
    each: Vec<i32>,
}

impl Weights {
    /// Of every position of `to` ones among `from`.
    fn all(from: usize, to: usize) -> Vec<Self> {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let reach = LOBES * stretch;
        let of = |position: usize| {
            let center = (position as f64 + 0.5) * scale;
            // Cut towards zero, so that nothing below it is meant.
            let first = (center - reach + 0.5).max(0.0) as usize;
            let end = ((center + reach + 0.5) as usize).min(from);
            let weight = |at: usize| lanczos((at as f64 - center + 0.5) * (1.0 / stretch));
            let raw: Vec<f64> = (first..end).map(weight).collect();
            let sum: f64 = raw.iter().sum();
            let fixed = |weight: &f64| (weight / sum * f64::from(1 << POINT)).round() as i32;
            Self {
                first,
                each: raw.iter().map(fixed).collect(),
            }
        };
        (0..to).map(of).collect()
    }

    /// The three colours of a position.
    fn sum(&self, value: impl Fn(usize, usize) -> u8) -> [u8; 3] {
        std::array::from_fn(|colour| {
            let terms = self.each.iter().enumerate();
            let sum = terms.fold(1 << (POINT - 1), |sum, (i, weight)| {
                sum + weight * i32::from(value(self.first + i, colour))
            });
            (sum >> POINT).clamp(0, 255) as u8
        })
    }
}

/// The filter at `x`.
fn lanczos(x: f64) -> f64 {
    match (-LOBES..LOBES).contains(&x) {
        true => sinc(x) * sinc(x / LOBES),
        false => 0.0,
    }
}

fn sinc(x: f64) -> f64 {
    match x * std::f64::consts::PI {
        0.0 => 1.0,
        x => x.sin() / x,
    }
}

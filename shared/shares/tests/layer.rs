//! A layer by shares against the same in f64: what both kinds of shares lose of it, for the bits that they send.
//!
//! `cargo test --release -p lacuna-shares --test layer -- --nocapture` prints it.
#![allow(missing_docs)]

use lacuna_shares::join::{Outputs, join, round, scales};
use lacuna_shares::pack::unpack;
use lacuna_shares::split::{Carries, Extent, split};
use lacuna_shares::stream::Masks;
use lacuna_shares::{Precision, Ring, Shares};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const OUTPUTS: usize = 48;
const TOKENS: usize = 12;

fn normal(rng: &mut StdRng) -> f32 {
    (0..12).map(|_| rng.random_range(-0.5..0.5_f32)).sum()
}

/// `[outputs, K]` and the features of some tokens.
struct Layer {
    weights: Vec<f32>,
    x: Vec<f32>,
    fan_in: usize,
}

impl Layer {
    fn new(fan_in: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(fan_in as u64);
        let weights = (0..OUTPUTS * fan_in).map(|_| normal(&mut rng)).collect();
        let x = (0..TOKENS * fan_in).map(|i| {
            let x = normal(&mut rng);
            // Some channels are much larger than the others, as in every diffusion model.
            if i % 97 == 0 { 12.0 * x } else { x }
        });
        Self {
            x: x.collect(),
            weights,
            fan_in,
        }
    }

    /// Each token's product with each output's row of weights.
    fn products<T>(&self, of: impl Fn(usize, usize) -> T) -> Vec<T> {
        let each = (0..TOKENS).flat_map(|token| (0..OUTPUTS).map(move |o| (token, o)));
        each.map(|(token, output)| of(token * self.fan_in, output * self.fan_in))
            .collect()
    }

    fn in_f32(&self, share: &[i32]) -> Vec<f32> {
        self.products(|token, row| {
            // Sixteen sums side by side, as a vector has them: one alone loses more of wide shares.
            let mut lanes = [0.0_f32; 16];
            let pairs = self.weights[row..].iter().zip(&share[token..]);
            for (i, (w, x)) in pairs.take(self.fan_in).enumerate() {
                lanes[i % 16] += w * *x as f32;
            }
            lanes.iter().sum::<f32>()
        })
    }

    fn in_ring(&self, weights: &[i16], share: &[i32]) -> Vec<i32> {
        self.products(|token, row| {
            let pairs = weights[row..][..self.fan_in].iter().zip(&share[token..]);
            pairs.fold(0, |sum: i32, (w, x)| {
                sum.wrapping_add(x.wrapping_mul((*w).into()))
            })
        })
    }

    /// The product `W e` of the carries.
    fn carried(&self, carries: &Carries) -> Vec<f32> {
        let mut carried = vec![0.0_f32; TOKENS * OUTPUTS];
        for (at, times) in carries.at.iter().zip(&carries.times) {
            let (token, i) = (*at as usize / self.fan_in, *at as usize % self.fan_in);
            for output in 0..OUTPUTS {
                carried[token * OUTPUTS + output] +=
                    *times as f32 * self.weights[output * self.fan_in + i];
            }
        }
        carried
    }

    /// What the layer gives by shares.
    fn by_shares(&self, kind: Shares, workers: usize) -> Vec<f32> {
        let extent = Extent::of_tokens(&self.x, self.fan_in).unwrap();
        let step = extent.step(kind, workers);
        let masks = kind.masks(workers).unwrap().into_iter();
        let masks = masks.map(|bits| Masks::fresh().unwrap().draw(self.x.len(), bits));
        let mut shares: Vec<Vec<i32>> = masks.map(Result::unwrap).collect();
        let (share, carries) = split(&self.x, step, &shares, kind).unwrap();
        shares.push(share);
        let mut y = self.carried(&carries);
        let (words, scales): (Vec<_>, _) = match kind {
            Shares::Carry(precision) => {
                let scales = scales(&self.weights, OUTPUTS, precision.fraction());
                let outputs = Outputs {
                    scales: &scales,
                    values: 1,
                };
                let down = precision.down();
                let words = shares.iter().map(|share| {
                    let products = self.in_f32(share);
                    let words = round(&products, outputs, down).unwrap();
                    unpack(&words, products.len(), down).unwrap()
                });
                (words.collect(), scales)
            }
            Shares::Ring(ring) => {
                assert!(carries.at.is_empty());
                let integers = ring.quantise(&self.weights, OUTPUTS);
                let product = |share: &Vec<i32>| self.in_ring(&integers.weights, share);
                let words = shares.iter().map(|share| ring.round(&product(share)));
                (words.collect(), integers.scales)
            }
        };
        let outputs = Outputs {
            scales: &scales,
            values: 1,
        };
        join(&words, &mut y, outputs, &[], step, kind).unwrap();
        y
    }

    /// Signal to noise in dB, and the largest error of one value, in the root of the mean square of all.
    fn quality(&self, kind: Shares, workers: usize) -> [f64; 2] {
        let exact = self.products(|token, row| {
            let pairs = self.weights[row..][..self.fan_in].iter();
            let pairs = pairs.zip(&self.x[token..]);
            pairs
                .map(|(w, x)| f64::from(*w) * f64::from(*x))
                .sum::<f64>()
        });
        let signal = exact.iter().map(|y| y.powi(2)).sum::<f64>();
        let got = self.by_shares(kind, workers);
        let errors = exact.iter().zip(got).map(|(y, got)| y - f64::from(got));
        let errors: Vec<f64> = errors.collect();
        let noise = errors.iter().map(|e| e.powi(2)).sum::<f64>();
        let largest = errors.iter().fold(0.0_f64, |most, e| most.max(e.abs()));
        let root = (signal / exact.len() as f64).sqrt();
        [10.0 * (signal / noise).log10(), largest / root]
    }
}

/// Layers with the fan-in of 3x3 convolutions of 320 and 1280 channels. What is lost with the fan-in is Cauchy's and
/// Schwarz's room, of which a product of independent numbers takes one part in the square root of it; with carries and
/// four workers f32 loses more of wide shares than rounding does.
#[test]
fn a_layer_by_shares_is_as_near_as_its_bits_promise() {
    let carry = Shares::Carry;
    let ring = Shares::Ring;
    for (kind, workers, least) in [
        (carry(Precision::PAPER), 2, [25.5, 19.0]),
        (carry(Precision::SPEED), 2, [44.0, 38.0]),
        (carry(Precision::QUALITY), 2, [64.0, 58.0]),
        (carry(Precision::SPEED), 4, [37.0, 29.0]),
        (ring(Ring::PAPER), 2, [29.5, 23.5]),
        (ring(Ring::SPEED), 2, [45.0, 38.8]),
        (ring(Ring::QUALITY), 2, [64.0, 58.3]),
        (ring(Ring::QUALITY), 4, [62.0, 56.0]),
    ] {
        for (fan_in, least) in [2880, 11520].into_iter().zip(least) {
            let [db, _] = Layer::new(fan_in).quality(kind, workers);
            println!("{kind:?}, {workers} workers, K {fan_in}: {db:.1} dB");
            assert!(
                db > least,
                "{kind:?}, {workers} workers, K {fan_in}: {db:.1} dB"
            );
        }
    }
}

/// Features that are all in one direction, with which a row of weights agrees: the largest product that there can be
/// does not leave the ring, of few bits and of many features, with either sign.
#[test]
fn the_largest_product_does_not_wrap() {
    for (up, down) in [(16, 8), (17, 10), (24, 12), (31, 24), (32, 16)] {
        let ring = Ring::new(up, down).unwrap();
        for (fan_in, workers) in [(1, 2), (9, 4), (720, 3), (2880, 4)] {
            let mut layer = Layer::new(fan_in);
            for row in 0..OUTPUTS {
                let sign = if row % 2 == 0 { 1.0 } else { -1.0 };
                let weights = &mut layer.weights[row * fan_in..][..fan_in];
                let pairs = weights.iter_mut().zip(&layer.x);
                pairs.for_each(|(w, x)| *w = sign * *x);
            }
            let [_, largest] = layer.quality(ring.into(), workers);
            // What wraps is off by twice as much as there can be.
            assert!(
                largest < 0.5,
                "{ring:?}, {workers} workers, K {fan_in}: {largest}"
            );
        }
    }
}

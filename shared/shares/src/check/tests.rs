use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::join::{round, scales};
use crate::pack::{MOST_BITS, unpack};

const OUTPUTS: usize = 64;
const FAN_IN: usize = 96;
const POSITIONS: usize = 64;

fn by_input(rows: &[f32]) -> Vec<f32> {
    let of = |at: usize| rows[at % OUTPUTS * FAN_IN + at / OUTPUTS];
    (0..rows.len()).map(of).collect()
}

struct Layer {
    weights: Vec<f32>,
    scales: Vec<f32>,
    /// Of a ring.
    integers: Option<Integers>,
    rng: StdRng,
    secret: Masks,
    shares: Shares,
}

impl Layer {
    fn new(shares: impl Into<Shares>) -> Self {
        let mut rng = StdRng::seed_from_u64(4);
        let weights: Vec<f32> = (0..OUTPUTS * FAN_IN)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        let shares = shares.into();
        let (scales, integers) = match shares {
            Shares::Carry(precision) => (scales(&weights, OUTPUTS, precision.fraction()), None),
            Shares::Ring(ring) => {
                let integers = ring.quantise(&weights, OUTPUTS);
                (integers.scales.clone(), Some(integers))
            }
        };
        Self {
            scales,
            weights,
            integers,
            rng,
            secret: Masks::fresh().unwrap(),
            shares,
        }
    }

    /// Mean residual of a tensor's words, of which `tamper` makes what it likes.
    fn mean(&mut self, tamper: impl Fn(usize, &mut [i32])) -> f64 {
        let bits = self.shares.masks(2).unwrap()[0];
        let half = 1_i64 << (bits - 1);
        let mut all: Vec<Vec<i32>> = (0..POSITIONS)
            .map(|_| {
                let words = (0..FAN_IN).map(|_| self.rng.random_range(-half..half) as i32);
                words.collect()
            })
            .collect();
        match self.shares {
            Shares::Carry(precision) => self.of_carry(precision, &mut all, tamper),
            Shares::Ring(ring) => self.of_ring(ring, &mut all, tamper),
        }
    }

    fn of_carry(
        &mut self,
        precision: Precision,
        shares: &mut [Vec<i32>],
        tamper: impl Fn(usize, &mut [i32]),
    ) -> f64 {
        let by_input = by_input(&self.weights);
        let check = Check::new(&mut self.secret, &by_input, &self.scales, precision).unwrap();
        let (mut all, mut expected) = (Vec::new(), Vec::new());
        for (position, share) in shares.iter().enumerate() {
            let product =
                |row: &[f32]| -> f32 { row.iter().zip(share).map(|(w, s)| w * *s as f32).sum() };
            let rows = self.weights.chunks_exact(FAN_IN);
            let products: Vec<f32> = rows.map(product).collect();
            let words = round(&products, self.outputs(), MOST_BITS).unwrap();
            let mut words = unpack(&words, products.len(), MOST_BITS).unwrap();
            tamper(position, &mut words);
            all.extend(words);
            expected.extend(check.weights().chunks_exact(FAN_IN).map(product));
        }
        let outputs = self.outputs();
        check
            .mean(&all, &expected, outputs, precision.up())
            .unwrap()
    }

    fn of_ring(
        &mut self,
        ring: Ring,
        shares: &mut [Vec<i32>],
        tamper: impl Fn(usize, &mut [i32]),
    ) -> f64 {
        let integers = self.integers.as_ref().unwrap();
        let check = Check::of_ring(&mut self.secret, integers, ring).unwrap();
        let (mut all, mut expected) = (Vec::new(), Vec::new());
        for (position, share) in shares.iter().enumerate() {
            let product = |row: &[i16]| {
                let pairs = row.iter().zip(share);
                pairs.fold(0, |sum: i32, (w, s)| {
                    sum.wrapping_add(s.wrapping_mul((*w).into()))
                })
            };
            let rows = integers.weights.chunks_exact(FAN_IN);
            let products: Vec<i32> = rows.map(product).collect();
            let mut words = ring.round(&products);
            tamper(position, &mut words);
            all.extend(words);
            expected.extend(check.weights().chunks_exact(FAN_IN).map(product));
        }
        let outputs = self.outputs();
        let expected = check.expected(&expected, outputs);
        check.mean(&all, &expected, outputs, ring.up()).unwrap()
    }

    fn outputs(&self) -> Outputs<'_> {
        Outputs {
            scales: &self.scales,
            values: 1,
        }
    }
}

#[test]
fn the_threshold_is_the_chi_squares() {
    // The quantiles at 1 - 1e-9 of 64 and 256 degrees of freedom, divided by these: 2.45 and 1.62.
    assert!((threshold(64) - 2.45).abs() < 0.02, "{}", threshold(64));
    assert!((threshold(256) - 1.62).abs() < 0.01, "{}", threshold(256));
}

#[test]
fn who_multiplies_as_it_should_passes_and_is_as_far_off_as_rounding() {
    for shares in [
        Shares::Carry(Precision::SPEED),
        Shares::Carry(Precision::QUALITY),
        Shares::Ring(Ring::PAPER),
        Shares::Ring(Ring::SPEED),
        Shares::Ring(Ring::QUALITY),
    ] {
        let mut layer = Layer::new(shares);
        let trials = 60;
        let means: Vec<f64> = (0..trials).map(|_| layer.mean(|_, _| {})).collect();
        let highest = means.iter().copied().fold(0.0, f64::max);
        let mean = means.iter().sum::<f64>() / f64::from(trials);
        println!("{shares:?}: mean {mean:.3}, highest {highest:.2}");
        // The highest of eight means is above one.
        assert!((0.9..1.6).contains(&mean), "{shares:?}: {mean}");
        assert!(highest < threshold(POSITIONS), "{shares:?}: {highest}");
    }
}

#[test]
fn who_answers_something_else_is_caught() {
    catches(Precision::SPEED.into());
    catches(Ring::SPEED.into());
}

fn catches(shares: Shares) {
    let mut layer = Layer::new(shares);
    let caught = |mean: f64| mean > threshold(POSITIONS);
    // Every output of every position a little off; one output everywhere; one position much.
    assert!(caught(
        layer.mean(|_, words| words.iter_mut().for_each(|w| *w += 3))
    ));
    assert!(caught(
        layer.mean(|_, words| words.iter_mut().for_each(|w| *w = 0))
    ));
    assert!(caught(layer.mean(|_, words| words.rotate_left(1))));
    let one = layer.mean(|position, words| {
        if position == 5 {
            words.iter_mut().for_each(|w| *w = w.wrapping_add(500));
        }
    });
    assert!(caught(one), "{one}");
    // Half of all that is counted modulo, of one output and of two: each vector misses it half of the time.
    for outputs in [1, 2] {
        let half = 1 << (shares.down() - 1);
        let found = (0..20).filter(|_| {
            caught(layer.mean(|_, words| {
                words[..outputs].iter_mut().for_each(|w| *w ^= half);
            }))
        });
        assert!(found.count() >= 18, "{outputs} outputs");
    }
    // One unit of one word is within rounding, and harmless.
    let little = layer.mean(|position, words| words[0] += i32::from(position == 0));
    assert!(!caught(little), "{little}");
}

/// A million honest tensors, of which none is blamed; and of those that are tampered with the share that is caught, by how
/// much is changed. Takes minutes: `cargo test --release -p lacuna-shares -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes; scripts/nightly.sh runs it"]
fn a_million_honest_tensors_are_not_blamed() {
    million(Precision::SPEED.into());
}

/// The same of a ring.
#[test]
#[ignore = "takes minutes; scripts/nightly.sh runs it"]
fn a_million_honest_tensors_of_a_ring_are_not_blamed() {
    million(Ring::SPEED.into());
}

fn million(shares: Shares) {
    let mut layer = Layer::new(shares);
    let most = threshold(POSITIONS);
    let trials = 1_000_000;
    let mut highest = 0.0_f64;
    let mut blamed = 0;
    for _ in 0..trials {
        let mean = layer.mean(|_, _| {});
        highest = highest.max(mean);
        blamed += usize::from(mean >= most);
    }
    println!("{shares:?}: {blamed} of {trials} blamed; highest {highest:.2}, threshold {most:.2}");
    for change in [1, 2, 3, 5, 10, 100] {
        for (what, every) in [
            ("every word", 1),
            ("a word of 64", 64),
            ("one word", usize::MAX),
        ] {
            let caught = (0..200).filter(|_| {
                let mean = layer.mean(|position, words| {
                    for (i, word) in words.iter_mut().enumerate() {
                        let at = position * OUTPUTS + i;
                        // The sign varies, as that of any error does.
                        let signed = if at.is_multiple_of(3) {
                            -change
                        } else {
                            change
                        };
                        if (every == usize::MAX && at == 99) || at.is_multiple_of(every) {
                            *word = word.wrapping_add(signed);
                        }
                    }
                });
                mean >= most
            });
            println!(
                "{what} changed by {change}: {} of 200 caught",
                caught.count()
            );
        }
    }
    assert_eq!(blamed, 0);
}

#[test]
fn words_of_other_positions_are_refused() {
    let layer = Layer::new(Precision::SPEED);
    let mut secret = Masks::fresh().unwrap();
    let weights = by_input(&layer.weights);
    let check = Check::new(&mut secret, &weights, &layer.scales, Precision::SPEED).unwrap();
    let refused = check.mean(&[0; OUTPUTS], &[0.0; 2 * VECTORS], layer.outputs(), 12);
    assert!(matches!(refused, Err(Error::Words { .. })));
    let integers = Ring::SPEED.quantise(&layer.weights, OUTPUTS);
    let check = Check::of_ring(&mut secret, &integers, Ring::SPEED).unwrap();
    // Products of half a position are of none.
    let expected = check.expected(&[0; 5 * VECTORS], layer.outputs());
    assert_eq!(expected.len(), 2 * VECTORS);
    let refused = check.mean(&[0; OUTPUTS], &expected, layer.outputs(), 26);
    assert!(matches!(refused, Err(Error::Words { .. })));
}

/// Of feature maps the values of an output lie together, of several entries one after the other.
#[test]
fn what_is_expected_of_maps_lies_as_their_products_do() {
    let integers = Integers {
        weights: vec![1, -3, 700, 25_000],
        scales: vec![1.0; 2],
    };
    let ring = Ring::QUALITY;
    let mut secret = Masks::fresh().unwrap();
    let check = Check::of_ring(&mut secret, &integers, ring).unwrap();
    let (batch, values, inputs) = (2, 3, 2);
    let outputs = Outputs {
        scales: &integers.scales,
        values,
    };
    let share = Masks::fresh()
        .unwrap()
        .draw(batch * inputs * values, 32)
        .unwrap();
    // `[B, outputs, positions]` of shares `[B, inputs, positions]`.
    let product = |weights: &[i16]| -> Vec<i32> {
        let entries = share.chunks(inputs * values);
        let each = entries.flat_map(|share| {
            let rows = weights.chunks(inputs);
            rows.flat_map(move |row| (0..values).map(move |at| (row, share, at)))
        });
        each.map(|(row, share, at)| {
            let terms = row.iter().enumerate();
            terms.fold(0, |sum: i32, (i, w)| {
                sum.wrapping_add(share[i * values + at].wrapping_mul((*w).into()))
            })
        })
        .collect()
    };
    let words = ring.round(&product(&integers.weights));
    let expected = check.expected(&product(check.weights()), outputs);
    let mean = check.mean(&words, &expected, outputs, 32).unwrap();
    assert!(mean < threshold(batch * values), "{mean}");
    let mut wrong = words.clone();
    wrong.swap(0, 7);
    let mean = check.mean(&wrong, &expected, outputs, 32).unwrap();
    assert!(mean > threshold(batch * values), "{mean}");
}

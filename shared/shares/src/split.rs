//! A tensor of features to shares and carries.
//!
//! With a step size `D` a feature `x` is the integer `q = round(x / D)`, and with a mask `r` of `b` bits
//! `q = r + u + 2^b e`: `r` is one worker's share, `u` the other's, and the carry `e`, which is 0 but for few features,
//! stays at home. `r` is uniform and unknown to whoever has `u`, so `u` is uniform whatever `q` is. For a third worker `u`
//! is split in the same way by a wider mask, and so on. In a ring (`ring`) every mask is as wide as the ring, and there is no `e`.

use std::cmp::Ordering;

use crate::error::{Error, Result};
use crate::kind::Shares;
use crate::precision::{Precision, centre, nearest};

/// How much of the range of products a sum may take by Cauchy and Schwarz; the rest is for rounding.
const ROOM: f64 = 0.98;

/// What of a layer's input its step size follows from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extent {
    /// Mean of the features' absolute values.
    pub mean: f64,
    /// The largest norm of the features that one output is a product of: a token's, or a window's of a convolution.
    pub largest: f64,
    /// Number of those features, `K`.
    pub fan_in: usize,
}

impl Extent {
    /// Of tokens of `fan_in` features each.
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub fn of_tokens(x: &[f32], fan_in: usize) -> Result<Self> {
        let norms = x.chunks(fan_in.max(1)).map(|token| {
            let squares = token.iter().map(|x| f64::from(*x).powi(2));
            squares.sum::<f64>()
        });
        let largest = norms.fold(0.0, f64::max).sqrt();
        Self::new(x, largest, fan_in)
    }

    /// Of feature maps `[B, C, H, W]` under a kernel of `kernel` rows and columns, with zeros around; where they are
    /// `enlarged` before to so many rows and columns, each of a pixel's four copies counts.
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub fn of_windows(
        x: &[f32],
        [channels, rows, columns]: [usize; 3],
        kernel: usize,
        enlarged: Option<[usize; 2]>,
    ) -> Result<Self> {
        let pixels = rows * columns;
        let mut largest = 0.0_f64;
        for entry in x.chunks((channels * pixels).max(1)) {
            let mut squares = vec![0.0_f64; pixels];
            for channel in entry.chunks(pixels.max(1)) {
                let pairs = squares.iter_mut().zip(channel);
                pairs.for_each(|(sum, x)| *sum += f64::from(*x).powi(2));
            }
            largest = largest.max(match enlarged {
                Some([high, wide]) => {
                    let copies = (0..high * wide)
                        .map(|at| squares[at / wide / 2 * columns + at % wide / 2])
                        .collect::<Vec<_>>();
                    largest_window(&copies, [high, wide], kernel)
                }
                None => largest_window(&squares, [rows, columns], kernel),
            });
        }
        Self::new(x, largest.sqrt(), channels * kernel * kernel)
    }

    fn new(x: &[f32], largest: f64, fan_in: usize) -> Result<Self> {
        let sum: f64 = x.iter().map(|x| f64::from(x.abs())).sum();
        let mean = sum / x.len().max(1) as f64;
        match mean.is_finite() && largest.is_finite() {
            true => Ok(Self {
                mean,
                largest,
                fan_in,
            }),
            false => Err(Error::NotFinite),
        }
    }

    /// The step size `D` for `workers` workers: the least one with which no product leaves its range, and no more than a
    /// share of [`Precision::carries`] of the features has a carry. By Cauchy and Schwarz a product with a row of norm 1 is no
    /// larger than its features' norm; rounding adds half a unit a feature to that, and one a worker.
    pub fn step(&self, shares: impl Into<Shares>, workers: usize) -> f64 {
        let (carried, room) = match shares.into() {
            Shares::Carry(precision) => {
                let range = f64::from(1_u32 << (precision.range() - 1));
                let rounded = workers as f64 + 0.5 * (self.fan_in as f64).sqrt();
                let carried =
                    self.mean / (precision.carries() * f64::from(1_u32 << precision.up()));
                (carried, ROOM * range - rounded)
            }
            Shares::Ring(ring) => (0.0, ring.room(self.fan_in, workers)),
        };
        // Where rounding takes all of the range, as of very few bits, something is left all the same.
        let step = carried.max(self.largest / room.max(1.0));
        if step > 0.0 { step } else { 1.0 }
    }
}

/// The largest sum of `squares` `[H, W]` under a kernel.
fn largest_window(squares: &[f64], [rows, columns]: [usize; 2], kernel: usize) -> f64 {
    let reach = kernel / 2;
    let mut largest = 0.0_f64;
    for row in 0..rows {
        let down = row.saturating_sub(reach)..(row + reach + 1).min(rows);
        let mut sums = vec![0.0; columns];
        for row in down {
            let of_row = sums.iter_mut().zip(&squares[row * columns..]);
            of_row.for_each(|(sum, square)| *sum += square);
        }
        for column in 0..columns {
            let across = column.saturating_sub(reach)..(column + reach + 1).min(columns);
            largest = largest.max(sums[across].iter().sum());
        }
    }
    largest
}

/// The features that have a carry, filled up with carries of 0: their number tells nothing, but that of the features.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carries {
    /// Which feature each is of.
    pub at: Vec<u32>,
    /// How many times `2^b`.
    pub times: Vec<i32>,
}

/// How many carries are computed with of so many features: as many as are expected where a share
/// [`Precision::carries`] of them has one, and one step in `2^b` and half of one more, for whatever side of zero features
/// are on and however they are rounded; and six standard deviations. Should there be more, which happens once in 10^9
/// tensors, there are as many again.
pub fn capacity(features: usize, precision: Precision) -> usize {
    let rounded = 1.5 / f64::from(precision.up()).exp2();
    let expected = (precision.carries() + rounded) * features as f64;
    (expected + 6.0 * expected.sqrt()).ceil() as usize + 8
}

/// What is left of features for the share holder, who has no key, and the carries. `masks` are the seed holders', of
/// as many bits as [`Shares::masks`] has. Shares of a ring leave no carries.
///
/// # Errors
/// [`Error::NotFinite`] for a feature that is no number of steps; [`Error::Words`]; those of [`Shares::masks`].
pub fn split(
    x: &[f32],
    step: f64,
    masks: &[Vec<i32>],
    shares: impl Into<Shares>,
) -> Result<(Vec<i32>, Carries)> {
    let shares = shares.into();
    let bits = shares.masks(masks.len() + 1)?;
    if let Some(mask) = masks.iter().find(|mask| mask.len() != x.len()) {
        return Err(Error::Words {
            got: mask.len(),
            wanted: x.len(),
        });
    }
    let per_step = 1.0 / step;
    // 2^30 steps are far beyond any product's range; what is not below them, and no number at all, counts.
    let most = (f64::from(1_u32 << 30) * step) as f32;
    let beyond = |x: &f32| u32::from(!matches!(x.abs().partial_cmp(&most), Some(Ordering::Less)));
    if x.iter().map(beyond).fold(0, u32::max) > 0 {
        return Err(Error::NotFinite);
    }
    let room = match shares {
        Shares::Carry(precision) => capacity(x.len(), precision),
        Shares::Ring(_) => 0,
    };
    let mut found: Vec<Found> = masks.iter().map(|_| Found::new(room)).collect();
    let mut share = vec![0; x.len()];
    for (i, (share, x)) in share.chunks_mut(BLOCK).zip(x.chunks(BLOCK)).enumerate() {
        let start = i * BLOCK;
        let pairs = share.iter_mut().zip(x);
        pairs.for_each(|(word, x)| *word = nearest(f64::from(*x) * per_step));
        for ((mask, bits), found) in masks.iter().zip(&bits).zip(&mut found) {
            let mask = &mask[start..start + share.len()];
            let mut left = [0; BLOCK];
            let left = &mut left[..share.len()];
            for ((left, word), mask) in left.iter_mut().zip(&mut *share).zip(mask) {
                *left = word.wrapping_sub(*mask);
                *word = centre(*left, *bits);
            }
            if let Shares::Carry(precision) = shares {
                found.add(start, left, share, [*bits, bits - precision.up()]);
            }
        }
    }
    let mut carries = Carries::default();
    found
        .into_iter()
        .for_each(|found| found.append_to(&mut carries));
    Ok((share, carries))
}

/// Features that are split at a time: few enough for the nearest cache.
const BLOCK: usize = 1024;

/// The carries of one mask as they are found. There is a place for each feature of a block, so that which of them have a
/// carry decides over no branch.
struct Found {
    carries: Carries,
    /// How many there are; behind them are carries of 0.
    number: usize,
    /// For so many there is room, or for so many more.
    room: usize,
}

impl Found {
    fn new(room: usize) -> Self {
        Self {
            carries: Carries::default(),
            number: 0,
            room,
        }
    }

    /// Of the features from `start` on: what was `left` of them is `word` and a carry of `2^further`
    /// for each time that it wraps around `2^bits`.
    fn add(&mut self, start: usize, left: &[i32], words: &[i32], [bits, further]: [u32; 2]) {
        let Self {
            carries: Carries { at, times },
            number,
            room,
        } = self;
        if at.len() < *number + BLOCK {
            at.resize(at.len() + *room + BLOCK, 0);
            times.resize(at.len(), 0);
        }
        let (at, times) = (&mut at[*number..], &mut times[*number..]);
        let mut found = 0;
        for (i, (left, word)) in left.iter().zip(words).enumerate() {
            let carry = left.wrapping_sub(*word) >> bits;
            at[found] = (start + i) as u32;
            times[found] = carry << further;
            found += usize::from(carry != 0);
        }
        *number += found;
    }

    fn append_to(self, carries: &mut Carries) {
        let Carries { mut at, mut times } = self.carries;
        let room = self.room * self.number.div_ceil(self.room.max(1)).max(1);
        at.truncate(self.number);
        at.resize(room, 0);
        times.truncate(self.number);
        times.resize(room, 0);
        carries.at.append(&mut at);
        carries.times.append(&mut times);
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::Ring;
    use crate::stream::{KEY, Key};

    /// Numbers as features are: many small, some large.
    fn features(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(seed);
        let one = |_| {
            let sum: f32 = (0..6).map(|_| rng.random_range(-1.0..1.0_f32)).sum();
            sum * sum.abs()
        };
        (0..n).map(one).collect()
    }

    /// The masks of the `tensor`-th tensor, for so many workers.
    fn masks(
        tensor: u64,
        words: usize,
        shares: impl Into<Shares>,
        workers: usize,
    ) -> Vec<Vec<i32>> {
        let bits = shares
            .into()
            .masks(workers)
            .unwrap()
            .into_iter()
            .enumerate();
        bits.map(|(i, bits)| {
            let key = Key::received([3 + i as u8; KEY]);
            key.mask(tensor, words, bits).unwrap()
        })
        .collect()
    }

    #[test]
    fn shares_and_carries_are_the_features() {
        let x = features(5000, 1);
        for (precision, workers) in [
            (Precision::SPEED, 2),
            (Precision::SPEED, 3),
            (Precision::SPEED, 4),
            (Precision::QUALITY, 2),
        ] {
            let step = Extent::of_tokens(&x, 50).unwrap().step(precision, workers);
            let masks = masks(0, x.len(), precision, workers);
            let (share, carries) = split(&x, step, &masks, precision).unwrap();
            let mut sums: Vec<i64> = share.iter().map(|u| i64::from(*u)).collect();
            for mask in &masks {
                let pairs = sums.iter_mut().zip(mask);
                pairs.for_each(|(sum, r)| *sum += i64::from(*r));
            }
            for (at, times) in carries.at.iter().zip(&carries.times) {
                sums[*at as usize] += i64::from(*times) << precision.up();
            }
            for (x, sum) in x.iter().zip(sums) {
                assert!((f64::from(*x) / step - sum as f64).abs() <= 0.5 + 1e-6);
            }
            let half = 1 << (precision.masks(workers).unwrap()[workers - 2] - 1);
            assert!(share.iter().all(|u| (-half..half).contains(u)));
            assert!(share.iter().any(|u| *u > half / 2) && share.iter().any(|u| *u < -half / 2));
        }
    }

    #[test]
    fn shares_of_a_ring_are_the_features_without_carries() {
        let x = features(5000, 1);
        for (ring, workers) in [(Ring::PAPER, 2), (Ring::SPEED, 3), (Ring::QUALITY, 4)] {
            let step = Extent::of_tokens(&x, 50).unwrap().step(ring, workers);
            let masks = masks(0, x.len(), ring, workers);
            let (mut sums, carries) = split(&x, step, &masks, ring).unwrap();
            assert_eq!(carries, Carries::default());
            for mask in &masks {
                let pairs = sums.iter_mut().zip(mask);
                pairs.for_each(|(sum, r)| *sum = sum.wrapping_add(*r));
            }
            for (x, sum) in x.iter().zip(sums) {
                let sum = f64::from(centre(sum, ring.up()));
                assert!((f64::from(*x) / step - sum).abs() <= 0.5 + 1e-6);
            }
        }
    }

    #[test]
    fn few_features_have_a_carry_and_how_many_is_not_told() {
        let spared = |bits| Precision::SPEED.sparing(bits).unwrap();
        let cases = (0..20).flat_map(|seed| {
            [0, 2, 4].map(|bits| [(seed, 2, spared(bits)), (seed, 4, spared(bits))])
        });
        let mut step_size = None;
        for (seed, workers, precision) in cases.flatten() {
            let x = features(20_000, seed);
            let extent = Extent {
                largest: 0.0,
                ..Extent::of_tokens(&x, 100).unwrap()
            };
            let step = extent.step(precision, workers);
            // Whatever carries spare, features are as many steps.
            if seed == 0 {
                assert_eq!(*step_size.get_or_insert(step), step);
            }
            let masks = masks(seed, x.len(), precision, workers);
            let (_, carries) = split(&x, step, &masks, precision).unwrap();
            let room = capacity(x.len(), precision);
            assert_eq!(carries.times.len(), (workers - 1) * room);
            assert_eq!(carries.at.len(), carries.times.len());
            for times in carries.times.chunks(room) {
                let found = times.iter().filter(|times| **times != 0).count();
                // As many as are expected, within five standard deviations; of later masks not quite as many.
                let found = found >> precision.spared();
                assert!((90..270).contains(&found), "{precision:?}: {found}");
            }
        }
    }

    /// Features of one side of zero, of one value, and such as are rounded up: the number of carries tells nothing of them.
    #[test]
    fn no_features_have_more_carries_than_there_is_room_for() {
        let n = 400_000;
        let around = |centre: f32| features(n, 9).into_iter().map(move |x| x + centre);
        let kinds: [Vec<f32>; 5] = [
            around(0.0).collect(),
            around(30.0).collect(),
            around(-30.0).collect(),
            vec![1.0; n],
            (0..n)
                .map(|i| if i % 20 == 0 { 1.0 } else { 0.05 })
                .collect(),
        ];
        for (kind, x) in kinds.iter().enumerate() {
            for precision in [Precision::PAPER, Precision::SPEED, Precision::QUALITY] {
                for spared in [0, 2, 4] {
                    let precision = precision.sparing(spared).unwrap();
                    let extent = Extent {
                        largest: 0.0,
                        ..Extent::of_tokens(x, 100).unwrap()
                    };
                    let step = extent.step(precision, 2);
                    let masks = masks(3, n, precision, 2);
                    let (_, carries) = split(x, step, &masks, precision).unwrap();
                    let room = capacity(n, precision);
                    assert_eq!(carries.at.len(), room, "{kind}, {precision:?}");
                }
            }
        }
    }

    /// The share of one and the same tensor is uniform over fresh masks: of 16 values of its upper bits each comes up as
    /// often as any other, for a small feature and for the largest.
    #[test]
    fn a_share_is_uniform_whatever_the_feature_is() {
        let mut x = vec![0.0, 1e-3, 1.0];
        x.extend(features(200, 5));
        for (shares, workers) in [
            (Shares::Carry(Precision::SPEED), 2),
            (Shares::Carry(Precision::SPEED), 3),
            (Shares::Ring(Ring::SPEED), 2),
            (Shares::Ring(Ring::QUALITY), 3),
        ] {
            let bits = shares.masks(workers).unwrap()[workers - 2];
            let extent = Extent::of_tokens(&x, x.len()).unwrap();
            let step = extent.step(shares, workers);
            let mut counts = vec![[0_u32; 16]; x.len()];
            let tensors = 4096_u32;
            for i in 0..tensors {
                let masks = masks(i.into(), x.len(), shares, workers);
                let (share, _) = split(&x, step, &masks, shares).unwrap();
                let of = counts.iter_mut().zip(share);
                of.for_each(|(counts, u)| counts[((u >> (bits - 4)) + 8) as usize] += 1);
            }
            let expected = f64::from(tensors) / 16.0;
            for counts in counts {
                let chi = counts.map(|n| (f64::from(n) - expected).powi(2) / expected);
                // Of 15 degrees of freedom; beyond 50 once in 10^5 features.
                assert!(chi.iter().sum::<f64>() < 50.0, "{counts:?}");
            }
        }
    }

    #[test]
    fn a_window_has_the_norm_of_all_that_a_kernel_sees() {
        // Two channels of 3x4: ones, but for a two in a corner.
        let mut x = vec![1.0; 24];
        x[0] = 2.0;
        let of = |enlarged| Extent::of_windows(&x, [2, 3, 4], 3, enlarged).unwrap();
        let extent = of(None);
        // Around the second pixel of the second row: nine pixels of two channels, one of them a two.
        assert_eq!(extent.largest, 21.0_f64.sqrt());
        assert_eq!(extent.fan_in, 18);
        assert_eq!(extent.mean, 25.0 / 24.0);
        // Enlarged, four copies of the corner are in a window; also where the last row has one copy.
        for enlarged in [[6, 8], [5, 7]] {
            assert_eq!(
                of(Some(enlarged)).largest,
                (4.0 * 5.0 + 5.0 * 2.0_f64).sqrt()
            );
        }
        let tokens = Extent::of_tokens(&[3.0, 4.0, 0.0, 1.0], 2).unwrap();
        assert_eq!((tokens.largest, tokens.mean), (5.0, 2.0));
    }

    #[test]
    fn what_is_no_number_is_refused_and_nothing_is_no_division_by_zero() {
        assert_eq!(Extent::of_tokens(&[f32::NAN], 1), Err(Error::NotFinite));
        assert_eq!(
            Extent::of_tokens(&[f32::INFINITY], 1),
            Err(Error::NotFinite)
        );
        let none = Extent::of_tokens(&[0.0; 8], 4)
            .unwrap()
            .step(Precision::SPEED, 2);
        let split = |x: &[f32], step, mask: Vec<i32>| split(x, step, &[mask], Precision::SPEED);
        let (share, carries) = split(&[0.0; 8], none, vec![5; 8]).unwrap();
        assert_eq!(share, [-5; 8]);
        assert!(carries.times.iter().all(|times| *times == 0));
        for wrong in [1e30, f32::NAN] {
            assert_eq!(split(&[wrong], 1.0, vec![0]), Err(Error::NotFinite));
        }
        let short = split(&[0.0; 2], 1.0, vec![0]);
        assert!(matches!(short, Err(Error::Words { got: 1, wanted: 2 })));
    }
}

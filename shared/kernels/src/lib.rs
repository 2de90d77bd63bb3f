//! CPU kernels for what burn-flex does slowly or not at all: plain functions over slices.
//!
//! Each kernel is a file: [`attention`], [`conv`] (and
//! `winograd`), [`norm`], [`activation`]; [`simd`] compiles
//! a loop for the machine's vector width and [`exp`] is the exponential that vectorises. All share
//! rayon's global pool, for many workers may live in one process. [`stats`] are group statistics that
//! merge exactly; [`sparse`] multiplies few features; [`ring`] multiplies integers that wrap; [`ssim`] has the loops of the metric, [`allocator`] a setting.
//!
//! Slices come in and vectors go out, and this is the only crate with `unsafe` code. Sizes that do not
//! agree with the slices are refused by a panic; sizes of zero are defined: nothing in, nothing out.
//!
//! One promise binds them all: the bits of an output row depend on its inputs alone, not on how
//! many rows are computed with it. So a picture made in strips is the unsplit one, to the last bit.

pub mod activation;
pub mod allocator;
pub mod attention;
pub mod conv;
pub mod exp;
mod matmul;
pub mod norm;
#[cfg(feature = "cuda")]
pub mod nvidia;
pub mod ring;
pub mod simd;
mod sizes;
pub mod sparse;
pub mod ssim;
pub mod stats;
mod winograd;

use std::cell::RefCell;
use std::mem::MaybeUninit;

/// Where the tasks of a kernel write their parts of one result.
///
/// A task may write only elements that no other task writes; together they write all.
#[derive(Clone, Copy)]
struct Target<T = f32> {
    start: *mut T,
    len: usize,
}

// SAFETY: the pointer is to a buffer that outlives the tasks (see `filled`), and tasks write disjoint parts.
unsafe impl<T: Send> Send for Target<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Target<T> {}

impl<T> Target<T> {
    /// The address of element `offset`.
    ///
    /// # Panics
    /// When the `len` elements from there are not all inside.
    fn at(self, offset: usize, len: usize) -> *mut T {
        assert!(
            offset + len <= self.len,
            "a kernel would write outside its result"
        );
        // SAFETY: inside the buffer, by the assertion.
        unsafe { self.start.add(offset) }
    }

    /// Elements `offset..offset + len` to write to; they may never have been written.
    ///
    /// # Safety
    /// No other task may hold any of them at the same time.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice<'a>(self, offset: usize, len: usize) -> &'a mut [MaybeUninit<T>] {
        // SAFETY: `at` checks the bounds and the caller sees to disjointness.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset, len).cast(), len) }
    }
}

/// The number of values of a tensor of `sizes`.
///
/// # Panics
/// When it is more than any slice has: then no check against a slice could be trusted.
fn values<const D: usize>(sizes: [usize; D]) -> usize {
    let product = sizes.into_iter().try_fold(1, usize::checked_mul);
    assert!(product.is_some(), "sizes of a kernel: {sizes:?}");
    product.unwrap_or(0)
}

/// `len` values that `write` writes, without zeroing them first: touching fresh pages twice costs as
/// much as many a kernel.
///
/// # Safety
/// `write` must write all of them.
unsafe fn filled<T>(len: usize, write: impl FnOnce(Target<T>)) -> Vec<T> {
    let mut values: Vec<T> = Vec::with_capacity(len);
    write(Target {
        start: values.as_mut_ptr(),
        len,
    });
    // SAFETY: within the capacity, and the caller sees to it that `write` has written them.
    unsafe { values.set_len(len) };
    values
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends a buffer of `len` values, with anything in it, that the thread keeps for the next task.
fn scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    // Taken out rather than borrowed, so that a nested call merely allocates.
    let mut buffer = SCRATCH.take();
    if buffer.len() < len {
        // Freed before the larger one is asked for.
        buffer = Vec::new();
        buffer.resize(len, 0.0);
    }
    let result = work(&mut buffer[..len]);
    SCRATCH.set(buffer);
    result
}

/// Integers in a line of the caches, which is what the widest vectors are read by.
const LINE: usize = 16;

/// [`scratch`] for integers, from the beginning of a line of the caches.
fn scratch_words<R>(len: usize, work: impl FnOnce(&mut [i32]) -> R) -> R {
    scratch(len + LINE, |values| {
        let start: *mut i32 = values.as_mut_ptr().cast();
        // SAFETY: an i32 is as large and as aligned as an f32, every bit pattern is one of each, and `values` is not used
        // while this slice is.
        let words = unsafe { std::slice::from_raw_parts_mut(start, values.len()) };
        let skip = words
            .as_ptr()
            .align_offset(LINE * size_of::<i32>())
            .min(LINE);
        work(&mut words[skip..skip + len])
    })
}

#[cfg(test)]
mod testing {
    /// Values between -2 and 2 without a pattern that a wrong index could repeat.
    pub(crate) fn wave(len: usize, phase: f32) -> Vec<f32> {
        (0..len)
            .map(|i| (i as f32 * 0.731 + phase).sin() + (i as f32 * 0.0173).cos())
            .collect()
    }

    /// Largest difference, relative to the largest value wanted.
    pub(crate) fn difference(got: &[f32], want: &[f64]) -> f64 {
        assert_eq!(got.len(), want.len());
        let largest = want.iter().fold(0f64, |m, w| m.max(w.abs()));
        got.iter()
            .zip(want)
            .map(|(g, w)| (f64::from(*g) - w).abs())
            .fold(
                0f64,
                |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) },
            )
            / largest
    }
}

/// A strip of rows is computed to the bits that the whole has there.
#[cfg(test)]
mod strips {
    use super::testing::wave;
    use super::{attention, conv, norm};
    use crate::stats::Moments;

    /// Rows `rows` of the `height` rows of each plane; those outside are zeros.
    fn cut(x: &[f32], height: usize, width: usize, rows: std::ops::Range<isize>) -> Vec<f32> {
        let row = |plane: &[f32], y: isize| match usize::try_from(y) {
            Ok(y) if y < height => plane[y * width..][..width].to_vec(),
            _ => vec![0.0; width],
        };
        x.chunks_exact(height * width)
            .flat_map(|plane| rows.clone().flat_map(|y| row(plane, y)).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn of_a_convolution() {
        // Both algorithms, depths of one part and of several, maps large and tiny.
        for (c_in, c_out, size, stride) in [
            (32, 48, 32, 1),
            (320, 64, 32, 1),
            (700, 40, 16, 1),
            (640, 320, 8, 1),
            (160, 160, 8, 1),
            (64, 64, 32, 2),
            (320, 4, 64, 1),
            (16, 16, 2, 1),
            (16, 24, 3, 1),
            (16, 24, 4, 2),
        ] {
            let sizes = conv::Sizes {
                batch: 2,
                c_in,
                c_out,
                size: [size, size],
                kernel: 3,
                stride,
                padding: [1, 1],
                odd: false,
            };
            let x = wave(2 * c_in * size * size, 0.3);
            let (weight, bias) = (wave(c_out * c_in * 9, 0.7), wave(c_out, 1.1));
            let whole = conv::conv2d(&x, &weight, &bias, sizes);
            let [out, _] = sizes.out_size();
            for rows in [1, 2, 5, (out / 4).max(1), out.div_ceil(2)] {
                for first in (0..out).step_by(rows) {
                    let last = (first + rows).min(out) as isize;
                    let first = first as isize;
                    let halo = first * stride as isize - 1..last * stride as isize + 1;
                    let strip = cut(&x, size, size, halo.clone());
                    let sizes = conv::Sizes {
                        size: [halo.len(), size],
                        padding: [0, 1],
                        odd: first % 2 == 1,
                        ..sizes
                    };
                    let got = conv::conv2d(&strip, &weight, &bias, sizes);
                    // With a stride of two the halo's last row is more than is needed.
                    let got = cut(&got, sizes.out_size()[0], out, 0..last - first);
                    assert!(
                        got == cut(&whole, out, out, first..last),
                        "{sizes:?} from {first}"
                    );
                }
            }
        }
    }

    #[test]
    fn of_an_attention() {
        for (tokens, keys, channels, heads) in
            [(1024, 1024, 64, 4), (64, 77, 160, 4), (256, 600, 640, 8)]
        {
            let sizes = attention::Sizes {
                batch: 1,
                queries: tokens,
                keys,
                channels,
                heads,
                causal: false,
            };
            let (q, k, v) = (
                wave(tokens * channels, 0.3),
                wave(keys * channels, 0.7),
                wave(keys * channels, 1.1),
            );
            let whole = attention::attention(&q, &k, &v, sizes);
            for rows in [1, 2, 8, tokens / 4, tokens / 2] {
                if rows == 0 || tokens % rows != 0 {
                    continue;
                }
                let sizes = attention::Sizes {
                    queries: rows,
                    ..sizes
                };
                let parts = q.chunks_exact(rows * channels);
                let got: Vec<f32> = parts
                    .flat_map(|q| attention::attention(q, &k, &v, sizes))
                    .collect();
                assert!(got == whole, "{sizes:?}");
            }
        }
    }

    #[test]
    fn of_a_group_normalisation() {
        let (channels, size, groups) = (64, 32, 8);
        let x: Vec<f32> = wave(channels * size * size, 0.3)
            .iter()
            .map(|x| 2.0 * x + 7.0)
            .collect();
        let (gamma, beta) = (wave(channels, 0.7), wave(channels, 1.1));
        let affine = norm::Affine {
            gamma: &gamma,
            beta: &beta,
            groups,
            eps: 1e-5,
            silu: true,
        };
        let whole = norm::group_norm(&x, 1, affine, None);
        let strips: Vec<Vec<f32>> = (0..4)
            .map(|i| cut(&x, size, size, 8 * i..8 * (i + 1)))
            .collect();
        let each: Vec<Vec<Moments>> = strips
            .iter()
            .map(|s| norm::group_moments(s, s.len() / groups))
            .collect();
        let merged: Vec<Moments> = (0..groups)
            .map(|g| {
                each.iter()
                    .fold(Moments::default(), |all, strip| all.merge(strip[g]))
            })
            .collect();
        for (i, strip) in (0..).zip(&strips) {
            let got = norm::group_norm(strip, 1, affine, Some(&merged));
            assert!(
                got == cut(&whole, size, size, 8 * i..8 * (i + 1)),
                "strip {i}"
            );
        }
    }
}

/// Sizes of zero: nothing in, nothing out, and never a value that nobody wrote.
#[cfg(test)]
mod empty {
    use super::{activation, attention, conv, norm};

    #[test]
    fn attention() {
        let all = [
            // batch, queries, keys, channels, heads
            [0, 3, 5, 8, 2],
            [2, 0, 5, 8, 2],
            [2, 3, 5, 0, 2],
            [2, 3, 5, 0, 0],
            [0, 0, 5, 0, 0],
        ];
        for [batch, queries, keys, channels, heads] in all {
            let sizes = attention::Sizes {
                batch,
                queries,
                keys,
                channels,
                heads,
                causal: false,
            };
            let zeros = |tokens| vec![0.0; batch * tokens * channels];
            let (q, k) = (zeros(queries), zeros(keys));
            assert!(attention::attention(&q, &k, &k, sizes).is_empty());
            let [y, sums] = attention::attention_part(&q, &k, &k, sizes);
            assert!(y.is_empty());
            // Without channels every score is zero, so that each of the keys counts one.
            let want = vec![(keys as f32).ln(); batch * queries * heads];
            assert_eq!(sums, want, "{sizes:?}");
        }
    }

    #[test]
    #[should_panic(expected = "sizes of a kernel")]
    fn sizes_beyond_counting_are_refused() {
        let sizes = attention::Sizes {
            batch: 1 << 40,
            queries: 1 << 40,
            keys: 1,
            channels: 0,
            heads: 1,
            causal: false,
        };
        attention::attention_part(&[], &[], &[], sizes);
    }

    #[test]
    #[should_panic(expected = "heads of an attention")]
    fn channels_without_heads_are_refused() {
        let sizes = attention::Sizes {
            batch: 1,
            queries: 1,
            keys: 1,
            channels: 2,
            heads: 0,
            causal: false,
        };
        attention::attention(&[0.0; 2], &[0.0; 2], &[0.0; 2], sizes);
    }

    #[test]
    fn convolution() {
        // The first are wide enough for Winograd, the others are not.
        for channels in [32, 3] {
            let full = conv::Sizes {
                batch: 2,
                c_in: channels,
                c_out: channels,
                size: [16, 16],
                kernel: 3,
                stride: 1,
                padding: [1, 1],
                odd: false,
            };
            let empty = [
                conv::Sizes { batch: 0, ..full },
                conv::Sizes { c_out: 0, ..full },
                conv::Sizes {
                    size: [0, 16],
                    padding: [0, 1],
                    ..full
                },
                conv::Sizes {
                    size: [2, 16],
                    padding: [0, 1],
                    odd: true,
                    ..full
                },
                conv::Sizes {
                    size: [16, 0],
                    padding: [1, 0],
                    ..full
                },
            ];
            for sizes in empty {
                let [h, w] = sizes.size;
                let x = vec![1.0; sizes.batch * sizes.c_in * h * w];
                let weight = vec![1.0; sizes.c_out * sizes.c_in * 9];
                let y = conv::conv2d(&x, &weight, &vec![1.0; sizes.c_out], sizes);
                assert!(y.is_empty(), "{sizes:?}");
            }
            // Nothing to sum: the bias. An empty map with padding is one of zeros.
            let bias: Vec<f32> = (0..channels).map(|i| i as f32).collect();
            let nothing = [
                conv::Sizes { c_in: 0, ..full },
                conv::Sizes {
                    c_in: 0,
                    size: [40, 40],
                    kernel: 1,
                    padding: [0, 0],
                    ..full
                },
                conv::Sizes {
                    size: [0, 16],
                    padding: [2, 1],
                    ..full
                },
            ];
            for sizes in nothing {
                let [h, w] = sizes.size;
                let x = vec![1.0; sizes.batch * sizes.c_in * h * w];
                let weight = vec![1.0; sizes.c_out * sizes.c_in * sizes.kernel * sizes.kernel];
                let y = conv::conv2d(&x, &weight, &bias, sizes);
                let [h, w] = sizes.out_size();
                assert_eq!(y.len(), 2 * channels * h * w);
                let maps = y.chunks_exact(h * w).zip(bias.iter().cycle());
                for (map, bias) in maps {
                    assert!(map.iter().all(|y| y == bias), "{sizes:?}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "kernel of a convolution")]
    fn a_convolution_without_a_kernel_is_refused() {
        let sizes = conv::Sizes {
            batch: 1,
            c_in: 1,
            c_out: 1,
            size: [1, 1],
            kernel: 0,
            stride: 1,
            padding: [0, 0],
            odd: false,
        };
        conv::conv2d(&[0.0], &[], &[0.0], sizes);
    }

    #[test]
    fn norm_and_activation() {
        let affine = norm::Affine {
            gamma: &[],
            beta: &[],
            groups: 0,
            eps: 1e-5,
            silu: true,
        };
        assert!(norm::group_norm(&[], 2, affine, None).is_empty());
        assert!(norm::group_norm(&[], 0, affine, Some(&[])).is_empty());
        assert!(norm::group_moments(&[], 0).is_empty());
        assert_eq!(norm::moments(&[]), Default::default());
        assert!(activation::silu(&[]).is_empty());
        assert!(activation::geglu(&[], 4).is_empty());
        assert!(activation::geglu(&[], 0).is_empty());
    }

    #[test]
    #[should_panic(expected = "groups of a group norm")]
    fn values_without_groups_are_refused() {
        let affine = norm::Affine {
            gamma: &[1.0],
            beta: &[0.0],
            groups: 0,
            eps: 1e-5,
            silu: false,
        };
        norm::group_norm(&[1.0], 1, affine, None);
    }

    #[test]
    #[should_panic(expected = "rows of a gated activation")]
    fn half_a_row_is_refused() {
        activation::geglu(&[1.0; 3], 1);
    }
}

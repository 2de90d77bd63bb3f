//! A tile of a product: [`ROWS`] outputs at [`COLUMNS`] positions, whose sums stay in registers.
//!
//! A feature `x` is two halves of 16 bits, `x = low + 2^16 high` modulo `2^32` with both signed, and so the product of two
//! features with their weights is two sums of pairs of small products, for which processors have one instruction: twice
//! that is as many multiplications an instruction as floating point has. The upper sum is shifted at the end.

use crate::simd::Width;

/// Outputs of a tile: as many as 32 registers of 512 bits have room for the sums of.
pub(super) const ROWS: usize = 6;
/// Positions of a tile.
pub(super) const COLUMNS: usize = 32;

/// Two features at each position of a tile: their lower halves and their upper halves, a pair in a word, the first in the
/// word's lower half; or both features whole, where [`in_halves`] says no.
pub(super) type Features = [[i32; COLUMNS]; 2];
/// The weights of two features for each output of a tile, a pair in a word as the features are.
pub(super) type Weights = [i32; ROWS];
/// The sums of a tile.
pub(super) type Sums = [[i32; COLUMNS]; ROWS];

/// Two numbers of 16 bits in a word.
pub(super) fn pair(first: i16, second: i16) -> i32 {
    i32::from(first) & 0xffff | i32::from(second) << 16
}

/// The numbers of [`pair`].
#[inline(always)]
fn numbers(pair: i32) -> [i32; 2] {
    [pair << 16 >> 16, pair >> 16]
}

/// Whether features are multiplied in halves: where there is an instruction for pairs.
pub(super) fn in_halves(width: Width) -> bool {
    width > Width::Portable
}

/// Two features as [`Features`] has them.
#[inline(always)]
pub(super) fn two<const HALVES: bool>(first: i32, second: i32) -> [i32; 2] {
    if !HALVES {
        return [first, second];
    }
    let low = first & 0xffff | second << 16;
    // The lower half is signed, so that from its half on the upper one is one more.
    let [first, second] = [first.wrapping_add(1 << 15), second.wrapping_add(1 << 15)];
    let high = (first >> 16) & 0xffff | second & !0xffff;
    [low, high]
}

/// Adds to `sums` the products of `features` and as many `weights`.
pub(super) fn add(width: Width, features: &[Features], weights: &[Weights], sums: &mut Sums) {
    #[cfg(target_arch = "x86_64")]
    match width {
        // SAFETY: who asks for a width has found it (`simd::width`, and `widths` of the tests).
        Width::Vnni => return unsafe { x86::vnni(features, weights, sums) },
        // SAFETY: as above.
        Width::Avx512 => return unsafe { x86::avx512(features, weights, sums) },
        // SAFETY: as above.
        Width::Avx2 => return unsafe { x86::avx2(features, weights, sums) },
        Width::Portable => {}
    }
    // Elsewhere there is nothing but the build's own target.
    let _ = width;
    portable(features, weights, sums);
}

/// [`add`] of whole features, in loops that the compiler vectorises.
fn portable(features: &[Features], weights: &[Weights], sums: &mut Sums) {
    const LANES: usize = 16;
    for start in (0..COLUMNS).step_by(LANES) {
        let mut all = [[0_i32; LANES]; ROWS];
        for ([first, second], weights) in features.iter().zip(weights) {
            let (first, second) = (&first[start..][..LANES], &second[start..][..LANES]);
            for (all, weights) in all.iter_mut().zip(weights) {
                let [a, b] = numbers(*weights);
                for i in 0..LANES {
                    let products = first[i]
                        .wrapping_mul(a)
                        .wrapping_add(second[i].wrapping_mul(b));
                    all[i] = all[i].wrapping_add(products);
                }
            }
        }
        for (sums, all) in sums.iter_mut().zip(&all) {
            let pairs = sums[start..].iter_mut().zip(all);
            pairs.for_each(|(sum, more)| *sum = sum.wrapping_add(*more));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{COLUMNS, Features, ROWS, Sums, Weights};

    /// `sum + a b` of pairs. The sum of two products of -2^15 wraps, as everything here does.
    #[target_feature(enable = "avx2")]
    fn madd256(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn madd512(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        _mm512_add_epi32(sum, _mm512_madd_epi16(a, b))
    }

    /// Defines [`super::add`] of features in halves for vectors of `$lanes` words, `$vectors` of them at a time.
    macro_rules! tile {
        ($name:ident, $features:literal, $lanes:literal x $vectors:literal,
         $load:ident, $store:ident, $zero:ident, $one:ident, $add:ident, $shift:ident, $dot:ident) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(features: &[Features], weights: &[Weights], sums: &mut Sums) {
                for start in (0..COLUMNS).step_by($lanes * $vectors) {
                    let mut low = [[$zero(); $vectors]; ROWS];
                    let mut high = low;
                    for (halves, weights) in features.iter().zip(weights) {
                        let mut vectors = [[$zero(); $vectors]; 2];
                        for (vectors, half) in vectors.iter_mut().zip(halves) {
                            let words = half[start..].as_chunks::<$lanes>().0;
                            for (vector, words) in vectors.iter_mut().zip(words) {
                                // SAFETY: `words` are as many as a vector has, wherever they begin.
                                *vector = unsafe { $load(words.as_ptr().cast()) };
                            }
                        }
                        for r in 0..ROWS {
                            let weight = $one(weights[r]);
                            for v in 0..$vectors {
                                low[r][v] = $dot(low[r][v], weight, vectors[0][v]);
                                high[r][v] = $dot(high[r][v], weight, vectors[1][v]);
                            }
                        }
                    }
                    for r in 0..ROWS {
                        let words = sums[r][start..].as_chunks_mut::<$lanes>().0;
                        for (v, words) in words.iter_mut().enumerate().take($vectors) {
                            let more = $add(low[r][v], $shift::<16>(high[r][v]));
                            // SAFETY: `words` are as many as a vector has, wherever they begin.
                            unsafe {
                                let sum = $load(words.as_ptr().cast());
                                $store(words.as_mut_ptr().cast(), $add(sum, more));
                            }
                        }
                    }
                }
            }
        };
    }

    tile!(
        vnni, "avx512f,avx512bw,avx512vnni", 16 x 2,
        _mm512_loadu_si512, _mm512_storeu_si512, _mm512_setzero_si512, _mm512_set1_epi32,
        _mm512_add_epi32, _mm512_slli_epi32, _mm512_dpwssd_epi32
    );
    tile!(
        avx512, "avx512f,avx512bw", 16 x 2,
        _mm512_loadu_si512, _mm512_storeu_si512, _mm512_setzero_si512, _mm512_set1_epi32,
        _mm512_add_epi32, _mm512_slli_epi32, madd512
    );
    tile!(
        avx2, "avx2", 8 x 1,
        _mm256_loadu_si256, _mm256_storeu_si256, _mm256_setzero_si256, _mm256_set1_epi32,
        _mm256_add_epi32, _mm256_slli_epi32, madd256
    );
}

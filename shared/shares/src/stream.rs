//! Masks: uniform words from a key, no word of which is ever used twice.
//!
//! A mask that hides two features gives their difference away. So a key is drawn for each session of each worker and is
//! kept nowhere, and within a session tensors are counted: the n-th has the n-th mask. What is computed anew is a later
//! tensor, or one of another session under another key.

use rand::TryRng;
use rand::rngs::SysRng;

use crate::error::{Error, Result};
use crate::pack;

/// A key of masks. It is not shown, not stored and not copied.
pub struct Key([u8; KEY]);

/// Bytes of a key.
pub const KEY: usize = 32;

impl Key {
    /// The key that the other side drew, as it was sent.
    pub fn received(bytes: [u8; KEY]) -> Self {
        Self(bytes)
    }

    /// `words` words, uniform over all of `bits` bits and centred, of the `tensor`-th tensor: BLAKE3 in its keyed mode,
    /// as far as it has to go (O'Connor et al. 2020). Whoever lacks the key cannot tell them from random ones.
    ///
    /// # Errors
    /// [`Error::Bits`].
    pub fn mask(&self, tensor: u64, words: usize, bits: u32) -> Result<Vec<i32>> {
        pack::check("words", bits, 1, pack::MOST_BITS)?;
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&tensor.to_le_bytes());
        let mut stream = hasher.finalize_xof();
        let unused = 32 - bits;
        // Of two bytes or of four the upper bits are taken: reading words across bytes would take longer than drawing more.
        let mut mask = Vec::with_capacity(words);
        let mut bytes = [0; AT_ONCE];
        while mask.len() < words {
            let left = words - mask.len();
            if bits <= 16 {
                let some = left.min(AT_ONCE / 2);
                stream.fill(&mut bytes[..2 * some]);
                let drawn = bytes[..2 * some].as_chunks::<2>().0;
                mask.extend(drawn.iter().map(|pair| {
                    let word = i32::from(u16::from_le_bytes(*pair)) << 16;
                    word >> unused
                }));
            } else {
                let some = left.min(AT_ONCE / 4);
                stream.fill(&mut bytes[..4 * some]);
                let drawn = bytes[..4 * some].as_chunks::<4>().0;
                mask.extend(drawn.iter().map(|four| i32::from_le_bytes(*four) >> unused));
            }
        }
        Ok(mask)
    }
}

/// Bytes of the stream that are drawn at a time: few enough for the nearest cache.
const AT_ONCE: usize = 1 << 14;

/// The user's end of a session's stream: whoever has it can draw each mask once, and none twice.
pub struct Masks {
    key: Key,
    drawn: u64,
}

impl Masks {
    /// A stream of a key that the system has just drawn.
    ///
    /// # Errors
    /// [`Error::NoRandomness`].
    pub fn fresh() -> Result<Self> {
        let mut bytes = [0; KEY];
        SysRng
            .try_fill_bytes(&mut bytes)
            .map_err(|e| Error::NoRandomness(e.to_string()))?;
        Ok(Self {
            key: Key(bytes),
            drawn: 0,
        })
    }

    /// What a seed holder is sent when its session opens, and nobody else.
    pub fn to_send(&self) -> [u8; KEY] {
        self.key.0
    }

    /// Number of masks that were drawn: the number of the next tensor.
    pub fn drawn(&self) -> u64 {
        self.drawn
    }

    /// The next tensor's mask, as [`Key::mask`].
    ///
    /// # Errors
    /// [`Error::Bits`].
    pub fn draw(&mut self, words: usize, bits: u32) -> Result<Vec<i32>> {
        let tensor = self.drawn;
        // Before the mask is there: also one that could not be made is gone.
        self.drawn += 1;
        self.key.mask(tensor, words, bits)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn both_sides_have_one_mask_and_nobody_else_has_it() {
        let mut masks = Masks::fresh().unwrap();
        let other = Key::received(masks.to_send());
        for tensor in 0..3 {
            assert_eq!(masks.drawn(), tensor);
            let mask = masks.draw(64, 12).unwrap();
            assert_eq!(other.mask(tensor, 64, 12).unwrap(), mask);
            assert_ne!(Masks::fresh().unwrap().draw(64, 12).unwrap(), mask);
        }
    }

    #[test]
    fn no_tensor_repeats_anothers_mask_whatever_became_of_it() {
        let mut masks = Masks::fresh().unwrap();
        let mut seen = HashSet::new();
        for i in 0..200 {
            if i % 7 == 3 {
                assert!(masks.draw(16, 40).is_err());
            }
            assert!(seen.insert(masks.draw(16, 16).unwrap()), "{i}");
        }
    }

    #[test]
    fn a_mask_is_as_long_as_asked_and_of_all_its_bits() {
        let key = Key::received([5; KEY]);
        for bits in [1, 2, 11, 12, 16, 17, 22, 31, 32] {
            for words in [0, 1, AT_ONCE / 2, AT_ONCE + 3] {
                let mask = key.mask(7, words, bits).unwrap();
                assert_eq!(mask.len(), words);
                let half = 1_i64 << (bits - 1);
                assert!(mask.iter().all(|r| (-half..half).contains(&i64::from(*r))));
                if words > 1000 {
                    let [least, most] = [mask.iter().min(), mask.iter().max()].map(Option::unwrap);
                    assert!(
                        i64::from(*least) < -half / 2 || bits == 1,
                        "{bits}: {least}"
                    );
                    assert!(i64::from(*most) >= (half - 1) / 2, "{bits}: {most}");
                }
            }
        }
    }

    /// Of 2^16 words of 4 bits each value comes up about 4096 times: the chi-square of 15 degrees of freedom is below
    /// 45 but once in 10^4 keys, and this key is always the same.
    #[test]
    fn every_word_is_as_frequent_as_any_other() {
        let words = 1 << 16;
        let mask = Key::received([9; KEY]).mask(3, words, 4).unwrap();
        let mut counts = [0_u32; 16];
        mask.iter()
            .for_each(|word| counts[(word + 8) as usize] += 1);
        let expected = words as f64 / 16.0;
        let chi = counts.map(|n| (f64::from(n) - expected).powi(2) / expected);
        assert!(chi.iter().sum::<f64>() < 45.0, "{counts:?}");
    }
}

//! Masks: uniform words from a key, no word of which is ever used twice.
//!
//! A mask that hides two features gives their difference away. So a key is drawn for each session of each worker and
//! kept nowhere, and within a session each tensor has a place of its own in the stream. What is computed anew, at another
//! attempt or by another session, has another place or another key.

use rand::TryRng;
use rand::rngs::SysRng;

use crate::error::Result;
use crate::pack;

/// A key of masks. It is not shown, not stored and not copied.
pub struct Key([u8; KEY]);

/// Bytes of a key.
pub const KEY: usize = 32;

/// Where in its session a tensor is masked. No two tensors of one session have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Of the picture.
    pub step: u32,
    /// Of the step.
    pub call: u32,
    /// Of the U-Net, by its place in the walk.
    pub layer: u32,
    /// Of the guided batch.
    pub half: u32,
    /// A tensor that is computed anew is another one.
    pub attempt: u32,
}

impl Key {
    /// A fresh one, from the system; none where that has no random numbers.
    pub fn fresh() -> Option<Self> {
        let mut bytes = [0; KEY];
        SysRng.try_fill_bytes(&mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// The key that the other side drew, as it was sent.
    pub fn received(bytes: [u8; KEY]) -> Self {
        Self(bytes)
    }

    /// What a seed holder is sent, and nobody else.
    pub fn to_send(&self) -> [u8; KEY] {
        self.0
    }

    /// `words` words, uniform over all of `bits` bits and centred, of the tensor at `place`: BLAKE3 in its keyed mode,
    /// as far as it has to go (O'Connor et al. 2020). Whoever lacks the key cannot tell them from random ones.
    ///
    /// # Errors
    /// [`crate::Error::Bits`].
    pub fn mask(&self, place: Place, words: usize, bits: u32) -> Result<Vec<i32>> {
        let Place {
            step,
            call,
            layer,
            half,
            attempt,
        } = place;
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in [step, call, layer, half, attempt] {
            hasher.update(&part.to_le_bytes());
        }
        // As many as are asked for are allocated either way.
        let mut bytes = vec![0; pack::bytes(words, bits).unwrap_or_default()];
        hasher.finalize_xof().fill(&mut bytes);
        pack::unpack(&bytes, words, bits)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const PLACE: Place = Place {
        step: 1,
        call: 2,
        layer: 3,
        half: 0,
        attempt: 0,
    };

    #[test]
    fn both_sides_have_one_mask_and_nobody_else_has_it() {
        let key = Key::fresh().unwrap();
        let same = Key::received(key.to_send());
        let mask = key.mask(PLACE, 64, 12).unwrap();
        assert_eq!(same.mask(PLACE, 64, 12).unwrap(), mask);
        assert_ne!(Key::fresh().unwrap().mask(PLACE, 64, 12).unwrap(), mask);
    }

    #[test]
    fn no_place_repeats_anothers_mask() {
        let key = Key::received([7; KEY]);
        let mut seen = HashSet::new();
        for i in 0..200 {
            let places = [
                Place {
                    step: 10 + i,
                    ..PLACE
                },
                Place {
                    call: 10 + i,
                    ..PLACE
                },
                Place {
                    layer: 10 + i,
                    ..PLACE
                },
                Place {
                    half: 10 + i,
                    ..PLACE
                },
                Place {
                    attempt: 10 + i,
                    ..PLACE
                },
            ];
            for place in places {
                assert!(seen.insert(key.mask(place, 16, 16).unwrap()), "{place:?}");
            }
        }
    }

    /// Of 2^16 words of 4 bits each value comes up about 4096 times: the chi-square of 15 degrees of freedom is below
    /// 45 but once in 10^4 keys, and this key is always the same.
    #[test]
    fn every_word_is_as_frequent_as_any_other() {
        let words = 1 << 16;
        let mask = Key::received([9; KEY]).mask(PLACE, words, 4).unwrap();
        let mut counts = [0_u32; 16];
        mask.iter()
            .for_each(|word| counts[(word + 8) as usize] += 1);
        let expected = words as f64 / 16.0;
        let chi = counts.map(|n| (f64::from(n) - expected).powi(2) / expected);
        assert!(chi.iter().sum::<f64>() < 45.0, "{counts:?}");
    }
}

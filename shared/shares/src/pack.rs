//! Words of any width as bytes: the first word in the lowest bits of the first byte, and so on without gaps.

use crate::error::{Error, Result};

/// Most bits of a word.
pub const MOST_BITS: u32 = 32;

/// Bytes of `words` words of `bits` bits each; none where no memory holds them.
pub fn bytes(words: usize, bits: u32) -> Option<usize> {
    words.checked_mul(bits as usize).map(|all| all.div_ceil(8))
}

/// The lowest `bits` bits of each word.
///
/// # Errors
/// [`Error::Bits`].
pub fn pack(words: &[i32], bits: u32) -> Result<Vec<u8>> {
    check("words", bits, 1, MOST_BITS)?;
    let size = bytes(words.len(), bits).unwrap_or_default();
    let mut packed = Vec::with_capacity(size + size_of::<u64>());
    let mask = u64::MAX >> (64 - bits);
    let (mut held, mut filled) = (0_u64, 0);
    for word in words {
        let word = i64::from(*word) as u64 & mask;
        held |= word << filled;
        filled += bits;
        if filled >= 64 {
            packed.extend_from_slice(&held.to_le_bytes());
            filled -= 64;
            // A word that began at bit 0 has no part in the next eight bytes, and is none of 64 bits.
            held = word >> (bits - filled);
        }
    }
    packed.extend_from_slice(&held.to_le_bytes());
    packed.truncate(size);
    Ok(packed)
}

/// `words` words of `bits` bits each, centred: what [`pack`] packed, if it had that range.
///
/// # Errors
/// [`Error::Bits`]; [`Error::Length`] for bytes that are more or fewer than those of so many words.
pub fn unpack(packed: &[u8], words: usize, bits: u32) -> Result<Vec<i32>> {
    check("words", bits, 1, MOST_BITS)?;
    let wanted = bytes(words, bits);
    if wanted != Some(packed.len()) {
        return Err(Error::Length {
            bytes: packed.len(),
            wanted: wanted.unwrap_or(usize::MAX),
            words,
            bits,
        });
    }
    let (width, unused) = (bits as usize, 64 - bits);
    // A word and the bits before it in its first byte are within eight bytes.
    let word = |eight: [u8; 8], before: usize| {
        let word = (u64::from_le_bytes(eight) >> before) << unused;
        (word as i64 >> unused) as i32
    };
    let mut unpacked = Vec::with_capacity(words);
    // Eight words begin and end with a byte, so each eight are read alike.
    let blocks = packed.len().saturating_sub(size_of::<u64>()) / width;
    for block in 0..blocks {
        let from = &packed[block * width..];
        unpacked.extend((0..8).map(|i| {
            let (byte, before) = (i * width / 8, i * width % 8);
            let eight = from[byte..].first_chunk().copied();
            word(eight.unwrap_or_default(), before)
        }));
    }
    for i in unpacked.len()..words {
        let (byte, before) = (i * width / 8, i * width % 8);
        let mut eight = [0; 8];
        let some = packed[byte..].iter().zip(&mut eight);
        some.for_each(|(from, to)| *to = *from);
        unpacked.push(word(eight, before));
    }
    Ok(unpacked)
}

/// That there are from `least` to `most` bits of `what`.
pub(crate) fn check(what: &'static str, bits: u32, least: u32, most: u32) -> Result<()> {
    match (least..=most).contains(&bits) {
        true => Ok(()),
        false => Err(Error::Bits {
            what,
            bits,
            least,
            most,
        }),
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::precision::centre;

    #[test]
    fn words_of_every_width_come_back() {
        let mut rng = StdRng::seed_from_u64(1);
        for bits in 1..=MOST_BITS {
            for words in [0, 1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 200] {
                let any: Vec<i32> = (0..words).map(|_| rng.random()).collect();
                let packed = pack(&any, bits).unwrap();
                assert_eq!(packed.len(), (words * bits as usize).div_ceil(8));
                let want: Vec<i32> = any.iter().map(|word| centre(*word, bits)).collect();
                assert_eq!(unpack(&packed, words, bits).unwrap(), want, "{bits}");
            }
        }
    }

    #[test]
    fn the_lowest_bits_come_first() {
        assert_eq!(pack(&[0x123, 0x456], 12).unwrap(), [0x23, 0x61, 0x45]);
        assert_eq!(pack(&[-1, 0, -1], 1).unwrap(), [0b101]);
    }

    #[test]
    fn bytes_that_are_not_those_words_are_refused() {
        for (bytes, words, bits) in [(2, 2, 12), (4, 2, 12), (0, 1, 1), (1, usize::MAX, 32)] {
            let error = unpack(&vec![0; bytes], words, bits).unwrap_err();
            assert!(matches!(error, Error::Length { .. }), "{error}");
        }
        for bits in [0, 33] {
            assert!(pack(&[0], bits).is_err() && unpack(&[0], 1, bits).is_err());
        }
    }
}

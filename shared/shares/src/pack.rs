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
    check(bits)?;
    let mut packed = Vec::with_capacity(bytes(words.len(), bits).unwrap_or_default());
    let mask = u64::MAX >> (64 - bits);
    let (mut held, mut filled) = (0_u64, 0);
    for word in words {
        held |= (i64::from(*word) as u64 & mask) << filled;
        filled += bits;
        // Fewer than 8 bits are left, so that a word of 32 always has room.
        while filled >= 8 {
            packed.push(held as u8);
            held >>= 8;
            filled -= 8;
        }
    }
    if filled > 0 {
        packed.push(held as u8);
    }
    Ok(packed)
}

/// `words` words of `bits` bits each, centred: what [`pack`] packed, if it had that range.
///
/// # Errors
/// [`Error::Bits`]; [`Error::Length`] for bytes that are more or fewer than those of so many words.
pub fn unpack(packed: &[u8], words: usize, bits: u32) -> Result<Vec<i32>> {
    check(bits)?;
    let wanted = bytes(words, bits);
    if wanted != Some(packed.len()) {
        return Err(Error::Length {
            bytes: packed.len(),
            wanted: wanted.unwrap_or(usize::MAX),
            words,
            bits,
        });
    }
    let mut unpacked = Vec::with_capacity(words);
    let (mut held, mut filled) = (0_u64, 0);
    let mut bytes = packed.iter();
    while unpacked.len() < words {
        while filled < bits {
            held |= u64::from(bytes.next().copied().unwrap_or_default()) << filled;
            filled += 8;
        }
        let unused = 64 - bits;
        unpacked.push(((held << unused) as i64 >> unused) as i32);
        held >>= bits;
        filled -= bits;
    }
    Ok(unpacked)
}

fn check(bits: u32) -> Result<()> {
    match (1..=MOST_BITS).contains(&bits) {
        true => Ok(()),
        false => Err(Error::Bits {
            what: "words",
            bits,
            least: 1,
            most: MOST_BITS,
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
            for words in [0, 1, 2, 7, 8, 9, 100] {
                let any: Vec<i32> = (0..words).map(|_| rng.random()).collect();
                let packed = pack(&any, bits).unwrap();
                assert_eq!(packed.len(), (words * bits as usize).div_ceil(8));
                let want: Vec<i32> = any
                    .iter()
                    .map(|w| centre((*w).into(), bits) as i32)
                    .collect();
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

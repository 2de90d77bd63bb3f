//! Words of any width as bytes: the first word in the lowest bits of the first byte, and so on without gaps.

use crate::error::{Error, Result};

/// Most bits of a word.
pub const MOST_BITS: u32 = 32;

/// Bytes of `words` words of `bits` bits each; none where no memory holds them.
pub fn bytes(words: usize, bits: u32) -> Option<usize> {
    words.checked_mul(bits as usize).map(|all| all.div_ceil(8))
}

/// Words that begin and end with a byte, whatever their width.
const BLOCK: usize = 8;

/// Calls `$function` with the constant that `$bits` is, from 1 to [`MOST_BITS`]: where each word lies in its block, and by how much it
/// is shifted, is known to the compiler then.
macro_rules! of_width {
    ($bits:expr, $function:ident($($argument:expr),*)) => {
        of_width!($bits, $function($($argument),*);
            1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32)
    };
    ($bits:expr, $function:ident $arguments:tt; $($width:literal)*) => {
        match $bits {
            $($width => of_width!(@call $function::<$width> $arguments),)*
            _ => unreachable!("no word has {} bits", $bits),
        }
    };
    (@call $function:ident::<$width:literal> ($($argument:expr),*)) => {
        $function::<$width>($($argument),*)
    };
}

/// Words that are packed or unpacked at a time, in whole blocks: few enough for the nearest cache.
const AT_ONCE: usize = 128 * BLOCK;

/// The lowest `bits` bits of each word.
///
/// # Errors
/// [`Error::Bits`].
pub fn pack(words: &[i32], bits: u32) -> Result<Vec<u8>> {
    let mut packer = Packer::new(words.len(), bits)?;
    packer.add(words, |word| *word);
    Ok(packer.packed())
}

/// Packs words some at a time, so that they need not lie anywhere before.
pub struct Packer {
    packed: Vec<u8>,
    bits: u32,
    held: [i32; AT_ONCE],
    filled: usize,
}

impl Packer {
    /// For about so many `words` of `bits` bits.
    ///
    /// # Errors
    /// [`Error::Bits`].
    pub fn new(words: usize, bits: u32) -> Result<Self> {
        check("words", bits, 1, MOST_BITS)?;
        Ok(Self {
            packed: Vec::with_capacity(bytes(words, bits).unwrap_or_default()),
            bits,
            held: [0; AT_ONCE],
            filled: 0,
        })
    }

    /// Adds a word for each value, by `word`.
    pub fn add<T>(&mut self, values: &[T], word: impl Fn(&T) -> i32) {
        let mut rest = values;
        while !rest.is_empty() {
            let (some, later) = rest.split_at(rest.len().min(AT_ONCE - self.filled));
            let held = self.held[self.filled..].iter_mut().zip(some);
            held.for_each(|(to, from)| *to = word(from));
            self.filled += some.len();
            if self.filled == AT_ONCE {
                self.pack_held();
            }
            rest = later;
        }
    }

    fn pack_held(&mut self) {
        let held = self.held[..self.filled.next_multiple_of(BLOCK)]
            .as_chunks()
            .0;
        of_width!(self.bits, pack_blocks(held, &mut self.packed));
        self.filled = 0;
    }

    /// All words that were added.
    pub fn packed(mut self) -> Vec<u8> {
        let size = self.packed.len() + bytes(self.filled, self.bits).unwrap_or_default();
        self.held[self.filled..].fill(0);
        self.pack_held();
        self.packed.truncate(size);
        self.packed
    }
}

fn pack_blocks<const BITS: usize>(blocks: &[[i32; BLOCK]], packed: &mut Vec<u8>) {
    for block in blocks {
        packed.extend_from_slice(&pack_block::<BITS>(block)[..BITS]);
    }
}

/// Eight words as the first `BITS` bytes.
#[inline(always)]
fn pack_block<const BITS: usize>(block: &[i32; BLOCK]) -> [u8; 4 * BLOCK] {
    let mut all = [0_u64; BLOCK / 2];
    for (i, word) in block.iter().enumerate() {
        let word = i64::from(*word) as u64 & (u64::MAX >> (64 - BITS));
        let (at, before) = (i * BITS / 64, i * BITS % 64);
        all[at] |= word << before;
        if before + BITS > 64 {
            all[at + 1] |= word >> (64 - before);
        }
    }
    let mut packed = [0; 4 * BLOCK];
    let eights = packed.as_chunks_mut().0.iter_mut();
    eights
        .zip(all)
        .for_each(|(to, from)| *to = from.to_le_bytes());
    packed
}

/// `words` words of `bits` bits each, centred: what [`pack`] packed, if it had that range.
///
/// # Errors
/// [`Error::Bits`]; [`Error::Length`] for bytes that are more or fewer than those of so many words.
pub fn unpack(packed: &[u8], words: usize, bits: u32) -> Result<Vec<i32>> {
    let mut unpacker = Unpacker::new(packed, words, bits)?;
    let mut unpacked = Vec::with_capacity(words);
    while unpacked.len() < words {
        unpacked.extend_from_slice(unpacker.some(words - unpacked.len()));
    }
    Ok(unpacked)
}

/// Unpacks words some at a time, so that they need not lie anywhere between.
pub struct Unpacker<'a> {
    rest: &'a [u8],
    bits: u32,
    held: [i32; AT_ONCE],
    used: usize,
}

impl<'a> Unpacker<'a> {
    /// Of `words` words of `bits` bits.
    ///
    /// # Errors
    /// As [`unpack`].
    pub fn new(packed: &'a [u8], words: usize, bits: u32) -> Result<Self> {
        check("words", bits, 1, MOST_BITS)?;
        let wanted = bytes(words, bits);
        match wanted == Some(packed.len()) {
            true => Ok(Self {
                rest: packed,
                bits,
                held: [0; AT_ONCE],
                used: AT_ONCE,
            }),
            false => Err(Error::Length {
                bytes: packed.len(),
                wanted: wanted.unwrap_or(usize::MAX),
                words,
                bits,
            }),
        }
    }

    /// Puts the next words into `to`; behind the last there are zeros.
    pub fn fill(&mut self, to: &mut [i32]) {
        let mut rest = to;
        while !rest.is_empty() {
            let some = self.some(rest.len());
            let (to, later) = rest.split_at_mut(some.len());
            to.copy_from_slice(some);
            rest = later;
        }
    }

    /// The next words, up to `most` of them and at least one.
    fn some(&mut self, most: usize) -> &[i32] {
        if self.used == AT_ONCE {
            let bits = self.bits;
            self.rest = of_width!(bits, unpack_blocks(self.rest, &mut self.held));
            self.used = 0;
        }
        let start = self.used;
        self.used = AT_ONCE.min(start + most);
        &self.held[start..self.used]
    }
}

/// Bytes that a block's words are read from: its own, and those that are read with the last word and cut off.
const READ: usize = 5 * BLOCK;

/// Gives what is left of `packed`.
fn unpack_blocks<'a, const BITS: usize>(packed: &'a [u8], words: &mut [i32]) -> &'a [u8] {
    let mut rest = packed;
    for words in words.as_chunks_mut().0 {
        *words = match rest.first_chunk() {
            Some(block) => unpack_block::<BITS>(block),
            None => {
                let mut block = [0; READ];
                block[..rest.len()].copy_from_slice(rest);
                unpack_block::<BITS>(&block)
            }
        };
        rest = &rest[BITS.min(rest.len())..];
    }
    rest
}

/// Eight words, from the first `BITS` bytes.
#[inline(always)]
fn unpack_block<const BITS: usize>(block: &[u8; READ]) -> [i32; BLOCK] {
    std::array::from_fn(|i| {
        let (byte, before) = (i * BITS / 8, i * BITS % 8);
        // A word and the bits before it in its first byte are within eight bytes.
        let mut eight = [0; 8];
        eight.copy_from_slice(&block[byte..byte + 8]);
        let word = u64::from_le_bytes(eight) << (64 - BITS - before);
        (word as i64 >> (64 - BITS)) as i32
    })
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

//! How many bits everything has.

use crate::error::{Error, Result};
use crate::pack;

/// The fewest and the most workers that features are shared among.
pub const WORKERS: std::ops::RangeInclusive<usize> = 2..=4;

/// The share of the features that may have a carry, `p`, where no bits are spared.
const CARRIES: f64 = 0.01;

/// Most bits that carries spare: then 16 of 100 features have one.
pub const MOST_SPARED: u32 = 4;

/// Bits that a share has more for each worker beyond two: a mask as large as 1/(4p) of what it hides leaves a carry with
/// one in 1/p of the words, as the first mask does. For each bit that carries spare it is one less.
const FURTHER: u32 = 5;

/// Most bits of a share: f32 is exact to 24.
const MOST_UP: u32 = 24;

/// How many bits features, products and what is behind their point have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    up: u32,
    range: u32,
    fraction: u32,
    spared: u32,
}

impl Precision {
    /// The fewest bytes for the quality of the paper's pictures: 10 bits up, 11 down.
    pub const PAPER: Self = Self {
        up: 10,
        range: 10,
        fraction: 1,
        spared: 0,
    };
    /// Few bytes: 12 bits up, 14 down.
    pub const SPEED: Self = Self {
        up: 12,
        range: 13,
        fraction: 1,
        spared: 0,
    };
    /// A picture near the uncut one, from two workers: 16 bits up, 18 down.
    pub const QUALITY: Self = Self {
        up: 16,
        range: 16,
        fraction: 2,
        spared: 0,
    };

    /// Features of `up` bits, products of `range` bits before the point and `fraction` behind it.
    ///
    /// # Errors
    /// [`Error::Bits`].
    pub fn new(up: u32, range: u32, fraction: u32) -> Result<Self> {
        // With fewer bits before the point rounding alone could leave the range, of thousands of features.
        pack::check("features", up, 6, 16)?;
        pack::check("products", range, 8, 24)?;
        pack::check("fractions", fraction, 0, 6)?;
        Ok(Self {
            up,
            range,
            fraction,
            spared: 0,
        })
    }

    /// The same step size with `bits` fewer bits of a feature: for each of them twice as many features have a carry, and
    /// are multiplied at home.
    ///
    /// # Errors
    /// [`Error::Bits`] for more than [`MOST_SPARED`], or features of too few bits.
    pub fn sparing(self, bits: u32) -> Result<Self> {
        pack::check("what carries spare", bits, 0, MOST_SPARED)?;
        let whole = self.up + self.spared;
        pack::check("features", whole, 6 + bits, 16)?;
        Ok(Self {
            up: whole - bits,
            spared: bits,
            ..self
        })
    }

    /// Bits that carries spare.
    pub fn spared(self) -> u32 {
        self.spared
    }

    /// The share of the features that may have a carry, `p`.
    pub fn carries(self) -> f64 {
        CARRIES * f64::from(1_u32 << self.spared)
    }

    /// Bits of a feature, `b`.
    pub fn up(self) -> u32 {
        self.up
    }

    /// Bits of a product before the point, `M`.
    pub fn range(self) -> u32 {
        self.range
    }

    /// Bits of a product behind the point, `f`.
    pub fn fraction(self) -> u32 {
        self.fraction
    }

    /// Bits of a product, `m = M + f`.
    pub fn down(self) -> u32 {
        self.range + self.fraction
    }

    /// Bits of each mask where features are shared among `workers` workers, the first seed holder's first. What is left
    /// for the share holder has as many as the last.
    ///
    /// # Errors
    /// [`Error::Bits`] where that is more than f32 multiplies exactly.
    pub fn masks(self, workers: usize) -> Result<Vec<u32>> {
        let bits: Vec<u32> = (0..workers.saturating_sub(1))
            .map(|i| self.up + (FURTHER - self.spared) * i as u32)
            .collect();
        let last = bits.last().copied().unwrap_or(self.up);
        match last <= MOST_UP {
            true => Ok(bits),
            false => Err(Error::Bits {
                what: "shares",
                bits: last,
                least: 2,
                most: MOST_UP,
            }),
        }
    }
}

/// That a worker can hold shares of `bits` bits and give back products of `range` bits before the point and `fraction`
/// behind it.
///
/// # Errors
/// [`Error::Bits`].
pub fn check_holding(bits: u32, range: u32, fraction: u32) -> Result<()> {
    pack::check("shares", bits, 2, MOST_UP)?;
    Precision::new(16, range, fraction).map(|_| ())
}

/// `value` modulo `2^bits`, from `-2^(bits - 1)` to below `2^(bits - 1)`.
#[inline(always)]
pub fn centre(value: i32, bits: u32) -> i32 {
    let unused = 32 - bits;
    value << unused >> unused
}

/// The nearest integer, halves to even, modulo `2^32`; of magnitudes up to `2^51`.
#[inline(always)]
pub fn nearest(value: f64) -> i32 {
    // At 3 * 2^51 the last bit of an f64 is 1, so that the sum's lower bits are the integer.
    (value + (3_u64 << 51) as f64).to_bits() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_centred() {
        for (value, centred) in [
            (0, 0),
            (7, 7),
            (8, -8),
            (15, -1),
            (16, 0),
            (-9, 7),
            (-8, -8),
            (1000, -8),
        ] {
            assert_eq!(centre(value, 4), centred, "{value}");
        }
        assert_eq!(centre(i32::MIN, 32), i32::MIN);
    }

    #[test]
    fn the_nearest_integer_is_found() {
        for (value, integer) in [
            (0.0, 0),
            (0.5, 0),
            (1.5, 2),
            (-0.5, 0),
            (-1.5, -2),
            (2.4999, 2),
            (-7.6, -8),
            (2_147_483_647.0, i32::MAX),
            (4_294_967_298.0, 2),
            (-4_294_967_298.0, -2),
        ] {
            assert_eq!(nearest(value), integer, "{value}");
        }
    }

    #[test]
    fn bits_that_nothing_multiplies_exactly_are_refused() {
        assert!(Precision::new(12, 13, 1).is_ok());
        for (up, range, fraction) in [
            (1, 13, 1),
            (17, 13, 1),
            (12, 3, 1),
            (12, 25, 1),
            (12, 13, 7),
        ] {
            assert!(Precision::new(up, range, fraction).is_err());
        }
        let spared = Precision::SPEED.sparing(2).unwrap();
        assert_eq!((spared.up(), spared.carries()), (10, 0.04));
        assert_eq!(spared.masks(4).unwrap(), [10, 13, 16]);
        assert_eq!(spared.sparing(0).unwrap(), Precision::SPEED);
        assert!(Precision::SPEED.sparing(5).is_err());
        assert!(Precision::new(8, 13, 1).unwrap().sparing(3).is_err());
        assert_eq!(Precision::SPEED.masks(2).unwrap(), [12]);
        assert_eq!(Precision::SPEED.masks(4).unwrap(), [12, 17, 22]);
        assert!(Precision::QUALITY.masks(4).is_err());
    }
}

//! How many bits everything has.

use crate::error::{Error, Result};

/// How many bits features, products and what is behind their point have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    up: u32,
    range: u32,
    fraction: u32,
}

impl Precision {
    /// Few bytes: 12 bits up, 14 down.
    pub const SPEED: Self = Self {
        up: 12,
        range: 13,
        fraction: 1,
    };
    /// A picture near the uncut one, from two workers: 16 bits up, 18 down.
    pub const QUALITY: Self = Self {
        up: 16,
        range: 16,
        fraction: 2,
    };

    /// Features of `up` bits, products of `range` bits before the point and `fraction` behind it.
    ///
    /// # Errors
    /// [`Error::Bits`]. Products of f32 are exact to 24 bits, so features have at most 16.
    pub fn new(up: u32, range: u32, fraction: u32) -> Result<Self> {
        let check = |what, bits, least, most| match (least..=most).contains(&bits) {
            true => Ok(()),
            false => Err(Error::Bits {
                what,
                bits,
                least,
                most,
            }),
        };
        check("features", up, 2, 16)?;
        check("products", range, 4, 24)?;
        check("fractions", fraction, 0, 6)?;
        Ok(Self {
            up,
            range,
            fraction,
        })
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
}

/// `value` modulo `2^bits`, from `-2^(bits - 1)` to below `2^(bits - 1)`.
pub fn centre(value: i64, bits: u32) -> i64 {
    let unused = 64 - bits;
    value << unused >> unused
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
            (-8, -8),
            (-9, 7),
        ] {
            assert_eq!(centre(value, 4), centred, "{value}");
        }
    }

    #[test]
    fn what_f32_cannot_hold_is_refused() {
        assert_eq!(Precision::new(12, 13, 1), Ok(Precision::SPEED));
        assert_eq!(Precision::new(16, 16, 2), Ok(Precision::QUALITY));
        for [up, range, fraction] in [[17, 16, 2], [1, 16, 2], [12, 25, 1], [12, 13, 7]] {
            assert!(Precision::new(up, range, fraction).is_err());
        }
    }
}

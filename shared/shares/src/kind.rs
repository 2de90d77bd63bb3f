//! The two kinds of shares. What is made of features and of words is the same of both but for a few numbers.

use crate::error::Result;
use crate::precision::Precision;
use crate::ring::Ring;

/// A kind of shares, and how many bits everything has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shares {
    /// Multiplied in f32. A few features leave a carry, which the user multiplies with the weights.
    Carry(Precision),
    /// Multiplied as integers of a ring. The user needs no weights; products are less precise for as many bits.
    Ring(Ring),
}

impl From<Precision> for Shares {
    fn from(precision: Precision) -> Self {
        Self::Carry(precision)
    }
}

impl From<Ring> for Shares {
    fn from(ring: Ring) -> Self {
        Self::Ring(ring)
    }
}

impl Shares {
    /// Bits of each mask where features are shared among `workers` workers, the first seed holder's first. What is left
    /// for the share holder has as many as the last.
    ///
    /// # Errors
    /// As [`Precision::masks`].
    pub fn masks(self, workers: usize) -> Result<Vec<u32>> {
        match self {
            Self::Carry(precision) => precision.masks(workers),
            Self::Ring(ring) => Ok(vec![ring.up(); workers.saturating_sub(1)]),
        }
    }

    /// Bits of a product's word.
    pub fn down(self) -> u32 {
        match self {
            Self::Carry(precision) => precision.down(),
            Self::Ring(ring) => ring.down(),
        }
    }
}

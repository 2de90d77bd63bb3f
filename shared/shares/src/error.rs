//! What can go wrong with shares, each cause by its own name.

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which shares are off.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A number of bits that words cannot have.
    #[error("{what} of {bits} bits; from {least} to {most}")]
    Bits {
        /// What has them.
        what: &'static str,
        /// How many.
        bits: u32,
        /// The fewest.
        least: u32,
        /// The most.
        most: u32,
    },
    /// Bytes that are not those of so many words.
    #[error("{bytes} bytes, {wanted} wanted for {words} words of {bits} bits")]
    Length {
        /// That there are.
        bytes: usize,
        /// That there must be.
        wanted: usize,
        /// Number of words.
        words: usize,
        /// Of each.
        bits: u32,
    },
    /// Words and masks that are not of one tensor.
    #[error("{got} words where there are {wanted} features")]
    Words {
        /// That there are.
        got: usize,
        /// That there must be.
        wanted: usize,
    },
    /// Bands that rows do not fall into.
    #[error("{number} bands of {rows} rows")]
    Bands {
        /// How many.
        number: usize,
        /// Rows that there are.
        rows: usize,
    },
    /// A feature that is no number.
    #[error("a feature is not finite")]
    NotFinite,
    /// The system gives no random numbers.
    #[error("this system gives no random numbers: {0}")]
    NoRandomness(String),
}

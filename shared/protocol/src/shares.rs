//! Sessions in which a worker multiplies shares of features: uniform words, which tell it nothing.
//!
//! A *seed holder* draws its share from a seed that it was given when the session opened, the n-th request's from the n-th
//! place of the stream. A *share holder* is sent its share with each request. Both give back what they made of it as
//! words of so many bits (`lacuna_shares`).

use std::fmt;

use lacuna_model::device::Precision;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a worker holds in a session of this kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// How it multiplies, and how many bits its words have.
    #[serde(flatten)]
    pub form: Form,
    /// What the weights are rounded to that shares are multiplied with: the same for everybody. Sums are of f32 or of
    /// integers all the same.
    #[serde(default, skip_serializing_if = "is_f32")]
    pub weights: Precision,
    /// What a seed holder draws its share from; a share holder has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
}

fn is_f32(precision: &Precision) -> bool {
    *precision == Precision::F32
}

/// How shares are multiplied (`lacuna_shares::kind`), and how many bits words have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "lowercase")]
pub enum Form {
    /// In f32.
    Carry {
        /// Of a word of the share.
        bits: u32,
        /// Of a product before the point.
        range: u32,
        /// Of a product behind the point.
        fraction: u32,
    },
    /// With integer weights, modulo a power of two.
    Ring {
        /// Of a word of the share, and of the ring.
        bits: u32,
        /// Of a product: its upper bits.
        down: u32,
    },
}

impl Form {
    /// Bits of a word of the share.
    pub fn bits(self) -> u32 {
        match self {
            Self::Carry { bits, .. } | Self::Ring { bits, .. } => bits,
        }
    }

    /// Bits of a word of a product.
    pub fn down(self) -> u32 {
        match self {
            Self::Carry {
                range, fraction, ..
            } => range.saturating_add(fraction),
            Self::Ring { down, .. } => down,
        }
    }
}

/// Header of `POST /v1/sessions/{id}/multiply`: the products of layers' weights with the share of their input, without the
/// bias. A share holder's request brings the tensor `x`, the share's words; the answer brings `y`, the products', each in its
/// layer's order: `[B, C_out, H_out, W_out]` of a convolution, `[B, T, D_out]` of a linear map.
///
/// In several bands the words of some rows come after those of the rows before (`lacuna_shares::bands`), each band packed
/// by itself, and so do those of the answer, of all layers one after the other: a worker that has a band answers what it
/// can before it has the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MultiplyHeader {
    /// Counts the session's requests from 1. A request that is repeated to the last bit is answered with the
    /// kept reply; another under its number is refused. The `n`-th request's share is the `n`-th of a seed's stream.
    pub sequence: u64,
    /// Whose weights; more than one where they multiply the same.
    pub layers: Vec<String>,
    /// The input's batch entries, rows and columns; of tokens their number and 1.
    pub input: [usize; 3],
    /// Rows and columns that a convolution's input is enlarged to before: every value twice both ways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enlarged: Option<[usize; 2]>,
    /// Number of bands; a seed holder, which is sent none, answers in one.
    pub bands: usize,
}

/// Most layers that multiply one input: queries, keys and values.
pub const MOST_LAYERS: usize = 3;
/// Most bands of a request.
pub const MOST_BANDS: usize = 16;
/// Name of the tensor of a share's words.
pub const SHARE: &str = "x";
/// Name of the tensor of a product's words.
pub const PRODUCT: &str = "y";

/// What a stream of shares is drawn from. It is written as hexadecimal digits, and shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed(pub [u8; SEED]);

/// Bytes of a seed.
pub const SEED: usize = 32;

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

impl Serialize for Seed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits)
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What is wrong with it is said without what it is.
        let wrong = || serde::de::Error::custom("a seed is 64 hexadecimal digits");
        let digits = String::deserialize(deserializer)?;
        let digits = digits.as_bytes();
        let mut seed = [0; SEED];
        let pairs = digits.chunks_exact(2);
        if digits.len() != 2 * SEED {
            return Err(wrong());
        }
        for (byte, pair) in seed.iter_mut().zip(pairs) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            if !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(seed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_seed_is_written_and_read_and_never_shown() {
        let seed = Seed(std::array::from_fn(|i| (i * 7) as u8));
        let written = serde_json::to_value(&seed).unwrap();
        assert_eq!(written.as_str().unwrap().len(), 64);
        assert!(written.as_str().unwrap().starts_with("00070e15"));
        assert_eq!(serde_json::from_value::<Seed>(written).unwrap(), seed);
        assert_eq!(format!("{seed:?}"), "Seed(..)");
        let signed = format!("+1{}", "0".repeat(62));
        for wrong in [&"0".repeat(63), &"0".repeat(66), &"g".repeat(64), &signed] {
            let error = serde_json::from_value::<Seed>(json!(wrong)).unwrap_err();
            assert!(!error.to_string().contains(wrong.as_str()), "{error}");
        }
    }

    #[test]
    fn who_has_no_seed_holds_a_share() {
        let carry = json!({"form": "carry", "bits": 12, "range": 13, "fraction": 1});
        let ring = json!({"form": "ring", "bits": 26, "down": 14});
        for (written, bits, down) in [(carry, 12, 14), (ring, 26, 14)] {
            let holding: Holding = serde_json::from_value(written.clone()).unwrap();
            assert_eq!((&holding.seed, holding.weights), (&None, Precision::F32));
            assert_eq!((holding.form.bits(), holding.form.down()), (bits, down));
            assert_eq!(serde_json::to_value(&holding).unwrap(), written);
        }
        let halves = json!({"form": "ring", "bits": 26, "down": 14, "weights": "f16"});
        let holding: Holding = serde_json::from_value(halves.clone()).unwrap();
        assert_eq!(holding.weights, Precision::F16);
        assert_eq!(serde_json::to_value(&holding).unwrap(), halves);
        let none = json!({"bits": 12, "range": 13, "fraction": 1});
        assert!(serde_json::from_value::<Holding>(none).is_err());
    }
}

//! Whether workers multiply as they should: some products are checked, which ones nobody knows before.
//!
//! What is compared are a worker's share, which is uniform whatever the picture is, and what it made of it. So a check
//! that fails, and the picture that ends by it, tell that a worker lied and nothing of the picture.

use lacuna_kernels::conv::conv2d;
use lacuna_kernels::ring;
use lacuna_shares::check::{Check, Halves, VECTORS, threshold};
use lacuna_shares::join::Outputs;
use lacuna_shares::ring::Integers;
use lacuna_shares::stream::Masks;
use lacuna_shares::{Precision, Ring};

use super::sent::{Form, Sent};
use crate::error::Result;

/// Chooses what is checked, and how.
pub struct Verifier {
    /// Of the products, 0 to 1.
    share: f64,
    /// Known to nobody else.
    secret: Masks,
}

impl Verifier {
    /// Checks `share` of the products, with coefficients and a choice that are drawn anew.
    ///
    /// # Errors
    /// [`crate::Error::Shares`] where the system has no random numbers.
    pub fn new(share: f64) -> Result<Self> {
        Ok(Self {
            share,
            secret: Masks::fresh()?,
        })
    }

    /// The check of a layer's products, of weights by input.
    ///
    /// # Errors
    /// As [`Check::new`].
    pub fn check(
        &mut self,
        by_input: &[f32],
        scales: &[f32],
        precision: Precision,
    ) -> Result<Checked> {
        let check = Check::new(&mut self.secret, by_input, scales, precision)?;
        Ok(Checked::Carry(check))
    }

    /// The same of a `ring`'s integers, of so many rows and columns of a kernel.
    ///
    /// # Errors
    /// As [`Check::of_ring`].
    pub fn check_of_ring(
        &mut self,
        integers: &Integers,
        ring: Ring,
        kernel: usize,
    ) -> Result<Checked> {
        let check = Check::of_ring(&mut self.secret, integers, ring)?;
        let weights = ring::Weights::new(check.weights(), 2 * VECTORS, kernel);
        Ok(Checked::Ring(check, weights))
    }

    /// Whether the next product is checked.
    ///
    /// # Errors
    /// None: a word has so many bits.
    pub fn chooses(&mut self) -> Result<bool> {
        let drawn = self
            .secret
            .draw(1, 32)?
            .first()
            .copied()
            .unwrap_or_default();
        let part = (f64::from(drawn) + f64::from(1_u32 << 31)) / f64::from(u32::MAX);
        Ok(part < self.share || self.share >= 1.0)
    }
}

/// A check of a layer's products.
pub enum Checked {
    /// Of shares with carries.
    Carry(Check),
    /// Of a ring's, with the weights as products read them.
    Ring(Check<Halves>, ring::Weights),
}

impl Checked {
    /// What each of `shares` of an input of `sent` must give: `[B, VECTORS, positions]`, of tokens `[B, T, VECTORS]`.
    pub fn expected(&self, sent: &Sent, shares: &[Vec<i32>]) -> Vec<Vec<f32>> {
        let one = |share: &Vec<i32>| match self {
            Self::Carry(check) => {
                let share: Vec<f32> = share.iter().map(|word| *word as f32).collect();
                let sizes = sent.convolution(VECTORS);
                let products = conv2d(
                    &sent.as_map(&share),
                    check.weights(),
                    &[0.0; VECTORS],
                    sizes,
                );
                sent.of_map(products, VECTORS)
            }
            Self::Ring(check, weights) => {
                let products = match sent.form {
                    Form::Map { enlarged, .. } => {
                        let x = sent.enlarged(share, enlarged);
                        ring::conv2d(&x, weights, sent.convolution(2 * VECTORS))
                    }
                    Form::Tokens => ring::linear(share, weights, sent.input[0] * sent.input[1]),
                };
                let lie = Outputs {
                    scales: &[],
                    values: sent.values(),
                };
                check.expected(&products, lie)
            }
        };
        shares.iter().map(one).collect()
    }

    /// As [`Check::mean`].
    ///
    /// # Errors
    /// As [`Check::mean`].
    pub fn mean(
        &self,
        words: &[i32],
        expected: &[f32],
        outputs: Outputs<'_>,
        bits: u32,
    ) -> Result<f64> {
        Ok(match self {
            Self::Carry(check) => check.mean(words, expected, outputs, bits)?,
            Self::Ring(check, _) => check.mean(words, expected, outputs, bits)?,
        })
    }
}

/// Whether products that are `apart` of what they must be at so many positions may be an honest worker's.
pub fn is_honest(apart: f64, positions: usize) -> bool {
    // A tenth more: what rounding drops is not quite uniform. Honest means are 1.03 (`lacuna_shares::check`).
    apart < 1.1 * threshold(positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_chosen_as_were_asked_for() {
        for share in [0.0, 0.25, 1.0] {
            let mut verifier = Verifier::new(share).unwrap();
            let chosen = (0..4000).filter(|_| verifier.chooses().unwrap()).count();
            let most = 4000.0 * share;
            assert!((chosen as f64 - most).abs() <= 200.0, "{share}: {chosen}");
        }
    }
}

//! What the user needs of a layer that workers multiply: its weights for the carries, and what products are divided by.

use std::sync::Arc;

use lacuna_kernels::conv::{Sizes, conv2d};
use lacuna_kernels::sparse::{self, Sparse};
use lacuna_model::host::OnDevice;
use lacuna_model::weights::{LowRank, Weights};
use lacuna_shares::Precision;
use lacuna_shares::check::Check;
use lacuna_shares::join::scales_by_input;
use lacuna_shares::split::Carries;
use lacuna_wire::HostTensor;
use lacuna_wire::host::transpose_each;

use super::enlarged;
use super::sent::Sent;
use super::verifier::Verifier;
use crate::error::Result;

/// A layer that workers multiply, as the user has it.
pub struct Own {
    /// By input: of each feature the weights of all outputs.
    by_input: Arc<Vec<f32>>,
    /// Of [`scales_by_input`].
    pub scales: Vec<f32>,
    /// What is added to each output.
    pub bias: Vec<f32>,
    /// Its adapters, which workers know nothing of.
    adapters: Vec<LowRank>,
    /// A check of its products, where they are checked.
    pub check: Option<Check>,
}

impl Own {
    /// Of the layer `sent` with `weights`.
    ///
    /// # Errors
    /// [`lacuna_wire::Error::MissingTensor`] when the weights lack the layer; those of the device.
    pub fn new(
        weights: &Weights,
        sent: &Sent,
        precision: Precision,
        verifier: Option<&mut Verifier>,
    ) -> Result<Self> {
        let name = |part: &str| format!("{}.{part}", sent.layer);
        let [_, outputs, ..] = sent.output;
        let by_input = match weights.by_input(&name("weight")) {
            Some(by_input) => by_input.clone(),
            // Workers in this process have the kernel as they need it.
            None => {
                let kernel = HostTensor::from_device(weights.kernel(&name("weight"))?)?.data;
                Arc::new(transpose_each(
                    &kernel,
                    outputs,
                    kernel.len() / outputs.max(1),
                ))
            }
        };
        let scales = scales_by_input(&by_input, outputs, precision.fraction());
        let check = verifier.map(|verifier| verifier.check(&by_input, &scales, precision));
        Ok(Self {
            check: check.transpose()?,
            by_input,
            scales,
            adapters: weights.adapters_apart(&sent.layer).to_vec(),
            bias: HostTensor::from_device(weights.vector(&name("bias"))?)?.data,
        })
    }

    /// Adds to the output `y` `[B, C_out, H, W]` what the adapters make of the input `x` `[B, C, H, W]` of `sent`. Gives the
    /// work that it was.
    pub fn adapt(&self, sent: &Sent, x: &[f32], y: &mut [f32]) -> u64 {
        let mut flop = 0;
        for adapter in &self.adapters {
            let LowRank { down, up, scale } = adapter;
            let rank = adapter.rank();
            let narrow = Sizes {
                c_out: rank,
                ..sent.convolution()
            };
            let whole;
            let x = match sent.enlarged {
                Some(size) => {
                    whole = enlarged::features(x, sent, size);
                    &whole
                }
                None => x,
            };
            let h = conv2d(x, &down.data, &vec![0.0; rank], narrow);
            let wide = Sizes {
                c_in: rank,
                kernel: 1,
                padding: [0, 0],
                ..sent.convolution()
            };
            let change = conv2d(&h, &up.data, &vec![0.0; wide.c_out], wide);
            let pairs = y.iter_mut().zip(&change);
            pairs.for_each(|(y, change)| *y += scale * change);
            let [batch, _, rows, columns] = sent.output;
            let inner = sent.c_in * sent.kernel * sent.kernel + wide.c_out;
            flop += 2 * (batch * rows * columns * rank * inner) as u64;
        }
        flop
    }

    /// The product of the weights with the carries of an input of `sent`, `[B, C_out, H, W]`, in units of `2^b`.
    pub fn multiply(&self, sent: &Sent, carries: Carries) -> Vec<f32> {
        let carries = match sent.enlarged {
            Some(size) => enlarged::carries(&carries, sent, size),
            None => carries,
        };
        let sizes = sent.convolution();
        let few = Sparse {
            at: &carries.at,
            values: &carries.times,
        };
        sparse::conv2d(few, &self.by_input, sizes)
    }
}

//! What the user needs of a layer that workers multiply: its weights for the carries, and what products are divided by.

use std::sync::Arc;

use lacuna_kernels::conv::{Sizes, conv2d};
use lacuna_kernels::sparse::{self, Sparse};
use lacuna_model::host::OnDevice;
use lacuna_model::weights::{LowRank, Weights};
use lacuna_shares::Shares;
use lacuna_shares::join::{Outputs, scales_by_input};
use lacuna_shares::split::Carries;
use lacuna_wire::HostTensor;

use super::enlarged;
use super::sent::{Form, Multiplied, Sent};
use super::verifier::{Checked, Verifier};
use crate::error::Result;

/// A layer that workers multiply, as the user has it.
pub struct Own {
    outputs: usize,
    /// By input: of each feature the weights of all outputs; none of shares that have no carries.
    by_input: Option<Arc<Vec<f32>>>,
    /// What products were multiplied with before they were rounded to words.
    scales: Vec<f32>,
    /// What is added to each output; nothing where the layer has no bias.
    pub bias: Vec<f32>,
    /// Its adapters, which workers know nothing of.
    adapters: Vec<LowRank>,
    /// A check of its products, where they are checked.
    pub check: Option<Checked>,
}

impl Own {
    /// Of the `layer` of `sent` with `weights`.
    ///
    /// # Errors
    /// [`lacuna_wire::Error::MissingTensor`] when the weights lack the layer; those of the device.
    pub fn new(
        weights: &Weights,
        sent: &Sent,
        layer: &Multiplied,
        shares: Shares,
        verifier: Option<&mut Verifier>,
    ) -> Result<Self> {
        let weight = format!("{}.weight", layer.layer);
        let outputs = layer.outputs;
        // Queries, keys and values have none.
        let bias = match weights.vector(&format!("{}.bias", layer.layer)) {
            Ok(bias) => HostTensor::from_device(bias)?.data,
            Err(_) => Vec::new(),
        };
        let (scales, check, by_input) = match shares {
            Shares::Carry(precision) => {
                let by_input = weights.by_input(&weight)?;
                let scales = scales_by_input(&by_input, outputs, precision.fraction());
                let check = verifier.map(|verifier| verifier.check(&by_input, &scales, precision));
                (scales, check, Some(by_input))
            }
            Shares::Ring(ring) => {
                let (rows, outputs) = weights.by_output(&weight)?;
                let integers = ring.quantise(&rows, outputs);
                let check =
                    verifier.map(|verifier| verifier.check_of_ring(&integers, ring, sent.kernel()));
                // What was read is not needed any more.
                (integers.scales, check, None)
            }
        };
        Ok(Self {
            outputs,
            check: check.transpose()?,
            by_input,
            scales,
            adapters: weights.adapters_apart(&layer.layer).to_vec(),
            bias,
        })
    }

    /// How an output of `sent` lies.
    pub fn lie(&self, sent: &Sent) -> Outputs<'_> {
        Outputs {
            scales: &self.scales,
            values: sent.values(),
        }
    }

    /// Adds to the output `y` what the adapters make of the input `x` of `sent`. Gives the work that it was.
    pub fn adapt(&self, sent: &Sent, x: &[f32], y: &mut [f32]) -> u64 {
        if self.adapters.is_empty() {
            return 0;
        }
        let x = sent.as_map(x);
        let mut flop = 0;
        for adapter in &self.adapters {
            let (LowRank { down, up, .. }, rank) = (adapter, adapter.rank());
            let scale = adapter.scale();
            let narrow = sent.convolution(rank);
            let h = conv2d(&x, &down.data, &vec![0.0; rank], narrow);
            let size = narrow.out_size();
            let wide = Sizes {
                c_in: rank,
                c_out: self.outputs,
                size,
                kernel: 1,
                stride: 1,
                padding: [0, 0],
                ..narrow
            };
            let change = conv2d(&h, &up.data, &vec![0.0; self.outputs], wide);
            let change = sent.of_map(change, self.outputs);
            let pairs = y.iter_mut().zip(&change);
            pairs.for_each(|(y, change)| *y += scale * change);
            let [rows, columns] = size;
            let inner = sent.c_in * narrow.kernel * narrow.kernel + self.outputs;
            flop += 2 * (narrow.batch * rows * columns * rank * inner) as u64;
        }
        flop
    }

    /// The product of the weights with the carries of an input of `sent`, as the output lies, in units of `2^b`; zeros where
    /// there are no carries.
    pub fn multiply(&self, sent: &Sent, carries: &Carries) -> Vec<f32> {
        let Some(by_input) = &self.by_input else {
            return vec![0.0; sent.output(self.outputs).values()];
        };
        let copies;
        let carries = match sent.form {
            Form::Map {
                enlarged: Some(size),
                ..
            } => {
                copies = enlarged::carries(carries, sent.input, size);
                &copies
            }
            _ => carries,
        };
        let few = Sparse {
            at: &carries.at,
            values: &carries.times,
        };
        match sent.form {
            Form::Map { .. } => sparse::conv2d(few, by_input, sent.convolution(self.outputs)),
            Form::Tokens => {
                let [batch, tokens, _] = sent.input;
                sparse::linear(few, by_input, [batch * tokens, self.outputs])
            }
        }
    }
}

//! Weights of layers that others compute: by input, or read again whenever somebody asks.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use super::{Weights, side_by_side};
use crate::device::Precision;
use crate::error::Result;
use crate::host::OnDevice;
use crate::layers::Parameter;
use lacuna_wire::HostTensor;
use lacuna_wire::host::transpose_each;

/// Layers that others compute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Apart {
    /// Their tensor prefixes.
    pub layers: HashSet<String>,
    /// Whether their weights are held here all the same.
    pub held: bool,
    /// The number type that they have there, and so their values here.
    pub precision: Precision,
}

impl Apart {
    /// Of `parameters` the weights of these layers, and all others: biases, too.
    pub fn part(&self, parameters: &[Parameter]) -> (Vec<Parameter>, Vec<Parameter>) {
        let all = parameters.iter().cloned();
        all.partition(|p| self.layers.contains(p.layer()) && p.shape.len() > 1)
    }
}

/// Reads a tensor by its full name from where weights come from.
#[derive(Clone)]
pub(super) struct Reader(Arc<Read>);

type Read = dyn Fn(&str) -> Result<HostTensor> + Send + Sync;

impl Reader {
    /// By `read`.
    pub(super) fn new(read: impl Fn(&str) -> Result<HostTensor> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// The same, rounded to a number type.
    fn rounded(self, precision: Precision) -> Self {
        Self::new(move |name| {
            let mut tensor = (self.0)(name)?;
            precision.round(&mut tensor.data);
            tensor.check_finite(&format!("{name} in {precision}"))?;
            Ok(tensor)
        })
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader(..)")
    }
}

/// Weights that are not on the device.
#[derive(Clone, Debug)]
pub(super) enum Elsewhere {
    /// By input, `[K, outputs]`, and the number of outputs.
    ByInput(Arc<Vec<f32>>, usize),
    /// To be read, `[outputs, ..]`.
    Read(Reader, usize),
}

/// The weights `[outputs, K]` by input, `[K, outputs]`.
fn turned(weights: &[f32], outputs: usize) -> Vec<f32> {
    let outputs = outputs.max(1);
    transpose_each(weights, outputs, weights.len() / outputs)
}

impl Weights {
    /// Has the parameters `theirs` of the layers `apart` here by input, if they are held, or to be read.
    ///
    /// # Errors
    /// Those of `reader`.
    pub(super) fn set_apart(
        &mut self,
        theirs: &[Parameter],
        apart: &Apart,
        reader: Reader,
    ) -> Result<()> {
        let reader = reader.rounded(apart.precision);
        let there = |parameter: &Parameter| {
            let (name, outputs) = (&parameter.name, parameter.shape.first());
            let outputs = outputs.copied().unwrap_or_default();
            Ok(match apart.held {
                true => {
                    let by_input = turned(&(reader.0)(name)?.data, outputs);
                    Elsewhere::ByInput(Arc::new(by_input), outputs)
                }
                false => Elsewhere::Read(reader.clone(), outputs),
            })
        };
        side_by_side(theirs, there, |parameter, weight| {
            self.elsewhere.insert(parameter.name.clone(), weight);
            Ok(())
        })
    }

    /// A layer's weights by input, `[C_in K K, C_out]` or `[D_in, D_out]`, by full name: not copied where they lie so.
    ///
    /// # Errors
    /// [`MissingTensor`](lacuna_wire::Error::MissingTensor) when there are none of that name; those of reading them.
    pub fn by_input(&self, name: &str) -> Result<Arc<Vec<f32>>> {
        if let Some(Elsewhere::ByInput(values, _)) = self.elsewhere.get(name) {
            return Ok(values.clone());
        }
        let (rows, outputs) = self.by_output(name)?;
        Ok(Arc::new(turned(&rows, outputs)))
    }

    /// A layer's weights by output, `[C_out, C_in K K]` or `[D_out, D_in]`, and the number of outputs, by full name; read
    /// where they are not here.
    ///
    /// # Errors
    /// As [`Self::by_input`].
    pub fn by_output(&self, name: &str) -> Result<(Vec<f32>, usize)> {
        match self.elsewhere.get(name) {
            Some(Elsewhere::ByInput(values, outputs)) => {
                let fan_in = values.len() / outputs.max(&1);
                Ok((transpose_each(values, fan_in, *outputs), *outputs))
            }
            Some(Elsewhere::Read(reader, outputs)) => Ok(((reader.0)(name)?.data, *outputs)),
            // Whoever computes here has them as they are computed with.
            None => {
                let weights = match self.kernel(name) {
                    Ok(kernel) => HostTensor::from_device(kernel)?,
                    Err(_) => HostTensor::from_device(self.matrix(name)?)?,
                };
                let outputs = weights.shape.first().copied().unwrap_or_default();
                Ok((weights.data, outputs))
            }
        }
    }
}

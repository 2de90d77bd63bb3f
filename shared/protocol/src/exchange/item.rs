//! The tensors of an exchange: how each is written, and whether a message brings just those.

use std::collections::HashMap;

use lacuna_wire::{Coding, Dtype, Error as TensorError, Payload, Wire};

use super::Exchange;
use crate::error::{Error, Result};
use crate::placement::Wires;

/// How a tensor is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// By the [`Wires`] for halos.
    Halo,
    /// By the [`Wires`] for attention.
    Attention,
    /// By the same, but whole every time: turned anew, it has nothing to do with the step before.
    Tile,
    /// In f32.
    Exact,
    /// In f64.
    Statistics,
}

/// A tensor of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name in the message.
    pub name: &'static str,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// How it is written.
    pub writing: Writing,
    /// Whether it is the first of its kind in the session.
    pub first: bool,
}

impl Item {
    /// How it travels, if it is features.
    pub fn wire(&self, wires: Wires) -> Option<Wire> {
        match self.writing {
            Writing::Halo => Some(wires.halo),
            Writing::Attention => Some(wires.attention),
            Writing::Tile => Some(wires.attention.timeless()),
            Writing::Exact | Writing::Statistics => None,
        }
    }

    fn coding(&self, wires: Wires) -> Coding {
        match self.wire(wires) {
            Some(wire) => Coding::of(wire, self.first),
            None if self.writing == Writing::Statistics => Coding::Numbers(Dtype::F64),
            None => Coding::Numbers(Dtype::F32),
        }
    }

    /// Bytes of its numbers in a message.
    pub fn bytes(&self, wires: Wires) -> usize {
        let (dtype, shape) = self.coding(wires).layout(&self.shape);
        shape.iter().product::<usize>() * dtype.bitsize() / 8
    }
}

/// The tensors of an exchange, by name.
pub type Tensors = HashMap<&'static str, Payload>;

/// Takes a tensor of an exchange.
///
/// # Errors
/// [`TensorError::MissingTensor`].
pub fn take(tensors: &mut Tensors, name: &'static str) -> Result<Payload, TensorError> {
    tensors.remove(name).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> TensorError {
    TensorError::MissingTensor {
        origin: "the message".into(),
        name: name.into(),
    }
}

/// Checks that a message at `at` with `tensors` brings just `items`.
///
/// # Errors
/// [`Error::OtherExchange`], [`Error::Unasked`], [`TensorError::MissingTensor`], [`TensorError::WrongDtype`],
/// [`TensorError::WrongShape`] or [`TensorError::NotFinite`], each naming the exchange or the tensor.
pub fn accept(
    exchange: &Exchange<'_>,
    items: &[Item],
    wires: Wires,
    at: &str,
    mut tensors: HashMap<String, Payload>,
) -> Result<Tensors> {
    let label = exchange.label();
    if at != label {
        return Err(Error::OtherExchange {
            theirs: at.into(),
            ours: label,
        });
    }
    let mut accepted = Tensors::with_capacity(items.len());
    for item in items {
        let name = || format!("{label}: {}", item.name);
        let payload = tensors.remove(item.name).ok_or_else(|| missing(&name()))?;
        let coding = item.coding(wires);
        let (dtype, shape) = coding.layout(&item.shape);
        if payload.dtype() != dtype {
            let dtype = format!("{:?}", payload.dtype());
            return Err(TensorError::WrongDtype {
                name: name(),
                dtype,
            }
            .into());
        }
        if payload.shape() != shape {
            let (name, want, got) = (name(), shape, payload.shape().to_vec());
            return Err(TensorError::WrongShape { name, want, got }.into());
        }
        coding.check_scales(&name(), &payload, item.shape.iter().product())?;
        accepted.insert(item.name, payload);
    }
    match tensors.keys().next() {
        Some(name) => Err(Error::Unasked {
            at: label,
            name: name.clone(),
        }),
        None => Ok(accepted),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Of, Seat};
    use super::*;
    use crate::placement::Tile;
    use lacuna_model::layers::{Conv2d, GroupNorm};

    fn norm() -> GroupNorm {
        GroupNorm {
            name: "n".into(),
            channels: 8,
            groups: 4,
            eps: 1e-5,
        }
    }

    fn names(items: &[Item]) -> Vec<&'static str> {
        items.iter().map(|item| item.name).collect()
    }

    #[test]
    fn anything_but_what_is_due_is_refused() {
        let (norm, conv) = (norm(), Conv2d::same("c", 8, 8, 3));
        let exchange = Exchange {
            of: Of::NormConv(&norm, &conv),
            batch: 1,
            columns: 3,
            level: 0,
            first: true,
        };
        let seat = Seat {
            rows: 2,
            of: 4,
            odd: false,
            above: false,
            below: true,
            tile: Tile::default(),
        };
        let items = exchange.to_worker(seat);
        assert_eq!(names(&items), ["moments", "below"]);
        let edge = |columns: usize| lacuna_wire::HostTensor::zeros([1, 8, 1, columns]);
        let good = || {
            HashMap::from([
                (
                    "moments".to_owned(),
                    crate::statistics::to_payload(&[Default::default(); 4]),
                ),
                ("below".to_owned(), Payload::F32(edge(3))),
            ])
        };
        let accept =
            |at: &str, tensors| super::accept(&exchange, &items, Wires::default(), at, tensors);
        assert!(accept("norm+conv c", good()).is_ok());
        assert!(matches!(
            accept("conv c", good()),
            Err(Error::OtherExchange { .. })
        ));
        let with = |name: &str, payload: Payload| {
            let mut tensors = good();
            tensors.insert(name.to_owned(), payload);
            accept("norm+conv c", tensors)
        };
        assert!(matches!(
            with("below", edge(4).into()),
            Err(Error::Tensor(TensorError::WrongShape { .. }))
        ));
        assert!(matches!(
            with("moments", edge(3).into()),
            Err(Error::Tensor(TensorError::WrongDtype { .. }))
        ));
        assert!(matches!(
            with("above", edge(3).into()),
            Err(Error::Unasked { .. })
        ));
        let mut less = good();
        less.remove("below");
        assert!(matches!(
            accept("norm+conv c", less),
            Err(Error::Tensor(TensorError::MissingTensor { .. }))
        ));
    }
}

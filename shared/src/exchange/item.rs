//! The tensors of an exchange: how each is written, and whether a message brings just those.

use std::collections::HashMap;

use safetensors::Dtype;

use super::Exchange;
use crate::error::{Error, Result};
use crate::placement::{Wire, Wires};
use crate::wire::{Coding, Payload};

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
/// [`Error::MissingTensor`].
pub fn take(tensors: &mut Tensors, name: &'static str) -> Result<Payload> {
    tensors.remove(name).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Error {
    Error::MissingTensor {
        origin: "the message".into(),
        name: name.into(),
    }
}

/// Checks that a message at `at` with `tensors` brings just `items`.
///
/// # Errors
/// [`Error::Message`], [`Error::MissingTensor`], [`Error::WrongDtype`], [`Error::WrongShape`] or
/// [`Error::NotFinite`], each naming the exchange or the tensor.
pub fn accept(
    exchange: &Exchange<'_>,
    items: &[Item],
    wires: Wires,
    at: &str,
    mut tensors: HashMap<String, Payload>,
) -> Result<Tensors> {
    let label = exchange.label();
    if at != label {
        return Err(Error::Message(format!(
            "it is at {at:?}, this side at {label:?}"
        )));
    }
    let mut accepted = Tensors::with_capacity(items.len());
    for item in items {
        let name = || format!("{label}: {}", item.name);
        let payload = tensors.remove(item.name).ok_or_else(|| missing(&name()))?;
        let coding = item.coding(wires);
        let (dtype, shape) = coding.layout(&item.shape);
        if payload.dtype() != dtype {
            return Err(Error::WrongDtype {
                name: name(),
                dtype: format!("{:?}", payload.dtype()),
            });
        }
        if payload.shape() != shape {
            return Err(Error::WrongShape {
                name: name(),
                want: shape,
                got: payload.shape().to_vec(),
            });
        }
        coding.check_scales(&name(), &payload, item.shape.iter().product())?;
        accepted.insert(item.name, payload);
    }
    match tensors.keys().next() {
        Some(name) => Err(Error::Message(format!("{label}: nobody asked for {name}"))),
        None => Ok(accepted),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Of, Seat};
    use super::*;
    use crate::layers::{Conv2d, GroupNorm};
    use crate::placement::Tile;

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
        let edge = |columns: usize| crate::host::HostTensor::zeros([1, 8, 1, columns]);
        let good = || {
            HashMap::from([
                (
                    "moments".to_owned(),
                    Payload::of_moments(&[Default::default(); 4]),
                ),
                ("below".to_owned(), Payload::F32(edge(3))),
            ])
        };
        let accept =
            |at: &str, tensors| super::accept(&exchange, &items, Wires::default(), at, tensors);
        assert!(accept("norm+conv c", good()).is_ok());
        assert!(matches!(accept("conv c", good()), Err(Error::Message(_))));
        let with = |name: &str, payload: Payload| {
            let mut tensors = good();
            tensors.insert(name.to_owned(), payload);
            accept("norm+conv c", tensors)
        };
        assert!(matches!(
            with("below", edge(4).into()),
            Err(Error::WrongShape { .. })
        ));
        assert!(matches!(
            with("moments", edge(3).into()),
            Err(Error::WrongDtype { .. })
        ));
        assert!(matches!(
            with("above", edge(3).into()),
            Err(Error::Message(_))
        ));
        let mut less = good();
        less.remove("below");
        assert!(matches!(
            accept("norm+conv c", less),
            Err(Error::MissingTensor { .. })
        ));
    }
}

//! What workers hand out: read, and checked where it comes in, while it is known whose it is.

use ::lacuna_protocol;
use lacuna_kernels::stats::Moments;
use lacuna_protocol::exchange::{Exchange, Of, Seat, Tensors, Writing, accept, take};
use lacuna_protocol::placement::{Latents, Wires};
use lacuna_protocol::statistics;
use lacuna_wire::{Codec, Dtype, Payload};

use crate::fleet::client::Handed;
use crate::schemes::plausible::{Plausible, check_among, check_prediction};

/// This side's ends of what comes from the workers.
pub struct Intake {
    wires: Wires,
    ends: Vec<End>,
    /// What is known of the values that went out in this step.
    sent: Plausible,
}

/// The end of what comes from one worker.
#[derive(Default)]
struct End {
    codec: Codec,
    /// The largest value that it handed out in this step.
    largest: f64,
    /// The largest of the edge rows that it handed out last.
    edges: f64,
}

impl Intake {
    /// Of `workers` workers.
    pub fn new(wires: Wires, workers: usize) -> Self {
        Self {
            wires,
            ends: (0..workers).map(|_| End::default()).collect(),
            sent: Plausible::of([]),
        }
    }

    /// A step begins, with values as in `sent`.
    pub fn begin(&mut self, sent: Plausible) {
        self.sent = sent;
        self.ends.iter_mut().for_each(|end| end.largest = 0.0);
    }

    /// What the `index`-th worker `handed` out, checked, with what the user attends to as plain numbers. Halos
    /// go on as they came: the neighbour's end holds what this worker's end does.
    ///
    /// # Errors
    /// [`lacuna_protocol::Error`], naming the tensor that is not what it should be.
    pub fn read(
        &mut self,
        index: usize,
        exchange: &Exchange<'_>,
        seat: Seat,
        handed: Handed,
    ) -> lacuna_protocol::Result<Tensors> {
        let items = exchange.from_worker(seat);
        let mut tensors = accept(exchange, &items, self.wires, &handed.at, handed.tensors)?;
        let known = self.known();
        let end = &mut self.ends[index];
        end.edges = 0.0;
        let is_prediction = match exchange.of {
            Of::End { latents, .. } => latents == Latents::Shared,
            _ => false,
        };
        for item in &items {
            let name = stream(exchange, item.name);
            let payload = take(&mut tensors, item.name)?;
            let (kept, largest) = match (item.wire(self.wires), item.writing) {
                // What they can be depends on how many values they are of: see `moments`.
                (_, Writing::Statistics) => (payload, 0.0),
                (Some(wire), Writing::Halo) if payload.dtype() == Dtype::U8 => {
                    let tensor = end.codec.read(&name, payload.clone(), &item.shape, wire)?;
                    (payload, known.check_made(&name, tensor.largest())?)
                }
                (Some(wire), writing) if writing != Writing::Halo => {
                    let tensor = end.codec.read(&name, payload, &item.shape, wire)?;
                    let largest = known.check_made(&name, tensor.largest())?;
                    (tensor.into(), largest)
                }
                (None, _) if is_prediction => {
                    let largest = check_prediction(&name, payload.largest())?;
                    (payload, largest)
                }
                _ => {
                    let largest = known.check_made(&name, payload.largest())?;
                    (payload, largest)
                }
            };
            end.largest = end.largest.max(largest);
            if item.writing == Writing::Halo {
                end.edges = end.edges.max(largest);
            }
            tensors.insert(item.name, kept);
        }
        Ok(tensors)
    }

    /// The statistics in `payload` that the `index`-th worker handed out with its edge rows, of groups of
    /// `count` values of its strip.
    ///
    /// # Errors
    /// [`lacuna_protocol::Error`], when there are no such values, or the edge rows cannot be among them.
    pub fn moments(
        &self,
        index: usize,
        payload: Payload,
        count: usize,
    ) -> lacuna_protocol::Result<Vec<Moments>> {
        let moments = statistics::from_payload(&payload, count)?;
        self.known().check_moments_of_made("moments", &moments)?;
        // What is sent as a change may be rounded by as much as it changes.
        if !self.wires.halo.is_temporal() {
            check_among("edge rows", self.ends[index].edges, &moments)?;
        }
        Ok(moments)
    }

    /// What is known of this step's values.
    fn known(&self) -> Plausible {
        let mut known = self.sent;
        self.ends.iter().for_each(|end| known.see(end.largest));
        known
    }
}

/// Tells a tensor from others that go the same way in a step.
pub fn stream(exchange: &Exchange<'_>, name: &str) -> String {
    format!("{}: {name}", exchange.label())
}

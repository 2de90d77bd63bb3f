//! Whether a worker computes what it says: at random, what it does is done here again, on the same numbers, and compared.
//!
//! A worker cannot tell which of its answers are looked at. Layer by layer each request is drawn by itself. Of a strip whole
//! U-Net calls are drawn: the walk here hears what the worker's hears, and must hand out the same at every exchange. Where
//! something is kept from one call to the next (the prompt's keys and values), a picture's whole session is drawn or not.
//!
//! This takes all weights at home, and as much work as the share of what is checked. Numbers agree but for rounding, of
//! another processor or of half precision; whoever stays within [`TOLERANCE`] of the right ones is not told from that.

use std::collections::HashMap;
use std::sync::Arc;

use lacuna_model::unet::UNet;
use lacuna_model::weights::Weights;
use lacuna_protocol::session::{AdvanceHeader, ReplyHeader, RunHeader, SessionKind};
use lacuna_wire::{Message, Payload};
use lacuna_worker::Model;
use lacuna_worker::ground::{Ground, Loan};
use lacuna_worker::metrics::Metrics;
use lacuna_worker::program::{Program, Request};

use crate::error::{Error, Result};

/// The root of the mean square of what is wrong, as a part of that of what is right, that rounding stays below: features in half
/// precision are apart by 1 % at most.
pub const TOLERANCE: f64 = 0.05;

/// Tensors of a reply, by name.
type Tensors = HashMap<String, Payload>;

/// The whole U-Net here, to do workers' work again.
#[derive(Clone)]
pub struct Again {
    loan: Loan,
    /// The share that is checked.
    share: f64,
    /// Whether a U-Net call may be checked without those before.
    each_call: bool,
}

impl Again {
    /// Checks so large a `share` of what is computed for latents of `[B, H, W]`, of `unet` with all its `weights`.
    ///
    /// # Errors
    /// [`Error::Request`] where this machine has no thread or no room for it.
    pub fn new(
        unet: &UNet,
        weights: &Weights,
        latents: [usize; 3],
        share: f64,
        each_call: bool,
    ) -> Result<Self> {
        // Nobody opens a session of it by its digest.
        let model = Model::new(unet.clone(), weights.clone(), "");
        let ground =
            Ground::new(Arc::new(model), latents, Arc::new(Metrics::default())).map_err(failed)?;
        Ok(Self {
            loan: Loan::new(Arc::new(ground), None),
            share,
            each_call,
        })
    }

    fn draw(&self) -> bool {
        rand::random_bool(self.share)
    }
}

/// Looks at what one worker answers.
pub struct Checker {
    again: Again,
    kind: SessionKind,
    /// What does the same as the worker's walk, where that is checked now.
    walk: Option<Program>,
    begun: bool,
}

impl Checker {
    /// Of a worker with a session of `kind`.
    pub fn new(again: Again, kind: SessionKind) -> Self {
        Self {
            again,
            kind,
            walk: None,
            begun: false,
        }
    }

    /// A U-Net call begins.
    ///
    /// # Errors
    /// [`Error::Request`] where this machine cannot do it.
    pub fn begin_call(&mut self) -> Result<()> {
        if !matches!(self.kind, SessionKind::Strip(_)) || (self.begun && !self.again.each_call) {
            return Ok(());
        }
        self.begun = true;
        self.walk = match self.again.draw() {
            true => Some(self.start()?),
            false => None,
        };
        Ok(())
    }

    fn start(&self) -> Result<Program> {
        Program::start(self.kind.clone(), &self.again.loan).map_err(failed)
    }

    /// What a right worker hands out at the message of its walk, if that is checked.
    ///
    /// # Errors
    /// [`Error::Request`] where this machine cannot do it.
    pub async fn advance(
        &self,
        at: &str,
        tensors: &Tensors,
    ) -> Result<Option<Message<AdvanceHeader>>> {
        let Some(walk) = &self.walk else {
            return Ok(None);
        };
        let header = AdvanceHeader {
            sequence: 0,
            at: at.to_owned(),
        };
        let tensors = tensors.clone();
        let request = Request::Advance(Message { header, tensors });
        let reply = walk.answer(request).await.map_err(failed)?;
        Ok(Some(Message::decode(&reply)?))
    }

    /// The tensors that a right worker answers to pieces of work, if these are checked.
    ///
    /// # Errors
    /// [`Error::Request`] where this machine cannot do it.
    pub async fn run(&self, message: &Message<RunHeader>) -> Result<Option<Tensors>> {
        if !self.again.draw() {
            return Ok(None);
        }
        let request = Request::Run(message.clone());
        let reply = self.start()?.answer(request).await.map_err(failed)?;
        Ok(Some(Message::<ReplyHeader>::decode(&reply)?.tensors))
    }
}

fn failed(error: lacuna_worker::error::Error) -> Error {
    Error::Request(format!("a worker's numbers cannot be checked: {error}"))
}

/// How far `got` is from `right`, in [`TOLERANCE`]s; infinitely where it is of another kind.
pub fn apart(right: &Payload, got: &Payload) -> f64 {
    let (Some(right), Some(got)) = (numbers(right), numbers(got)) else {
        return if right == got { 0.0 } else { f64::INFINITY };
    };
    if right.len() != got.len() {
        return f64::INFINITY;
    }
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let wrong = squares(&mut right.iter().zip(&got).map(|(a, b)| a - b));
    let all = squares(&mut right.iter().copied());
    match wrong > 0.0 {
        // Zeros are nothing that rounds.
        true => (wrong / all.max(f64::MIN_POSITIVE)).sqrt() / TOLERANCE,
        false => 0.0,
    }
}

/// The numbers of a tensor; none of codes, which stand for others.
fn numbers(payload: &Payload) -> Option<Vec<f64>> {
    match payload {
        Payload::F32(tensor) => Some(tensor.data.iter().map(|x| f64::from(*x)).collect()),
        Payload::F16 { data, .. } => Some(data.iter().map(|x| x.to_f64()).collect()),
        Payload::Bf16 { data, .. } => Some(data.iter().map(|x| x.to_f64()).collect()),
        Payload::F64 { data, .. } => Some(data.clone()),
        Payload::Codes { .. } => None,
    }
}

/// The tensor of `got` that is furthest from what is `right`, and how far, if any is further than rounding leaves it.
pub fn worst<'a>(right: &'a Tensors, got: &Tensors) -> Option<(&'a str, f64)> {
    let each = right.iter().map(|(name, right)| {
        let far = got.get(name).map_or(f64::INFINITY, |got| apart(right, got));
        (name.as_str(), far)
    });
    let worst = each.max_by(|a, b| a.1.total_cmp(&b.1));
    worst.filter(|(_, far)| *far > 1.0)
}

#[cfg(test)]
mod tests {
    use lacuna_wire::HostTensor;

    use super::*;

    fn tensors(values: &[f32]) -> Tensors {
        let tensor = HostTensor::new([values.len()], values.to_vec()).unwrap();
        Tensors::from([("x".to_owned(), tensor.into())])
    }

    #[test]
    fn rounding_is_right_and_more_is_wrong() {
        let right = tensors(&[1.0, -2.0, 3.0, 0.0]);
        assert_eq!(worst(&right, &tensors(&[1.01, -2.02, 3.01, 0.01])), None);
        for (wrong, least) in [
            (&[1.0, -2.0, 3.0, 0.5][..], 2.0),
            (&[0.0, 0.0, 0.0, 0.0], 19.9),
            (&[1.0, -2.0, 3.0], f64::INFINITY),
        ] {
            let wrong = tensors(wrong);
            let (name, far) = worst(&right, &wrong).unwrap();
            assert!(name == "x" && far >= least, "{far}");
        }
        assert!(worst(&right, &Tensors::new()).is_some());
        let zeros = tensors(&[0.0; 4]);
        assert_eq!(worst(&zeros, &zeros.clone()), None);
        assert!(worst(&zeros, &right).is_some());
    }
}

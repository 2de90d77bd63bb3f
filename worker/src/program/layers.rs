//! Layer by layer: independent pieces of work, each on rows that the request brings.

use std::collections::HashMap;

use axum::body::Bytes;
use lacuna_protocol::session::{ReplyHeader, RunHeader, Work};
use lacuna_wire::{Message, Payload};

use crate::compute::caught;
use crate::error::{Error, Result};
use crate::ground::Loan;
use crate::model::Model;

/// A session's program that keeps nothing between requests.
pub struct Layers {
    ground: Loan,
}

impl Layers {
    /// A program on `ground`.
    pub fn new(ground: Loan) -> Self {
        Self { ground }
    }

    /// What it runs on.
    pub fn ground(&self) -> &Loan {
        &self.ground
    }

    /// The reply to a message: the output of each piece of its work.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the message contradicts itself or the model, or is of more than the largest
    /// picture; those of [`crate::compute::Compute::run`].
    pub async fn run(&self, mut message: Message<RunHeader>) -> Result<Bytes> {
        let sequence = message.header.sequence;
        let works = std::mem::take(&mut message.header.work);
        let outputs: Vec<String> = works
            .iter()
            .enumerate()
            .map(|(i, work)| format!("{i}.{}", work.output()))
            .collect();
        let mut batch = Vec::with_capacity(works.len());
        for (i, work) in works.into_iter().enumerate() {
            let inputs = work
                .inputs()
                .iter()
                .map(|part| {
                    let name = format!("{i}.{part}");
                    message.take(&name)?.into_tensor(&name)
                })
                .collect::<lacuna_wire::Result<Vec<_>>>()?;
            batch.push((work, inputs));
        }
        if let Some(name) = message.tensors.keys().next() {
            return Err(Error::Invalid(format!("tensor {name} belongs to no work")));
        }
        self.ground.bounds.check_work(&batch)?;
        let each = |model: &Model, (work, inputs): (Work, _)| {
            caught(work.layer(), || Ok(model.run(&work, inputs)?))
        };
        let compute = &self.ground.compute;
        let results = compute.run("layers", move |model| {
            batch.into_iter().map(|one| each(model, one)).collect()
        });
        let results: Vec<Payload> = results.await?;
        let reply = Message {
            header: ReplyHeader { sequence },
            tensors: outputs.into_iter().zip(results).collect::<HashMap<_, _>>(),
        };
        Ok(reply.encode()?.into())
    }
}

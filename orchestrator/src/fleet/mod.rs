//! The workers that a picture is computed on.
//!
//! # Layout
//!
//! - [`config`]: which workers there are: the TOML file.
//! - [`client`]: the dialogue with one worker.
//! - [`local`]: workers of one's own, in this process, over loopback.
//! - [`link`]: a slow connection to them, emulated.
//! - [`tally`]: what was sent to whom.
//! - here: all workers at once.

pub mod client;
pub mod config;
pub mod link;
pub mod local;
pub mod tally;

use std::collections::HashMap;

use futures::future::{join_all, try_join_all};
use shared::exchange::Resident;
use shared::host::HostTensor;
use shared::wire::{Payload, Work};
use tokio::runtime::Handle;

use crate::error::{Error, Result};
use client::{Client, Handed};
use config::FleetConfig;
use tally::{Kind, Tally, Traffic};

/// One worker's part of an exchange: independent pieces of work.
pub type Part = Vec<Piece>;

/// A piece of work on one strip.
#[derive(Clone, Debug)]
pub struct Piece {
    /// What to do.
    pub work: Work,
    /// What to do it on, in the order of [`Work::inputs`].
    pub inputs: Vec<HostTensor>,
    /// Sizes that the output must have.
    pub output: Vec<usize>,
}

/// The workers, with a session on each.
pub struct Fleet {
    clients: Vec<Client>,
    runtime: Handle,
}

impl Fleet {
    /// Opens a session on every worker of `config` for the model of `digest`; each is to hold the
    /// strip that `residents` has for it, if that has any.
    ///
    /// # Errors
    /// The first worker's that is down, refuses, or holds another model; each names the worker.
    pub async fn open(config: &FleetConfig, digest: &str, residents: &[Resident]) -> Result<Self> {
        let clients = config
            .workers
            .iter()
            .enumerate()
            .map(|(i, worker)| async move {
                let mut client = Client::new(worker)?;
                client.open(digest, residents.get(i).cloned()).await?;
                Ok::<_, Error>(client)
            });
        Ok(Self {
            clients: try_join_all(clients).await?,
            runtime: Handle::current(),
        })
    }

    /// Number of workers.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether there is no worker.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Gives every worker its part and waits for all; a worker without a part is not bothered. Not
    /// to be called on the async runtime.
    ///
    /// # Errors
    /// The first worker's that fails.
    pub fn exchange(
        &mut self,
        kind: Kind,
        parts: Vec<Option<Part>>,
    ) -> Result<Vec<Option<Vec<Payload>>>> {
        let requests = self
            .clients
            .iter_mut()
            .zip(parts)
            .map(|(client, part)| async move {
                match part {
                    Some(part) => client.run(kind, part).await.map(Some),
                    None => Ok(None),
                }
            });
        self.runtime.block_on(try_join_all(requests))
    }

    /// Brings every worker's walk its `tensors` of the exchange `at` and waits for what all hand out
    /// next, at most `limit` bytes each. Not to be called on the async runtime.
    ///
    /// # Errors
    /// The first worker's that fails.
    pub fn advance(
        &mut self,
        kind: Kind,
        at: &str,
        tensors: Vec<HashMap<String, Payload>>,
        limit: usize,
    ) -> Result<Vec<Handed>> {
        let clients = self.clients.iter_mut().zip(tensors);
        let requests =
            clients.map(|(client, tensors)| client.advance(kind, at.to_owned(), tensors, limit));
        self.runtime.block_on(try_join_all(requests))
    }

    /// Accounts of all workers, in the file's order.
    pub fn tallies(&mut self) -> impl Iterator<Item = &mut Tally> {
        self.clients.iter_mut().map(|client| &mut client.tally)
    }

    /// `error` as one about what the `index`-th worker answered.
    pub fn nonsense(&self, index: usize, error: &shared::Error) -> Error {
        self.clients[index].nonsense(&error.to_string())
    }

    /// All workers' traffic so far.
    pub fn traffic(&self) -> Traffic {
        let mut all = Traffic::default();
        self.clients
            .iter()
            .for_each(|client| all.add(&client.tally.total()));
        all
    }

    /// Closes the sessions and gives the accounts. Workers that cannot be told expire them.
    pub async fn close(self) -> Vec<Tally> {
        join_all(self.clients.into_iter().map(Client::close)).await
    }
}

//! The workers that a picture is computed on.
//!
//! # Layout
//!
//! - [`config`]: which workers there are: the TOML file, of [`lacuna_files`].
//! - [`roster`]: who of them computes, stands by, or was lost.
//! - [`check`]: whether a worker computes what it says.
//! - [`client`]: the dialogue with one worker.
//! - [`mod@line`]: the requests to it, and what comes back.
//! - [`patience`]: how long it is waited for.
//! - [`session`]: a session there, which is closed whatever happens.
//! - [`store`]: models that workers are sent and keep.
//! - [`adapters`]: what of a model is sent to those that hold the rest.
//! - [`local`]: workers of one's own, in this process, over loopback.
//! - [`link`]: a connection to them, by its numbers.
//! - [`emulated`]: a slow one, tried on one machine.
//! - [`measure`]: how fast the connection and the workers are.
//! - [`tally`]: how much was sent to whom.
//! - [`tap`]: what was sent to one of them, for an audit.
//! - [`watch`]: what they are doing.
//! - here: all workers at once.

pub mod adapters;
pub mod check;
pub mod client;
pub mod emulated;
pub mod line;
pub mod link;
pub mod local;
pub mod measure;
pub mod patience;
pub mod roster;
pub mod session;
pub mod store;
pub mod tally;
pub mod tap;
pub mod watch;

use std::collections::HashMap;

use futures::future::{join_all, try_join_all};
use lacuna_protocol::session::{SessionKind, Work};
use lacuna_protocol::shares::Seed;
use lacuna_shares::stream::Masks;
use lacuna_wire::HostTensor;
use lacuna_wire::Payload;
use tokio::runtime::Handle;

use crate::error::{Error, Result};
use check::Again;
use client::{Client, Handed};
use config::FleetConfig;
pub use lacuna_files::fleet as config;
use tally::{Kind, Tally, Traffic};
use tap::Tap;

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

/// The workers, with a session on each, or with several for as many lanes: dialogues that go on side by
/// side, so that one computes while the other waits.
pub struct Fleet {
    /// All workers of the first lane, then of the second, and so on.
    clients: Vec<Client>,
    lanes: usize,
    runtime: Handle,
}

impl Fleet {
    /// Opens `lanes` sessions on every worker of `config` for the model of `digest`, of the kind that `kind` gives
    /// for the worker's index.
    ///
    /// # Errors
    /// The first worker's that is down, refuses, or holds another model; each names the worker.
    pub async fn open(
        config: &FleetConfig,
        digest: &str,
        kind: impl Fn(usize) -> SessionKind,
        lanes: usize,
    ) -> Result<Self> {
        let workers = config.workers.iter().enumerate();
        let clients = (0..lanes).flat_map(|_| workers.clone());
        // Its lanes take one place at a worker.
        let picture = &(lanes > 1).then(|| uuid::Uuid::new_v4().simple().to_string());
        let clients = clients.map(|(i, worker)| (kind(i), worker));
        let clients = clients.map(|(kind, worker)| async move {
            let mut client = Client::new(worker)?;
            client.open(digest, kind, picture.clone()).await?;
            Ok::<_, Error>(client)
        });
        Ok(Self {
            clients: try_join_all(clients).await?,
            lanes,
            runtime: Handle::current(),
        })
    }

    /// Gives each worker the stream that its shares are drawn from, where it draws any.
    pub fn give_masks(&mut self, masks: Vec<Option<Masks>>) {
        let clients = self.clients.iter_mut().zip(masks);
        clients.for_each(|(client, masks)| client.masks = masks);
    }

    /// The workers one by one, of one lane, and where to talk to them.
    pub fn into_clients(self) -> (Vec<Client>, Handle) {
        (self.clients, self.runtime)
    }

    /// What [`Self::into_clients`] took apart.
    pub fn of_clients(clients: Vec<Client>, runtime: Handle) -> Self {
        Self {
            clients,
            lanes: 1,
            runtime,
        }
    }

    /// Each lane as a fleet of its own.
    pub fn split(self) -> Vec<Self> {
        let workers = self.len();
        let mut clients = self.clients.into_iter();
        let lane = |_| Self {
            clients: clients.by_ref().take(workers).collect(),
            lanes: 1,
            runtime: self.runtime.clone(),
        };
        (0..self.lanes).map(lane).collect()
    }

    /// What [`Self::split`] took apart; none of nothing.
    pub fn join(lanes: Vec<Self>) -> Option<Self> {
        lanes.into_iter().reduce(|mut all, lane| {
            all.clients.extend(lane.clients);
            all.lanes += lane.lanes;
            all
        })
    }

    /// Number of workers.
    pub fn len(&self) -> usize {
        self.clients.len() / self.lanes.max(1)
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

    /// Accounts of all sessions, in the order of the workers' file, lane by lane.
    pub fn tallies(&mut self) -> impl Iterator<Item = &mut Tally> {
        self.clients.iter_mut().map(|client| &mut client.tally)
    }

    /// Has what the workers do from now on done here again as far as `again` says, and compared.
    pub fn check_by(&mut self, again: &Again) {
        let clients = self.clients.iter_mut();
        clients.for_each(|client| client.check_by(again));
    }

    /// A U-Net call begins.
    ///
    /// # Errors
    /// As [`check::Checker::begin_call`].
    pub fn begin_call(&mut self) -> Result<()> {
        let mut clients = self.clients.iter_mut();
        clients.try_for_each(Client::begin_call)
    }

    /// What a U-Net call should take each worker, by its work in multiplications and additions and by what the worker says of its
    /// speed: who takes far longer is not waited for.
    pub fn expect(&self, flop: &[u64]) {
        let workers = self.clients.iter().zip(flop.iter().cycle());
        workers.for_each(|(client, flop)| client.expect(*flop));
    }

    /// Keeps a copy in `tap` of everything that the `index`-th worker is sent from now on, and of the seed that it was given.
    pub fn tap(&mut self, index: usize, tap: &Tap) {
        let workers = self.len();
        for client in self.clients.iter_mut().skip(index).step_by(workers.max(1)) {
            if let Some(masks) = &client.masks {
                tap.keep_seed(Seed(masks.to_send()));
            }
            client.tap = Some(tap.clone());
        }
    }

    /// `error` as one about what the `index`-th worker answered.
    pub fn nonsense(&self, index: usize, error: &impl std::fmt::Display) -> Error {
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

    /// Closes the sessions and gives the accounts, one of each worker. Workers that cannot be told
    /// expire them.
    pub async fn close(self) -> Vec<Tally> {
        let workers = self.len();
        let mut tallies = join_all(self.clients.into_iter().map(Client::close)).await;
        let further = tallies.split_off(workers.min(tallies.len()));
        for (i, tally) in further.iter().enumerate() {
            tallies[i % workers].add(tally);
        }
        tallies
    }
}

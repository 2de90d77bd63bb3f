//! The dialogue with the workers of one group.
//!
//! What a seed holder computes does not depend on the picture, so it is asked for a whole call's products at the call's
//! beginning, one after the other, and its answers wait here: they come down while shares go up. Some are ahead and no
//! more, so that they do not fill the memory.

use std::sync::Arc;

use lacuna_shares::stream::Masks;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use super::groups::Groups;
use crate::error::{Error, Result};
use crate::fleet::client::{Client, Product};
use crate::fleet::line::Line;
use crate::fleet::tally::Traffic;

/// Products of a seed holder that wait here at most.
const AHEAD: usize = 4;

/// The workers of a group.
pub struct Dialogue {
    seeds: Vec<SeedHolder>,
    share: Client,
    runtime: Handle,
}

/// A worker that draws its shares, as the user knows it.
struct SeedHolder {
    /// Locked by the task that asks it ahead, for as long as a call takes.
    client: Arc<Mutex<Client>>,
    /// How it is named.
    line: Line,
    masks: Masks,
    bits: u32,
    /// Work that it did, and words that it drew for it.
    flop: u64,
    words: u64,
    ahead: Option<Ahead>,
}

/// What a seed holder was asked for.
struct Ahead {
    answers: mpsc::Receiver<Result<Vec<u8>>>,
    task: JoinHandle<()>,
}

impl Dialogue {
    /// With the `clients` of one of `groups`, whose sessions are open.
    ///
    /// # Errors
    /// [`Error::Request`] where there are not as many, or one was given no seed.
    pub fn new(groups: &Groups, mut clients: Vec<Client>, runtime: Handle) -> Result<Self> {
        let missing = || Error::Request("a group's sessions are not those of its workers".into());
        let share = clients.pop().ok_or_else(missing)?;
        let seeds = clients.into_iter().zip(groups.mask_bits());
        let seeds = seeds.map(|(mut client, bits)| {
            Ok(SeedHolder {
                masks: client.masks.take().ok_or_else(missing)?,
                line: client.line().clone(),
                client: Arc::new(Mutex::new(client)),
                bits: *bits,
                flop: 0,
                words: 0,
                ahead: None,
            })
        });
        Ok(Self {
            seeds: seeds.collect::<Result<_>>()?,
            share,
            runtime,
        })
    }

    /// A call begins that needs `products`: the seed holders are asked for theirs. Not to be called on the async runtime.
    ///
    /// # Errors
    /// [`Error::Request`] after a call that failed: what a seed holder draws next is not what is drawn here.
    pub fn begin(&mut self, products: &Arc<[Product]>) -> Result<()> {
        let in_step = |seed: &SeedHolder| seed.client.blocking_lock().asked() == seed.masks.drawn();
        if !self.seeds.iter().all(in_step) {
            let reason = "a call failed in this session; another is needed";
            return Err(Error::Request(reason.into()));
        }
        for seed in &mut self.seeds {
            let (answer, answers) = mpsc::channel(AHEAD);
            let (client, products) = (seed.client.clone(), products.clone());
            let task = self.runtime.spawn(async move {
                let mut client = client.lock().await;
                for product in &*products {
                    let product = client.multiply(product, None).await;
                    let failed = product.is_err();
                    // Nobody waits any more where the call has failed.
                    if answer.send(product).await.is_err() || failed {
                        return;
                    }
                }
            });
            seed.ahead = Some(Ahead { answers, task });
        }
        Ok(())
    }

    /// The masks of the next product's input, of `words` features.
    ///
    /// # Errors
    /// None: a group's bits are such as masks may have.
    pub fn masks(&mut self, words: usize) -> Result<Vec<Vec<i32>>> {
        let each = self.seeds.iter_mut();
        Ok(each
            .map(|seed| seed.masks.draw(words, seed.bits))
            .collect::<lacuna_shares::Result<_>>()?)
    }

    /// What the share holder makes of its `share` of the input of `product`.
    ///
    /// # Errors
    /// As [`Client::multiply`].
    pub async fn send(&mut self, product: &Product, share: Vec<u8>) -> Result<Vec<u8>> {
        self.share.multiply(product, Some(share)).await
    }

    /// What the seed holders made of their shares of the next product's input. Not to be called on the async runtime.
    ///
    /// # Errors
    /// The first one's that fails.
    pub fn drawn(&mut self) -> Result<Vec<Vec<u8>>> {
        let each = self.seeds.iter_mut().map(|seed| {
            let gone = || Error::Request("a seed holder was not asked".into());
            let ahead = seed.ahead.as_mut().ok_or_else(gone)?;
            ahead.answers.blocking_recv().ok_or_else(gone)?
        });
        each.collect()
    }

    /// How the `worker`-th is named.
    fn line(&self, worker: usize) -> &Line {
        match self.seeds.get(worker) {
            Some(seed) => &seed.line,
            None => self.share.line(),
        }
    }

    /// The `worker`-th answered what makes no sense.
    pub fn nonsense(&self, worker: usize, reason: &str) -> Error {
        self.line(worker).nonsense(reason)
    }

    /// The `worker`-th multiplied `layer` wrong, and is `apart` from what must be.
    pub fn wrong(&self, worker: usize, layer: &str, apart: f64) -> Error {
        Error::WorkerWrong {
            worker: self.line(worker).url().to_string(),
            layer: layer.to_owned(),
            apart,
        }
    }

    /// The call is over, whether all products were used or not.
    pub fn end(&mut self) {
        for seed in &mut self.seeds {
            if let Some(Ahead { answers, task }) = seed.ahead.take() {
                // Who has nobody to answer asks no further; the request on its way is waited for, so that the next one
                // has the number after it.
                drop(answers);
                if let Err(error) = self.runtime.block_on(task) {
                    tracing::debug!("asking a seed holder: {error}");
                }
            }
        }
    }

    /// What was sent to the workers and came back.
    pub fn traffic(&self) -> Traffic {
        let mut all = self.share.tally.total();
        for seed in &self.seeds {
            all.add(&seed.client.blocking_lock().tally.total());
        }
        all
    }

    /// Adds a product to each worker's account: its work, and the words of its input.
    pub fn count(&mut self, flop: u64, words: u64) {
        self.share.tally.flop += flop;
        self.share.tally.seen.words.sent += words;
        for seed in &mut self.seeds {
            seed.flop += flop;
            seed.words += words;
        }
    }

    /// The clients, in the order of the workers; their sessions are still open.
    pub fn finish(mut self) -> Vec<Client> {
        self.end();
        let seeds = self.seeds.into_iter();
        // The tasks that held the others have ended.
        let clients = seeds.filter_map(|seed| {
            let mut client = Arc::into_inner(seed.client)?.into_inner();
            client.tally.flop += seed.flop;
            client.tally.seen.words.drawn += seed.words;
            Some(client)
        });
        let mut clients: Vec<Client> = clients.collect();
        clients.push(self.share);
        clients
    }
}

//! The U-Net over the worker's own rows, on a thread of its own, as a dialogue.
//!
//! The walk ([`crate::strip`]) is ordinary code that stops in the middle of an operation whenever it
//! needs something from outside; a request brings that and takes along what the walk hands out next.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use ::lacuna_protocol;
use axum::body::Bytes;
use lacuna_kernels::allocator::give_back_freed_pages;
use lacuna_protocol::exchange::Assignment;
use lacuna_protocol::session::AdvanceHeader;
use lacuna_wire::{Message, Payload};
use tokio::sync::oneshot;

use crate::compute::reason;
use crate::error::{Error, Result};
use crate::ground::Loan;
use crate::model::Model;
use crate::strip::{self, Incoming, Outside};

/// How long a walk waits before it gives back the memory that it has freed: longer than between two requests of a picture under
/// way.
const IDLE: Duration = Duration::from_secs(1);

/// What a walk hands out: the label of the exchange that it is at, and the tensors.
type Outgoing = (String, HashMap<String, Payload>);

/// A session's program that walks over a strip, step after step; the walk ends when this is dropped.
pub struct Dialogue {
    turns: Sender<Turn>,
    ground: Loan,
}

/// One request: what came, and where to say what the walk hands out next.
struct Turn {
    incoming: Incoming,
    reply: oneshot::Sender<Result<Outgoing>>,
}

impl Dialogue {
    /// Starts a walk on `ground` over the strip that `assignment` describes.
    ///
    /// # Errors
    /// Those of the operating system when it gives no thread.
    pub fn start(ground: Loan, assignment: Assignment) -> std::io::Result<Self> {
        let (turns, inbox) = channel();
        let walked_on = ground.clone();
        std::thread::Builder::new()
            .name("walk".into())
            .spawn(move || {
                let mut line = Line { inbox, reply: None };
                let walked = catch_unwind(AssertUnwindSafe(|| {
                    walked_on.model.walk(assignment, &mut line)
                }));
                give_back_freed_pages();
                let error = match walked {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => Error::from(error),
                    // The backend panics where a GPU runs out of memory, say.
                    Err(panic) => Error::Compute(format!("the walk failed: {}", reason(&*panic))),
                };
                line.answer(Err(error));
            })?;
        Ok(Self { turns, ground })
    }

    /// What it runs on.
    pub fn ground(&self) -> &Loan {
        &self.ground
    }

    /// The reply to a message, which brings the walk what it waits for: what it hands out next.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Compute`] when the walk fails at what came; it then has ended.
    pub async fn go_on(&self, message: Message<AdvanceHeader>) -> Result<Bytes> {
        let AdvanceHeader { sequence, at } = message.header;
        let (at, tensors) = self.advance((at, message.tensors)).await?;
        let header = AdvanceHeader { sequence, at };
        Ok(Message { header, tensors }.encode()?.into())
    }

    /// Brings the walk what it waits for; gives what it hands out next.
    ///
    /// # Errors
    /// As [`Self::go_on`].
    async fn advance(&self, incoming: Incoming) -> Result<Outgoing> {
        let ended = || Error::Invalid("this session's walk has failed; open another".into());
        let (reply, answer) = oneshot::channel();
        let turn = Turn { incoming, reply };
        self.turns.send(turn).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

/// The walk's end of the line.
struct Line {
    inbox: Receiver<Turn>,
    /// Who waits for what the walk hands out next.
    reply: Option<oneshot::Sender<Result<Outgoing>>>,
}

impl Line {
    fn answer(&mut self, answer: Result<Outgoing>) {
        if let Some(reply) = self.reply.take() {
            // Nobody waits any more: the session was closed meanwhile, which the next wait tells.
            let _ = reply.send(answer);
        }
    }
}

impl Outside for &mut Line {
    fn wait(&mut self) -> lacuna_protocol::Result<Incoming> {
        let turn = match self.inbox.recv_timeout(IDLE) {
            Err(RecvTimeoutError::Timeout) => {
                give_back_freed_pages();
                self.inbox.recv().ok()
            }
            other => other.ok(),
        };
        let turn = turn.ok_or(lacuna_protocol::Error::Closed)?;
        self.reply = Some(turn.reply);
        Ok(turn.incoming)
    }

    fn exchange(
        &mut self,
        at: String,
        out: HashMap<String, Payload>,
    ) -> lacuna_protocol::Result<Incoming> {
        self.answer(Ok((at, out)));
        self.wait()
    }
}

impl Model {
    fn walk(&self, assignment: Assignment, outside: impl Outside) -> lacuna_protocol::Result<()> {
        strip::run(self.unet(), self.weights().clone(), assignment, outside)
    }
}

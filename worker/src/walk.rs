//! A session's walk of the U-Net, on a thread of its own, as a dialogue.
//!
//! The walk ([`crate::strip`]) is ordinary code that stops in the middle of an operation whenever it
//! needs something from outside; a request brings that and takes along what the walk hands out next.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use shared::exchange::Resident;
use shared::protocol;
use shared::wire::Payload;
use tokio::sync::oneshot;

use crate::compute::reason;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::strip::{self, Incoming, Outside};

/// What a walk hands out: the label of the exchange that it is at, and the tensors.
pub type Outgoing = (String, HashMap<String, Payload>);

/// A walk in progress; it ends when this is dropped.
#[derive(Debug)]
pub struct Walk {
    turns: Sender<Turn>,
}

/// One request: what came, and where to say what the walk hands out next.
struct Turn {
    incoming: Incoming,
    reply: oneshot::Sender<Result<Outgoing>>,
}

impl Walk {
    /// Starts a walk over the strip that `resident` describes.
    ///
    /// # Errors
    /// Those of the operating system when it gives no thread.
    pub fn start(model: Arc<Model>, resident: Resident) -> std::io::Result<Self> {
        let (turns, inbox) = channel();
        std::thread::Builder::new()
            .name("walk".into())
            .spawn(move || {
                let mut line = Line { inbox, reply: None };
                let walked = catch_unwind(AssertUnwindSafe(|| model.walk(resident, &mut line)));
                let error = match walked {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => Error::from(error),
                    // The backend panics where a GPU runs out of memory, say.
                    Err(panic) => Error::Compute(format!("the walk failed: {}", reason(&*panic))),
                };
                line.answer(Err(error));
            })?;
        Ok(Self { turns })
    }

    /// Brings the walk what it waits for; gives what it hands out next.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Compute`] when the walk fails at what came; it then has ended.
    pub async fn advance(&self, incoming: Incoming) -> Result<Outgoing> {
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
    fn wait(&mut self) -> protocol::Result<Incoming> {
        let turn = self.inbox.recv().map_err(|_| protocol::Error::Closed)?;
        self.reply = Some(turn.reply);
        Ok(turn.incoming)
    }

    fn exchange(
        &mut self,
        at: String,
        out: HashMap<String, Payload>,
    ) -> protocol::Result<Incoming> {
        self.answer(Ok((at, out)));
        self.wait()
    }
}

impl Model {
    fn walk(&self, resident: Resident, outside: impl Outside) -> protocol::Result<()> {
        strip::run(self.unet(), self.weights().clone(), resident, outside)
    }
}

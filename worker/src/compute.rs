//! The thread that computes, apart from the threads that serve.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use lacuna_protocol::session::Work;
use lacuna_wire::HostTensor;
use lacuna_wire::Payload;
use tokio::sync::{Semaphore, oneshot};

use crate::error::{Error, Result};
use crate::model::Model;

/// One request's pieces of work, with the inputs of each.
pub type Batch = Vec<(Work, Vec<HostTensor>)>;

/// A handle to the compute thread, which ends with the last handle.
#[derive(Clone)]
pub struct Compute {
    jobs: Sender<Job>,
    waiting: Arc<Semaphore>,
}

struct Job {
    batch: Batch,
    reply: oneshot::Sender<Result<Vec<Payload>>>,
}

impl Compute {
    /// Starts a thread that computes on `model`, with room for `queue` requests at a time.
    ///
    /// # Errors
    /// Those of the operating system when it gives no thread.
    pub fn start(model: Arc<Model>, queue: usize) -> std::io::Result<Self> {
        let (jobs, inbox) = channel();
        std::thread::Builder::new()
            .name("compute".into())
            .spawn(move || work(&model, &inbox))?;
        Ok(Self {
            jobs,
            waiting: Arc::new(Semaphore::new(queue)),
        })
    }

    /// Computes a batch; the results are in its order.
    ///
    /// # Errors
    /// [`Error::Busy`] when the queue is full, [`Error::Invalid`] or [`Error::Compute`] when a piece
    /// of work fails.
    pub async fn run(&self, batch: Batch) -> Result<Vec<Payload>> {
        let _place = self
            .waiting
            .try_acquire()
            .map_err(|_| Error::Busy("too many requests wait for the device"))?;
        let (reply, result) = oneshot::channel();
        self.jobs
            .send(Job { batch, reply })
            .map_err(|_| Error::Compute("the compute thread has ended".into()))?;
        result
            .await
            .map_err(|_| Error::Compute("the compute thread dropped the work".into()))?
    }
}

fn work(model: &Model, inbox: &Receiver<Job>) {
    while let Ok(Job { batch, reply }) = inbox.recv() {
        if reply.is_closed() {
            // The one who asked has hung up.
            continue;
        }
        let results = batch
            .into_iter()
            .map(|(work, inputs)| run_caught(model, &work, inputs))
            .collect();
        // Nobody waits any more: the result has no use.
        let _ = reply.send(results);
    }
}

/// The backend panics where a GPU runs out of memory, say: that must cost one request, not the
/// worker.
fn run_caught(model: &Model, work: &Work, inputs: Vec<HostTensor>) -> Result<Payload> {
    catch_unwind(AssertUnwindSafe(|| Ok(model.run(work, inputs)?))).unwrap_or_else(|panic| {
        let (layer, reason) = (work.layer().to_owned(), reason(&*panic));
        Err(lacuna_model::Error::Compute { layer, reason }.into())
    })
}

/// What a panic said.
pub(crate) fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("the backend panicked").to_owned()
}

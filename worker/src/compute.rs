//! The thread that computes, apart from the threads that serve.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::model::Model;

/// A handle to the compute thread, which ends with the last handle.
#[derive(Clone)]
pub struct Compute {
    jobs: Sender<Job>,
    metrics: Arc<Metrics>,
}

/// What is done on the thread.
type Job = Box<dyn FnOnce(&Model) + Send>;

impl Compute {
    /// Starts a thread that computes on `model`, and counts by `metrics` how long.
    ///
    /// # Errors
    /// Those of the operating system when it gives no thread.
    pub fn start(model: Arc<Model>, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (jobs, inbox): (_, Receiver<Job>) = channel();
        std::thread::Builder::new()
            .name("compute".into())
            .spawn(move || inbox.into_iter().for_each(|job| job(&model)))?;
        Ok(Self { jobs, metrics })
    }

    /// Does `work` of a session of a `kind`, when its turn comes.
    ///
    /// # Errors
    /// [`Error::Compute`] when the thread has ended; those of `work`.
    pub async fn run<T: Send + 'static>(
        &self,
        kind: &'static str,
        work: impl FnOnce(&Model) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, result) = oneshot::channel();
        let metrics = self.metrics.clone();
        let job = move |model: &Model| {
            // Else the one who asked has hung up, before or meanwhile: the result has no use.
            if !reply.is_closed() {
                let start = Instant::now();
                let done = work(model);
                metrics.computed(kind, start.elapsed());
                let _ = reply.send(done);
            }
        };
        self.jobs
            .send(Box::new(job))
            .map_err(|_| Error::Compute("the compute thread has ended".into()))?;
        result
            .await
            .map_err(|_| Error::Compute("the compute thread dropped the work".into()))?
    }
}

/// What `work` on `layer` gives. The backend panics where a GPU runs out of memory, say: that must cost one request, not
/// the worker.
///
/// # Errors
/// Those of `work`; [`lacuna_model::Error::Compute`] when it panics.
pub fn caught<T>(layer: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let (layer, reason) = (layer.to_owned(), reason(&*panic));
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

//! One open picture: a thread that makes its U-Net calls, with a session on each worker for as long.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lacuna_orchestrator::Error;
use lacuna_orchestrator::generator::failover::Told;
use lacuna_orchestrator::interrupt;
use lacuna_orchestrator::schemes::Predictor;
use lacuna_wire::HostTensor;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;

use crate::bounds::Inputs;
use crate::message::Predicted;
use crate::place::{Place, Places};
use crate::refusal::{Refusal, Result};

/// An open picture.
pub struct Picture {
    /// Batch, rows and columns of its latents.
    pub latents: [usize; 3],
    /// What each provider will see of it, in lines.
    pub seen: Vec<String>,
    /// None once it is closed.
    asks: Mutex<Option<mpsc::Sender<Ask>>>,
    busy: AtomicBool,
    used: Mutex<Instant>,
    ended: watch::Receiver<bool>,
}

/// A U-Net call that is asked for.
struct Ask {
    sample: HostTensor,
    timestep: f64,
    answer: oneshot::Sender<Answer>,
}

type Answer = Result<(HostTensor, Predicted)>;

/// Says that a picture is computed no more, however that comes.
struct Busy<'a>(&'a Picture);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        *self.0.used() = Instant::now();
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Picture {
    /// Opens sessions for a picture of these `inputs`, which ends when nobody calls for `idle`; then, and whenever it ends
    /// otherwise, `at_end` is called.
    ///
    /// # Errors
    /// [`Refusal::Unet`]: the policy forbids it, or a worker is not there.
    pub async fn open(
        places: Arc<Places>,
        inputs: Inputs,
        idle: Duration,
        at_end: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let latents = inputs.latents;
        let (asks, asked) = mpsc::channel(1);
        let (opened, is_open) = oneshot::channel();
        let (end, ended) = watch::channel(false);
        spawn_blocking(move || {
            run(&places, inputs, idle, asked, opened);
            end.send_replace(true);
            at_end();
        });
        // Whoever drops the other end without a word has panicked.
        let lost = |_| Refusal::Unet(Error::Request("the picture's thread ended".into()));
        let seen = is_open.await.map_err(lost)??;
        Ok(Self {
            latents,
            seen,
            asks: Mutex::new(Some(asks)),
            busy: AtomicBool::new(false),
            used: Mutex::new(Instant::now()),
            ended,
        })
    }

    /// Makes a U-Net call.
    ///
    /// # Errors
    /// [`Refusal::Overtaken`] while another is computed; [`Refusal::Gone`] where the picture has ended; [`Refusal::Unet`], behind
    /// which it ends.
    pub async fn call(&self, sample: HostTensor, timestep: f64) -> Answer {
        if self.busy.swap(true, Ordering::AcqRel) {
            return Err(Refusal::Overtaken);
        }
        let _busy = Busy(self);
        let (answer, answered) = oneshot::channel();
        let ask = Ask {
            sample,
            timestep,
            answer,
        };
        let asks = self.asks().clone();
        let asks = asks.ok_or(Refusal::Gone)?;
        asks.send(ask).await.map_err(|_| Refusal::Gone)?;
        drop(asks);
        answered.await.map_err(|_| Refusal::Gone)?
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Whether a call is computed.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// When the last call was answered.
    pub fn last_used(&self) -> Instant {
        *self.used()
    }

    /// Closes it, behind the call that is computed, if one is, and waits until the sessions on the workers are closed.
    pub async fn close(&self) {
        drop(self.asks().take());
        // Whoever dropped the other end has ended, too.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    fn asks(&self) -> std::sync::MutexGuard<'_, Option<mpsc::Sender<Ask>>> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All of a picture: its sessions are open while this runs.
fn run(
    places: &Places,
    inputs: Inputs,
    idle: Duration,
    mut asked: mpsc::Receiver<Ask>,
    opened: oneshot::Sender<Result<Vec<String>>>,
) {
    let mut opened = Some(opened);
    let place = match places.of(inputs.latents, inputs.tokens()) {
        Ok(place) => place,
        Err(error) => {
            // Whoever does not listen any more has gone.
            let _ = opened.take().map(|opened| opened.send(Err(error.into())));
            return;
        }
    };
    let done = predict(&place, inputs, idle, &mut asked, &mut opened);
    places.settle(&place);
    match (done, opened) {
        (Err(error), Some(opened)) => {
            let _ = opened.send(Err(error.into()));
        }
        (Err(error), None) => tracing::debug!("a picture ended: {error}"),
        (Ok(()), _) => {}
    }
}

/// Makes the calls that are `asked` for, until nobody asks any more, for `idle`, or one fails.
fn predict(
    place: &Place,
    inputs: Inputs,
    idle: Duration,
    asked: &mut mpsc::Receiver<Ask>,
    opened: &mut Option<oneshot::Sender<Result<Vec<String>>>>,
) -> lacuna_orchestrator::Result<()> {
    let runtime = Handle::current();
    let conditioning = inputs.into_conditioning(place.weights.device())?;
    let told = Mutex::new(Vec::new());
    let note = Box::new(|heard: Told<'_>| {
        if let Told::WentOn(how) = heard {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            told.push(how.to_owned());
        }
        Ok(())
    });
    let calls = |predictor: &mut dyn Predictor| {
        // Whoever does not listen any more has gone, and will ask for nothing.
        let _ = opened
            .take()
            .map(|opened| opened.send(Ok(place.seen.clone())));
        let next = |asked: &mut mpsc::Receiver<Ask>| {
            let next = async { tokio::time::timeout(idle, asked.recv()).await };
            let heard = async {
                tokio::select! {
                    biased;
                    () = interrupt::asked() => None,
                    next = next => next.ok().flatten(),
                }
            };
            runtime.block_on(heard)
        };
        while let Some(ask) = next(asked) {
            let start = Instant::now();
            let output = predictor.predict(ask.sample, ask.timestep);
            let seconds = start.elapsed().as_secs_f64();
            let traffic = predictor.traffic().unwrap_or_default();
            let told = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
            let failed = output.is_err();
            let predicted = Predicted {
                seconds,
                bytes_up: traffic.bytes_up,
                bytes_down: traffic.bytes_down,
                told,
            };
            let answer = output.map(|output| (output, predicted));
            // Whoever does not listen any more has gone.
            let _ = ask.answer.send(answer.map_err(Refusal::Unet));
            if failed {
                break;
            }
        }
        Ok(())
    };
    let (weights, past) = (place.weights.clone(), Vec::new());
    place
        .denoiser
        .predict_on(weights, conditioning, past, note, calls)
}

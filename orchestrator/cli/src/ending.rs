//! How a command ends: by itself, or by a signal; and in any case without sessions left on workers.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use lacuna_orchestrator::fleet::session;
use lacuna_orchestrator::interrupt::ask;
use lacuna_orchestrator::output::console::note;

/// How long a command without workers may take to end by itself, in which it writes what it has.
const GRACE: Duration = Duration::from_millis(1500);
/// How long one with workers may, and how long closing the sessions on them.
const CLOSING: Duration = Duration::from_secs(5);

/// How a command ended.
#[derive(Debug)]
pub enum Ending {
    /// By itself.
    Itself(anyhow::Result<()>),
    /// By this signal; with what it said when it heard of it, if it did in time.
    Signal(i32, Option<anyhow::Result<()>>),
}

/// Runs `command` to its end, or until SIGINT, SIGTERM, SIGQUIT or SIGHUP (where that is not ignored, as under nohup)
/// ends it. Then, and in any case, the sessions on workers are closed, for which a few seconds are taken at
/// most; a second signal does not wait for that.
///
/// # Panics
/// As `command` does.
pub async fn run(command: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> Ending {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::warn!("cannot listen for signals: {error}");
            return Ending::Itself(command.await);
        }
    };
    // A task of its own: it may be held up by a file that never ends, and a signal must be heard then.
    let task = tokio::spawn(command);
    let command = async {
        match task.await {
            Ok(result) => result,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(cancelled) => Err(cancelled.into()),
            },
        }
    };
    tokio::pin!(command);
    let number = tokio::select! {
        result = &mut command => {
            tokio::select! {
                _ = timeout(CLOSING, session::all_closed()) => {}
                _ = signals.next() => {}
            }
            return Ending::Itself(result);
        }
        number = signals.next() => number,
    };
    let grace = match session::any_open() {
        true => {
            note("closing the sessions on the workers; once more ends at once");
            CLOSING
        }
        false => GRACE,
    };
    ask();
    let mut result = None;
    let ended = async {
        let said = async { result = Some(command.await) };
        tokio::join!(said, session::all_closed());
    };
    tokio::select! {
        _ = timeout(grace, ended) => {}
        _ = signals.next() => {}
    }
    Ending::Signal(number, result)
}

/// The signals that end a command.
struct Signals([Option<(SignalKind, Signal)>; 4]);

impl Signals {
    fn listen() -> io::Result<Self> {
        let ignored = ignored();
        let listen = |kind: SignalKind| {
            if ignored >> (kind.as_raw_value() - 1) & 1 == 1 {
                return Ok(None);
            }
            signal(kind).map(|signal| Some((kind, signal)))
        };
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
            listen(SignalKind::quit())?,
        ]))
    }

    /// The next one's number.
    async fn next(&mut self) -> i32 {
        let each = self.0.iter_mut().flatten().map(|(kind, signal)| {
            let number = kind.as_raw_value();
            Box::pin(async move {
                match signal.recv().await {
                    Some(()) => number,
                    // No more signals can come.
                    None => std::future::pending().await,
                }
            })
        });
        let each: Vec<_> = each.collect();
        if each.is_empty() {
            return std::future::pending().await;
        }
        futures::future::select_all(each).await.0
    }
}

/// The signals that whoever started this process wants ignored, a bit each, from signal 1; none known but on
/// Linux (`SigIgn` in proc(5)).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

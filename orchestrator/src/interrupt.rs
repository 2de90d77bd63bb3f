//! Ending before the end: the switch that a signal throws.
//!
//! Signals are the process's, and so is what they ask for: one switch that whoever waits for a worker or is
//! about to compute looks at. Sessions on workers hear it by themselves (`fleet::session`); the program listens to signals.

use std::future::Future;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::sync::watch;

use crate::error::{Error, Result};

/// Whether this process was asked to end.
static ASKED: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));

/// From now on every wait for a worker ends with [`Error::Interrupted`], and every session is closed.
pub fn ask() {
    ASKED.send_replace(true);
}

/// Completes when this process is asked to end.
pub async fn asked() {
    // The sender is never dropped, so there is nothing to fail.
    let _ = ASKED.subscribe().wait_for(|asked| *asked).await;
}

/// To be called before what takes long.
///
/// # Errors
/// [`Error::Interrupted`] when this process was asked to end.
pub fn check() -> Result<()> {
    match *ASKED.borrow() {
        true => Err(Error::Interrupted),
        false => Ok(()),
    }
}

/// What `work` gives, unless this process is asked to end before.
///
/// # Errors
/// [`Error::Interrupted`]; those of `work`.
pub async fn unless_asked<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        () = asked() => Err(Error::Interrupted),
        result = work => result,
    }
}

/// Waits for so long, unless this process is asked to end before.
///
/// # Errors
/// [`Error::Interrupted`].
pub async fn pause(long: Duration) -> Result<()> {
    tokio::select! {
        biased;
        () = asked() => Err(Error::Interrupted),
        () = tokio::time::sleep(long) => Ok(()),
    }
}

/// `result`, with `advice` on how to go on where it ended because this process was asked to end, as `asked` tells
/// by the error.
///
/// # Errors
/// Those of `result`.
pub fn advise<T>(
    result: anyhow::Result<T>,
    asked: impl FnOnce(&anyhow::Error) -> bool,
    advice: impl FnOnce() -> String,
) -> anyhow::Result<T> {
    result.map_err(|error| match asked(&error) {
        true => error.context(advice()),
        false => error,
    })
}

/// Whether it is [`Error::Interrupted`].
pub fn is_interrupted(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::Interrupted))
}

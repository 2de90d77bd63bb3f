//! A session on a worker: whatever becomes of the run, it is closed.
//!
//! A worker keeps only so many. So each session has a keeper, a task that closes it when its [`Session`] is
//! dropped, on whichever way out, or when this process is asked to end. Sessions are opened in a task of their
//! own, too: one that nobody waits for any more is closed as soon as it is open.

use std::convert::Infallible;
use std::future::Future;
use std::sync::LazyLock;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::interrupt;

/// Number of sessions in this process that are open, or about to be opened or closed.
static OPEN: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// Counts a session that is about to be opened, until it is closed.
#[derive(Debug)]
pub struct Counted(());

impl Counted {
    /// One more.
    pub fn new() -> Self {
        OPEN.send_modify(|open| *open += 1);
        Self(())
    }
}

impl Default for Counted {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        OPEN.send_modify(|open| *open -= 1);
    }
}

/// A session that is open until this is dropped.
#[derive(Debug)]
pub struct Session {
    /// Its name at the worker.
    pub name: String,
    held: oneshot::Sender<Infallible>,
    keeper: JoinHandle<()>,
}

impl Session {
    /// The session `name`, which `close` closes. To be called on the async runtime.
    pub fn new(
        name: String,
        counted: Counted,
        close: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let (held, dropped) = oneshot::channel::<Infallible>();
        let keeper = tokio::spawn(async move {
            let _counted = counted;
            tokio::select! {
                _ = dropped => {}
                () = interrupt::asked() => {}
            }
            close.await;
        });
        Self { name, held, keeper }
    }

    /// Closes it and waits for that.
    pub async fn close(self) {
        drop(self.held);
        if let Err(error) = self.keeper.await {
            tracing::debug!("closing a session: {error}");
        }
    }
}

/// Whether this process has a session open.
pub fn any_open() -> bool {
    *OPEN.borrow() > 0
}

/// Completes when this process has no session open.
pub async fn all_closed() {
    // The sender is never dropped, so there is nothing to fail.
    let _ = OPEN.subscribe().wait_for(|open| *open == 0).await;
}

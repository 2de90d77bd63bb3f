//! Requests that are worked on while they come, and answered while they are: `multiply`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, stream};
use lacuna_protocol::session::TENSORS;
use lacuna_protocol::shares::MultiplyHeader;
use lacuna_wire::head::{self, Head};
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{OwnedMutexGuard, mpsc};
use tracing::Instrument;

use crate::error::{Error, Result};
use crate::intake::{Incoming, Place, SILENCE};
use crate::metrics::Metrics;
use crate::program::Program;
use crate::sessions::{Guest, Session};
use crate::turns::{Turn, Turns};

/// Bands of an answer that wait for the network at most.
const AHEAD: usize = 4;

/// What the message in `incoming` says before its tensor.
async fn head(incoming: &mut Incoming) -> Result<Head<MultiplyHeader>> {
    loop {
        if let Some(len) = head::len(incoming.held())? {
            let bytes = incoming.take(len).await?;
            return Ok(Head::decode(&bytes)?);
        }
        if !incoming.more().await? {
            return Err(Error::Invalid("the request has no header".into()));
        }
    }
}

/// Who waits for an answer: what it begins with says how long it is.
struct Outgoing {
    silence: Duration,
    chunks: mpsc::Sender<Result<Bytes>>,
    /// Whether its digest follows.
    with_digest: bool,
    /// All of it, to be kept for a retry.
    all: Vec<u8>,
}

impl Outgoing {
    /// Sends the next bytes on, but does not wait for ever until somebody takes those before.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    async fn send(&mut self, bytes: Vec<u8>) -> Result<()> {
        self.all.extend_from_slice(&bytes);
        self.pass(bytes.into()).await
    }

    /// The same with the last bytes of `all`, and what follows.
    async fn end(&self, all: &[u8], last: Bytes) -> Result<()> {
        self.pass(last).await?;
        match self.with_digest {
            true => self.pass(digest_of(all)).await,
            false => Ok(()),
        }
    }

    /// Bytes that follow an answer.
    fn following(&self) -> usize {
        if self.with_digest { blake3::OUT_LEN } else { 0 }
    }

    /// The same with what need not be kept.
    async fn pass(&self, bytes: Bytes) -> Result<()> {
        // Whoever hung up may ask again: the work is done to the end and its reply kept.
        match self.chunks.send_timeout(Ok(bytes), self.silence).await {
            Err(SendTimeoutError::Timeout(_)) => {
                Err(Error::Stopped("nobody takes the answer".into()))
            }
            _ => Ok(()),
        }
    }
}

/// The device, for one guest.
pub struct Device {
    /// Whose turn it is.
    pub turns: Turns,
    /// Who wants one.
    pub guest: Guest,
    /// Who counts how long that takes.
    pub metrics: Arc<Metrics>,
}

impl Device {
    async fn turn(&self) -> Turn {
        let due = Instant::now();
        let turn = self.turns.take(&self.guest).await;
        self.metrics.waited(due.elapsed());
        turn
    }
}

/// What follows an answer whose request said its digest.
pub fn digest_of(reply: &[u8]) -> Bytes {
    Bytes::copy_from_slice(blake3::hash(reply).as_slice())
}

/// The answer of `session` to the request that comes in at its `place`. It is made in a task of its own: should
/// the connection break once all has come, the work is still done and the reply kept, so that the retry finds it.
///
/// # Errors
/// Those of the head and of the first band; what fails later breaks the answer off.
pub async fn multiply(
    session: OwnedMutexGuard<Session<Program>>,
    (mut incoming, place): (Incoming, Place),
    device: Device,
) -> Result<Response> {
    let (chunks, mut waiting) = mpsc::channel(AHEAD);
    let (length, told) = tokio::sync::oneshot::channel();
    let outgoing = Outgoing {
        silence: SILENCE,
        chunks: chunks.clone(),
        with_digest: incoming.says_digest(),
        all: Vec::new(),
    };
    let working = async move {
        let _place = place;
        if let Err(error) = work(session, &mut incoming, outgoing, length, device).await {
            let error = incoming.blame(error).await;
            tracing::debug!("a product: {error}");
            let _ = chunks.send_timeout(Err(error), SILENCE).await;
        }
    };
    tokio::spawn(working.in_current_span());
    let ended = || Error::Compute("the work on a product ended".into());
    let first = waiting.recv().await.ok_or_else(ended)??;
    let length = told.await.map_err(|_| ended())?;
    let rest = stream::poll_fn(move |context| waiting.poll_recv(context));
    let body = Body::from_stream(stream::iter([Ok(first)]).chain(rest));
    let headers = [
        (header::CONTENT_TYPE, TENSORS.to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, body).into_response())
}

async fn work(
    mut session: OwnedMutexGuard<Session<Program>>,
    incoming: &mut Incoming,
    mut outgoing: Outgoing,
    length: tokio::sync::oneshot::Sender<usize>,
    device: Device,
) -> Result<()> {
    let head = head(incoming).await?;
    let sequence = head.header.sequence;
    if session.is_due(sequence) {
        let mut task = session.program.shares()?.begin(head)?;
        let beginning = task.head()?;
        let _ = length.send(beginning.len() + task.going() + outgoing.following());
        let (coming, mut beginning) = (task.coming().to_vec(), Some(beginning));
        // One that is drawn is done at once.
        let mut bands = if coming.is_empty() { vec![0] } else { coming };
        let last = bands.pop().unwrap_or_default();
        for len in bands {
            let packed = incoming.take(len).await?;
            let mut bytes = beginning.take().unwrap_or_default();
            let turn = device.turn().await;
            bytes.extend(task.next(packed).await?);
            drop(turn);
            outgoing.send(bytes).await?;
        }
        let packed = incoming.take(last).await?;
        // Nobody has all of an answer to a request that goes on.
        let digest = incoming.end().await?;
        let mut bytes = beginning.unwrap_or_default();
        let turn = device.turn().await;
        bytes.extend(task.next(packed).await?);
        drop(turn);
        outgoing.all.extend_from_slice(&bytes);
        let all = Bytes::from(std::mem::take(&mut outgoing.all));
        tracing::debug!(sequence, bytes = all.len(), "answered");
        session.answered(sequence, digest, all.clone());
        drop(session);
        return outgoing.end(&all, bytes.into()).await;
    }
    // A retry, or out of order: only all of it tells which.
    let (_, len) = head.tensor.unwrap_or_default();
    incoming.take(len.min(incoming.left())).await?;
    let digest = incoming.end().await?;
    if let Some(reply) = session.replay(sequence, &digest)? {
        let _ = length.send(reply.len() + outgoing.following());
        drop(session);
        outgoing.end(&reply.clone(), reply).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    /// Nothing that is tried takes nearly as long.
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn an_answer_that_nobody_takes_is_not_waited_for() {
        let (chunks, waiting) = mpsc::channel(1);
        let mut outgoing = Outgoing {
            silence: SHORT,
            chunks,
            with_digest: false,
            all: Vec::new(),
        };
        outgoing.send(vec![1]).await.unwrap();
        let stuck = tokio::time::timeout(LONG, outgoing.send(vec![2])).await;
        let error = stuck.unwrap().unwrap_err().to_string();
        assert!(error.contains("nobody takes"), "{error}");
        // Who has hung up has the work done all the same.
        drop(waiting);
        outgoing.send(vec![3]).await.unwrap();
        assert_eq!(outgoing.all, [1, 2, 3]);
    }
}

//! Requests' bodies as they come: bounded in bytes, all of them together too, and in time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use lacuna_protocol::session::DIGEST;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// How long the next bytes of a request may take: who has gone silent must not keep its session from the retry, nor the
/// device from others.
pub const SILENCE: Duration = Duration::from_secs(20);

/// Bytes a second of a request beside that: whoever means well is faster.
const SLOWEST: f64 = 16e3;

/// Bytes that are counted as one.
const GRAIN: usize = 4 << 10;

/// How much of requests may be in memory at a time.
#[derive(Clone)]
pub struct Intake {
    room: Arc<Semaphore>,
    grains: usize,
    /// Bytes of one request at most.
    most: usize,
}

/// A request's place in memory, for as long as it is kept.
pub struct Place(
    #[expect(dead_code, reason = "it is there until it is dropped")] OwnedSemaphorePermit,
);

impl Intake {
    /// Room for so many requests `at_once`, of at most `most` bytes each.
    pub fn new(most: usize, at_once: usize) -> Self {
        let grains = most.div_ceil(GRAIN).saturating_mul(at_once.max(1));
        let grains = grains.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            room: Arc::new(Semaphore::new(grains)),
            grains,
            most,
        }
    }

    /// Bytes of one request at most.
    pub fn most(&self) -> usize {
        self.most
    }

    /// The request in `body`, which says to have a digest, if it does, once there is room for as many bytes as it says that it has, or
    /// may have.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Busy`].
    pub async fn admit(&self, body: Body, said: Option<blake3::Hash>) -> Result<(Incoming, Place)> {
        let exact = body.size_hint().exact();
        let len = exact.map_or(self.most, |len| usize::try_from(len).unwrap_or(usize::MAX));
        if len > self.most {
            return Err(Error::TooLong { most: self.most });
        }
        let grains = len.div_ceil(GRAIN).clamp(1, self.grains);
        let grains = u32::try_from(grains).unwrap_or(u32::MAX);
        let place = self.room.clone().acquire_many_owned(grains);
        let busy = || Error::Busy("it has no room for another request's bytes");
        let place = tokio::time::timeout(SILENCE, place).await;
        let place = place.map_err(|_| busy())?.map_err(|_| busy())?;
        Ok((Incoming::new(body, self.most).saying(said), Place(place)))
    }
}

/// A request's bytes as they come.
pub struct Incoming {
    silence: Duration,
    body: BodyDataStream,
    held: BytesMut,
    digest: blake3::Hasher,
    /// The digest that it says it has.
    said: Option<blake3::Hash>,
    /// Bytes that may still come, and that might have.
    room: usize,
    most: usize,
    /// Bytes that came, since when.
    came: usize,
    since: Instant,
}

impl Incoming {
    /// Of `body`, of at most `most` bytes.
    pub fn new(body: Body, most: usize) -> Self {
        Self {
            silence: SILENCE,
            body: body.into_data_stream(),
            held: BytesMut::new(),
            digest: blake3::Hasher::new(),
            said: None,
            room: most,
            most,
            came: 0,
            since: Instant::now(),
        }
    }

    /// The same, which says to have a digest, if it does.
    pub fn saying(self, said: Option<blake3::Hash>) -> Self {
        Self { said, ..self }
    }

    /// Whether it says which digest it has.
    pub fn says_digest(&self) -> bool {
        self.said.is_some()
    }

    /// Waits for more bytes; false at the end.
    ///
    /// # Errors
    /// [`Error::Stopped`] where they do not come, or too slowly; [`Error::TooLong`].
    pub async fn more(&mut self) -> Result<bool> {
        let Some(chunk) = self.chunk().await? else {
            return Ok(false);
        };
        self.digest.update(&chunk);
        self.held.extend_from_slice(&chunk);
        Ok(true)
    }

    /// The next bytes, which are not held; none at the end.
    ///
    /// # Errors
    /// As [`Self::more`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let all = self.silence + Duration::from_secs_f64(self.came as f64 / SLOWEST);
        let most = all.saturating_sub(self.since.elapsed()).min(self.silence);
        let next = tokio::time::timeout(most, self.body.next()).await;
        let next = next.map_err(|_| Error::Stopped("the request stopped in the middle".into()))?;
        let Some(chunk) = next else {
            return Ok(None);
        };
        let chunk = chunk.map_err(|e| Error::Stopped(format!("the request broke off: {e}")))?;
        self.room = match self.room.checked_sub(chunk.len()) {
            Some(room) => room,
            None => return Err(Error::TooLong { most: self.most }),
        };
        self.came += chunk.len();
        Ok(Some(chunk))
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// As [`Self::more`]; [`Error::Invalid`] where it ends before.
    pub async fn take(&mut self, len: usize) -> Result<Bytes> {
        while self.held.len() < len {
            if !self.more().await? {
                let reason = format!("the request ends {} bytes early", len - self.held.len());
                return Err(Error::Invalid(reason));
            }
        }
        Ok(self.held.split_to(len).freeze())
    }

    /// Bytes that may still be taken.
    pub fn left(&self) -> usize {
        self.room + self.held.len()
    }

    /// What came and was not taken.
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// The digest of all of it, once nothing more may come.
    ///
    /// # Errors
    /// As [`Self::more`]; [`Error::Damaged`]; [`Error::Invalid`] where more comes all the same.
    pub async fn end(&mut self) -> Result<blake3::Hash> {
        while self.held.is_empty() && self.more().await? {}
        match self.held.is_empty() {
            true => self.checked(),
            false => Err(Error::Invalid(
                "the request goes on after its tensor".into(),
            )),
        }
    }

    /// All of it, with its digest.
    ///
    /// # Errors
    /// As [`Self::more`]; [`Error::Damaged`].
    pub async fn all(mut self) -> Result<(Bytes, blake3::Hash)> {
        while self.more().await? {}
        let digest = self.checked()?;
        Ok((self.held.freeze(), digest))
    }

    /// The digest of what came, if it is the one that was said.
    fn checked(&self) -> Result<blake3::Hash> {
        let digest = self.digest.finalize();
        match self.said.is_none_or(|said| said == digest) {
            true => Ok(digest),
            false => Err(Error::Damaged),
        }
    }

    /// What is wrong with a request of which `error` is found before all of it came: that it is damaged, if it is.
    pub async fn blame(&mut self, error: Error) -> Error {
        if self.said.is_none() || matches!(error, Error::Stopped(_) | Error::TooLong { .. }) {
            return error;
        }
        loop {
            match self.more().await {
                Ok(true) => self.held.clear(),
                Ok(false) => return self.checked().err().unwrap_or(error),
                Err(broken_off) => return broken_off,
            }
        }
    }

    /// Lets all of it pass.
    ///
    /// # Errors
    /// As [`Self::more`].
    pub async fn pass(mut self) -> Result<()> {
        while self.chunk().await?.is_some() {}
        Ok(())
    }
}

/// The digest that a request says it has, if it does.
pub(crate) struct Digested(pub Option<blake3::Hash>);

impl<S: Sync> FromRequestParts<S> for Digested {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let Some(said) = parts.headers.get(DIGEST) else {
            return Ok(Self(None));
        };
        let digest = blake3::Hash::from_hex(said.as_bytes());
        digest
            .map(|said| Self(Some(said)))
            .map_err(|_| Error::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    /// Nothing that is tried takes nearly as long.
    const LONG: Duration = Duration::from_secs(20);

    fn incoming(body: Body) -> Incoming {
        Incoming {
            silence: SHORT,
            ..Incoming::new(body, 1 << 20)
        }
    }

    #[tokio::test]
    async fn a_request_that_stops_or_drips_is_not_waited_for() {
        let stopped = || Body::from_stream(stream::pending::<Result<Bytes>>());
        let drips = || {
            let drips = stream::unfold((), |()| async {
                tokio::time::sleep(SHORT / 4).await;
                Some((Ok::<_, Error>(Bytes::from_static(b"x")), ()))
            });
            Body::from_stream(drips)
        };
        for body in [stopped(), drips()] {
            let mut incoming = incoming(body);
            let taken = tokio::time::timeout(LONG, incoming.take(1000)).await;
            let error = taken.unwrap().unwrap_err().to_string();
            assert!(error.contains("stopped in the middle"), "{error}");
        }
        for body in [stopped(), drips()] {
            let all = tokio::time::timeout(LONG, incoming(body).all()).await;
            assert!(matches!(all.unwrap(), Err(Error::Stopped(_))));
        }
        let passed = tokio::time::timeout(LONG, incoming(drips()).pass()).await;
        assert!(matches!(passed.unwrap(), Err(Error::Stopped(_))));
    }

    #[tokio::test]
    async fn a_request_is_no_longer_than_any() {
        let body = || Body::from(vec![0; 11]);
        let mut short = Incoming::new(body(), 10);
        let error = short.take(11).await.unwrap_err();
        assert!(matches!(error, Error::TooLong { most: 10 }), "{error}");
        // Who says so is not even listened to.
        let refused = Intake::new(10, 2).admit(body(), None).await.err().unwrap();
        assert!(matches!(refused, Error::TooLong { most: 10 }), "{refused}");
    }

    #[tokio::test]
    async fn a_request_that_is_not_what_was_sent_is_damaged() {
        let said = blake3::hash(b"hello");
        let incoming = |text: &'static str| Incoming::new(text.into(), 99).saying(Some(said));
        assert_eq!(incoming("hello").all().await.unwrap().1, said);
        assert!(matches!(incoming("hellp").all().await, Err(Error::Damaged)));
        // Found out before its end, it is no mistake of who sent it.
        for (text, damaged) in [("hello", false), ("jello", true)] {
            let mut incoming = incoming(text);
            incoming.take(2).await.unwrap();
            let error = incoming.blame(Error::Invalid("?".into())).await;
            assert_eq!(matches!(error, Error::Damaged), damaged, "{error}");
        }
        let mut unsaid = Incoming::new("jello".into(), 99);
        let error = unsaid.blame(Error::Invalid("?".into())).await;
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_room_for_so_many_bytes() {
        let intake = Intake::new(10 * GRAIN, 2);
        let body = |grains: usize| Body::from(vec![0; grains * GRAIN]);
        let first = intake.admit(body(10), None).await.unwrap();
        let second = intake.admit(body(7), None).await.unwrap();
        let third = intake.admit(body(3), None).await.unwrap();
        assert!(matches!(
            intake.admit(body(1), None).await,
            Err(Error::Busy(_))
        ));
        drop(third);
        // Who does not say how long it is may be as long as any.
        let chunks = stream::iter([Ok::<_, Error>(Bytes::from_static(b"x"))]);
        let unsaid = intake.admit(Body::from_stream(chunks), None);
        let (unsaid, ()) = tokio::join!(unsaid, async {
            tokio::time::sleep(SILENCE / 2).await;
            drop(first);
        });
        let (incoming, _place) = unsaid.unwrap();
        assert_eq!(&incoming.all().await.unwrap().0[..], b"x");
        drop(second);
    }
}

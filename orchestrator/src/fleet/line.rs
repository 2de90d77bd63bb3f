//! Requests to one worker, and what comes back: bounded, and fit to be shown.

use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lacuna_protocol::session::{
    DAMAGED, DIGEST, Info, OpenSession, Refusal, SessionOpened, TENSORS,
};
use lacuna_protocol::version::{SPOKEN, Versions, WITH_DIGESTS};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;

use tokio::time::timeout;

use super::config::WorkerConfig;
use super::patience::{PATIENCE, Pace, Patience};
use super::session::{Counted, Session};
use crate::error::{Error, Result, one_line};
use crate::interrupt;

/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Most characters of a session's name.
const MAX_NAME: usize = 64;
/// Bytes of a reply beside its tensors: more than any header, refusal or description takes.
pub const MARGIN: usize = 64 << 10;
/// Pauses before a request that was not answered is sent again, each more or less by half: what failed for many at once
/// must not come again from all of them at once.
const RETRIES: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// How often in a row a worker that is asked may say nothing.
const MISSED: usize = 2;
/// How long it is tried again for, from the first failure on.
const PERSIST: Duration = Duration::from_secs(8);

/// An answer's body, as it may be.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// Most bytes.
    pub limit: usize,
    /// Whether it begins while the request still goes out.
    pub streamed: bool,
}

impl From<usize> for Answer {
    fn from(limit: usize) -> Self {
        Self {
            limit,
            streamed: false,
        }
    }
}

/// Settings of an HTTP client whose TLS computes with `ring`.
pub fn http_client() -> reqwest::ClientBuilder {
    // The first call installs it; from then on it is there, which is all that is asked for.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
}

/// How a worker is reached.
#[derive(Clone)]
pub struct Line {
    http: reqwest::Client,
    worker: WorkerConfig,
    patience: Patience,
    pace: Pace,
    /// Whether both sides say the digest of what they send.
    digests: bool,
}

impl Line {
    /// To `worker`, which is not reached yet.
    ///
    /// # Errors
    /// [`Error::WorkerTrust`] when a file that says whom to trust is none; [`Error::WorkerUnreachable`] when the system gives
    /// no HTTP client.
    pub fn new(worker: &WorkerConfig) -> Result<Self> {
        let trusted = |error: lacuna_channel::Error| Error::WorkerTrust {
            worker: worker.url.to_string(),
            reason: error.to_string(),
        };
        let http = match worker.url.scheme() {
            "https" => {
                http_client().tls_backend_preconfigured(worker.trust.config().map_err(trusted)?)
            }
            // Whom the system trusts is no matter there, and takes a while to read.
            _ => http_client(),
        };
        let http = http
            .http1_only()
            .tcp_nodelay(true)
            .connect_timeout(CONNECT)
            // Strips go to the worker that they are meant for, and to nobody whom it names.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build();
        let http = http.map_err(|e| Error::unreachable(&worker.url, &e))?;
        Ok(Self {
            http,
            worker: worker.clone(),
            patience: PATIENCE,
            pace: Pace::default(),
            digests: false,
        })
    }

    /// What the worker was seen to take.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// From now on numbered requests and their answers go with a digest, where the agreed `protocol` has them.
    pub fn agreed(&mut self, protocol: u32) {
        self.digests = protocol >= WITH_DIGESTS;
    }

    /// Bytes of an answer's digest.
    pub fn digest_bytes(&self) -> usize {
        if self.digests { blake3::OUT_LEN } else { 0 }
    }

    /// Where the worker is.
    pub fn url(&self) -> &Url {
        &self.worker.url
    }

    /// What the worker says of itself, and the time that one round trip took.
    ///
    /// # Errors
    /// Those of [`Self::send_for`]; [`Error::WorkerReply`] when it makes no sense.
    pub async fn info(&self) -> Result<(Info, Duration)> {
        // The first request pays for the connection, so the second is timed.
        self.send(self.request(Method::GET, &["health", "ready"]))
            .await?;
        let start = Instant::now();
        let reply = self
            .send(self.request(Method::GET, &["v1", "info"]))
            .await?;
        let round_trip = start.elapsed();
        Ok((self.checked(self.json(&reply)?)?, round_trip))
    }

    /// What the worker says of itself, fit to be shown and to be counted with.
    fn checked(&self, mut info: Info) -> Result<Info> {
        let texts = [&mut info.version, &mut info.device, &mut info.adapter];
        let models = info.models.iter_mut();
        let models = models.flat_map(|model| [&mut model.kind, &mut model.digest]);
        for text in texts.into_iter().chain(models) {
            *text = one_line(text);
        }
        if info.gflops.is_some_and(|g| !(g.is_finite() && g > 0.0)) {
            return Err(self.nonsense("a speed that is not above zero"));
        }
        if info.limits.max_body_bytes == 0 {
            return Err(self.nonsense("it accepts no bytes"));
        }
        Ok(info)
    }

    /// The newest version of the protocol that the worker, by what it says of itself, and this side speak, from `least` on.
    ///
    /// # Errors
    /// [`Error::WorkerProtocol`] when there is none.
    pub fn agree(&self, info: &Info, least: u32) -> Result<u32> {
        let theirs = info.versions();
        let ours = Versions {
            lowest: least.max(SPOKEN.lowest),
            ..SPOKEN
        };
        ours.newest_common(theirs)
            .ok_or_else(|| Error::WorkerProtocol {
                worker: self.worker.url.to_string(),
                theirs,
                ours,
            })
    }

    /// That the worker holds the model of `digest`, by what it says of itself.
    ///
    /// # Errors
    /// [`Error::WorkerModel`].
    pub fn check_model(&self, info: &Info, digest: &str) -> Result<()> {
        if info.models.iter().any(|m| m.digest == digest) {
            return Ok(());
        }
        Err(Error::WorkerModel {
            worker: self.worker.url.to_string(),
            held: one_line(&held(info)),
            wanted: short(digest).to_owned(),
        })
    }

    /// Opens a session, and sees to it that it is closed.
    ///
    /// # Errors
    /// Those of [`Self::send_for`]; [`Error::WorkerSession`] when the worker takes none of this kind.
    pub async fn open(self, body: &OpenSession) -> Result<Session> {
        interrupt::check()?;
        let counted = Counted::new();
        let request = self.request(Method::POST, &["v1", "sessions"]).json(body);
        // Not to be left at an interrupt: the session would be open, and its name unknown.
        let reply = self.deliver(request, MARGIN.into()).await;
        let reply = reply.map_err(|error| match error {
            Error::WorkerRefused {
                worker,
                status: 422,
                reason,
                ..
            } => Error::WorkerSession { worker, reason },
            other => other,
        })?;
        let SessionOpened { session: name } = self.json(&reply)?;
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(word) {
            return Err(self.nonsense("the session's name is no word of letters and digits"));
        }
        let path = ["v1", "sessions", &name];
        let request = self.request(Method::DELETE, &path).timeout(CONNECT);
        let close = async move {
            if let Err(error) = self.deliver(request, MARGIN.into()).await {
                tracing::debug!("closing a session: {error}");
            }
        };
        Ok(Session::new(name, counted, close))
    }

    /// An error about a request that was not answered.
    fn lost(&self, error: &reqwest::Error) -> Error {
        if error.is_timeout() && !error.is_connect() {
            return self.silent(CONNECT, false);
        }
        Error::unreachable(&self.worker.url, error)
    }

    /// An error about a worker that was waited for, and is `there` or not.
    fn silent(&self, waited: Duration, there: bool) -> Error {
        Error::WorkerSilent {
            worker: self.worker.url.to_string(),
            seconds: waited.as_secs(),
            there,
        }
    }

    /// What `wanted` gives within `most`. Meanwhile the worker is asked whether it is there.
    ///
    /// # Errors
    /// [`Error::WorkerSilent`] at the end of that, or as soon as it is not there.
    async fn watched<T>(&self, most: Duration, wanted: impl Future<Output = T>) -> Result<T> {
        let start = Instant::now();
        let mut wanted = pin!(wanted);
        let mut missed = 0;
        loop {
            let left = most.saturating_sub(start.elapsed());
            if let Ok(got) = timeout(left.min(self.patience.look), &mut wanted).await {
                return Ok(got);
            }
            let end = start.elapsed() >= most;
            if !end {
                tokio::select! {
                    biased;
                    got = &mut wanted => return Ok(got),
                    there = self.is_there() => missed = if there { 0 } else { missed + 1 },
                }
            }
            if end || missed == MISSED {
                return Err(self.silent(start.elapsed(), missed == 0));
            }
        }
    }

    /// Whether the worker says a word.
    async fn is_there(&self) -> bool {
        let request = self.request(Method::GET, &["health", "live"]);
        let answer = timeout(self.patience.sign, request.send()).await;
        answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status().is_success()))
    }

    /// An error about what the worker answered.
    pub fn nonsense(&self, reason: &str) -> Error {
        Error::reply(&self.worker.url, reason)
    }

    /// Sends a numbered request, again if the connection fails, or whoever stands before the worker does not reach it, or bits
    /// flipped on the way: the worker knows a repeated number. A worker that is there and silent is asked once more: the
    /// connection may be lost, and nobody have said so.
    ///
    /// # Errors
    /// Those of [`Self::send_for`]; [`Error::WorkerDamaged`].
    pub async fn send_again(
        &self,
        path: &[&str],
        body: &Bytes,
        answer: impl Into<Answer>,
    ) -> Result<Vec<u8>> {
        let digest = self.digests.then(|| blake3::hash(body).to_hex());
        let request = || {
            let request = self.request(Method::POST, path);
            let request = request.header(reqwest::header::CONTENT_TYPE, TENSORS);
            let request = request.body(body.clone());
            match &digest {
                Some(digest) => request.header(DIGEST, digest.as_str()),
                None => request,
            }
        };
        self.again(request, answer).await
    }

    /// Sends what `request` makes in the same way: a request that does no more when it comes twice.
    ///
    /// # Errors
    /// As [`Self::send_again`].
    pub async fn again(
        &self,
        request: impl Fn() -> RequestBuilder,
        answer: impl Into<Answer>,
    ) -> Result<Vec<u8>> {
        let answer = answer.into();
        let mut pauses = RETRIES.into_iter();
        let (mut failing, mut asked_again) = (None, false);
        loop {
            let answered = self.send_for(request(), answer).await;
            let failed = match answered.and_then(|reply| self.undamaged(reply)) {
                Err(error @ Error::WorkerSilent { there: true, .. }) if !asked_again => {
                    asked_again = true;
                    error
                }
                Err(error) if error.passes() => error,
                other => return other,
            };
            let since = *failing.get_or_insert_with(Instant::now);
            let Some(pause) = pauses.next().filter(|_| since.elapsed() < PERSIST) else {
                return Err(failed);
            };
            tracing::warn!("{failed}; trying again");
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
        }
    }

    /// A reply without the digest at its end, which it must have where digests are sent.
    fn undamaged(&self, mut reply: Vec<u8>) -> Result<Vec<u8>> {
        if !self.digests {
            return Ok(reply);
        }
        let damaged = || Error::WorkerDamaged {
            worker: self.worker.url.to_string(),
        };
        let at = reply
            .len()
            .checked_sub(blake3::OUT_LEN)
            .ok_or_else(damaged)?;
        let digest = reply.split_off(at);
        // What is compared is no secret.
        match blake3::hash(&reply).as_slice() == digest {
            true => Ok(reply),
            false => Err(damaged()),
        }
    }

    /// A request to the path of these parts, below the worker's own.
    pub fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.worker.url.clone();
        // Always a base: the workers' file admits http and https alone.
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().extend(path);
        }
        let request = self.http.request(method, url);
        match &self.worker.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request that little is answered to.
    async fn send(&self, request: RequestBuilder) -> Result<Vec<u8>> {
        self.send_for(request, MARGIN).await
    }

    /// Sends a request and gives the body of its `answer`, unless this process is asked to end.
    ///
    /// # Errors
    /// [`Error::WorkerUnreachable`], [`Error::WorkerSilent`], [`Error::WorkerSlow`], [`Error::WorkerToken`],
    /// [`Error::WorkerRefused`], [`Error::WorkerReply`] or [`Error::Interrupted`].
    pub async fn send_for(
        &self,
        request: RequestBuilder,
        answer: impl Into<Answer>,
    ) -> Result<Vec<u8>> {
        interrupt::unless_asked(self.deliver(request, answer.into())).await
    }

    /// The same also at an end that was asked for.
    async fn deliver(&self, request: RequestBuilder, answer: Answer) -> Result<Vec<u8>> {
        let request = request.build().map_err(|e| self.lost(&e))?;
        let sent = request.body().and_then(reqwest::Body::as_bytes);
        let patience = &self.patience;
        let most = match sent {
            Some(body) => self.pace.silence(patience) + self.pace.transfer(patience, body.len()),
            None => patience.word,
        };
        let works = sent.is_some();
        let start = Instant::now();
        let response = self.watched(most, self.http.execute(request)).await?;
        let response = response.map_err(|e| self.lost(&e))?;
        if works {
            self.pace.answered(start.elapsed());
            tracing::trace!(after = ?start.elapsed(), "an answer begins");
        }
        let status = response.status();
        let worker = self.worker.url.to_string();
        if status == StatusCode::UNAUTHORIZED {
            return Err(Error::WorkerToken { worker });
        }
        // What is answered while it comes is not all there when the answer begins.
        let pause = match answer.streamed {
            true => most,
            false => patience.pause,
        };
        let limit = answer.limit + self.digest_bytes();
        let body = self.body(response, limit, pause).await?;
        if status.is_success() {
            return Ok(body);
        }
        let refusal = serde_json::from_slice(&body).unwrap_or_else(|_| Refusal {
            error: String::from_utf8_lossy(&body).into_owned(),
            code: String::new(),
        });
        if refusal.code == DAMAGED {
            return Err(Error::WorkerDamaged { worker });
        }
        Err(Error::WorkerRefused {
            worker,
            status: status.as_u16(),
            code: one_line(&refusal.code),
            reason: one_line(&refusal.error),
        })
    }

    /// A body of at most `limit` bytes, which must not fill the user's memory, nor come for ever.
    async fn body(&self, mut response: Response, limit: usize, pause: Duration) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        let start = Instant::now();
        loop {
            let most = pause + self.pace.transfer(&self.patience, body.len());
            let left = most.saturating_sub(start.elapsed());
            let chunk = self.watched(left, response.chunk()).await;
            let chunk = chunk.map_err(|silent| match silent {
                // It sends, and too little.
                Error::WorkerSilent { there: true, .. } => Error::WorkerSlow {
                    worker: self.worker.url.to_string(),
                    bytes: body.len(),
                    seconds: start.elapsed().as_secs(),
                },
                other => other,
            })?;
            let Some(chunk) = chunk.map_err(|e| self.lost(&e))? else {
                self.pace.came(body.len(), start.elapsed());
                return Ok(body);
            };
            if body.len() + chunk.len() > limit {
                let reason = format!("more than {limit} bytes");
                return Err(self.nonsense(&reason));
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// What a reply in JSON says.
    ///
    /// # Errors
    /// [`Error::WorkerReply`].
    pub fn json<T: DeserializeOwned>(&self, reply: &[u8]) -> Result<T> {
        serde_json::from_slice(reply).map_err(|e| self.nonsense(&e.to_string()))
    }
}

/// The models that a worker holds, by the beginnings of their digests.
pub fn held(info: &Info) -> String {
    let models: Vec<&str> = info.models.iter().map(|m| short(&m.digest)).collect();
    match models.is_empty() {
        true => "none".into(),
        false => models.join(","),
    }
}

/// The beginning of a digest, enough to tell two models apart.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::fleet::config::Trust;

    const SHORT: Duration = Duration::from_millis(300);

    /// To a worker that answers whoever connects with `begin`, and then with a byte every few milliseconds.
    async fn line_to(begin: &'static str) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(begin.as_bytes()).await;
                    while stream.write_all(b" ").await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                });
            }
        });
        let worker = WorkerConfig {
            url: url.parse().unwrap(),
            provider: "p".into(),
            token: None,
            trust: Trust::default(),
        };
        let patience = Patience {
            silence: SHORT,
            word: SHORT,
            pause: SHORT,
            look: SHORT / 10,
            sign: SHORT,
            slowest: 1e4,
            ..PATIENCE
        };
        Line {
            patience,
            ..Line::new(&worker).unwrap()
        }
    }

    #[tokio::test]
    async fn nobody_is_waited_for_for_ever() {
        let dripped = "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n";
        let error = line_to(dripped).await.info().await.unwrap_err();
        assert!(
            matches!(error, Error::WorkerSlow { bytes: 1.., .. }),
            "{error:?}"
        );
        // Neither the answer's first line, nor a word that says to go on.
        for begin in ["HTTP/1.1 2", "HTTP/1.1 100 Continue\r\n\r\n", ""] {
            let error = line_to(begin).await.info().await.unwrap_err();
            let ended = matches!(
                error,
                Error::WorkerSilent { .. } | Error::WorkerUnreachable { .. }
            );
            assert!(ended, "{begin}: {error:?}");
        }
    }
}

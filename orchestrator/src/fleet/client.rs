//! The dialogue with one worker.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::exchange::Resident;
use shared::wire::{
    AdvanceHeader, Dtype, Info, Message, OpenSession, PROTOCOL, Payload, Refusal, ReplyHeader,
    RunHeader, SessionOpened, TENSORS,
};

use super::Part;
use super::config::WorkerConfig;
use super::session::{Counted, Session};
use super::tally::{Kind, Size, Tally};
use super::tap::Tap;
use crate::error::{Error, Result, one_line};
use crate::interrupt;

/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a worker may stay silent. A large layer on a CPU takes seconds, never minutes.
const SILENCE: Duration = Duration::from_secs(120);
/// How long a worker may take to open a session.
const OPENING: Duration = Duration::from_secs(30);
/// Most characters of a session's name.
const MAX_NAME: usize = 64;
/// Bytes of a reply beside its tensors: more than any header, refusal or description takes.
const MARGIN: usize = 64 << 10;
/// Pauses before a request that was not answered is sent again.
const RETRIES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// What a worker's walk hands out at an exchange.
#[derive(Debug)]
pub struct Handed {
    /// The exchange's label.
    pub at: String,
    /// The tensors, by name.
    pub tensors: HashMap<String, Payload>,
    /// Of the message that they came in.
    pub size: Size,
}

/// How a worker is reached.
#[derive(Clone)]
struct Line {
    http: reqwest::Client,
    worker: WorkerConfig,
}

/// A connection to one worker.
pub struct Client {
    line: Line,
    session: Option<Session>,
    sequence: u64,
    /// What was sent to it and what it did.
    pub tally: Tally,
    /// Who keeps a copy of what is sent to it: an audit.
    pub tap: Option<Tap>,
}

impl Client {
    /// A client that has not said anything yet.
    ///
    /// # Errors
    /// [`Error::WorkerUnreachable`] when the system gives no HTTP client.
    pub fn new(worker: &WorkerConfig) -> Result<Self> {
        let http = reqwest::Client::builder()
            .http1_only()
            .tcp_nodelay(true)
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            // Strips go to the worker that they are meant for, and to nobody whom it names.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build();
        let http = http.map_err(|e| Error::unreachable(&worker.url, &e))?;
        Ok(Self {
            line: Line {
                http,
                worker: worker.clone(),
            },
            tally: Tally::new(worker),
            tap: None,
            session: None,
            sequence: 0,
        })
    }

    /// What the worker says of itself, and the time that one round trip took.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn info(&self) -> Result<(Info, Duration)> {
        self.line.info().await
    }

    /// Sends `up` bytes that mean nothing and has as many as `down` sent back.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn probe(&self, up: usize, down: usize) -> Result<()> {
        let path = ["v1", "probe", &down.to_string()];
        let request = self.line.request(Method::POST, &path).body(vec![0; up]);
        self.line.send_for(request, down + MARGIN).await?;
        Ok(())
    }

    /// Opens a session for the model of `digest`, in which the worker holds the strip of `resident` or
    /// none, as a lane of `picture`. It is closed when this is dropped, if not before.
    ///
    /// # Errors
    /// [`Error::WorkerUnreachable`], [`Error::WorkerRefused`], [`Error::WorkerToken`],
    /// [`Error::WorkerProtocol`], [`Error::WorkerModel`], [`Error::WorkerReply`] or [`Error::Interrupted`].
    pub async fn open(
        &mut self,
        digest: &str,
        resident: Option<Resident>,
        picture: Option<String>,
    ) -> Result<()> {
        let (info, _) = self.info().await?;
        self.line.check_protocol(&info)?;
        self.line.check_model(&info, digest)?;
        let body = OpenSession {
            protocol: PROTOCOL,
            model: digest.to_owned(),
            resident,
            picture,
        };
        let line = self.line.clone();
        // A task of its own: were this left while the worker opens a session, nobody would know which.
        let opening = tokio::spawn(async move { line.open(&body).await });
        let opened = interrupt::unless_asked(async {
            let failed = |e: tokio::task::JoinError| Error::Request(format!("opening: {e}"));
            opening.await.map_err(failed)?
        });
        self.session = Some(opened.await?);
        Ok(())
    }

    /// That the worker speaks this side's protocol.
    ///
    /// # Errors
    /// [`Error::WorkerProtocol`].
    pub fn check_protocol(&self, info: &Info) -> Result<()> {
        self.line.check_protocol(info)
    }

    /// That the worker holds the model of `digest`.
    ///
    /// # Errors
    /// [`Error::WorkerModel`].
    pub fn check_model(&self, info: &Info, digest: &str) -> Result<()> {
        self.line.check_model(info, digest)
    }

    /// Path of a request of the session.
    fn path<'a>(&'a self, what: &'a str) -> Result<[&'a str; 4]> {
        match &self.session {
            Some(session) => Ok(["v1", "sessions", &session.name, what]),
            None => Err(Error::Request("no session is open".into())),
        }
    }

    /// Has the worker do its part of an exchange; gives each piece's output, in order.
    ///
    /// # Errors
    /// As [`Self::open`]; [`Error::WorkerReply`] when an output is not what was asked for.
    pub async fn run(&mut self, kind: Kind, part: Part) -> Result<Vec<Payload>> {
        if let Some(tap) = &self.tap {
            tap.keep_part(&part);
        }
        self.sequence += 1;
        let mut wanted = Vec::with_capacity(part.len());
        let mut reply_bytes = MARGIN;
        let mut message = Message {
            header: RunHeader {
                sequence: self.sequence,
                work: Vec::with_capacity(part.len()),
            },
            tensors: HashMap::new(),
        };
        for (i, piece) in part.into_iter().enumerate() {
            for (name, input) in piece.work.inputs().iter().zip(piece.inputs) {
                message.tensors.insert(format!("{i}.{name}"), input.into());
            }
            let dtype = piece.work.output_dtype();
            reply_bytes += piece.output.iter().product::<usize>() * dtype.bitsize() / 8;
            wanted.push((format!("{i}.{}", piece.work.output()), dtype, piece.output));
            message.header.work.push(piece.work);
        }
        let (body, size) = packed(&message)?;
        drop(message);
        let path = self.path("run")?;
        let reply = self.line.send_again(&path, &body, reply_bytes).await?;
        self.tally.count_request(kind, size);
        let (outputs, size) = self.read(&reply, wanted)?;
        self.tally.count_reply(kind, size);
        Ok(outputs)
    }

    /// Brings the worker's walk what it waits for at the exchange `at`; gives what it hands out next,
    /// which takes at most `limit` bytes beside its header. What comes back is of another exchange, so
    /// only the request is counted here.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn advance(
        &mut self,
        kind: Kind,
        at: String,
        tensors: HashMap<String, Payload>,
        limit: usize,
    ) -> Result<Handed> {
        if let Some(tap) = &self.tap {
            tap.keep_message(&at, &tensors);
        }
        self.sequence += 1;
        let sequence = self.sequence;
        let header = AdvanceHeader { sequence, at };
        let (body, size) = packed(&Message { header, tensors })?;
        let path = self.path("advance")?;
        let reply = self.line.send_again(&path, &body, limit + MARGIN).await?;
        self.tally.count_request(kind, size);
        let nonsense = |e: shared::Error| self.nonsense(&e.to_string());
        let message = Message::<AdvanceHeader>::decode(&reply).map_err(nonsense)?;
        self.check_sequence(message.header.sequence)?;
        let size = Size {
            bytes: reply.len(),
            payload: message.payload_bytes(),
        };
        Ok(Handed {
            at: message.header.at,
            tensors: message.tensors,
            size,
        })
    }

    fn check_sequence(&self, answered: u64) -> Result<()> {
        if answered == self.sequence {
            return Ok(());
        }
        Err(self.nonsense(&format!("it answered {answered} to {}", self.sequence)))
    }

    /// An error about what the worker answered.
    pub fn nonsense(&self, reason: &str) -> Error {
        self.line.nonsense(reason)
    }

    /// Closes the session, if the worker can be told, and gives the account.
    pub async fn close(self) -> Tally {
        if let Some(session) = self.session {
            session.close().await;
        }
        self.tally
    }

    /// The tensors `wanted` of a reply, each of its number type and shape, and the reply's size.
    fn read(
        &self,
        bytes: &[u8],
        wanted: Vec<(String, Dtype, Vec<usize>)>,
    ) -> Result<(Vec<Payload>, Size)> {
        let nonsense = |e: shared::Error| self.nonsense(&e.to_string());
        let mut reply = Message::<ReplyHeader>::decode(bytes).map_err(nonsense)?;
        self.check_sequence(reply.header.sequence)?;
        let size = Size {
            bytes: bytes.len(),
            payload: reply.payload_bytes(),
        };
        let outputs = wanted
            .into_iter()
            .map(|(name, dtype, shape)| {
                let payload = reply.take(&name).map_err(nonsense)?;
                if payload.dtype() != dtype {
                    let reason = format!("{name} is {:?}, not {dtype:?}", payload.dtype());
                    return Err(self.nonsense(&reason));
                }
                if payload.shape() == shape {
                    return Ok(payload);
                }
                Err(nonsense(shared::Error::WrongShape {
                    name,
                    want: shape,
                    got: payload.shape().to_vec(),
                }))
            })
            .collect::<Result<_>>()?;
        Ok((outputs, size))
    }
}

impl Line {
    async fn info(&self) -> Result<(Info, Duration)> {
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

    fn check_protocol(&self, info: &Info) -> Result<()> {
        if info.protocol == PROTOCOL {
            return Ok(());
        }
        Err(Error::WorkerProtocol {
            worker: self.worker.url.to_string(),
            theirs: info.protocol,
            ours: PROTOCOL,
        })
    }

    fn check_model(&self, info: &Info, digest: &str) -> Result<()> {
        if info.models.iter().any(|m| m.digest == digest) {
            return Ok(());
        }
        let held: Vec<&str> = info.models.iter().map(|m| short(&m.digest)).collect();
        Err(Error::WorkerModel {
            worker: self.worker.url.to_string(),
            held: one_line(&held.join(", ")),
            wanted: short(digest).to_owned(),
        })
    }

    /// Opens a session, and sees to it that it is closed.
    async fn open(self, body: &OpenSession) -> Result<Session> {
        interrupt::check()?;
        let counted = Counted::new();
        let request = self.request(Method::POST, &["v1", "sessions"]).json(body);
        // Not to be left at an interrupt: the session would be open, and its name unknown.
        let reply = self.deliver(request.timeout(OPENING), MARGIN).await;
        let reply = reply.map_err(|error| match error {
            Error::WorkerRefused {
                worker,
                status: 422,
                reason,
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
            if let Err(error) = self.deliver(request, MARGIN).await {
                tracing::debug!("closing a session: {error}");
            }
        };
        Ok(Session::new(name, counted, close))
    }

    /// An error about a request that was not answered. Silence is not worth a second try: it has been
    /// long enough.
    fn lost(&self, error: &reqwest::Error) -> Error {
        if error.is_timeout() && !error.is_connect() {
            return Error::WorkerSilent {
                worker: self.worker.url.to_string(),
                seconds: SILENCE.as_secs(),
            };
        }
        Error::unreachable(&self.worker.url, error)
    }

    /// An error about what the worker answered.
    fn nonsense(&self, reason: &str) -> Error {
        Error::reply(&self.worker.url, reason)
    }

    /// Sends a numbered request, again if the connection fails: the worker knows a repeated number.
    async fn send_again(&self, path: &[&str], body: &Bytes, limit: usize) -> Result<Vec<u8>> {
        let mut pauses = RETRIES.into_iter();
        loop {
            let request = self
                .request(Method::POST, path)
                .header(reqwest::header::CONTENT_TYPE, TENSORS)
                .body(body.clone());
            match self.send_for(request, limit).await {
                Err(Error::WorkerUnreachable { reason, .. }) if pauses.len() > 0 => {
                    tracing::warn!("{}: {reason}; trying again", self.worker.url);
                    if let Some(pause) = pauses.next() {
                        tokio::time::sleep(pause).await;
                    }
                }
                other => return other,
            }
        }
    }

    /// A request to the path of these parts, below the worker's own.
    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
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

    /// As [`Self::deliver`], unless this process is asked to end.
    async fn send_for(&self, request: RequestBuilder, limit: usize) -> Result<Vec<u8>> {
        interrupt::unless_asked(self.deliver(request, limit)).await
    }

    /// Sends a request and gives the answer's body, of at most `limit` bytes; anything but success
    /// is an error that names the worker.
    async fn deliver(&self, request: RequestBuilder, limit: usize) -> Result<Vec<u8>> {
        let response = request.send().await.map_err(|e| self.lost(&e))?;
        let status = response.status();
        let worker = self.worker.url.to_string();
        if status == StatusCode::UNAUTHORIZED {
            return Err(Error::WorkerToken { worker });
        }
        let body = self.body(response, limit).await?;
        if status.is_success() {
            return Ok(body);
        }
        let reason = match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => refusal.error,
            Err(_) => String::from_utf8_lossy(&body).into_owned(),
        };
        Err(Error::WorkerRefused {
            worker,
            status: status.as_u16(),
            reason: one_line(&reason),
        })
    }

    /// A body of at most `limit` bytes: a worker must not fill the user's memory.
    async fn body(&self, mut response: Response, limit: usize) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.lost(&e))? {
            if body.len() + chunk.len() > limit {
                let reason = format!("more than {limit} bytes");
                return Err(self.nonsense(&reason));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn json<T: DeserializeOwned>(&self, reply: &[u8]) -> Result<T> {
        serde_json::from_slice(reply).map_err(|e| self.nonsense(&e.to_string()))
    }
}

/// A message as bytes, and its size.
fn packed<H: Serialize>(message: &Message<H>) -> Result<(Bytes, Size)> {
    let body = Bytes::from(message.encode()?);
    let size = Size {
        bytes: body.len(),
        payload: message.payload_bytes(),
    };
    Ok((body, size))
}

/// The beginning of a digest, enough to tell two models apart.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

//! The HTTP routes.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{self, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use futures::stream;
use lacuna_model::device::OpenDevice;
use lacuna_model::memory;
use lacuna_protocol::session::{
    DIGEST, Info, Limits, ModelInfo, OpenSession, SessionOpened, TENSORS,
};
use lacuna_protocol::version::SPOKEN;
use lacuna_wire::Message;
use tokio::sync::OwnedMutexGuard;

use crate::bounds::Bounds;
use crate::compute::Compute;
use crate::error::{Error, Result};
use crate::intake::{Incoming, Intake, Place};
use crate::metrics::{self, Metrics, Now};
use crate::model::Model;
use crate::program::{Ground, Program, Request};
use crate::sessions::{Guest, Lane, Room, Session, Sessions};
use crate::streamed;
use crate::tokens::{Secret, Tokens};
use crate::visitors::{Visitor, Visitors};

/// Most bytes of a picture's name.
const MAX_NAME: usize = 64;
/// Most bytes of a request that opens a session.
const OPENING: usize = 64 << 10;
/// Largest requests that are in memory at a time, and replies that are kept.
const AT_ONCE: usize = 4;
/// Connections of a picture, and some beside.
const CONNECTIONS: usize = 8;

/// How a worker behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// What a request must bring as `Authorization: Bearer`, this or a line of the file; none of both lets anybody in.
    pub token: Option<Secret>,
    /// A file of tokens, one a line, which may change.
    pub token_file: Option<PathBuf>,
    /// Latents that it accepts at most: batch, rows, columns. Sets the limit of a request's bytes.
    pub max_latents: [usize; 3],
    /// Pictures at a time; the lanes of one picture are sessions that share its place.
    pub max_sessions: usize,
    /// A session idle for so long is closed.
    pub session_idle: Duration,
    /// One that was never used is closed after so long.
    pub session_unused: Duration,
    /// And any, whatever is done in it.
    pub session_total: Duration,
    /// A picture waits so long for a place.
    pub session_wait: Duration,
    /// Pictures at a time of those who show one token; all there are where it is not said.
    pub max_sessions_each: Option<usize>,
    /// What was measured of the device, 10^9 operations a second.
    pub gflops: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: None,
            token_file: None,
            // 1024 x 1024 pixels with guidance.
            max_latents: [2, 128, 128],
            max_sessions: 16,
            session_idle: Duration::from_secs(600),
            session_unused: Duration::from_secs(30),
            session_total: Duration::from_secs(24 * 3600),
            session_wait: Duration::from_secs(20),
            max_sessions_each: None,
            gflops: None,
        }
    }
}

/// A worker's state, shared by its requests.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    info: Info,
    tokens: Tokens,
    visitors: Visitors,
    intake: Intake,
    metrics: Arc<Metrics>,
    wait: Duration,
    ground: Ground,
    room: Room,
    sessions: Sessions<Program>,
    stopping: AtomicBool,
}

impl Service {
    /// A service that computes on `model`, which lives on `device`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when latents may be larger than this machine's memory can hold, or the file of tokens is none;
    /// [`Error::Compute`] when the compute thread does not start.
    pub fn new(model: Arc<Model>, device: &OpenDevice, options: &Options) -> Result<Self> {
        let bounds = Bounds::new(&model, options.max_latents, memory::in_all())?;
        let limits = Limits {
            max_body_bytes: bounds.body_bytes,
            max_sessions: options.max_sessions,
            session_idle_seconds: options.session_idle.as_secs(),
        };
        let info = Info {
            protocol: SPOKEN.lowest,
            protocol_highest: Some(SPOKEN.highest),
            version: env!("CARGO_PKG_VERSION").into(),
            device: device.kind.into(),
            adapter: device.adapter.clone(),
            gflops: options.gflops,
            models: vec![ModelInfo {
                kind: "unet".into(),
                digest: model.digest().into(),
            }],
            limits,
        };
        let room = Room {
            pictures: options.max_sessions,
            batch: options.max_latents[0],
            idle: options.session_idle,
            unused: options.session_unused,
            total: options.session_total,
            each: options.max_sessions_each.unwrap_or(options.max_sessions),
            kept: AT_ONCE * bounds.body_bytes,
        };
        let metrics = Arc::new(Metrics::default());
        let compute = Compute::start(model.clone(), metrics.clone())
            .map_err(|e| Error::Compute(format!("cannot start a thread: {e}")))?;
        Ok(Self(Arc::new(Inner {
            info,
            tokens: Tokens::new(options.token.as_ref(), options.token_file.as_deref())?,
            visitors: Visitors::new(CONNECTIONS * (options.max_sessions + 1)),
            intake: Intake::new(bounds.body_bytes, AT_ONCE),
            metrics,
            wait: options.session_wait,
            ground: Ground {
                model,
                compute,
                bounds: Arc::new(bounds),
            },
            room,
            sessions: Sessions::new(room),
            stopping: AtomicBool::new(false),
        })))
    }

    /// What the worker says of itself.
    pub fn info(&self) -> &Info {
        &self.0.info
    }

    /// Whom the worker lets in.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    /// Who is connected.
    pub(crate) fn visitors(&self) -> &Visitors {
        &self.0.visitors
    }

    /// From now on not ready, and no new sessions; those open may end.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }

    /// Number of open sessions.
    pub fn open_sessions(&self) -> usize {
        self.0.sessions.count()
    }

    /// Closes idle sessions, now and then, for as long as it is polled.
    pub async fn expire_sessions(&self) {
        let pause = (self.0.room.least_patience() / 4)
            .clamp(Duration::from_millis(100), Duration::from_secs(30));
        loop {
            tokio::time::sleep(pause).await;
            let expired = self.0.sessions.expire();
            if expired > 0 {
                tracing::info!(expired, "closed idle sessions");
            }
        }
    }

    /// The routes.
    pub fn router(&self) -> Router {
        let guarded = Router::new()
            .route("/v1/info", get(info))
            .route("/v1/probe/{bytes}", post(probe))
            .route("/v1/sessions", post(open))
            .route("/v1/sessions/{id}", delete(close))
            .route("/v1/sessions/{id}/run", post(run))
            .route("/v1/sessions/{id}/advance", post(advance))
            .route("/v1/sessions/{id}/multiply", post(multiply))
            .layer(from_fn_with_state(self.clone(), authorize));
        Router::new()
            .route("/health/live", get(live))
            .route("/health/ready", get(ready))
            .merge(guarded)
            .layer(from_fn_with_state(self.0.metrics.clone(), metrics::count))
            .with_state(self.clone())
    }

    /// What was counted so far, for Prometheus.
    pub(crate) fn counted(&self) -> String {
        let now = Now {
            sessions: self.open_sessions(),
            queue: self.0.sessions.waiting() + self.0.ground.compute.waiting(),
            connections: self.visitors().guests(),
            ready: self.is_ready(),
        };
        self.0.metrics.text(&now)
    }

    /// Whether it takes new sessions. It exists only once the model is loaded and the device has passed its self-test.
    pub(crate) fn is_ready(&self) -> bool {
        !self.0.stopping.load(Ordering::Relaxed)
    }
}

/// Lets in who shows a token, before anything else is read of what it says.
async fn authorize(
    State(service): State<Service>,
    mut request: extract::Request,
    next: Next,
) -> Response {
    let shown = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let Some(guest) = service.tokens().admit(shown) else {
        return Error::Unauthorized.into_response();
    };
    // Where somebody else serves, nobody is counted.
    let visitor = request.extensions().get::<Arc<Visitor>>();
    if visitor.is_some_and(|visitor| !service.visitors().trust(visitor)) {
        return Error::Busy("it has no room for another connection").into_response();
    }
    request.extensions_mut().insert(guest);
    next.run(request).await
}

/// `GET /health/live`.
pub(crate) async fn live() -> &'static str {
    "live"
}

async fn ready(State(service): State<Service>) -> Result<&'static str> {
    match service.is_ready() {
        true => Ok("ready"),
        false => Err(Error::Stopping),
    }
}

async fn info(State(service): State<Service>) -> Json<Info> {
    Json(service.0.info.clone())
}

/// Takes any body and gives as many bytes as are asked for, to measure the connection by.
async fn probe(
    State(service): State<Service>,
    Path(bytes): Path<usize>,
    body: Body,
) -> Result<Response> {
    let most = service.0.intake.most();
    if bytes > most {
        return Err(Error::Invalid(format!("{bytes} bytes; at most {most}")));
    }
    // Nothing of it is kept.
    Incoming::new(body, most).pass().await?;
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let parts = (0..bytes).step_by(ZEROS.len());
    let parts = parts.map(move |at| Bytes::from_static(&ZEROS[..ZEROS.len().min(bytes - at)]));
    let body = Body::from_stream(stream::iter(parts.map(Ok::<_, Infallible>)));
    Ok(([(header::CONTENT_LENGTH, bytes)], body).into_response())
}

async fn open(
    State(service): State<Service>,
    Extension(guest): Extension<Guest>,
    body: Body,
) -> Result<(StatusCode, Json<SessionOpened>)> {
    if service.0.stopping.load(Ordering::Relaxed) {
        return Err(Error::Stopping);
    }
    let invalid = |e: serde_json::Error| Error::Invalid(format!("opening a session: {e}"));
    let (body, _) = Incoming::new(body, OPENING).all().await?;
    let request: serde_json::Value = serde_json::from_slice(&body).map_err(invalid)?;
    // The version comes first: what else is said may be of one that this worker cannot read.
    let protocol = request.get("protocol").and_then(serde_json::Value::as_u64);
    if let Some(wanted) =
        protocol.filter(|v| u32::try_from(*v).map_or(true, |v| !SPOKEN.contains(v)))
    {
        let held = SPOKEN;
        return Err(Error::Protocol { wanted, held });
    }
    let request: OpenSession = serde_json::from_value(request).map_err(invalid)?;
    let held = &service.0.info.models[0].digest;
    if request.model != *held {
        return Err(Error::UnknownModel {
            wanted: request.model,
            held: held.clone(),
        });
    }
    let picture = request.picture;
    if picture.as_ref().is_some_and(|name| name.len() > MAX_NAME) {
        let reason = format!("the picture's name has more than {MAX_NAME} bytes");
        return Err(Error::Invalid(reason));
    }
    let kind = request.kind.name();
    let lane = Lane {
        picture,
        batch: Program::batch(&request.kind, &service.0.ground),
        guest,
    };
    let start = || match service.0.stopping.load(Ordering::Relaxed) {
        true => Err(Error::Stopping),
        false => Program::start(request.kind, &service.0.ground),
    };
    let session = service.0.sessions.open(start, lane, service.0.wait).await?;
    tracing::info!(session = &session[..8], kind, "opened a session");
    Ok((StatusCode::CREATED, Json(SessionOpened { session })))
}

async fn close(
    State(service): State<Service>,
    Extension(guest): Extension<Guest>,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    service.0.sessions.close(&id, &guest)?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /v1/sessions/{id}/run`.
async fn run(
    State(service): State<Service>,
    Extension(guest): Extension<Guest>,
    Path(id): Path<String>,
    Digested(said): Digested,
    body: Body,
) -> Result<Response> {
    let read = |body: &Bytes| Ok(Request::Run(Message::decode(body)?));
    answer(&service, (&id, &guest), (body, said), read).await
}

/// `POST /v1/sessions/{id}/advance`.
async fn advance(
    State(service): State<Service>,
    Extension(guest): Extension<Guest>,
    Path(id): Path<String>,
    Digested(said): Digested,
    body: Body,
) -> Result<Response> {
    let read = |body: &Bytes| Ok(Request::Advance(Message::decode(body)?));
    answer(&service, (&id, &guest), (body, said), read).await
}

/// `POST /v1/sessions/{id}/multiply`.
async fn multiply(
    State(service): State<Service>,
    Extension(guest): Extension<Guest>,
    Path(id): Path<String>,
    Digested(said): Digested,
    body: Body,
) -> Result<Response> {
    let (session, admitted) = admit(&service, (&id, &guest), (body, said)).await?;
    streamed::multiply(session, admitted).await
}

/// The session `id`, which nobody else speaks in until its reply is kept, and what comes in for it: of the body nothing is
/// read before there is such a session, and room for it.
async fn admit(
    service: &Service,
    (id, guest): (&str, &Guest),
    (body, said): (Body, Option<blake3::Hash>),
) -> Result<(OwnedMutexGuard<Session<Program>>, (Incoming, Place))> {
    let session = service.0.sessions.get(id, guest)?.lock_owned().await;
    service.0.sessions.trim();
    Ok((session, service.0.intake.admit(body, said).await?))
}

/// The reply of the session `id` to the request that `read` finds in `body`, made in a task of its own: should
/// the connection break once all has come, the work is still done and its reply kept, so that the retry finds it and
/// nothing is computed twice.
async fn answer(
    service: &Service,
    (id, guest): (&str, &Guest),
    (body, said): (Body, Option<blake3::Hash>),
    read: impl FnOnce(&Bytes) -> Result<Request> + Send + 'static,
) -> Result<Response> {
    let (mut session, (incoming, place)) = admit(service, (id, guest), (body, said)).await?;
    let metrics = service.0.metrics.clone();
    let work = async move {
        let _place = place;
        let (body, digest) = incoming.all().await?;
        // Many bytes take a while, which others need not wait for.
        let request = tokio::task::spawn_blocking(move || read(&body));
        let request = request.await.map_err(|e| Error::Compute(e.to_string()))??;
        let sequence = request.sequence();
        if let Some(reply) = session.replay(sequence, &digest)? {
            return Ok(reply);
        }
        let start = Instant::now();
        let reply = session.program.answer(request).await?;
        if let Program::Strip(_) = session.program {
            metrics.computed("strip", start.elapsed());
        }
        session.answered(sequence, digest, reply.clone());
        Ok::<_, Error>(reply)
    };
    let reply = tokio::spawn(work)
        .await
        .map_err(|e| Error::Compute(e.to_string()))??;
    let kind = (header::CONTENT_TYPE, TENSORS.to_owned());
    if said.is_none() {
        return Ok(([kind], reply).into_response());
    }
    let digest = streamed::digest_of(&reply);
    let length = (
        header::CONTENT_LENGTH,
        (reply.len() + digest.len()).to_string(),
    );
    let body = Body::from_stream(stream::iter([reply, digest].map(Ok::<_, Infallible>)));
    Ok(([kind, length], body).into_response())
}

/// The digest that a request says it has, if it does.
struct Digested(Option<blake3::Hash>);

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

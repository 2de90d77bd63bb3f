//! The HTTP routes.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{self, Path, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use futures::stream;
use lacuna_model::device::{OpenDevice, is_cpu};
use lacuna_model::memory;
use lacuna_protocol::session::{Info, Limits, ModelInfo, OpenSession, SessionOpened, TENSORS};
use lacuna_protocol::version::SPOKEN;
use lacuna_wire::Message;
use tokio::sync::OwnedMutexGuard;
use tracing::{Instrument, Span, debug_span};

use crate::error::{Error, Result};
use crate::held::Held;
use crate::intake::{Digested, Incoming, Place};
use crate::metrics::{self, Metrics, Now};
use crate::model::Model;
use crate::options::Options;
use crate::program::{Program, Request};
use crate::pushes::{self, Pushes};
use crate::sessions::{Guest, Lane, Room, Session, Sessions};
use crate::shelf::{Bench, Shelf};
use crate::store::Store;
use crate::streamed::{self, Device};
use crate::tokens::{Rights, Tokens};
use crate::turns::Turns;
use crate::visitors::{Visitor, Visitors};

/// Most bytes of a picture's name.
const MAX_NAME: usize = 64;
/// Most bytes of a request that opens a session.
const OPENING: usize = 64 << 10;
/// Connections of a picture, and some beside.
const CONNECTIONS: usize = 8;

/// A worker's state, shared by its requests.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    about: About,
    tokens: Tokens,
    visitors: Visitors,
    metrics: Arc<Metrics>,
    held: Held,
    wait: Duration,
    turns: Turns,
    store: Option<Arc<Store>>,
    shelf: Arc<Shelf>,
    room: Room,
    sessions: Sessions<Program>,
    stopping: AtomicBool,
}

/// What of what the worker says of itself stays as it is.
struct About {
    device: String,
    adapter: String,
}

impl Service {
    /// A service that computes on `model`, which lives on `device`, and on those of its store; without either it computes nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] when latents may be larger than this machine's memory can hold, or the file of tokens is none;
    /// [`Error::Compute`] when the compute thread does not start; those of [`Store::open`].
    pub fn new(
        model: impl Into<Option<Arc<Model>>>,
        device: &OpenDevice,
        options: &Options,
    ) -> Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let rights = Rights {
            push: options.token_pushes,
        };
        let token = options.token.as_ref().map(|token| (token, rights));
        let tokens = Tokens::new(token, options.token_file.as_deref())?;
        // A GPU holds the weights itself, and says nothing of how many.
        let memory = is_cpu(&device.device).then(memory::in_all).flatten();
        let store = options.store.as_ref();
        let store = store.map(|(dir, most)| Store::open(dir, *most, memory).map(Arc::new));
        let store = store.transpose()?;
        let bench = Bench {
            device: device.clone(),
            precision: options.precision,
            latents: options.max_latents,
            metrics: metrics.clone(),
        };
        let shelf = Shelf::new(model.into(), store.clone(), bench, options.gflops)?;
        let room = Room {
            pictures: options.max_sessions,
            batch: options.max_latents[0],
            idle: options.session_idle,
            unused: options.session_unused,
            total: options.session_total,
            each: options.max_sessions_each.unwrap_or(options.max_sessions),
        };
        Ok(Self(Arc::new(Inner {
            about: About {
                device: device.kind.into(),
                adapter: device.adapter.clone(),
            },
            tokens,
            visitors: Visitors::new(CONNECTIONS * (options.max_sessions + 1)),
            metrics,
            held: Held::new(device.clone()),
            wait: options.session_wait,
            turns: Turns::default(),
            store,
            shelf: Arc::new(shelf),
            room,
            sessions: Sessions::new(room),
            stopping: AtomicBool::new(false),
        })))
    }

    /// What the worker says of itself.
    pub fn info(&self) -> Info {
        let Inner {
            about, shelf, room, ..
        } = &*self.0;
        let models = shelf.digests().into_iter().map(|digest| ModelInfo {
            kind: "unet".into(),
            digest,
        });
        Info {
            protocol: SPOKEN.lowest,
            protocol_highest: Some(SPOKEN.highest),
            version: env!("CARGO_PKG_VERSION").into(),
            device: about.device.clone(),
            adapter: about.adapter.clone(),
            gflops: shelf.gflops(),
            models: models.collect(),
            limits: Limits {
                max_body_bytes: self.longest(),
                max_sessions: room.pictures,
                session_idle_seconds: room.idle.as_secs(),
            },
            load: Some(self.0.metrics.load(self.open_sessions(), self.queue())),
        }
    }

    /// How many pictures wait for a place, and how much work for the device.
    fn queue(&self) -> usize {
        self.0.sessions.waiting() + self.0.turns.waiting()
    }

    /// Bytes of one request at most, by the first model that is loaded.
    fn longest(&self) -> usize {
        let grounds = self.0.shelf.grounds();
        let first = grounds.first();
        first.map_or(pushes::PIECE, |ground| ground.bounds.body_bytes)
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

    /// Closes idle sessions, and gives up idle uploads, now and then, for as long as it is polled.
    pub async fn expire(&self) {
        let pause = (self.0.room.least_patience() / 4)
            .clamp(Duration::from_millis(100), Duration::from_secs(30));
        loop {
            tokio::time::sleep(pause).await;
            let expired = self.0.sessions.expire();
            if expired > 0 {
                tracing::info!(expired, "closed idle sessions");
            }
            if let Some(store) = self.0.store.clone() {
                match tokio::task::spawn_blocking(move || store.give_up_stale()).await {
                    Ok(Ok(stale @ 1..)) => tracing::info!(stale, "gave up uploads"),
                    Ok(Err(error)) => tracing::warn!("{error}"),
                    _ => {}
                }
            }
        }
    }

    /// The routes.
    pub fn router(&self) -> Router {
        let Inner {
            store, shelf, wait, ..
        } = &*self.0;
        let pushes = Pushes::new(store.clone(), shelf.clone(), *wait);
        let guarded = Router::new()
            .route("/v1/info", get(info))
            .route("/v1/probe/{bytes}", post(probe))
            .route("/v1/sessions", post(open))
            .route("/v1/sessions/{id}", delete(close))
            .route("/v1/sessions/{id}/run", post(run))
            .route("/v1/sessions/{id}/advance", post(advance))
            .route("/v1/sessions/{id}/multiply", post(multiply))
            .merge(pushes.router())
            .layer(from_fn_with_state(self.clone(), authorize));
        Router::new()
            .route("/health/live", get(live))
            .route("/health/ready", get(ready))
            .merge(guarded)
            .layer(from_fn_with_state(self.0.metrics.clone(), metrics::count))
            .with_state(self.clone())
    }

    /// What was counted so far, for Prometheus. It may wait for a GPU.
    pub(crate) fn counted(&self) -> String {
        let stored = self.0.store.as_ref().map(|store| store.list());
        let now = Now {
            sessions: self.open_sessions(),
            queue: self.queue(),
            models: stored.as_ref().map_or(0, |stored| stored.models.len()),
            stored: stored.map_or(0, |stored| stored.bytes),
            connections: self.visitors().guests(),
            ready: self.is_ready(),
            device: self.0.held.now(),
        };
        self.0.metrics.text(&now)
    }

    /// Whether it takes new sessions. It exists only once the model that it was started with is loaded, if there is one, and the
    /// device has passed its self-test.
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
    let Some(admitted) = service.tokens().admit(shown) else {
        return Error::Unauthorized.into_response();
    };
    // Where somebody else serves, nobody is counted.
    let visitor = request.extensions().get::<Arc<Visitor>>();
    if visitor.is_some_and(|visitor| !service.visitors().trust(visitor)) {
        return Error::Busy("it has no room for another connection").into_response();
    }
    request.extensions_mut().insert::<Guest>(admitted.digest);
    request.extensions_mut().insert(admitted.rights);
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
    Json(service.info())
}

/// Takes any body and gives as many bytes as are asked for, to measure the connection by.
async fn probe(
    State(service): State<Service>,
    Path(bytes): Path<usize>,
    body: Body,
) -> Result<Response> {
    let most = service.longest();
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
    let picture = request.picture;
    if picture.as_ref().is_some_and(|name| name.len() > MAX_NAME) {
        let reason = format!("the picture's name has more than {MAX_NAME} bytes");
        return Err(Error::Invalid(reason));
    }
    let kind = request.kind.name();
    let ground = service
        .0
        .shelf
        .acquire(&request.model, service.0.wait)
        .await?;
    let lane = Lane {
        picture,
        batch: Program::batch(&request.kind, &ground),
        guest,
    };
    let start = || match service.0.stopping.load(Ordering::Relaxed) {
        true => Err(Error::Stopping),
        false => Program::start(request.kind, &ground),
    };
    let session = service.0.sessions.open(start, lane, service.0.wait).await?;
    tracing::info!(session = short(&session), kind, "opened a session");
    Ok((StatusCode::CREATED, Json(SessionOpened { session })))
}

async fn close(
    State(service): State<Service>,
    Extension(guest): Extension<Guest>,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    service.0.sessions.close(&id, &guest)?;
    tracing::debug!(session = short(&id), "closed a session");
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
    let device = Device {
        turns: service.0.turns.clone(),
        guest,
        metrics: service.0.metrics.clone(),
    };
    let answer = streamed::multiply(session, admitted, device);
    answer.instrument(span(&id)).await
}

/// The session `id`, which nobody else speaks in until its reply is kept, and what comes in for it: of the body nothing is
/// read before there is such a session, and room for it.
async fn admit(
    service: &Service,
    (id, guest): (&str, &Guest),
    (body, said): (Body, Option<blake3::Hash>),
) -> Result<(OwnedMutexGuard<Session<Program>>, (Incoming, Place))> {
    let session = service.0.sessions.get(id, guest)?.lock_owned().await;
    let grounds = service.0.shelf.grounds();
    let kept = grounds.iter().map(|ground| ground.kept()).sum();
    service.0.sessions.trim(kept);
    let admitted = session.program.ground().intake.admit(body, said).await?;
    Ok((session, admitted))
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
    let (metrics, turns) = (service.0.metrics.clone(), service.0.turns.clone());
    let guest = *guest;
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
        let due = Instant::now();
        let _turn = turns.take(&guest).await;
        let waited = due.elapsed();
        metrics.waited(waited);
        let start = Instant::now();
        let reply = session.program.answer(request).await?;
        if let Program::Strip(_) = session.program {
            metrics.computed("strip", start.elapsed());
        }
        let (computed, bytes) = (start.elapsed(), reply.len());
        tracing::debug!(sequence, ?waited, ?computed, bytes, "answered");
        session.answered(sequence, digest, reply.clone());
        Ok::<_, Error>(reply)
    };
    let reply = tokio::spawn(work.instrument(span(id)))
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

/// Around what is done for a session: lines of the log that are of one picture can be told by it, on both sides.
fn span(id: &str) -> Span {
    debug_span!("exchange", session = short(id))
}

/// The beginning of a session's name, enough to tell it from others and too little to use it.
fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

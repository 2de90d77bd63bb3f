//! The HTTP routes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use shared::device::OpenDevice;
use shared::exchange::Resident;
use shared::memory;
use shared::partition::Levels;
use shared::wire::{
    AdvanceHeader, Info, Limits, Message, ModelInfo, OpenSession, PROTOCOL, ReplyHeader, RunHeader,
    SessionOpened, TENSORS,
};
use tokio::sync::OwnedMutexGuard;

use crate::compute::{Batch, Compute};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::sessions::{Lane, Room, Session, Sessions};
use crate::walk::Walk;

/// Most tokens of a prompt: several times what CLIP makes of any.
const MAX_TOKENS: usize = 1024;

/// Most parts that an attention is cut into: more than any fleet has workers.
const MAX_PARTS: usize = 1024;

/// Most bytes of a picture's name.
const MAX_NAME: usize = 64;

/// Most rows or columns of latents: more than anybody's memory holds the attention of.
pub const MAX_SIDE: usize = 8192;

/// Most batch entries.
pub const MAX_BATCH: usize = 64;

/// How a worker behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// What a request must bring as `Authorization: Bearer`; none lets anybody in.
    pub token: Option<String>,
    /// Latents that it accepts at most: batch, rows, columns. Sets the limit of a request's bytes.
    pub max_latents: [usize; 3],
    /// Pictures at a time; the lanes of one picture are sessions that share its place.
    pub max_sessions: usize,
    /// A session idle for so long is closed.
    pub session_idle: Duration,
    /// One that was never used is closed after so long.
    pub session_unused: Duration,
    /// What was measured of the device, 10^9 operations a second.
    pub gflops: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: None,
            // 1024 x 1024 pixels with guidance.
            max_latents: [2, 128, 128],
            max_sessions: 16,
            session_idle: Duration::from_secs(600),
            session_unused: Duration::from_secs(30),
            gflops: None,
        }
    }
}

/// A worker's state, shared by its requests.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    info: Info,
    /// Digest of the token: comparing digests takes the same time wherever they differ.
    token: Option<blake3::Hash>,
    model: Arc<Model>,
    max_latents: [usize; 3],
    compute: Compute,
    room: Room,
    sessions: Sessions,
    stopping: AtomicBool,
}

impl Service {
    /// A service that computes on `model`, which lives on `device`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when latents may be larger than this machine's memory can hold; [`Error::Compute`]
    /// when the compute thread does not start.
    pub fn new(model: Arc<Model>, device: &OpenDevice, options: &Options) -> Result<Self> {
        let limits = Limits {
            max_body_bytes: largest_request(&model, options.max_latents, memory::in_all())?,
            max_sessions: options.max_sessions,
            session_idle_seconds: options.session_idle.as_secs(),
        };
        let info = Info {
            protocol: PROTOCOL,
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
        };
        let compute = Compute::start(model.clone(), options.max_sessions)
            .map_err(|e| Error::Compute(format!("cannot start a thread: {e}")))?;
        Ok(Self(Arc::new(Inner {
            info,
            model,
            max_latents: options.max_latents,
            token: options.token.as_deref().map(|t| blake3::hash(t.as_bytes())),
            compute,
            room,
            sessions: Sessions::new(room),
            stopping: AtomicBool::new(false),
        })))
    }

    /// What the worker says of itself.
    pub fn info(&self) -> &Info {
        &self.0.info
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
            .layer(from_fn_with_state(self.clone(), authorize))
            .layer(DefaultBodyLimit::max(self.0.info.limits.max_body_bytes));
        Router::new()
            .route("/health/live", get(live))
            .route("/health/ready", get(ready))
            .merge(guarded)
            .with_state(self.clone())
    }
}

/// Bytes of the largest request for latents of at most `latents` (batch, rows, columns), which a machine of
/// `memory` bytes must hold, with what it becomes and what is made of it.
fn largest_request(model: &Model, latents: [usize; 3], memory: Option<u64>) -> Result<usize> {
    let [batch, rows, columns] = latents;
    let limits = [
        ("batch entries", batch, MAX_BATCH),
        ("rows", rows, MAX_SIDE),
        ("columns", columns, MAX_SIDE),
    ];
    for (what, value, most) in limits {
        if !(1..=most).contains(&value) {
            let reason = format!("latents of at most {value} {what}; it must be 1 to {most}");
            return Err(Error::Invalid(reason));
        }
    }
    let bytes = model.largest_request(latents)?;
    let needed = 3 * bytes as u64;
    match memory {
        Some(memory) if needed > memory => Err(Error::Invalid(format!(
            "latents of at most {batch} x {rows} x {columns} (batch, rows, columns) take {:.1} GB of memory, \
             this machine has {:.1} GB; take fewer",
            needed as f64 / 1e9,
            memory as f64 / 1e9
        ))),
        _ => Ok(bytes),
    }
}

async fn authorize(State(service): State<Service>, request: Request, next: Next) -> Response {
    let Some(token) = service.0.token else {
        return next.run(request).await;
    };
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    match given {
        Some(given) if blake3::hash(given.as_bytes()) == token => next.run(request).await,
        _ => Error::Unauthorized.into_response(),
    }
}

/// `GET /health/live`.
pub(crate) async fn live() -> &'static str {
    "live"
}

async fn ready(State(service): State<Service>) -> Result<&'static str> {
    // The service exists only once the model is loaded and the device has passed its self-test.
    if service.0.stopping.load(Ordering::Relaxed) {
        return Err(Error::Stopping);
    }
    Ok("ready")
}

async fn info(State(service): State<Service>) -> Json<Info> {
    Json(service.0.info.clone())
}

/// Takes any body and gives as many bytes as are asked for, to measure the connection by.
async fn probe(
    State(service): State<Service>,
    Path(bytes): Path<usize>,
    _: Bytes,
) -> Result<Vec<u8>> {
    let most = service.0.info.limits.max_body_bytes;
    if bytes > most {
        return Err(Error::Invalid(format!("{bytes} bytes; at most {most}")));
    }
    Ok(vec![0; bytes])
}

async fn open(
    State(service): State<Service>,
    Json(request): Json<OpenSession>,
) -> Result<(StatusCode, Json<SessionOpened>)> {
    if service.0.stopping.load(Ordering::Relaxed) {
        return Err(Error::Stopping);
    }
    if request.protocol != PROTOCOL {
        return Err(Error::Protocol {
            wanted: request.protocol,
            held: PROTOCOL,
        });
    }
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
    let (walk, batch) = match request.resident {
        Some(resident) => {
            let batch = resident.batch;
            (Some(start_walk(&service, resident)?), batch)
        }
        // A session without a strip may be sent a whole batch.
        None => (None, service.0.room.batch),
    };
    let session = service.0.sessions.open(walk, Lane { picture, batch })?;
    tracing::info!(session = &session[..8], "opened a session");
    Ok((StatusCode::CREATED, Json(SessionOpened { session })))
}

async fn close(State(service): State<Service>, Path(id): Path<String>) -> Result<StatusCode> {
    service.0.sessions.close(&id)?;
    Ok(StatusCode::NO_CONTENT)
}

/// A walk over a strip that is one, of latents that are not too large.
fn start_walk(service: &Service, resident: Resident) -> Result<Walk> {
    let model = &service.0.model;
    let levels = Levels::new(resident.rows, model.unet().levels());
    let refuse = |reason: String| Err(Error::Invalid(reason));
    let Range { start, end } = resident.strip;
    if start >= end || end > levels.coarsest() {
        return refuse(format!(
            "a strip of rows {start}..{end} of the {} at the coarsest level",
            levels.coarsest()
        ));
    }
    for part in [resident.tile.queries, resident.tile.keys] {
        if part.index >= part.of || part.of > MAX_PARTS {
            return refuse(format!(
                "part {} of {} of an attention",
                part.index, part.of
            ));
        }
    }
    let wanted = [resident.batch, resident.rows, resident.columns];
    let most = service.0.max_latents;
    let fits = wanted
        .iter()
        .zip(most)
        .all(|(w, most)| (1..=most).contains(w));
    if !fits || !(1..=MAX_TOKENS).contains(&resident.tokens) {
        return refuse(format!(
            "latents of {wanted:?} (batch, rows, columns) and {} tokens; this worker takes at most \
             {most:?} and {MAX_TOKENS}; see its --max-batch, --max-rows and --max-columns",
            resident.tokens
        ));
    }
    Walk::start(model.clone(), resident)
        .map_err(|e| Error::Compute(format!("cannot start a thread: {e}")))
}

/// `POST /v1/sessions/{id}/run`.
async fn run(
    State(service): State<Service>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response> {
    let session = service.0.sessions.get(&id)?.lock_owned().await;
    in_any_case(do_work(service, session, body)).await
}

/// `POST /v1/sessions/{id}/advance`.
async fn advance(
    State(service): State<Service>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response> {
    let session = service.0.sessions.get(&id)?.lock_owned().await;
    in_any_case(go_on(session, body)).await
}

/// The reply that `work` makes, in a task of its own: should the connection break meanwhile, the
/// work is still done and its reply kept, so that the retry finds it and nothing is computed twice.
async fn in_any_case(
    work: impl Future<Output = Result<Bytes>> + Send + 'static,
) -> Result<Response> {
    let reply = tokio::spawn(work)
        .await
        .map_err(|e| Error::Compute(e.to_string()))??;
    Ok(([(header::CONTENT_TYPE, TENSORS)], reply).into_response())
}

async fn do_work(
    service: Service,
    mut session: OwnedMutexGuard<Session>,
    body: Bytes,
) -> Result<Bytes> {
    let message = Message::<RunHeader>::decode(&body)?;
    drop(body);
    let sequence = message.header.sequence;
    if let Some(reply) = session.replay(sequence)? {
        return Ok(reply);
    }
    let reply = compute(&service.0.compute, message).await?;
    session.answered(sequence, reply.clone());
    Ok(reply)
}

async fn go_on(mut session: OwnedMutexGuard<Session>, body: Bytes) -> Result<Bytes> {
    let message = Message::<AdvanceHeader>::decode(&body)?;
    drop(body);
    let AdvanceHeader { sequence, at } = message.header;
    if let Some(reply) = session.replay(sequence)? {
        return Ok(reply);
    }
    let Some(walk) = &session.walk else {
        return Err(Error::Invalid("this session holds no strip".into()));
    };
    let (at, tensors) = walk.advance((at, message.tensors)).await?;
    let header = AdvanceHeader { sequence, at };
    let reply = Bytes::from(Message { header, tensors }.encode()?);
    session.answered(sequence, reply.clone());
    Ok(reply)
}

/// The reply to a message: the output of each piece of its work.
async fn compute(compute: &Compute, mut message: Message<RunHeader>) -> Result<Bytes> {
    let sequence = message.header.sequence;
    let works = std::mem::take(&mut message.header.work);
    let outputs: Vec<String> = works
        .iter()
        .enumerate()
        .map(|(i, work)| format!("{i}.{}", work.output()))
        .collect();
    let mut batch = Batch::with_capacity(works.len());
    for (i, work) in works.into_iter().enumerate() {
        let inputs = work
            .inputs()
            .iter()
            .map(|part| {
                let name = format!("{i}.{part}");
                message.take(&name)?.into_tensor(&name)
            })
            .collect::<shared::wire::Result<Vec<_>>>()?;
        batch.push((work, inputs));
    }
    if let Some(name) = message.tensors.keys().next() {
        return Err(Error::Invalid(format!("tensor {name} belongs to no work")));
    }
    let results = compute.run(batch).await?;
    let reply = Message {
        header: ReplyHeader { sequence },
        tensors: outputs.into_iter().zip(results).collect::<HashMap<_, _>>(),
    };
    Ok(reply.encode()?.into())
}

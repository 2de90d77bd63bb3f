//! The HTTP routes.
//!
//! - `GET /v1/unet`: the model, how large pictures may be, and what providers will see.
//! - `POST /v1/pictures`: opens one.
//! - `POST /v1/pictures/{id}/calls`: a U-Net call.
//! - `DELETE /v1/pictures/{id}`: closes it, and waits until its sessions are closed.
//! - `GET /v1/report`: what was done, and who saw what.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use futures::StreamExt;
use lacuna_orchestrator::report::Report;
use lacuna_wire::Message;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::bounds::Bounds;
use crate::door::Door;
use crate::guard::Guard;
use crate::message::{Opened, VERSION, tensors};
use crate::pictures::Pictures;
use crate::place::Places;
use crate::refusal::{Refusal, Result};

/// How long a request may take to come: from this machine it takes milliseconds.
const COMING: Duration = Duration::from_secs(60);

/// A U-Net that is served.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    config: Map<String, Value>,
    bounds: Bounds,
    places: Arc<Places>,
    pictures: Pictures,
}

impl Service {
    /// Serves pictures of at most `bounds`, computed at `places`, of a model that says `config` of itself
    /// ([`crate::facts::config`]). A picture that nobody calls for `idle` ends.
    pub fn new(config: Map<String, Value>, bounds: Bounds, places: Places, idle: Duration) -> Self {
        let places = Arc::new(places);
        Self(Arc::new(Inner {
            config,
            bounds,
            pictures: Pictures::new(places.clone(), idle),
            places,
        }))
    }

    /// What was done, and who saw what, of all pictures that ended.
    pub fn report(&self) -> Report {
        self.0.places.report()
    }

    /// The routes, for those whom `guard` lets in.
    pub fn router(&self, guard: Guard) -> Router {
        Router::new()
            .route("/v1/unet", get(unet))
            .route("/v1/pictures", post(open))
            .route("/v1/pictures/{id}", delete(close))
            .route("/v1/pictures/{id}/calls", post(call))
            .route("/v1/report", get(report))
            .with_state(self.clone())
            // Of whoever is not let in nothing else is read.
            .layer(from_fn_with_state(Arc::new(guard), admit))
    }

    /// Serves at the `door` until `shutdown` completes; then closes every picture.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn serve(
        &self,
        door: &mut Door,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        let taken = || std::io::Error::other("it is served there already");
        let listener = door.take_listener().ok_or_else(taken)?;
        // Requests and replies alternate: Nagle's algorithm would hold each back for an acknowledgement.
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::warn!("cannot set TCP_NODELAY: {error}");
            }
        });
        let served = axum::serve(listener, self.router(door.guard()));
        let served = served.with_graceful_shutdown(shutdown).await;
        self.0.pictures.close_all().await;
        served
    }
}

async fn admit(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.admit(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn unet(State(Service(inner)): State<Service>) -> Json<Value> {
    let [batch, rows, columns] = inner.bounds.latents;
    Json(json!({
        "protocol": VERSION,
        "version": env!("CARGO_PKG_VERSION"),
        "model": inner.places.unet.digest(),
        "config": inner.config,
        "most": {"batch": batch, "rows": rows, "columns": columns},
    }))
}

async fn report(State(service): State<Service>) -> Json<Report> {
    Json(service.report())
}

async fn open(
    State(Service(inner)): State<Service>,
    body: Body,
) -> Result<(StatusCode, Json<Opened>)> {
    let body = whole(body, inner.bounds.opening()).await?;
    let inputs = inner.bounds.read_opening(&body)?;
    drop(body);
    let opened = inner.pictures.open(inputs).await?;
    Ok((StatusCode::CREATED, Json(opened)))
}

async fn call(
    State(Service(inner)): State<Service>,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response> {
    let picture = inner.pictures.get(&id)?;
    let body = whole(body, inner.bounds.call()).await?;
    let (sample, timestep) = inner.bounds.read_call(&body, picture.latents)?;
    drop(body);
    let (output, predicted) = picture.call(sample, timestep).await?;
    let message = Message {
        header: predicted,
        tensors: [(tensors::SAMPLE.to_owned(), output.into())].into(),
    };
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, message.encode()?).into_response())
}

async fn close(State(Service(inner)): State<Service>, Path(id): Path<String>) -> StatusCode {
    inner.pictures.close(&id).await;
    StatusCode::NO_CONTENT
}

/// A request's bytes, of which there are `most`.
async fn whole(body: Body, most: usize) -> Result<Bytes> {
    if body.size_hint().lower() > most as u64 {
        // Nothing of it is kept; but whoever still sends it would not hear why it is refused.
        let mut passing = body.into_data_stream();
        let pass = async { while let Some(Ok(_)) = passing.next().await {} };
        let _ = timeout(COMING, pass).await;
        return Err(Refusal::TooLong { most });
    }
    let came = timeout(COMING, to_bytes(body, most)).await;
    let came = came.map_err(|_| Refusal::Broken("it stopped in the middle".into()))?;
    came.map_err(|error| {
        let too_long = std::error::Error::source(&error)
            .is_some_and(|source| source.to_string().contains("length limit"));
        match too_long {
            true => Refusal::TooLong { most },
            false => Refusal::Broken(error.to_string()),
        }
    })
}

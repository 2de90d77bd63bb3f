//! The HTTP routes of the store: `/v1/models`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use lacuna_protocol::models::{Announcement, Received, Stored, Upload, is_digest, is_file_name};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::error::{Error, Result};
use crate::intake::{Digested, Incoming, Intake};
use crate::shelf::Shelf;
use crate::store::Store;
use crate::tokens::Rights;

/// Bytes of one request at most, of which few at a time are in memory.
pub const PIECE: usize = 16 << 20;
/// Such requests at a time.
const AT_ONCE: usize = 8;
/// Most bytes of an announcement.
const ANNOUNCEMENT: usize = 128 << 10;
/// How often one who waits looks whether a model was looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What the store's requests are about.
#[derive(Clone)]
pub struct Pushes {
    store: Option<Arc<Store>>,
    shelf: Arc<Shelf>,
    intake: Intake,
    wait: Duration,
}

impl Pushes {
    /// To the `store`, if there is one, of models that the `shelf` lends. A model that came is looked at for as long as `wait`
    /// before whoever sent it is told to ask again.
    pub fn new(store: Option<Arc<Store>>, shelf: Arc<Shelf>, wait: Duration) -> Self {
        Self {
            store,
            shelf,
            intake: Intake::new(PIECE, AT_ONCE),
            wait,
        }
    }

    /// The routes, for those who showed a token.
    pub fn router<S>(self) -> Router<S> {
        Router::new()
            .route("/v1/models", get(list))
            .route("/v1/models/{digest}", post(begin).delete(remove))
            .route("/v1/models/{digest}/finish", post(finish))
            .route("/v1/models/{digest}/{file}/{offset}", post(append))
            .with_state(self)
    }

    /// The store.
    fn store(&self) -> Result<Arc<Store>> {
        self.store.clone().ok_or(Error::NoStore)
    }

    /// The same, to be changed by who has these `rights`, as to the model of `digest`: the gate before anything of a request's body.
    fn store_of(&self, rights: Rights, digest: &str) -> Result<Arc<Store>> {
        let store = self.store()?;
        match (rights.push, is_digest(digest)) {
            (false, _) => Err(Error::Forbidden),
            (true, false) => Err(Error::Invalid("the digest is not 64 digits".into())),
            (true, true) => Ok(store),
        }
    }
}

/// What `work` on the store's folder gives, which may take a while.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = spawn_blocking(work).await;
    done.map_err(|error| Error::Disk(error.to_string()))?
}

/// `GET /v1/models`: what is kept. Whoever may compute may ask.
async fn list(State(pushes): State<Pushes>) -> Result<Json<Stored>> {
    Ok(Json(pushes.store()?.list()))
}

/// `POST /v1/models/{digest}`: begins to take a model, or says how much of it is there.
async fn begin(
    State(pushes): State<Pushes>,
    Extension(rights): Extension<Rights>,
    Path(digest): Path<String>,
    body: Body,
) -> Result<Json<Upload>> {
    let store = pushes.store_of(rights, &digest)?;
    let (body, _) = Incoming::new(body, ANNOUNCEMENT).all().await?;
    let announced: Announcement = serde_json::from_slice(&body)
        .map_err(|error| Error::Invalid(format!("announcing a model: {error}")))?;
    let there = match pushes.shelf.was_given(&digest) {
        true => None,
        false => on_disk(move || store.begin(&digest, &announced)).await?,
    };
    // It may have made room.
    pushes.shelf.forget_removed();
    Ok(Json(Upload {
        held: there.is_none(),
        files: there.unwrap_or_default(),
        piece: PIECE,
    }))
}

/// `POST /v1/models/{digest}/{file}/{offset}`: takes bytes of a file, which are written while they come, or when all of them came if
/// they say their digest.
async fn append(
    State(pushes): State<Pushes>,
    Extension(rights): Extension<Rights>,
    Path((digest, file, offset)): Path<(String, String, u64)>,
    Digested(said): Digested,
    body: Body,
) -> Result<Json<Received>> {
    let store = pushes.store_of(rights, &digest)?;
    if !is_file_name(&file) {
        return Err(Error::Invalid("no file of a model has such a name".into()));
    }
    let seat = store.seat(&digest, &file)?;
    let (incoming, _place) = pushes.intake.admit(body, said).await?;
    let bytes = seat.write(offset, incoming).await?;
    store.touch(&digest);
    Ok(Json(Received { bytes }))
}

/// `POST /v1/models/{digest}/finish`: keeps what came, if it is the model that was announced.
async fn finish(
    State(pushes): State<Pushes>,
    Extension(rights): Extension<Rights>,
    Path(digest): Path<String>,
) -> Result<StatusCode> {
    let store = pushes.store_of(rights, &digest)?;
    if pushes.shelf.was_given(&digest) {
        return Ok(StatusCode::NO_CONTENT);
    }
    if store.close_upload(&digest)? {
        let (store, digest, shelf) = (store.clone(), digest.clone(), pushes.shelf.clone());
        // It goes on, whoever waits for it.
        spawn_blocking(move || store.check(&digest, &|base| shelf.base(base)));
    }
    let until = Instant::now() + pushes.wait;
    while store.outcome(&digest)?.is_none() {
        if Instant::now() >= until {
            return Err(Error::Checking);
        }
        sleep(LOOK).await;
    }
    tracing::info!(digest = &digest[..12], "a model is kept");
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /v1/models/{digest}`: removes a model, or what of it came.
async fn remove(
    State(pushes): State<Pushes>,
    Extension(rights): Extension<Rights>,
    Path(digest): Path<String>,
) -> Result<StatusCode> {
    let store = pushes.store_of(rights, &digest)?;
    on_disk(move || store.remove(&digest)).await?;
    pushes.shelf.forget_removed();
    Ok(StatusCode::NO_CONTENT)
}

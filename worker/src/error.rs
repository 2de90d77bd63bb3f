//! What a worker refuses, and with which status.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lacuna_protocol::session::{DAMAGED, Refusal};
use lacuna_protocol::version::Versions;

use crate::metrics::Refused;

/// The result of a request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token is missing or wrong.
    #[error("the token is missing or wrong")]
    Unauthorized,
    /// The session does not exist, or no longer.
    #[error("no session {0}; it was closed, or expired")]
    UnknownSession(String),
    /// The orchestrator wants other weights.
    #[error("this worker does not hold the model {wanted}; it holds {held}")]
    UnknownModel {
        /// The digest asked for.
        wanted: String,
        /// The digest held.
        held: String,
    },
    /// The orchestrator speaks another version.
    #[error(
        "this worker speaks protocol {held}, the orchestrator {wanted}; upgrade the {}",
        if *.wanted > u64::from(.held.highest) { "worker" } else { "orchestrator" }
    )]
    Protocol {
        /// The orchestrator's.
        wanted: u64,
        /// The worker's.
        held: Versions,
    },
    /// A request came out of order.
    #[error("request {got} came when {want} was due")]
    Sequence {
        /// The number due.
        want: u64,
        /// The number that came.
        got: u64,
    },
    /// A request has the number of another, which was answered.
    #[error("request {0} was answered already, and had other content; a retry must repeat it")]
    Repeated(u64),
    /// The message is malformed, or asks for what the model does not have.
    #[error("{0}")]
    Invalid(String),
    /// The message is not what was sent.
    #[error("the request is damaged: it does not have the digest that it says")]
    Damaged,
    /// The request has more bytes than any may have.
    #[error("the request is longer than any, which have {most} bytes at most")]
    TooLong {
        /// Bytes at most.
        most: usize,
    },
    /// The request did not come to its end, or its answer was not taken.
    #[error("{0}")]
    Stopped(String),
    /// The reply to a request that is repeated is not kept any more.
    #[error("the reply to request {0} is not kept any more: there was no room for it")]
    Dropped(u64),
    /// The token does not carry the right.
    #[error(
        "this token may not push or remove models: that takes `push` behind it in --token-file, or --token-pushes"
    )]
    Forbidden,
    /// The worker keeps no models.
    #[error("this worker keeps no models; start it with --store")]
    NoStore,
    /// There is no such model in the store.
    #[error("this worker keeps no model {0}")]
    NotKept(String),
    /// Nobody announced such a file, or it made room for others.
    #[error(
        "nobody announced such a file of the model {0} here, or it made room for others; announce it again"
    )]
    NoUpload(String),
    /// What comes leaves a gap.
    #[error("of this file {there} bytes are there; go on with those that follow")]
    Offset {
        /// Bytes that are there.
        there: u64,
    },
    /// Not all of the model came.
    #[error("of {name} {there} bytes of {bytes} are there")]
    Unfinished {
        /// The file.
        name: String,
        /// Bytes that are there.
        there: u64,
        /// Bytes that were announced.
        bytes: u64,
    },
    /// What came is not the model that was announced.
    #[error("nothing of it is kept: {0}")]
    Refused(String),
    /// There is no room in the store, and none can be made.
    #[error(
        "there is no room for {needed} bytes: --store-size is {most}, and what is kept is in use or still comes"
    )]
    Full {
        /// Bytes of the model.
        needed: u64,
        /// Bytes of the store.
        most: u64,
    },
    /// Sessions use the model.
    #[error("sessions use this model; it can be removed when they end")]
    InUse,
    /// What came is being looked at.
    #[error("this worker looks whether what came is the model that was announced")]
    Checking,
    /// The store's folder cannot be read or written.
    #[error("the store: {0}")]
    Disk(String),
    /// No more sessions, or no more work.
    #[error("this worker is busy: {0}")]
    Busy(&'static str),
    /// The model is not loaded yet.
    #[error("this worker is loading its model")]
    Loading,
    /// The service is shutting down.
    #[error("this worker is shutting down")]
    Stopping,
    /// The device failed.
    #[error("{0}")]
    Compute(String),
}

impl From<lacuna_wire::Error> for Error {
    fn from(error: lacuna_wire::Error) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<lacuna_shares::Error> for Error {
    fn from(error: lacuna_shares::Error) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<lacuna_model::Error> for Error {
    fn from(error: lacuna_model::Error) -> Self {
        match error {
            lacuna_model::Error::Device(_) | lacuna_model::Error::Compute { .. } => {
                Self::Compute(error.to_string())
            }
            other => Self::Invalid(other.to_string()),
        }
    }
}

impl From<lacuna_protocol::Error> for Error {
    fn from(error: lacuna_protocol::Error) -> Self {
        match error {
            lacuna_protocol::Error::Model(error) => error.into(),
            other => Self::Invalid(other.to_string()),
        }
    }
}

impl Error {
    /// The status, and a word for programs that stays what it is.
    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "token"),
            Self::UnknownSession(_) => (StatusCode::NOT_FOUND, "session"),
            Self::UnknownModel { .. } | Self::NotKept(_) => (StatusCode::NOT_FOUND, "model"),
            Self::Protocol { .. } => (StatusCode::CONFLICT, "protocol"),
            Self::Sequence { .. } => (StatusCode::CONFLICT, "sequence"),
            Self::Repeated(_) => (StatusCode::CONFLICT, "repeated"),
            Self::Dropped(_) => (StatusCode::GONE, "dropped"),
            Self::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Self::Damaged => (StatusCode::BAD_REQUEST, DAMAGED),
            Self::TooLong { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_long"),
            Self::Stopped(_) => (StatusCode::REQUEST_TIMEOUT, "stopped"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "right"),
            Self::NoStore => (StatusCode::NOT_FOUND, "store"),
            Self::NoUpload(_) => (StatusCode::NOT_FOUND, "upload"),
            Self::Offset { .. } => (StatusCode::CONFLICT, "offset"),
            Self::Unfinished { .. } => (StatusCode::CONFLICT, "unfinished"),
            Self::Refused(_) => (StatusCode::UNPROCESSABLE_ENTITY, "refused"),
            Self::Full { .. } => (StatusCode::INSUFFICIENT_STORAGE, "full"),
            Self::InUse => (StatusCode::CONFLICT, "in_use"),
            Self::Checking => (StatusCode::SERVICE_UNAVAILABLE, "checking"),
            Self::Disk(_) => (StatusCode::INTERNAL_SERVER_ERROR, "disk"),
            Self::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Self::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            Self::Compute(_) => (StatusCode::INTERNAL_SERVER_ERROR, "compute"),
        }
    }

    /// Seconds after which the same may be asked for again, where that helps.
    fn again_after(&self) -> Option<u32> {
        match self {
            Self::Busy(_) | Self::Checking => Some(2),
            Self::Loading => Some(5),
            _ => None,
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, code) = self.status();
        let refusal = Refusal {
            error: self.to_string(),
            code: code.to_owned(),
        };
        let mut response = (status, Json(refusal)).into_response();
        response.extensions_mut().insert(Refused(code));
        if let Some(seconds) = self.again_after() {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        // What was not read to its end cannot be followed by another request.
        if matches!(self, Self::TooLong { .. } | Self::Stopped(_)) {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }
}

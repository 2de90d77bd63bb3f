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
            Self::UnknownModel { .. } => (StatusCode::NOT_FOUND, "model"),
            Self::Protocol { .. } => (StatusCode::CONFLICT, "protocol"),
            Self::Sequence { .. } => (StatusCode::CONFLICT, "sequence"),
            Self::Repeated(_) => (StatusCode::CONFLICT, "repeated"),
            Self::Dropped(_) => (StatusCode::GONE, "dropped"),
            Self::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Self::Damaged => (StatusCode::BAD_REQUEST, DAMAGED),
            Self::TooLong { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_long"),
            Self::Stopped(_) => (StatusCode::REQUEST_TIMEOUT, "stopped"),
            Self::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Self::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            Self::Compute(_) => (StatusCode::INTERNAL_SERVER_ERROR, "compute"),
        }
    }

    /// Seconds after which the same may be asked for again, where that helps.
    fn again_after(&self) -> Option<u32> {
        match self {
            Self::Busy(_) => Some(2),
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

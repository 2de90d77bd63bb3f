//! What a worker refuses, and with which status.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lacuna_protocol::session::Refusal;
use lacuna_protocol::version::Versions;

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

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::UnknownSession(_) | Self::UnknownModel { .. } => StatusCode::NOT_FOUND,
            Self::Protocol { .. } | Self::Sequence { .. } | Self::Repeated(_) => {
                StatusCode::CONFLICT
            }
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Busy(_) | Self::Loading | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::Compute(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let refusal = Refusal {
            error: self.to_string(),
        };
        (status, Json(refusal)).into_response()
    }
}

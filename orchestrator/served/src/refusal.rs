//! What is refused, and the word for it that programs go by.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lacuna_orchestrator::Error;
use serde_json::json;

/// The result of a request.
pub type Result<T, E = Refusal> = std::result::Result<T, E>;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The token is missing or wrong.
    #[error(
        "the token is missing or wrong; it is in the file that `lacuna unet` names, which its user alone can read"
    )]
    Token,
    /// The request comes from a page in a browser, or was led here by a name that is not this machine's.
    #[error("{0}; this service is for programs on this machine, not for pages in a browser")]
    Foreign(String),
    /// The picture was closed, or was idle for too long, or its last call failed.
    #[error(
        "there is no such picture: it was closed, idle for too long, or ended by an error; open it again"
    )]
    Gone,
    /// A call of the picture is still computed.
    #[error("a call of this picture is still computed; a picture takes one at a time")]
    Overtaken,
    /// Every place is taken by a picture of which a call is computed.
    #[error("{most} pictures are being computed, as many as can be; try again later")]
    Busy {
        /// Pictures at most.
        most: usize,
    },
    /// The request is longer than any.
    #[error(
        "the request has more than the {most} bytes that any may have; pictures are bounded by --max-batch and --max-size of `lacuna unet`"
    )]
    TooLong {
        /// Bytes at most.
        most: usize,
    },
    /// The request did not come to its end.
    #[error("the request did not come to its end: {0}")]
    Broken(String),
    /// The message is malformed, or does not fit the model.
    #[error("{0}")]
    Invalid(String),
    /// The picture is larger than any.
    #[error(
        "latents of {wanted:?} (batch, rows, columns) are more than {most:?}; start `lacuna unet` with a larger --max-batch or --max-size"
    )]
    TooLarge {
        /// Batch, rows and columns of the picture.
        wanted: [usize; 3],
        /// The most.
        most: [usize; 3],
    },
    /// The U-Net was not computed.
    #[error(transparent)]
    Unet(#[from] Error),
}

impl From<lacuna_wire::Error> for Refusal {
    fn from(error: lacuna_wire::Error) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl Refusal {
    /// The status, and a word for programs that stays what it is.
    pub fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Token => (StatusCode::UNAUTHORIZED, "token"),
            Self::Foreign(_) => (StatusCode::FORBIDDEN, "foreign"),
            Self::Gone => (StatusCode::GONE, "gone"),
            Self::Overtaken => (StatusCode::CONFLICT, "overtaken"),
            Self::Busy { .. } => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Self::TooLong { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_long"),
            Self::Broken(_) => (StatusCode::REQUEST_TIMEOUT, "broken"),
            Self::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Self::TooLarge { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "too_large"),
            Self::Unet(error) => of_unet(error),
        }
    }

    /// The address of the worker whose doing it is, where one is to blame.
    fn worker(&self) -> Option<&str> {
        let Self::Unet(error) = self else {
            return None;
        };
        let worker = error.lost_worker().or(error.useless_worker());
        worker.or(error.wrong_worker())
    }
}

fn of_unet(error: &Error) -> (StatusCode, &'static str) {
    match error {
        Error::Policy { .. } => (StatusCode::FORBIDDEN, "policy"),
        Error::Interrupted => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        Error::WorkerWrong { .. } => (StatusCode::BAD_GATEWAY, "worker_wrong"),
        error if error.is_of_a_worker() => (StatusCode::BAD_GATEWAY, "worker"),
        Error::Memory { .. } => (StatusCode::INSUFFICIENT_STORAGE, "memory"),
        Error::Request(_) | Error::Workers(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "unet"),
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code) = self.status();
        let body = json!({
            "code": code,
            "error": self.to_string(),
            "worker": self.worker(),
        });
        (status, Json(body)).into_response()
    }
}

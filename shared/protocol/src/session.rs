//! What is said as JSON: what a worker is, sessions, and the headers of tensor messages.

use lacuna_wire::Dtype;
use serde::{Deserialize, Serialize};

use crate::exchange::Resident;

/// Version of everything in this module. The two sides must have the same.
pub const PROTOCOL: u32 = 3;

/// Media type of a tensor message.
pub const TENSORS: &str = "application/vnd.safetensors";

/// `GET /v1/info`: what a worker is and holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// [`PROTOCOL`] of the worker.
    pub protocol: u32,
    /// The worker's version.
    pub version: String,
    /// `cpu` or `wgpu`.
    pub device: String,
    /// Name of the GPU, or of the CPU backend.
    pub adapter: String,
    /// What it measured of its device ([`lacuna_model::speed`]), 10^9 operations a second, for plans.
    #[serde(default)]
    pub gflops: Option<f64>,
    /// The models that it holds.
    pub models: Vec<ModelInfo>,
    /// What it accepts.
    pub limits: Limits,
}

/// One model that a worker holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// What it is; `unet` today.
    pub kind: String,
    /// [`lacuna_model::weights::Weights::digest`].
    pub digest: String,
}

/// What a worker accepts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of one request.
    pub max_body_bytes: usize,
    /// Sessions at a time.
    pub max_sessions: usize,
    /// A session that is idle for so long is closed.
    pub session_idle_seconds: u64,
}

/// `POST /v1/sessions`: opens a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenSession {
    /// [`PROTOCOL`] of the orchestrator.
    pub protocol: u32,
    /// Digest of the model to compute with.
    pub model: String,
    /// The worker's strip, for a session that is to hold one; else every request brings its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident: Option<Resident>,
    /// Names the picture, at random: its lanes are sessions of one picture, and take one place at a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<String>,
}

/// The answer to [`OpenSession`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionOpened {
    /// Names the session in later requests; not to be guessed.
    pub session: String,
}

/// Any refusal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// One line, for a person.
    pub error: String,
}

/// One piece of work on one strip. The layer's sizes and weights are the worker's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Work {
    /// A convolution of rows that bring their halo: `x` `[B, C_in, rows, W]` to `y`
    /// `[B, C_out, (rows - K) / stride + 1, W_out]`.
    Conv {
        /// The layer.
        layer: String,
        /// Whether the first output row is an odd one of the picture: a CPU computes rows in pairs,
        /// and pairs them as it would in the whole.
        odd: bool,
    },
    /// Group statistics: `x` `[B, C, rows, W]` to `moments` `[B * groups, 2]`, mean and M2 in f64.
    /// The count follows from the shape, so it is not sent.
    Moments {
        /// The layer.
        layer: String,
    },
    /// Attention products: `q` `[B, T, C]`, `k` and `v` `[B, S, C]` to `y` `[B, T, C]`.
    Attention {
        /// The layer.
        layer: String,
    },
}

impl Work {
    /// The layer that it is of.
    pub fn layer(&self) -> &str {
        match self {
            Self::Conv { layer, .. } | Self::Moments { layer } | Self::Attention { layer } => layer,
        }
    }

    /// Names of the tensors that it takes.
    pub fn inputs(&self) -> &'static [&'static str] {
        match self {
            Self::Conv { .. } | Self::Moments { .. } => &["x"],
            Self::Attention { .. } => &["q", "k", "v"],
        }
    }

    /// Name of the tensor that it gives.
    pub fn output(&self) -> &'static str {
        match self {
            Self::Conv { .. } | Self::Attention { .. } => "y",
            Self::Moments { .. } => "moments",
        }
    }

    /// Number type of the tensor that it gives.
    pub fn output_dtype(&self) -> Dtype {
        match self {
            Self::Conv { .. } | Self::Attention { .. } => Dtype::F32,
            Self::Moments { .. } => Dtype::F64,
        }
    }
}

/// Header of `POST /v1/sessions/{id}/run`: independent pieces of work, done together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunHeader {
    /// Counts the session's requests from 1. A repeated number is answered with the kept reply.
    pub sequence: u64,
    /// What to do; the tensors of the `i`-th are named `i.x` and so on.
    pub work: Vec<Work>,
}

/// Header of `POST /v1/sessions/{id}/advance`, and of its answer: what the worker gets at one exchange
/// of [`crate::exchange`], and what it hands out at the next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdvanceHeader {
    /// Counts the session's requests from 1. A repeated number is answered with the kept reply.
    pub sequence: u64,
    /// The exchange's label.
    pub at: String,
}

/// Header of the answer to [`RunHeader`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplyHeader {
    /// The request's number.
    pub sequence: u64,
}

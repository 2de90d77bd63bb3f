//! What is said as JSON: what a worker is, sessions, and the headers of tensor messages.

use lacuna_model::device::Precision;
use lacuna_wire::{Dtype, Wire};
use serde::{Deserialize, Serialize};

use crate::exchange::Assignment;
use crate::shares::Holding;
use crate::version::{
    SPOKEN, Versions, WITH_COARSE_BEGINNINGS, WITH_HALVES, WITH_KINDS, WITH_SHARES,
};

/// Media type of a tensor message.
pub const TENSORS: &str = "application/vnd.safetensors";
/// The header of a numbered request that says its body's digest (BLAKE3, in hexadecimal digits). The answer's body then ends with
/// the 32 bytes of the digest of what comes before. It tells accidents; whoever means harm gives the right one.
pub const DIGEST: &str = "lacuna-digest";
/// What the refusal of a request that has another digest is called.
pub const DAMAGED: &str = "damaged";

/// `GET /v1/info`: what a worker is and holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// The oldest version of the protocol that the worker speaks, and the only one that a user's side of version 3
    /// looks at.
    pub protocol: u32,
    /// The newest; a worker of version 3 does not say it, and speaks that one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_highest: Option<u32>,
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
    /// What it is doing; older workers do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
}

/// What a worker is doing, and has done since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Open sessions.
    pub sessions: usize,
    /// Who waits for a place or for the device.
    pub queue: usize,
    /// Numbered requests that were computed.
    pub computed: u64,
    /// Seconds that these waited for the device.
    pub waiting_seconds: f64,
    /// Seconds that they computed.
    pub compute_seconds: f64,
    /// Bytes of all bodies that came.
    pub bytes_in: u64,
    /// Bytes of all bodies that went.
    pub bytes_out: u64,
}

impl Info {
    /// The versions of the protocol that the worker speaks.
    pub fn versions(&self) -> Versions {
        Versions {
            lowest: self.protocol,
            highest: self.protocol_highest.unwrap_or(self.protocol),
        }
    }
}

/// One model that a worker holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// What it is; `unet` today.
    pub kind: String,
    /// [`lacuna_model::weights::Stored::digest`].
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
#[serde(try_from = "Opening", into = "Opening")]
pub struct OpenSession {
    /// The version of the protocol that is spoken in it: one that both sides speak.
    pub protocol: u32,
    /// Digest of the model to compute with.
    pub model: String,
    /// What is done in it.
    pub kind: SessionKind,
    /// Names the picture, at random: its lanes are sessions of one picture, and take one place at a worker.
    pub picture: Option<String>,
}

/// What is done in a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SessionKind {
    /// Layer by layer: every request brings its own rows ([`RunHeader`]).
    Layers,
    /// The worker holds a strip for a whole step ([`AdvanceHeader`]).
    Strip(Assignment),
    /// The worker multiplies shares of features ([`crate::shares::MultiplyHeader`]).
    Shares(Holding),
}

impl SessionKind {
    /// Its name in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Layers => "layers",
            Self::Strip(_) => "strip",
            Self::Shares(_) => "shares",
        }
    }

    /// The first version of the protocol that has it as it is now.
    pub fn since(&self) -> u32 {
        match self {
            Self::Strip(strip) if strip.placement.wires.each().contains(&Wire::Delta4) => {
                WITH_COARSE_BEGINNINGS
            }
            Self::Layers | Self::Strip(_) => SPOKEN.lowest,
            Self::Shares(holding) if holding.weights == Precision::F16 => WITH_HALVES,
            Self::Shares(_) => WITH_SHARES,
        }
    }
}

/// [`OpenSession`] as it is written: before kinds were named, a strip made the difference.
#[derive(Serialize, Deserialize)]
struct Opening {
    protocol: u32,
    model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<SessionKind>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resident: Option<Assignment>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    picture: Option<String>,
}

impl TryFrom<Opening> for OpenSession {
    type Error = String;

    fn try_from(opening: Opening) -> Result<Self, String> {
        let named = opening.protocol >= WITH_KINDS;
        let kind = match (opening.session, opening.resident) {
            (Some(kind), None) if named => kind,
            (None, Some(strip)) if !named => SessionKind::Strip(strip),
            (None, None) if !named => SessionKind::Layers,
            _ => {
                let of = ["resident", "session"][usize::from(named)];
                let protocol = opening.protocol;
                return Err(format!(
                    "in protocol {protocol} the field {of} says what is done in a session, and no other"
                ));
            }
        };
        if kind.since() > opening.protocol {
            return Err(format!("protocol {} has no such session", opening.protocol));
        }
        Ok(Self {
            protocol: opening.protocol,
            model: opening.model,
            kind,
            picture: opening.picture,
        })
    }
}

impl From<OpenSession> for Opening {
    fn from(open: OpenSession) -> Self {
        let (session, resident) = match (open.protocol >= WITH_KINDS, open.kind) {
            (true, kind) => (Some(kind), None),
            (false, SessionKind::Strip(strip)) => (None, Some(strip)),
            // Shares have no older way of being asked for, so nobody asks for them there.
            (false, SessionKind::Layers | SessionKind::Shares(_)) => (None, None),
        };
        Self {
            protocol: open.protocol,
            model: open.model,
            session,
            resident,
            picture: open.picture,
        }
    }
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
    /// One word, for a program; none of a worker that is older.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
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
    /// Counts the session's requests from 1. A request that is repeated to the last bit is answered with the
    /// kept reply; another under its number is refused.
    pub sequence: u64,
    /// What to do; the tensors of the `i`-th are named `i.x` and so on.
    pub work: Vec<Work>,
}

/// Header of `POST /v1/sessions/{id}/advance`, and of its answer: what the worker gets at one exchange
/// of [`crate::exchange`], and what it hands out at the next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdvanceHeader {
    /// Counts the session's requests from 1. A request that is repeated to the last bit is answered with the
    /// kept reply; another under its number is refused.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{Placement, Tile};
    use serde_json::{Value, json};

    fn strip() -> SessionKind {
        SessionKind::Strip(Assignment {
            batch: 1,
            rows: 8,
            columns: 8,
            strip: 0..1,
            tokens: 77,
            placement: Placement::default(),
            tile: Tile::default(),
        })
    }

    fn open(protocol: u32, kind: SessionKind) -> OpenSession {
        OpenSession {
            protocol,
            model: "m".into(),
            kind,
            picture: None,
        }
    }

    #[test]
    fn a_session_is_written_as_its_version_has_it() {
        for protocol in [3, 4] {
            for kind in [SessionKind::Layers, strip()] {
                let open = open(protocol, kind);
                let text = serde_json::to_string(&open).unwrap();
                assert_eq!(serde_json::from_str::<OpenSession>(&text).unwrap(), open);
            }
        }
        let written = |protocol, kind| serde_json::to_value(open(protocol, kind)).unwrap();
        assert_eq!(
            written(3, SessionKind::Layers),
            json!({"protocol": 3, "model": "m"})
        );
        assert_eq!(written(3, strip())["resident"]["rows"], 8);
        assert_eq!(
            written(4, SessionKind::Layers)["session"],
            json!({"kind": "layers"})
        );
        let named = &written(4, strip())["session"];
        assert_eq!(
            (&named["kind"], &named["rows"]),
            (&json!("strip"), &json!(8))
        );
    }

    #[test]
    fn what_another_version_would_say_is_refused() {
        let refused = |value: Value| {
            let error = serde_json::from_value::<OpenSession>(value).unwrap_err();
            error.to_string()
        };
        let old = json!({"protocol": 4, "model": "m"});
        assert!(refused(old).contains("session"));
        let new = json!({"protocol": 3, "model": "m", "session": {"kind": "layers"}});
        assert!(refused(new).contains("resident"));
        let unknown = json!({"protocol": 4, "model": "m", "session": {"kind": "slices"}});
        assert!(refused(unknown).contains("slices"));
        let shares = json!({"kind": "shares", "form": "ring", "bits": 26, "down": 14});
        let shares = |protocol| json!({"protocol": protocol, "model": "m", "session": shares});
        assert!(refused(shares(5)).contains("protocol 5 has no such session"));
        let shares: OpenSession = serde_json::from_value(shares(6)).unwrap();
        assert_eq!((shares.kind.name(), shares.kind.since()), ("shares", 6));
        let of =
            json!({"kind": "shares", "form": "ring", "bits": 26, "down": 14, "weights": "f16"});
        let halves = |protocol| json!({"protocol": protocol, "model": "m", "session": of});
        assert!(refused(halves(6)).contains("protocol 6 has no such session"));
        serde_json::from_value::<OpenSession>(halves(7)).unwrap();
        // Its first call would be read as one of another wire.
        let SessionKind::Strip(mut strip) = strip() else {
            panic!("another kind");
        };
        strip.placement.wires.attention = Wire::Delta4;
        let kind = SessionKind::Strip(strip);
        for (protocol, taken) in [(3, false), (8, false), (9, true)] {
            let written = serde_json::to_value(open(protocol, kind.clone())).unwrap();
            let read = serde_json::from_value::<OpenSession>(written);
            assert_eq!(read.is_ok(), taken, "{protocol}");
        }
    }
}

//! What can go wrong on either side, each cause by its own name.

use std::path::{Path, PathBuf};

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which loading a model, talking the protocol or computing a layer fails. A cause is
/// told in the message and nowhere else, so that a chain of errors says it once.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// A JSON file does not parse.
    #[error("{path} is not valid JSON: {cause}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        cause: serde_json::Error,
    },
    /// A configuration key has a value that this program cannot honour.
    #[error("{config}: {key} = {value} is not supported ({hint})")]
    UnsupportedConfig {
        /// The configuration's file or class.
        config: String,
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// What would be accepted.
        hint: String,
    },
    /// A configuration key that must be there is not.
    #[error("{config}: the key {key} is missing")]
    MissingConfig {
        /// The configuration's file or class.
        config: String,
        /// The key.
        key: String,
    },
    /// A directory holds no weight file of the wanted name.
    #[error("no {stem}.safetensors in {dir} (nor a sharded index{variant})")]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// The file name without its ending.
        stem: String,
        /// `, nor the variant ...` where one was asked for, else empty.
        variant: String,
    },
    /// A weight file is not valid safetensors: truncated, overlapping or garbled.
    #[error("{path} is damaged: {reason}")]
    BadWeights {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// The model needs a tensor that the files do not hold.
    #[error("{origin}: tensor {name} is missing")]
    MissingTensor {
        /// The files.
        origin: String,
        /// The tensor.
        name: String,
    },
    /// The files hold a tensor that the model has no place for.
    #[error("{origin}: unknown tensor {name}; the config describes a model without it")]
    UnknownTensor {
        /// The files.
        origin: String,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the config says.
    #[error("{name} has shape {got:?}, the config says {want:?}")]
    WrongShape {
        /// The tensor.
        name: String,
        /// What the config says.
        want: Vec<usize>,
        /// What was found.
        got: Vec<usize>,
    },
    /// A tensor has a number type that weights and messages do not use.
    #[error("{name} has dtype {dtype}; f32, f16 and bf16 are supported")]
    WrongDtype {
        /// The tensor.
        name: String,
        /// The type found.
        dtype: String,
    },
    /// A tensor holds an infinity or not-a-number.
    #[error("{name} holds a value that is not finite")]
    NotFinite {
        /// The tensor.
        name: String,
    },
    /// A tensor does not fit the number type that it should be sent in.
    #[error("{name} has values too large for {dtype}; choose another wire type (bf16 or f32)")]
    TooLarge {
        /// The tensor.
        name: String,
        /// The type.
        dtype: String,
    },
    /// There are more workers than rows to give them.
    #[error("{workers} workers, but the coarsest feature map has {rows} rows; use at most {rows}")]
    TooManyStrips {
        /// Number of workers.
        workers: usize,
        /// Rows of the coarsest level.
        rows: usize,
    },
    /// A message does not follow the protocol.
    #[error("malformed message: {0}")]
    Message(String),
    /// The device could not be opened or used.
    #[error("device: {0}")]
    Device(String),
    /// The device's results differ from the CPU's.
    #[error("self-test: {0}")]
    SelfTest(String),
    /// A computation failed inside the backend.
    #[error("computing {layer} failed: {reason}")]
    Compute {
        /// The layer.
        layer: String,
        /// What the backend said.
        reason: String,
    },
}

impl Error {
    /// An unreadable `path`.
    pub fn read(path: &Path, cause: std::io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            cause,
        }
    }
}

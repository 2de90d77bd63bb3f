//! What can go wrong with a model, each cause by its own name.

use std::path::{Path, PathBuf};

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which loading a model or computing a layer fails. A cause is told in the message and
/// nowhere else, so that a chain of errors says it once.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor is missing, or is not what it should be.
    #[error(transparent)]
    Tensor(#[from] lacuna_wire::Error),
    /// A file or directory could not be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// A JSON file does not parse.
    #[error("{path} is not valid JSON: {cause}{hint}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        cause: serde_json::Error,
        /// What to do about it, where that is known; else empty.
        hint: &'static str,
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
    /// A weight file is whole, and of another kind than what is looked for.
    #[error("{path}: {reason}")]
    OtherWeights {
        /// The file.
        path: PathBuf,
        /// What is looked for and missing.
        reason: String,
    },
    /// An adapter's file is none, is of a kind that is not supported, or does not fit the model.
    #[error("adapter {file}: {reason}")]
    Adapter {
        /// The file's name.
        file: String,
        /// Which tensor or layer, and why.
        reason: String,
    },
    /// The files hold a tensor that the model has no place for.
    #[error("{origin}: unknown tensor {name}; the config describes a model without it")]
    UnknownTensor {
        /// The files.
        origin: String,
        /// The tensor.
        name: String,
    },
    /// There are more workers than rows to give them.
    #[error("{workers} workers, but the coarsest feature map has {rows} rows; use at most {rows}")]
    TooManyStrips {
        /// Number of workers.
        workers: usize,
        /// Rows of the coarsest level.
        rows: usize,
    },
    /// The network is asked for what takes a prompt, and has none, or not all of it.
    #[error("the conditioning is not whole: {0}")]
    Conditioning(&'static str),
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

    /// A `path` whose `text` is no JSON.
    pub fn json(path: &Path, text: &str, cause: serde_json::Error) -> Self {
        let line = text.lines().nth(cause.line().saturating_sub(1));
        let in_line = |word| line.is_some_and(|line| line.contains(word));
        let hint = match () {
            () if text.starts_with('\u{feff}') => {
                " (it begins with a byte order mark; save it as UTF-8 without one)"
            }
            () if in_line("NaN") || in_line("Infinity") => {
                " (NaN and Infinity are Python's, not JSON's; write a number or null)"
            }
            () => "",
        };
        Self::Json {
            path: path.to_owned(),
            cause,
            hint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_is_told_with_what_to_do() {
        let told = |text: &str| {
            let cause = serde_json::from_str::<serde_json::Value>(text).unwrap_err();
            Error::json(Path::new("config.json"), text, cause).to_string()
        };
        assert!(told("\u{feff}{}").contains("byte order mark"));
        assert!(told("{\n\"a\": NaN}").contains("not JSON's"));
        assert!(told("{\"a\": -Infinity}").contains("not JSON's"));
        assert!(!told("{\"NaN\": 1,\n}").contains("not JSON's"));
    }
}

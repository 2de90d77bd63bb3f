//! Everything that can go wrong.

use std::path::PathBuf;

/// The result of setting up a channel.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// A file holds something else.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, without what it holds.
        reason: String,
    },
    /// A pin that is none.
    #[error("{0:?} is no pin; one is sha256: and 64 hexadecimal digits")]
    Pin(String),
    /// A certificate that cannot be read.
    #[error("a certificate: {0}")]
    Certificate(String),
    /// What TLS makes of it.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

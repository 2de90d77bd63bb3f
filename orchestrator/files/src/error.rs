//! What can be wrong with a file that a person wrote.

use std::path::PathBuf;

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which such a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that lists the workers is wrong.
    #[error("fleet file {path}: {reason}")]
    FleetFile {
        /// The file.
        path: PathBuf,
        /// Which worker and field, and why.
        reason: String,
    },
    /// Workers without a file cannot be so many.
    #[error("{0}")]
    Workers(String),
    /// A token would be sent so that everybody on the way can read it.
    #[error(
        "worker {worker} is reached by plain HTTP: its token, and what it sees of the picture, could be read by \
         everybody on the way; put TLS in front of it and give its https address, or say --insecure"
    )]
    PlainToken {
        /// Its address.
        worker: String,
    },
}

//! What can go wrong while something is measured, each cause by its own name.

use std::path::{Path, PathBuf};

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which measuring fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Making a picture failed, or what is needed for one.
    #[error(transparent)]
    Orchestrator(#[from] lacuna_orchestrator::Error),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Request(String),
    /// A file given by the user could not be read.
    #[error("cannot read {path}: {reason}")]
    Input {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The pictures of a pair do not fit together.
    #[error("the pictures differ in size: {}x{} and {}x{}", .0[0][0], .0[0][1], .0[1][0], .0[1][1])]
    Sizes(
        /// Columns and rows of each.
        [[usize; 2]; 2],
    ),
    /// Sets of picture features cannot be compared.
    #[error("comparing sets of pictures: {0}")]
    Features(String),
    /// The results could not be drawn.
    #[error("cannot draw the plot: {0}")]
    Plot(String),
}

/// What making pictures stands on fails as making them does.
macro_rules! as_of_the_orchestrator {
    ($($below:ty),*) => {
        $(impl From<$below> for Error {
            fn from(error: $below) -> Self {
                Self::Orchestrator(error.into())
            }
        })*
    };
}

as_of_the_orchestrator!(
    lacuna_model::Error,
    lacuna_wire::Error,
    lacuna_protocol::Error
);

impl Error {
    /// A result that could not be written to `path`.
    pub(crate) fn output(path: &Path, reason: impl ToString) -> Self {
        let error = lacuna_orchestrator::Error::Output {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        error.into()
    }

    /// A worker of one's own that could not be started.
    pub(crate) fn local_worker(reason: &dyn std::fmt::Display) -> Self {
        lacuna_orchestrator::Error::LocalWorker(reason.to_string()).into()
    }
}

/// Whether it is that of a process that was asked to end.
pub fn is_interrupted(error: &anyhow::Error) -> bool {
    use lacuna_orchestrator::Error::Interrupted;
    matches!(error.downcast_ref(), Some(Error::Orchestrator(Interrupted)))
        || lacuna_orchestrator::interrupt::is_interrupted(error)
}

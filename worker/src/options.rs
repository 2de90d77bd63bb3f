//! How a worker behaves.

use std::path::PathBuf;
use std::time::Duration;

use lacuna_model::device::Precision;

use crate::tokens::Secret;

/// How a worker behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// What a request must bring as `Authorization: Bearer`, this or a line of the file; none of both lets anybody in.
    pub token: Option<Secret>,
    /// Whether whoever shows that may push and remove models.
    pub token_pushes: bool,
    /// A file of tokens, one a line with its rights, which may change.
    pub token_file: Option<PathBuf>,
    /// Latents that it accepts at most: batch, rows, columns. Sets the limit of a request's bytes.
    pub max_latents: [usize; 3],
    /// Pictures at a time; the lanes of one picture are sessions that share its place.
    pub max_sessions: usize,
    /// A session idle for so long is closed.
    pub session_idle: Duration,
    /// One that was never used is closed after so long.
    pub session_unused: Duration,
    /// And any, whatever is done in it.
    pub session_total: Duration,
    /// A picture waits so long for a place.
    pub session_wait: Duration,
    /// Pictures at a time of those who show one token; all there are where it is not said.
    pub max_sessions_each: Option<usize>,
    /// What was measured of the device, 10^9 operations a second.
    pub gflops: Option<f64>,
    /// The number type of weights that are loaded.
    pub precision: Precision,
    /// Where models that are pushed are kept, and in how many bytes at most.
    pub store: Option<(PathBuf, u64)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: None,
            token_pushes: false,
            token_file: None,
            // 1024 x 1024 pixels with guidance.
            max_latents: [2, 128, 128],
            max_sessions: 16,
            session_idle: Duration::from_secs(600),
            session_unused: Duration::from_secs(30),
            session_total: Duration::from_secs(24 * 3600),
            session_wait: Duration::from_secs(20),
            max_sessions_each: None,
            gflops: None,
            precision: Precision::F32,
            store: None,
        }
    }
}

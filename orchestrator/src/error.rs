//! What can go wrong on the user's side, each cause by its own name.

use std::path::{Path, PathBuf};

use lacuna_protocol::version::Versions;
use reqwest::Url;

use crate::schedulers::SchedulerError;

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which the user's side fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Loading weights, reading a config or computing a layer failed.
    #[error(transparent)]
    Model(#[from] lacuna_model::Error),
    /// A file that the user wrote is wrong.
    #[error(transparent)]
    Files(#[from] lacuna_files::Error),
    /// A dialogue with a worker failed.
    #[error(transparent)]
    Protocol(#[from] lacuna_protocol::Error),
    /// A file of the tokenizer is garbled or does not fit the others.
    #[error("tokenizer: {path}: {reason}")]
    Tokenizer {
        /// The file, or the directory where one is missing.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A prompt could not be turned into tokens.
    #[error("cannot tokenize the prompt: {0}")]
    Prompt(String),
    /// A token is unknown to the text encoder, or there are more of them than it has places.
    #[error("the tokenizer does not fit the text encoder: {0}")]
    Tokens(String),
    /// An embedding of textual inversion is none, or not of this model.
    #[error("embedding {path}: {reason}")]
    Embedding {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The directory is no model of a supported kind.
    #[error("{path}: {class} is not supported: {hint}")]
    UnsupportedModel {
        /// `model_index.json`.
        path: PathBuf,
        /// The pipeline's or component's class.
        class: String,
        /// What is missing for it, or what would be accepted.
        hint: String,
    },
    /// The model lacks the directory of one of its parts.
    #[error("{model}: the model's part {part} is missing (no such directory)")]
    MissingPart {
        /// The model's directory.
        model: PathBuf,
        /// `unet`, `vae` and so on.
        part: &'static str,
    },
    /// The scheduler's config or steps are off.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// What was asked for does not fit the model.
    #[error("{0}")]
    Request(String),
    /// A scheme cannot compute on these workers.
    #[error("{0}")]
    Workers(String),
    /// Features and their shares.
    #[error("shares: {0}")]
    Shares(#[from] lacuna_shares::Error),
    /// A file given by the user could not be read.
    #[error("cannot read {path}: {reason}")]
    Input {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A result could not be written.
    #[error("cannot write {path}: {reason}")]
    Output {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A checkpoint cannot be begun, or gone on with.
    #[error("checkpoint {folder}: {reason}")]
    Checkpoint {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file of a policy is wrong.
    #[error("policy file {path}: {reason}")]
    PolicyFile {
        /// The file.
        path: PathBuf,
        /// Which rule, and why.
        reason: String,
    },
    /// The policy forbids what was asked for.
    #[error("the policy {policy} forbids it by its rule {rule}: {reason}{advice}")]
    Policy {
        /// The policy's file.
        policy: PathBuf,
        /// The rule.
        rule: String,
        /// What would break it.
        reason: String,
        /// What is possible instead; empty, or it goes on behind the reason.
        advice: String,
    },
    /// More memory is needed than there is.
    #[error(
        "{what} takes about {:.1} GB of memory, {:.1} GB are free; free some, or have workers compute (`lacuna plan` \
         compares)",
        *.needed as f64 / 1e9,
        *.free as f64 / 1e9
    )]
    Memory {
        /// What needs it.
        what: &'static str,
        /// Bytes.
        needed: u64,
        /// Bytes that there are.
        free: u64,
    },
    /// A worker in this process did not start.
    #[error("cannot start a worker on this machine: {0}")]
    LocalWorker(String),
    /// A worker does not answer.
    #[error("worker {worker} does not answer: {reason}; is it running, and is the url right?")]
    WorkerUnreachable {
        /// Its address.
        worker: String,
        /// What the connection said.
        reason: String,
    },
    /// It cannot be said whether a worker is who is meant.
    #[error("worker {worker}: {reason}")]
    WorkerTrust {
        /// Its address.
        worker: String,
        /// What is wrong, naming the file.
        reason: String,
    },
    /// A worker took a request and does not answer it.
    #[error(
        "worker {worker} has been silent for {seconds} s{}",
        if *.there { ", though it is there" } else { "" }
    )]
    WorkerSilent {
        /// Its address.
        worker: String,
        /// For how long.
        seconds: u64,
        /// Whether it is there all the same, and says so.
        there: bool,
    },
    /// What goes to a worker or comes from it is not what was sent.
    #[error("what goes to worker {worker} or comes from it is damaged on the way")]
    WorkerDamaged {
        /// Its address.
        worker: String,
    },
    /// A worker sends its answer so slowly that it might go on for ever.
    #[error("worker {worker} answers too slowly: {bytes} bytes in {seconds} s")]
    WorkerSlow {
        /// Its address.
        worker: String,
        /// What came.
        bytes: usize,
        /// In how long.
        seconds: u64,
    },
    /// A worker was lost, and the picture cannot go on without it.
    #[error("{lost}; without it: {reason}; `lacuna workers` shows how all of them are")]
    NoFailover {
        /// What became of the worker.
        lost: String,
        /// What is in the way.
        reason: String,
    },
    /// A worker wants another token.
    #[error("worker {worker} refuses the token; look at its token or token_env in the fleet file")]
    WorkerToken {
        /// Its address.
        worker: String,
    },
    /// This process was asked to end.
    #[error("interrupted")]
    Interrupted,
    /// A worker speaks no version of the protocol that this side speaks.
    #[error(
        "worker {worker} speaks protocol {theirs}, this side {ours}; upgrade {}",
        if .theirs.are_older_than(*.ours) { "the worker" } else { "this side" }
    )]
    WorkerProtocol {
        /// Its address.
        worker: String,
        /// Its versions.
        theirs: Versions,
        /// This side's.
        ours: Versions,
    },
    /// A worker was caught with wrong numbers.
    #[error(
        "worker {worker} answered wrong numbers: {layer} is {apart:.1} times as far from what it must be as \
         rounding leaves it; the picture ends here, and that worker computes no more in this run: take it out of the fleet"
    )]
    WorkerWrong {
        /// Its address.
        worker: String,
        /// The layer or the exchange.
        layer: String,
        /// How far it is from what is right, in what rounding explains.
        apart: f64,
    },
    /// A worker holds another model.
    #[error(
        "worker {worker} holds the model {held}, this is {wanted}; start it with the same unet/ files and the same --lora or none, or \
         push the model to it (`lacuna models push`)"
    )]
    WorkerModel {
        /// Its address.
        worker: String,
        /// The beginning of its model's digest.
        held: String,
        /// The beginning of the digest of the user's.
        wanted: String,
    },
    /// A worker holds the model without its adapters, and takes none.
    #[error(
        "worker {worker} does not have the adapters (--lora), and they cannot be sent to it: {reason}; or start it with the same --lora, or take \
         --scheme blind, which keeps them here"
    )]
    WorkerAdapters {
        /// Its address.
        worker: String,
        /// Why not.
        reason: String,
    },
    /// A worker refuses a request.
    #[error("worker {worker} refuses ({status}): {reason}")]
    WorkerRefused {
        /// Its address.
        worker: String,
        /// HTTP status.
        status: u16,
        /// Its word for that; empty of one that has none, or of who stands before it.
        code: String,
        /// What it said.
        reason: String,
    },
    /// A worker does not take a session of this kind.
    #[error("worker {worker} refuses the session: {reason}")]
    WorkerSession {
        /// Its address.
        worker: String,
        /// What it said.
        reason: String,
    },
    /// A worker does not know of a store.
    #[error(
        "worker {worker} takes no models: it is older than this program; upgrade it, and give it a store"
    )]
    WorkerStore {
        /// Its address.
        worker: String,
    },
    /// No model, or more than one, is meant by the beginning of a digest.
    #[error("{beginning:?} is the beginning of {} of the models that the workers keep; give more of it", if .found.is_empty() { "none" } else { "several" })]
    WhichModel {
        /// What was given.
        beginning: String,
        /// The digests that begin so.
        found: Vec<String>,
    },
    /// A worker's answer is not what the protocol says.
    #[error("worker {worker} answers nonsense: {reason}; leave it out, or upgrade the older side")]
    WorkerReply {
        /// Its address.
        worker: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl From<lacuna_wire::Error> for Error {
    fn from(error: lacuna_wire::Error) -> Self {
        Self::Model(error.into())
    }
}

impl Error {
    /// A bad tokenizer file.
    pub(crate) fn tokenizer(path: &Path, reason: impl ToString) -> Self {
        Self::Tokenizer {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    /// A bad embedding.
    pub(crate) fn embedding(path: &Path, reason: impl ToString) -> Self {
        Self::Embedding {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    /// A worker that does not answer; `cause` is followed to its root, which says more.
    pub(crate) fn unreachable(worker: &Url, cause: &dyn std::error::Error) -> Self {
        let mut root = cause;
        while let Some(source) = root.source() {
            root = source;
        }
        Self::WorkerUnreachable {
            worker: worker.to_string(),
            reason: one_line(&root.to_string()),
        }
    }

    /// Whether a numbered request may fare better when it is sent again: the connection failed, or a request was cut short, or
    /// somebody before the worker did not reach it.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::WorkerUnreachable { .. } | Self::WorkerDamaged { .. } => true,
            // Whoever says that it stops does. Who has no word for a bad request is no worker, and got another one.
            Self::WorkerRefused { status, code, .. } => match status {
                408 | 502..=504 => code != "stopping",
                400 => code.is_empty(),
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether it is a worker's refusal of the `code`.
    pub(crate) fn is_of_code(&self, wanted: &str) -> bool {
        matches!(self, Self::WorkerRefused { code, .. } if code == wanted)
    }

    /// The address of the worker that is lost to the picture: it is gone, it fails, or it has lost the
    /// session. One that lies or is set up wrongly is not lost but to be looked at.
    pub fn lost_worker(&self) -> Option<&str> {
        match self {
            Self::WorkerUnreachable { worker, .. }
            | Self::WorkerSilent { worker, .. }
            | Self::WorkerDamaged { worker }
            | Self::WorkerSlow { worker, .. } => Some(worker),
            Self::WorkerRefused { worker, status, .. }
                if matches!(status, 404 | 408 | 410) || *status >= 500 =>
            {
                Some(worker)
            }
            _ => None,
        }
    }

    /// The address of the worker that is there and of no use, by what it answers: set up for something else, full, or
    /// lying. A spare may take its place, but nobody goes on with fewer workers as if nothing were: it is to be
    /// looked at.
    pub fn useless_worker(&self) -> Option<&str> {
        match self {
            Self::WorkerToken { worker }
            | Self::WorkerProtocol { worker, .. }
            | Self::WorkerModel { worker, .. }
            | Self::WorkerAdapters { worker, .. }
            | Self::WorkerSession { worker, .. }
            | Self::WorkerReply { worker, .. } => Some(worker),
            // What is off in the request itself another worker would refuse, too.
            Self::WorkerRefused { worker, status, .. } if !matches!(status, 400 | 413 | 422) => {
                Some(worker)
            }
            _ => None,
        }
    }

    /// The address of the worker that was caught with wrong numbers.
    pub fn wrong_worker(&self) -> Option<&str> {
        match self {
            Self::WorkerWrong { worker, .. } => Some(worker),
            _ => None,
        }
    }

    /// The same with other advice, where a policy's refusal has some.
    pub(crate) fn advising(mut self, other: impl FnOnce() -> String) -> Self {
        if let Self::Policy { advice, .. } = &mut self
            && !advice.is_empty()
        {
            *advice = other();
        }
        self
    }

    /// Whether it is a worker's doing, and not that of what was asked for.
    pub fn is_of_a_worker(&self) -> bool {
        let no_failover = matches!(self, Self::NoFailover { .. });
        let worker = self.lost_worker().or(self.useless_worker());
        no_failover || worker.or(self.wrong_worker()).is_some()
    }

    /// Whether a worker may only have lost its session, or a reply: it was started again, cannot be reached just now, or had no
    /// room.
    pub fn lost_session(&self) -> bool {
        match self {
            Self::WorkerUnreachable { .. } => true,
            Self::WorkerRefused { status, .. } => matches!(status, 404 | 410),
            _ => false,
        }
    }

    /// A worker that answers nonsense, of which `reason` may quote some.
    pub(crate) fn reply(worker: &Url, reason: &str) -> Self {
        Self::WorkerReply {
            worker: worker.to_string(),
            reason: one_line(reason),
        }
    }
}

/// What a worker said, fit to be shown: its first line, not too long, and nothing that a terminal
/// would obey, or that would show in another order than it is in.
pub(crate) fn one_line(text: &str) -> String {
    let line = text.trim_start().lines().next().unwrap_or_default();
    line.chars()
        .map(|c| if hides(c) { '\u{fffd}' } else { c })
        .take(200)
        .collect()
}

/// Whether a character is obeyed rather than shown: controls, marks of direction, and what has no width.
fn hides(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_says_is_one_harmless_line() {
        assert_eq!(one_line("\n no room\nat all"), "no room");
        assert_eq!(one_line("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(one_line("a\u{9b}2Jb\rc"), "a\u{fffd}2Jb\u{fffd}c");
        assert_eq!(
            one_line("ready\u{202e}ydaer\u{200b}"),
            "ready\u{fffd}ydaer\u{fffd}"
        );
        assert_eq!(one_line(&"ä".repeat(300)).chars().count(), 200);
        assert_eq!(one_line(""), "");
    }
}

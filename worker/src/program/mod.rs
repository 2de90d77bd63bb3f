//! What is done in a session: one program for each kind, behind one door.
//!
//! - [`layers`]: single layers, of rows that every request brings.
//! - [`shares`]: single layers, of shares that tell nothing.
//! - [`strip`]: the U-Net over the worker's own rows, as a dialogue.

pub mod layers;
pub mod shares;
pub mod strip;

use axum::body::Bytes;
use lacuna_protocol::session::{AdvanceHeader, RunHeader, SessionKind};
use lacuna_wire::Message;

use crate::error::{Error, Result};
use crate::ground::Loan;
use layers::Layers;
use shares::Shares;
use strip::Dialogue;

/// The program of a session.
pub enum Program {
    /// Of [`SessionKind::Layers`].
    Layers(Layers),
    /// Of [`SessionKind::Strip`].
    Strip(Dialogue),
    /// Of [`SessionKind::Shares`].
    Shares(Shares),
}

/// A request of a session.
pub enum Request {
    /// `POST /v1/sessions/{id}/run`.
    Run(Message<RunHeader>),
    /// `POST /v1/sessions/{id}/advance`.
    Advance(Message<AdvanceHeader>),
}

impl Request {
    /// Its number in the session.
    pub fn sequence(&self) -> u64 {
        match self {
            Self::Run(message) => message.header.sequence,
            Self::Advance(message) => message.header.sequence,
        }
    }
}

impl Program {
    /// Starts the program of a session of `kind`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `kind` asks for more than the largest picture, [`Error::Compute`] when the
    /// operating system gives no thread.
    pub fn start(kind: SessionKind, ground: &Loan) -> Result<Self> {
        match kind {
            SessionKind::Layers => Ok(Self::Layers(Layers::new(ground.clone()))),
            SessionKind::Strip(assignment) => {
                ground.bounds.check_assignment(&assignment)?;
                let strip = Dialogue::start(ground.clone(), assignment)
                    .map_err(|e| Error::Compute(format!("cannot start a thread: {e}")))?;
                Ok(Self::Strip(strip))
            }
            SessionKind::Shares(holding) => Ok(Self::Shares(Shares::new(ground.clone(), holding)?)),
        }
    }

    /// The model that it runs on.
    pub fn ground(&self) -> &Loan {
        match self {
            Self::Layers(program) => program.ground(),
            Self::Strip(program) => program.ground(),
            Self::Shares(program) => program.ground(),
        }
    }

    /// Batch entries that a session of `kind` takes of its picture's.
    pub fn batch(kind: &SessionKind, ground: &Loan) -> usize {
        match kind {
            // It may be sent a whole batch.
            SessionKind::Layers | SessionKind::Shares(_) => ground.bounds.latents[0],
            SessionKind::Strip(assignment) => assignment.batch,
        }
    }

    /// The reply to `request`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is none for this program, or contradicts itself or the model; else the
    /// program's own.
    pub async fn answer(&self, request: Request) -> Result<Bytes> {
        match (self, request) {
            (Self::Layers(program), Request::Run(message)) => program.run(message).await,
            (Self::Strip(program), Request::Advance(message)) => program.go_on(message).await,
            (program, _) => Err(program.otherwise()),
        }
    }

    /// The program that multiplies shares.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it is another.
    pub fn shares(&self) -> Result<&Shares> {
        match self {
            Self::Shares(program) => Ok(program),
            other => Err(other.otherwise()),
        }
    }

    /// That it is to be asked for something else.
    fn otherwise(&self) -> Error {
        let reason = match self {
            Self::Layers(_) => "goes layer by layer and holds no strip; ask it to run",
            Self::Strip(_) => "holds a strip; ask it to advance",
            Self::Shares(_) => "multiplies shares; ask it to multiply",
        };
        Error::Invalid(format!("this session {reason}"))
    }
}

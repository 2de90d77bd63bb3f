//! What can go wrong between the user and a worker, each cause by its own name.

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which a dialogue fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor is missing, or is not what it should be.
    #[error(transparent)]
    Tensor(#[from] lacuna_wire::Error),
    /// Computing failed.
    #[error(transparent)]
    Model(#[from] lacuna_model::Error),
    /// The two sides are not at the same exchange.
    #[error("malformed message: it is at {theirs:?}, this side at {ours:?}")]
    OtherExchange {
        /// The label that the message brings.
        theirs: String,
        /// The label that is due.
        ours: String,
    },
    /// A message brings a tensor that has no place in its exchange.
    #[error("malformed message: {at}: nobody asked for {name}")]
    Unasked {
        /// The exchange's label.
        at: String,
        /// The tensor.
        name: String,
    },
    /// A piece of work that the model has no layer for, or not with such tensors.
    #[error("malformed message: the model has no layer for {work} with these tensors")]
    NoLayer {
        /// The work.
        work: String,
    },
    /// A party has nothing to give at an exchange, or is asked before its turn.
    #[error("out of turn: {0}")]
    OutOfTurn(String),
    /// What is announced cannot be a model.
    #[error("announced: {0}")]
    Announced(String),
    /// The other side has gone.
    #[error("the session was closed")]
    Closed,
}

//! What can be wrong with a tensor or a message, each cause by its own name.

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which a tensor is not what it should be, or a message not one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor is not there.
    #[error("{origin}: tensor {name} is missing")]
    MissingTensor {
        /// The files or message that should hold it.
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
    #[error("{name} has dtype {dtype}, which is not read; convert it to f32, f16 or bf16")]
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
    #[error(
        "{name} has values too large for {dtype}: choose bf16 or f32 as the wire type, or see what makes them so large (the model, an adapter, a setting)"
    )]
    TooLarge {
        /// The tensor.
        name: String,
        /// The type.
        dtype: String,
    },
    /// A message cannot be read.
    #[error("malformed message: {0}")]
    Message(String),
}

//! Tensors as bytes: what any two programs need to send each other tensors with a header.
//!
//! Nothing here knows a layer, a strip or a network, and nothing trusts the other side.
//!
//! - [`host`]: tensors in host memory.
//! - [`Message`]: a header with tensors, as bytes.
//! - [`head`]: the beginning of a message, for those who do not wait for the rest.
//! - [`Codec`]: features as few bytes.
//! - [`error`]: what is wrong with a tensor or a message.
#![forbid(unsafe_code)]

mod codec;
pub mod error;
pub mod head;
pub mod host;
mod message;

pub use codec::{Codec, Coding, Wire};
pub use error::{Error, Result};
pub use host::HostTensor;
pub use message::{Message, Payload, to_narrow_safetensors, to_safetensors};
pub use safetensors::Dtype;

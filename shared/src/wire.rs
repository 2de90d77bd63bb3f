//! What goes over HTTP: JSON for sessions, safetensors for tensors.
//!
//! A tensor message is one safetensors buffer: its `__metadata__` holds a JSON header under
//! `lacuna`, its tensors are f32 and named `<index>.<part>` by the piece of work they belong to.
//! Nothing here trusts the other side: a message is checked in full before it is used.

use std::collections::HashMap;

use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::HostTensor;

/// Version of everything in this module. The two sides must have the same.
pub const PROTOCOL: u32 = 1;

/// Media type of a tensor message.
pub const TENSORS: &str = "application/vnd.safetensors";

const HEADER: &str = "lacuna";

/// `GET /v1/info`: what a worker is and holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// [`PROTOCOL`] of the worker.
    pub protocol: u32,
    /// The worker's version.
    pub version: String,
    /// `cpu` or `wgpu`.
    pub device: String,
    /// Name of the GPU, or of the CPU backend.
    pub adapter: String,
    /// The models that it holds.
    pub models: Vec<ModelInfo>,
    /// What it accepts.
    pub limits: Limits,
}

/// One model that a worker holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// What it is; `unet` today.
    pub kind: String,
    /// [`crate::weights::Weights::digest`].
    pub digest: String,
}

/// What a worker accepts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of one request.
    pub max_body_bytes: usize,
    /// Sessions at a time.
    pub max_sessions: usize,
    /// A session that is idle for so long is closed.
    pub session_idle_seconds: u64,
}

/// `POST /v1/sessions`: opens a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenSession {
    /// [`PROTOCOL`] of the orchestrator.
    pub protocol: u32,
    /// Digest of the model to compute with.
    pub model: String,
}

/// The answer to [`OpenSession`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionOpened {
    /// Names the session in later requests; not to be guessed.
    pub session: String,
}

/// Any refusal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// One line, for a person.
    pub error: String,
}

/// One piece of work on one strip. The layer's sizes and weights are the worker's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Work {
    /// A convolution of rows that bring their halo: `x` `[B, C_in, rows, W]` to `y`
    /// `[B, C_out, (rows - K) / stride + 1, W_out]`.
    Conv {
        /// The layer.
        layer: String,
    },
    /// Group statistics: `x` `[B, C, rows, W]` to `moments` `[B * groups, 2]`, mean and M2. The
    /// count follows from the shape, so it is not sent.
    Moments {
        /// The layer.
        layer: String,
    },
    /// Attention products: `q` `[B, T, C]`, `k` and `v` `[B, S, C]` to `y` `[B, T, C]`.
    Attention {
        /// The layer.
        layer: String,
    },
}

impl Work {
    /// The layer that it is of.
    pub fn layer(&self) -> &str {
        match self {
            Self::Conv { layer } | Self::Moments { layer } | Self::Attention { layer } => layer,
        }
    }

    /// Names of the tensors that it takes.
    pub fn inputs(&self) -> &'static [&'static str] {
        match self {
            Self::Conv { .. } | Self::Moments { .. } => &["x"],
            Self::Attention { .. } => &["q", "k", "v"],
        }
    }

    /// Name of the tensor that it gives.
    pub fn output(&self) -> &'static str {
        match self {
            Self::Conv { .. } | Self::Attention { .. } => "y",
            Self::Moments { .. } => "moments",
        }
    }
}

/// Header of `POST /v1/sessions/{id}/run`: independent pieces of work, done together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunHeader {
    /// Counts the session's requests from 1. A repeated number is answered with the kept reply.
    pub sequence: u64,
    /// What to do; the tensors of the `i`-th are named `i.x` and so on.
    pub work: Vec<Work>,
}

/// Header of the answer to [`RunHeader`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplyHeader {
    /// The request's number.
    pub sequence: u64,
}

/// A header and named tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Message<H> {
    /// What the message says.
    pub header: H,
    /// Its tensors, by name.
    pub tensors: HashMap<String, HostTensor>,
}

impl<H: Serialize> Message<H> {
    /// The message as bytes.
    ///
    /// # Errors
    /// [`Error::Message`] when the header does not serialise.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let header =
            serde_json::to_string(&self.header).map_err(|e| Error::Message(e.to_string()))?;
        let metadata = HashMap::from([(HEADER.to_owned(), header)]);
        let tensors = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor));
        to_safetensors(tensors, Some(metadata))
    }
}

/// Named tensors as a safetensors buffer in f32.
///
/// # Errors
/// [`Error::Message`] when two tensors have one name.
pub fn to_safetensors<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a HostTensor)>,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>> {
    let malformed = |e: SafeTensorError| Error::Message(e.to_string());
    let views = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let bytes: &[u8] = bytemuck::cast_slice(&tensor.data);
            let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes);
            view.map(|view| (name, view)).map_err(malformed)
        })
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize(views, metadata).map_err(malformed)
}

impl<H: DeserializeOwned> Message<H> {
    /// Reads a message; every tensor must be f32 and finite.
    ///
    /// # Errors
    /// [`Error::Message`], [`Error::WrongDtype`] or [`Error::NotFinite`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let malformed = |e: &dyn std::fmt::Display| Error::Message(e.to_string());
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| malformed(&e))?;
        let header = serde_json::from_str(header(&metadata)?).map_err(|e| malformed(&e))?;
        let parsed = SafeTensors::deserialize(bytes).map_err(|e| malformed(&e))?;
        let mut tensors = HashMap::with_capacity(parsed.len());
        for (name, view) in parsed.iter() {
            if view.dtype() != Dtype::F32 {
                return Err(Error::WrongDtype {
                    name: name.into(),
                    dtype: format!("{:?}", view.dtype()),
                });
            }
            let tensor = HostTensor::new(view.shape(), from_little_endian(view.data()))?;
            tensor.check_finite(name)?;
            tensors.insert(name.to_owned(), tensor);
        }
        Ok(Self { header, tensors })
    }
}

impl<H> Message<H> {
    /// Takes a tensor out.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn take(&mut self, name: &str) -> Result<HostTensor> {
        self.tensors
            .remove(name)
            .ok_or_else(|| Error::MissingTensor {
                origin: "the message".into(),
                name: name.into(),
            })
    }
}

fn header(metadata: &Metadata) -> Result<&str> {
    metadata
        .metadata()
        .as_ref()
        .and_then(|m| m.get(HEADER))
        .map(String::as_str)
        .ok_or_else(|| Error::Message(format!("no {HEADER:?} header")))
}

/// Bytes of a network buffer, which may be misaligned for f32, as numbers.
fn from_little_endian(bytes: &[u8]) -> Vec<f32> {
    match bytemuck::try_cast_slice::<u8, f32>(bytes) {
        Ok(numbers) => numbers.to_vec(),
        Err(_) => {
            let (chunks, _) = bytes.as_chunks::<4>();
            chunks.iter().map(|b| f32::from_le_bytes(*b)).collect()
        }
    }
}

#[cfg(target_endian = "big")]
compile_error!("tensor messages are little-endian and are written without conversion");

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message<RunHeader> {
        let x = HostTensor::new([1, 1, 2, 2], vec![1.0, -2.0, 3.5, 0.0]).unwrap();
        Message {
            header: RunHeader {
                sequence: 7,
                work: vec![Work::Conv {
                    layer: "conv_out".into(),
                }],
            },
            tensors: HashMap::from([("0.x".to_owned(), x)]),
        }
    }

    #[test]
    fn a_message_survives_the_wire_at_any_alignment() {
        let bytes = message().encode().unwrap();
        for offset in 0..4 {
            let mut shifted = vec![0; offset];
            shifted.extend_from_slice(&bytes);
            assert_eq!(Message::decode(&shifted[offset..]).unwrap(), message());
        }
    }

    #[test]
    fn a_truncated_message_is_malformed() {
        let bytes = message().encode().unwrap();
        for len in [0, 4, 8, 20, bytes.len() - 1] {
            let result = Message::<RunHeader>::decode(&bytes[..len]);
            assert!(matches!(result, Err(Error::Message(_))), "{len} bytes");
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused_by_name() {
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut message = message();
            message.tensors.get_mut("0.x").unwrap().data[2] = poison;
            let error = Message::<RunHeader>::decode(&message.encode().unwrap()).unwrap_err();
            assert!(matches!(error, Error::NotFinite { name } if name == "0.x"));
        }
    }

    #[test]
    fn another_header_is_malformed() {
        let bytes = message().encode().unwrap();
        assert!(Message::<Info>::decode(&bytes).is_err());
        let plain = safetensors::serialize::<String, TensorView<'_>, _>([], None).unwrap();
        let error = Message::<RunHeader>::decode(&plain).unwrap_err();
        assert!(error.to_string().contains("header"), "{error}");
    }

    #[test]
    fn a_message_costs_little_more_than_its_numbers() {
        assert!(message().encode().unwrap().len() < 16 + 250);
    }
}

//! A header and tensors as one buffer of bytes.
//!
//! The buffer is safetensors: its `__metadata__` holds the header as JSON under `lacuna`, its
//! tensors are named `<index>.<part>` by the piece of work they belong to. Nothing here
//! trusts the other side: a message is checked in full before it is used.

use std::collections::HashMap;

use half::slice::HalfFloatSliceExt;
use half::vec::HalfFloatVecExt;
use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::host::HostTensor;

pub(crate) const HEADER: &str = "lacuna";

/// A header and named tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Message<H> {
    /// What the message says.
    pub header: H,
    /// Its tensors, by name.
    pub tensors: HashMap<String, Payload>,
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
            .map(|(name, t)| (name.as_str(), t.view()));
        serialize(tensors, Some(metadata))
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
    let views = tensors.into_iter().map(|(name, t)| (name, view_of(t)));
    serialize(views, metadata)
}

/// The same, each tensor in the narrowest type that keeps every bit of its values: factors that were stored in half
/// precision take no more bytes than there.
///
/// # Errors
/// As [`to_safetensors`].
pub fn to_narrow_safetensors(tensors: Vec<(String, HostTensor)>) -> Result<Vec<u8>> {
    let narrow = tensors
        .into_iter()
        .map(|(name, tensor)| (name, Payload::narrowest(tensor)));
    let narrow: Vec<(String, Payload)> = narrow.collect();
    serialize(
        narrow.iter().map(|(name, t)| (name.as_str(), t.view())),
        None,
    )
}

type Viewed<'a> = std::result::Result<TensorView<'a>, SafeTensorError>;

fn serialize<'a>(
    views: impl IntoIterator<Item = (&'a str, Viewed<'a>)>,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>> {
    let malformed = |e: SafeTensorError| Error::Message(e.to_string());
    let views = views
        .into_iter()
        .map(|(name, view)| view.map(|view| (name, view)).map_err(malformed))
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize(views, metadata).map_err(malformed)
}

fn view_of(tensor: &HostTensor) -> Viewed<'_> {
    let bytes: &[u8] = bytemuck::cast_slice(&tensor.data);
    TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)
}

impl<H: DeserializeOwned> Message<H> {
    /// Reads a message; every tensor must be of a type that [`Payload`] has, and finite.
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
            let payload = Payload::read(name, &view)?;
            tensors.insert(name.to_owned(), payload);
        }
        Ok(Self { header, tensors })
    }
}

impl<H> Message<H> {
    /// Bytes of the tensors' numbers.
    pub fn payload_bytes(&self) -> usize {
        self.tensors.values().map(Payload::bytes).sum()
    }

    /// Takes a tensor out.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn take(&mut self, name: &str) -> Result<Payload> {
        self.tensors
            .remove(name)
            .ok_or_else(|| Error::MissingTensor {
                origin: "the message".into(),
                name: name.into(),
            })
    }
}

/// A tensor on its way.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// Features and what becomes of them.
    F32(HostTensor),
    /// Features at half the bytes.
    F16 {
        /// Sizes, outermost first.
        shape: Vec<usize>,
        /// `shape.iter().product()` values.
        data: Vec<f16>,
    },
    /// The same with the range of f32 and less precision.
    Bf16 {
        /// Sizes, outermost first.
        shape: Vec<usize>,
        /// `shape.iter().product()` values.
        data: Vec<bf16>,
    },
    /// Features as scales and codes, for [`super::Codec`].
    Codes {
        /// Number of bytes.
        shape: [usize; 1],
        /// The bytes.
        data: Vec<u8>,
    },
    /// Statistics, and whatever else must keep its last bits.
    F64 {
        /// Sizes, outermost first.
        shape: Vec<usize>,
        /// `shape.iter().product()` values.
        data: Vec<f64>,
    },
}

impl Payload {
    /// Scales and codes, or whatever else is bytes to those between.
    pub fn of_codes(data: Vec<u8>) -> Self {
        Self::Codes {
            shape: [data.len()],
            data,
        }
    }

    /// `tensor` in a number type for features, rounded to the nearest.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when a value is beyond the type's range, [`Error::WrongDtype`] when the
    /// type is none for features. `name` is what the error calls the tensor.
    pub fn write(name: &str, tensor: HostTensor, dtype: Dtype) -> Result<Self> {
        let shape = tensor.shape.clone();
        let payload = match dtype {
            Dtype::F32 => Self::F32(tensor),
            Dtype::F16 => Self::F16 {
                shape,
                data: Vec::from_f32_slice(&tensor.data),
            },
            Dtype::BF16 => Self::Bf16 {
                shape,
                data: Vec::from_f32_slice(&tensor.data),
            },
            other => return Err(wrong_dtype(name, other)),
        };
        payload.check_finite(name).map_err(|_| Error::TooLarge {
            name: name.into(),
            dtype: format!("{dtype:?}"),
        })?;
        Ok(payload)
    }

    /// `tensor` in the narrowest number type for features that keeps every bit of its values.
    pub fn narrowest(tensor: HostTensor) -> Self {
        let keeps = |narrow: &dyn Fn(f32) -> f32| {
            let mut values = tensor.data.iter();
            values.all(|x| narrow(*x).to_bits() == x.to_bits())
        };
        let shape = tensor.shape.clone();
        if keeps(&|x| f16::from_f32(x).to_f32()) {
            let data = Vec::from_f32_slice(&tensor.data);
            return Self::F16 { shape, data };
        }
        if keeps(&|x| bf16::from_f32(x).to_f32()) {
            let data = Vec::from_f32_slice(&tensor.data);
            return Self::Bf16 { shape, data };
        }
        Self::F32(tensor)
    }

    /// The tensor in f32; `name` is what the error calls it.
    ///
    /// # Errors
    /// [`Error::WrongDtype`] when it holds statistics or codes.
    pub fn into_tensor(self, name: &str) -> Result<HostTensor> {
        match self {
            Self::F32(tensor) => Ok(tensor),
            Self::F16 { shape, data } => HostTensor::new(shape, data.to_f32_vec()),
            Self::Bf16 { shape, data } => HostTensor::new(shape, data.to_f32_vec()),
            Self::Codes { .. } | Self::F64 { .. } => Err(wrong_dtype(name, self.dtype())),
        }
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(tensor) => &tensor.shape,
            Self::F16 { shape, .. } | Self::Bf16 { shape, .. } | Self::F64 { shape, .. } => shape,
            Self::Codes { shape, .. } => shape,
        }
    }

    /// Bytes of its numbers.
    pub fn bytes(&self) -> usize {
        self.shape().iter().product::<usize>() * self.dtype().bitsize() / 8
    }

    /// Type of its numbers.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16 { .. } => Dtype::F16,
            Self::Bf16 { .. } => Dtype::BF16,
            Self::Codes { .. } => Dtype::U8,
            Self::F64 { .. } => Dtype::F64,
        }
    }

    /// The largest magnitude of its numbers; zero of codes, which stand for others.
    pub fn largest(&self) -> f64 {
        let of =
            |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, |most, x| x.abs().max(most));
        match self {
            Self::F32(tensor) => tensor.largest(),
            Self::F16 { data, .. } => of(&mut data.iter().map(|x| x.to_f64())),
            Self::Bf16 { data, .. } => of(&mut data.iter().map(|x| x.to_f64())),
            Self::F64 { data, .. } => of(&mut data.iter().copied()),
            Self::Codes { .. } => 0.0,
        }
    }

    /// Checks that every value is finite; `name` is what the error calls the tensor.
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub fn check_finite(&self, name: &str) -> Result<()> {
        let finite = match self {
            Self::F32(tensor) => return tensor.check_finite(name),
            Self::F16 { data, .. } => data.iter().all(|x| x.is_finite()),
            Self::Bf16 { data, .. } => data.iter().all(|x| x.is_finite()),
            Self::F64 { data, .. } => data.iter().all(|x| x.is_finite()),
            // What they stand for is checked when that is known.
            Self::Codes { .. } => true,
        };
        if finite {
            return Ok(());
        }
        Err(Error::NotFinite { name: name.into() })
    }

    fn view(&self) -> Viewed<'_> {
        match self {
            Self::F32(tensor) => view_of(tensor),
            Self::F16 { shape, data } => {
                TensorView::new(Dtype::F16, shape.clone(), bytemuck::cast_slice(data))
            }
            Self::Bf16 { shape, data } => {
                TensorView::new(Dtype::BF16, shape.clone(), bytemuck::cast_slice(data))
            }
            Self::Codes { shape, data } => TensorView::new(Dtype::U8, shape.to_vec(), data),
            Self::F64 { shape, data } => {
                TensorView::new(Dtype::F64, shape.clone(), bytemuck::cast_slice(data))
            }
        }
    }

    fn read(name: &str, view: &TensorView<'_>) -> Result<Self> {
        let (shape, bytes) = (view.shape().to_vec(), view.data());
        let payload = match view.dtype() {
            Dtype::F32 => Self::F32(HostTensor::new(shape, from_little_endian(bytes))?),
            Dtype::F16 => Self::F16 {
                shape,
                data: from_little_endian(bytes),
            },
            Dtype::BF16 => Self::Bf16 {
                shape,
                data: from_little_endian(bytes),
            },
            Dtype::F64 => Self::F64 {
                shape,
                data: from_little_endian(bytes),
            },
            Dtype::U8 if shape.len() == 1 => Self::of_codes(bytes.to_vec()),
            other => return Err(wrong_dtype(name, other)),
        };
        payload.check_finite(name)?;
        Ok(payload)
    }
}

pub(crate) fn wrong_dtype(name: &str, dtype: Dtype) -> Error {
    Error::WrongDtype {
        name: name.into(),
        dtype: format!("{dtype:?}"),
    }
}

impl From<HostTensor> for Payload {
    fn from(tensor: HostTensor) -> Self {
        Self::F32(tensor)
    }
}

pub(crate) fn header(metadata: &Metadata) -> Result<&str> {
    metadata
        .metadata()
        .as_ref()
        .and_then(|m| m.get(HEADER))
        .map(String::as_str)
        .ok_or_else(|| Error::Message(format!("no {HEADER:?} header")))
}

/// Bytes of a network buffer, which may be misaligned for `T`, as numbers.
fn from_little_endian<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(bytes: &[u8]) -> Vec<T> {
    bytemuck::pod_collect_to_vec(bytes)
}

#[cfg(target_endian = "big")]
compile_error!("tensor messages are little-endian and are written without conversion");

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, and one of another kind.
    #[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Numbered {
        sequence: u64,
        layer: String,
    }

    #[derive(Debug, serde::Deserialize)]
    struct Other {
        #[serde(rename = "protocol")]
        _protocol: u32,
    }

    fn message() -> Message<Numbered> {
        let x = HostTensor::new([1, 1, 2, 2], vec![1.0, -2.0, 3.5, 0.0]).unwrap();
        Message {
            header: Numbered {
                sequence: 7,
                layer: "conv_out".into(),
            },
            tensors: HashMap::from([("0.x".to_owned(), x.into())]),
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
            let result = Message::<Numbered>::decode(&bytes[..len]);
            assert!(matches!(result, Err(Error::Message(_))), "{len} bytes");
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused_by_name() {
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let x = HostTensor::new([4], vec![1.0, 2.0, poison, 3.0]).unwrap();
            let mut message = message();
            message.tensors.insert("0.x".to_owned(), x.into());
            let error = Message::<Numbered>::decode(&message.encode().unwrap()).unwrap_err();
            assert!(matches!(error, Error::NotFinite { name } if name == "0.x"));
        }
    }

    #[test]
    fn another_header_is_malformed() {
        let bytes = message().encode().unwrap();
        assert!(Message::<Other>::decode(&bytes).is_err());
        let plain = safetensors::serialize::<String, TensorView<'_>, _>([], None).unwrap();
        let error = Message::<Numbered>::decode(&plain).unwrap_err();
        assert!(error.to_string().contains("header"), "{error}");
    }

    #[test]
    fn a_message_costs_little_more_than_its_numbers() {
        assert!(message().encode().unwrap().len() < 16 + 250);
    }

    #[test]
    fn f64_keeps_every_bit_and_is_no_feature() {
        let values = Payload::F64 {
            shape: vec![1, 2],
            data: vec![1.0 / 3.0, 1e-300],
        };
        let mut sent = message();
        sent.tensors = HashMap::from([("0.moments".to_owned(), values.clone())]);
        let mut got = Message::<Numbered>::decode(&sent.encode().unwrap()).unwrap();
        let payload = got.take("0.moments").unwrap();
        assert_eq!(payload, values);
        assert!(matches!(
            payload.into_tensor("x"),
            Err(Error::WrongDtype { .. })
        ));
    }
}

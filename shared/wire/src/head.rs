//! The beginning of a message of one tensor, for those who read or write the rest while it comes or goes.
//!
//! A message is the eight bytes of its header's length, the header, and the tensors' bytes; of one tensor these are all
//! that follows ([`crate::Message`]).

use std::collections::HashMap;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::message::{HEADER, header};

/// Bytes of the number that says how long the header is.
const LENGTH: usize = size_of::<u64>();

/// Most bytes of a header that is read before the rest: those of messages of one tensor are far shorter.
pub const MOST: usize = 64 << 10;

/// What a message of at most one tensor says before that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head<H> {
    /// What the message says.
    pub header: H,
    /// The tensor's name, and bytes of its codes; none where the message is of nothing but its header.
    pub tensor: Option<(String, usize)>,
}

/// How many of a message's bytes its head takes, by the first of them; none where there are too few to tell.
///
/// # Errors
/// [`Error::Message`] for more than [`MOST`].
pub fn len(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(length) = bytes.first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    let length = u64::from_le_bytes(*length);
    let within = usize::try_from(length).ok().filter(|len| *len <= MOST);
    match within {
        Some(len) => Ok(Some(LENGTH + len)),
        None => Err(Error::Message(format!(
            "a header of {length} bytes; at most {MOST}"
        ))),
    }
}

impl<H: DeserializeOwned> Head<H> {
    /// Reads a head, of as many bytes as [`len`] says.
    ///
    /// # Errors
    /// [`Error::Message`]; [`Error::WrongDtype`] for a tensor of anything but codes.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let malformed = |e: &dyn std::fmt::Display| Error::Message(e.to_string());
        let json = bytes.get(LENGTH..).unwrap_or_default();
        let metadata: Metadata = serde_json::from_slice(json).map_err(|e| malformed(&e))?;
        let said = serde_json::from_str(header(&metadata)?).map_err(|e| malformed(&e))?;
        let mut tensors = metadata.tensors().into_iter();
        let tensor = tensors.next();
        if let Some((second, _)) = tensors.next() {
            let reason = format!("tensor {second} is not asked for");
            return Err(Error::Message(reason));
        }
        let tensor = tensor.map(|(name, info)| match (info.dtype, &info.shape[..]) {
            (Dtype::U8, [bytes]) if info.data_offsets == (0, *bytes) => Ok((name, *bytes)),
            (Dtype::U8, _) => Err(Error::Message(format!(
                "tensor {name} is not where it says"
            ))),
            (other, _) => Err(crate::message::wrong_dtype(&name, other)),
        });
        Ok(Self {
            header: said,
            tensor: tensor.transpose()?,
        })
    }
}

impl<H: Serialize> Head<H> {
    /// The head as bytes; the tensor's are what follows.
    ///
    /// # Errors
    /// [`Error::Message`] when the header does not serialise.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let malformed = |e: &dyn std::fmt::Display| Error::Message(e.to_string());
        let said = serde_json::to_string(&self.header).map_err(|e| malformed(&e))?;
        let tensors = self.tensor.iter().map(|(name, bytes)| {
            let info = TensorInfo {
                dtype: Dtype::U8,
                shape: vec![*bytes],
                data_offsets: (0, *bytes),
            };
            (name.clone(), info)
        });
        let metadata = HashMap::from([(HEADER.to_owned(), said)]);
        let metadata = Metadata::new(Some(metadata), tensors.collect());
        let metadata = metadata.map_err(|e| malformed(&e))?;
        let mut json = serde_json::to_vec(&metadata).map_err(|e| malformed(&e))?;
        // Tensors begin at a multiple of eight bytes.
        json.resize(json.len().next_multiple_of(LENGTH), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HostTensor, Message, Payload};

    fn message(tensors: &[(&str, Payload)]) -> Vec<u8> {
        let tensors = tensors.iter();
        let tensors = tensors.map(|(name, tensor)| ((*name).to_owned(), tensor.clone()));
        let message = Message {
            header: 7_u64,
            tensors: tensors.collect(),
        };
        message.encode().unwrap()
    }

    #[test]
    fn a_head_and_what_follows_are_a_message_both_ways() {
        for codes in [vec![], vec![1], (0..200).collect::<Vec<u8>>()] {
            let head = Head {
                header: 7_u64,
                tensor: Some(("y".to_owned(), codes.len())),
            };
            let mut written = head.encode().unwrap();
            assert_eq!(len(&written).unwrap(), Some(written.len()));
            written.extend(&codes);
            let whole = message(&[("y", Payload::of_codes(codes.clone()))]);
            let read = Message::<u64>::decode(&written).unwrap();
            assert_eq!(read, Message::<u64>::decode(&whole).unwrap());
            let end = len(&whole).unwrap().unwrap();
            assert_eq!(Head::<u64>::decode(&whole[..end]).unwrap(), head);
            assert_eq!(whole.len() - end, codes.len());
        }
        let none = message(&[]);
        assert_eq!(Head::<u64>::decode(&none).unwrap().tensor, None);
    }

    #[test]
    fn what_is_no_head_is_refused() {
        assert_eq!(len(&[0; 7]).unwrap(), None);
        assert!(len(&[255; 8]).is_err());
        assert!(len(&(MOST as u64 + 1).to_le_bytes()).is_err());
        assert!(Head::<u64>::decode(&[]).is_err());
        let two = [
            ("x", Payload::of_codes(vec![1])),
            ("y", Payload::of_codes(vec![2])),
        ];
        let two = message(&two);
        let end = len(&two).unwrap().unwrap();
        let error = Head::<u64>::decode(&two[..end]).unwrap_err().to_string();
        assert!(error.contains("is not asked for"), "{error}");
        let floats = HostTensor::new([1], vec![1.0]).unwrap();
        let floats = message(&[("x", floats.into())]);
        let end = len(&floats).unwrap().unwrap();
        let error = Head::<u64>::decode(&floats[..end]).unwrap_err();
        assert!(matches!(error, Error::WrongDtype { .. }), "{error}");
    }
}

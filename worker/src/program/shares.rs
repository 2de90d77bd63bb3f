//! Shares of features, multiplied with a layer's weights: uniform words in, words out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use lacuna_protocol::session::ReplyHeader;
use lacuna_protocol::shares::{Holding, MultiplyHeader, PRODUCT, SHARE};
use lacuna_shares::join::{Outputs, round, scales};
use lacuna_shares::pack::{pack, unpack};
use lacuna_shares::precision::check_holding;
use lacuna_shares::stream::Key;
use lacuna_wire::{HostTensor, Message, Payload};

use super::Ground;
use crate::compute::caught;
use crate::error::{Error, Result};
use crate::model::Model;

/// A session's program that multiplies shares.
pub struct Shares {
    ground: Ground,
    holder: Arc<Holder>,
}

/// Who holds the shares of a session.
struct Holder {
    holding: Holding,
    /// A seed holder's.
    key: Option<Key>,
    /// Of each layer that came, what its products are multiplied with before they are rounded.
    scales: Mutex<HashMap<String, Arc<[f32]>>>,
}

impl Shares {
    /// A program on `ground` for what `holding` says.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number of bits that words cannot have, and where the weights are not what everybody else's
    /// are to the last bit.
    pub fn new(ground: Ground, holding: Holding) -> Result<Self> {
        check_holding(holding.bits, holding.range, holding.fraction)?;
        if !ground.model.weights().are_f32() {
            let reason = "shares are multiplied with weights in f32; this worker holds them in half precision";
            return Err(Error::Invalid(reason.into()));
        }
        let key = holding.seed.as_ref().map(|seed| Key::received(seed.0));
        let holder = Holder {
            holding,
            key,
            scales: Mutex::default(),
        };
        Ok(Self {
            ground,
            holder: Arc::new(holder),
        })
    }

    /// The reply to a message: the product of its share.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the message contradicts itself, the model or the session, or is of more than the largest
    /// picture; those of [`crate::compute::Compute::run`].
    pub async fn multiply(&self, mut message: Message<MultiplyHeader>) -> Result<Bytes> {
        let header = message.header;
        let bounds = &self.ground.bounds;
        let shape = bounds.check_share(&header.layer, header.input, header.enlarged)?;
        let words = shape.iter().product();
        let sequence = header.sequence;
        let packed = match (self.holder.key.is_some(), message.tensors.remove(SHARE)) {
            (false, Some(Payload::Codes { data, .. })) => Some(data),
            (true, None) => None,
            (false, _) => return Err(Error::Invalid("a share holder is sent its share".into())),
            (true, Some(_)) => return Err(Error::Invalid("a seed holder draws its share".into())),
        };
        if let Some(name) = message.tensors.keys().next() {
            return Err(Error::Invalid(format!("tensor {name} is not asked for")));
        }
        let holder = self.holder.clone();
        let product = self.ground.compute.run(move |model| {
            caught(&header.layer, || {
                let share = holder.share(packed, sequence, words)?;
                holder.product(model, &header, HostTensor::new(shape, share)?)
            })
        });
        let product = Payload::of_codes(product.await?);
        let reply = Message {
            header: ReplyHeader { sequence },
            tensors: HashMap::from([(PRODUCT.to_owned(), product)]),
        };
        Ok(reply.encode()?.into())
    }
}

impl Holder {
    /// The `words` words of a share: those that came, or the `sequence`-th of the stream.
    fn share(&self, packed: Option<Vec<u8>>, sequence: u64, words: usize) -> Result<Vec<f32>> {
        let bits = self.holding.bits;
        let words = match (&self.key, packed) {
            (Some(key), _) => key.mask(sequence.wrapping_sub(1), words, bits)?,
            (None, Some(packed)) => unpack(&packed, words, bits)?,
            (None, None) => return Err(Error::Invalid("there is no share".into())),
        };
        Ok(words.into_iter().map(|word| word as f32).collect())
    }

    /// The product of a share as packed words.
    fn product(
        &self,
        model: &Model,
        header: &MultiplyHeader,
        share: HostTensor,
    ) -> Result<Vec<u8>> {
        let product = model.multiply(&header.layer, share, header.enlarged)?;
        let scales = self.scales(model, &header.layer)?;
        let values = match product.shape[..] {
            [_, _, rows, columns] => rows * columns,
            _ => 1,
        };
        let outputs = Outputs {
            scales: &scales,
            values,
        };
        let down = self.holding.range + self.holding.fraction;
        Ok(pack(&round(&product.data, outputs), down)?)
    }

    fn scales(&self, model: &Model, layer: &str) -> Result<Arc<[f32]>> {
        // A scale is there whole or not at all.
        let mut known = self.scales.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scales) = known.get(layer) {
            return Ok(scales.clone());
        }
        let (weights, outputs) = model.rows_of(layer)?;
        let scales: Arc<[f32]> = scales(&weights, outputs, self.holding.fraction).into();
        known.insert(layer.to_owned(), scales.clone());
        Ok(scales)
    }
}

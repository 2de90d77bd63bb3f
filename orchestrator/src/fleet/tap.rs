//! What one worker is sent, kept for `lacuna audit`.
//!
//! The copy is made on the user's side, of the very tensors that are put into messages. A worker has
//! nothing of the kind: what it computes follows from what it was sent and from the model, so an audit
//! computes it again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lacuna_protocol::shares::Seed;
use lacuna_wire::Payload;
use lacuna_worker::strip::Incoming;

use super::Piece;
use super::client::Product;

/// A handle to what is kept; it stays good when the fleet is gone.
#[derive(Clone, Debug, Default)]
pub struct Tap(Arc<Mutex<Heard>>);

/// Everything that a worker was sent, in order.
#[derive(Debug, Default)]
pub struct Heard {
    /// By a walk: the exchange, and the tensors as they travel.
    pub messages: Vec<Incoming>,
    /// Of single layers.
    pub pieces: Vec<Piece>,
    /// Of shares.
    pub shares: Vec<Share>,
    /// What the worker draws its shares from, where it was given that when its session opened.
    pub seed: Option<Seed>,
}

/// What was asked of a worker that multiplies a share.
#[derive(Clone, Debug)]
pub struct Share {
    /// Which product.
    pub product: Product,
    /// The packed words that were sent along; a seed holder is sent none.
    pub words: Option<Vec<u8>>,
}

impl Tap {
    /// Takes what was kept so far.
    pub fn take(&self) -> Heard {
        std::mem::take(&mut self.heard())
    }

    pub(super) fn keep_message(&self, at: &str, tensors: &HashMap<String, Payload>) {
        let message = (at.to_owned(), tensors.clone());
        self.heard().messages.push(message);
    }

    pub(super) fn keep_part(&self, part: &[Piece]) {
        self.heard().pieces.extend_from_slice(part);
    }

    pub(super) fn keep_share(&self, product: &Product, words: Option<&[u8]>) {
        let (product, words) = (product.clone(), words.map(<[u8]>::to_vec));
        self.heard().shares.push(Share { product, words });
    }

    /// The session had been opened with `seed` before anybody listened.
    pub(super) fn keep_seed(&self, seed: Seed) {
        self.heard().seed = Some(seed);
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        // A push leaves nothing half done, so a panic elsewhere spoils nothing here.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

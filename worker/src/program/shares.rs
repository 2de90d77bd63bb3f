//! Shares of features, multiplied with layers' weights: uniform words in, words out, band by band.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use lacuna_protocol::session::ReplyHeader;
use lacuna_protocol::shares::{
    Form, Holding, MOST_BANDS, MOST_LAYERS, MultiplyHeader, PRODUCT, SHARE,
};
use lacuna_shares::bands::Band;
use lacuna_shares::join::{Outputs, round, scales};
use lacuna_shares::pack::{pack, unpack};
use lacuna_shares::precision::check_holding;
use lacuna_shares::ring::Ring;
use lacuna_shares::stream::Key;
use lacuna_wire::head::Head;

use crate::bounds::Share;
use crate::compute::{Compute, caught};
use crate::error::{Error, Result};
use crate::ground::Loan;
use crate::model::{Model, Operand};

/// A session's program that multiplies shares.
pub struct Shares {
    ground: Loan,
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

/// A request that is worked on while it comes.
pub struct Task {
    holder: Arc<Holder>,
    compute: Compute,
    asked: Arc<Asked>,
    /// What of the share is there.
    share: Vec<i32>,
    /// Bands that are done.
    done: usize,
}

/// What a request asks for.
struct Asked {
    sequence: u64,
    /// The share, to each layer that multiplies it.
    layers: Vec<(String, Share)>,
    /// Of each of these, the bands.
    bands: Vec<Vec<Band>>,
    /// Columns that the share is enlarged to before.
    columns: Option<usize>,
    /// Bytes of each band that comes; none where it is drawn.
    coming: Vec<usize>,
    /// Bytes of the whole answer's words.
    going: usize,
}

impl Shares {
    /// A program on `ground` for what `holding` says.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number of bits that words cannot have, and where the weights are not those that everybody
    /// multiplies with, to the last bit.
    pub fn new(ground: Loan, holding: Holding) -> Result<Self> {
        match holding.form {
            Form::Carry {
                bits,
                range,
                fraction,
            } => check_holding(bits, range, fraction)?,
            Form::Ring { bits, down } => {
                Ring::new(bits, down)?;
            }
        }
        let checked = ground.model.check_shares(holding.weights);
        checked.map_err(|error| Error::Invalid(error.to_string()))?;
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

    /// What it runs on.
    pub fn ground(&self) -> &Loan {
        &self.ground
    }

    /// The task that the request beginning with `head` asks for.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it contradicts itself, the model or the session, or is of more than the largest picture.
    pub fn begin(&self, head: Head<MultiplyHeader>) -> Result<Task> {
        let MultiplyHeader {
            sequence,
            layers,
            input,
            enlarged,
            bands: number,
        } = head.header;
        if !(1..=MOST_LAYERS).contains(&layers.len()) || !(1..=MOST_BANDS).contains(&number) {
            return Err(Error::Invalid(format!(
                "{} layers and {number} bands; a request has 1 to {MOST_LAYERS} and 1 to {MOST_BANDS}",
                layers.len()
            )));
        }
        let bounds = &self.ground.bounds;
        let each = layers.into_iter().map(|layer| {
            let share = bounds.check_share(&layer, input, enlarged)?;
            Ok((layer, share))
        });
        let layers = each.collect::<Result<Vec<_>>>()?;
        bounds.check_output(layers.iter().map(|(_, share)| share.output.values()).sum())?;
        let bands = layers.iter().map(|(_, share)| share.rows.bands(number));
        let bands = bands.collect::<Result<Vec<_>, _>>()?;
        let (Some((first, share)), Some(of_first)) = (layers.first(), bands.first()) else {
            return Err(Error::Invalid("no layer".into()));
        };
        if let Some((other, _)) = layers.iter().find(|(_, other)| other.input != share.input) {
            let reason = format!("{first} and {other} do not multiply the same");
            return Err(Error::Invalid(reason));
        }
        let too_large = || Error::Invalid("more words than a memory holds".into());
        let form = self.holder.holding.form;
        let coming = of_first.iter().map(|band| {
            let bytes = share.input.bytes([band.input.clone()], form.bits());
            bytes.ok_or_else(too_large)
        });
        let coming = coming.collect::<Result<Vec<usize>>>()?;
        let going = layers.iter().zip(&bands).map(|((_, share), bands)| {
            let rows = bands.iter().map(|band| band.output.clone());
            share.output.bytes(rows, form.down())
        });
        let going = going.sum::<Option<usize>>().ok_or_else(too_large)?;
        let words: usize = coming.iter().sum();
        let coming = match (self.holder.key.is_some(), head.tensor) {
            (true, None) if number == 1 => Vec::new(),
            (true, None) => {
                let reason = "a seed holder answers in one band";
                return Err(Error::Invalid(reason.into()));
            }
            (false, Some((name, bytes))) if name == SHARE && bytes == words => coming,
            (false, Some((name, bytes))) => {
                return Err(Error::Invalid(format!(
                    "the tensor {name} of {bytes} bytes; a share is {SHARE}, here of {words}"
                )));
            }
            (false, None) => return Err(Error::Invalid("a share holder is sent its share".into())),
            (true, Some(_)) => {
                return Err(Error::Invalid("a seed holder draws its share".into()));
            }
        };
        let share = vec![0; share.input.values()];
        let asked = Asked {
            sequence,
            bands,
            layers,
            columns: enlarged.map(|[_, columns]| columns),
            coming,
            going,
        };
        Ok(Task {
            holder: self.holder.clone(),
            compute: self.ground.compute.clone(),
            asked: Arc::new(asked),
            share,
            done: 0,
        })
    }
}

impl Task {
    /// What the answer begins with; the bands' words follow.
    ///
    /// # Errors
    /// None: the header is two words.
    pub fn head(&self) -> Result<Vec<u8>> {
        let sequence = self.asked.sequence;
        let head = Head {
            header: ReplyHeader { sequence },
            tensor: Some((PRODUCT.to_owned(), self.asked.going)),
        };
        Ok(head.encode()?)
    }

    /// Bytes of words of the whole answer.
    pub fn going(&self) -> usize {
        self.asked.going
    }

    /// Bytes of each band that comes; none of a share that is drawn.
    pub fn coming(&self) -> &[usize] {
        &self.asked.coming
    }

    /// The products' words that the next band gives, of which `packed` came; nothing of a share that is drawn.
    ///
    /// # Errors
    /// [`Error::Invalid`] for other bytes than those of the band; those of [`Compute::run`].
    pub async fn next(&mut self, packed: Bytes) -> Result<Vec<u8>> {
        let (holder, asked, band) = (self.holder.clone(), self.asked.clone(), self.done);
        let mut share = std::mem::take(&mut self.share);
        self.done += 1;
        let work = move |model: &Model| {
            let layer = asked.layers.first().map_or("", |(layer, _)| layer);
            caught(layer, || {
                holder.receive(&asked, band, &packed, &mut share)?;
                let words = holder.products(model, &asked, band, &share)?;
                Ok((words, share))
            })
        };
        let (words, share) = self.compute.run("shares", work).await?;
        self.share = share;
        Ok(words)
    }
}

impl Holder {
    /// Puts the words of a band into the share: those that came as `packed`, or those that are drawn for the whole.
    fn receive(
        &self,
        asked: &Asked,
        band: usize,
        packed: &[u8],
        share: &mut Vec<i32>,
    ) -> Result<()> {
        let bits = self.holding.form.bits();
        if let Some(key) = &self.key {
            *share = key.mask(asked.sequence.wrapping_sub(1), share.len(), bits)?;
            return Ok(());
        }
        let ((_, of), rows) = match (asked.layers.first(), asked.bands.first()) {
            (Some(layer), Some(bands)) if band < bands.len() => (layer, &bands[band].input),
            _ => return Err(Error::Invalid(format!("there is no band {band}"))),
        };
        let rest = of.input.unpack(share, rows, packed, bits)?;
        // A band is as long as was said.
        unpack(rest, 0, bits)?;
        Ok(())
    }

    /// The words of the products that a band makes known.
    fn products(
        &self,
        model: &Model,
        asked: &Asked,
        band: usize,
        share: &[i32],
    ) -> Result<Vec<u8>> {
        let mut packed = Vec::new();
        let precision = self.holding.weights;
        for ((layer, of), bands) in asked.layers.iter().zip(&asked.bands) {
            let Some(Band { output, .. }) = bands.get(band) else {
                continue;
            };
            if output.is_empty() {
                continue;
            }
            let needed = of.rows.needed(output);
            let operand = Operand {
                share,
                planes: of.input,
                needed: &needed,
                columns: asked.columns,
            };
            let words = match self.holding.form {
                Form::Carry { fraction, .. } => {
                    let odd = output.start % 2 == 1;
                    let product = model.multiply(layer, operand, (odd, precision))?;
                    let outputs = Outputs {
                        scales: &self.scales(model, layer, fraction)?,
                        values: match product.shape[..] {
                            [_, _, rows, columns] => rows * columns,
                            _ => 1,
                        },
                    };
                    round(&product.data, outputs, self.holding.form.down())?
                }
                Form::Ring { bits, down } => {
                    let ring = Ring::new(bits, down)?;
                    let product = model.multiply_in((ring, precision), layer, operand)?;
                    pack(&ring.round(&product), down)?
                }
            };
            packed.extend(words);
        }
        Ok(packed)
    }

    fn scales(&self, model: &Model, layer: &str, fraction: u32) -> Result<Arc<[f32]>> {
        // A scale is there whole or not at all.
        let mut known = self.scales.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scales) = known.get(layer) {
            return Ok(scales.clone());
        }
        let (weights, outputs) = model.rows_of(layer, self.holding.weights)?;
        let scales: Arc<[f32]> = scales(&weights, outputs, fraction).into();
        known.insert(layer.to_owned(), scales.clone());
        Ok(scales)
    }
}

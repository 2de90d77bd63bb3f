//! The executor that has workers multiply shares of features, layer by layer.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::Tensor;
use futures::future::try_join_all;
use lacuna_model::executor::Executor;
use lacuna_model::host::OnDevice;
use lacuna_model::layers::{Attention, Conv2d, GroupNorm};
use lacuna_model::unet::{TimeEmbedding, UNet};
use lacuna_model::whole::Whole;
use lacuna_shares::check::VECTORS;
use lacuna_shares::join::{Outputs, join};
use lacuna_shares::pack::{pack, unpack};
use lacuna_shares::precision::Precision;
use lacuna_shares::split::{Carries, Extent, split};
use lacuna_wire::HostTensor;
use tokio::runtime::Handle;

use super::dialogue::Dialogue;
use super::groups::Groups;
use super::own::Own;
use super::sent::Sent;
use super::verifier::{Verifier, expected_of, is_honest};
use crate::error::{Error, Result};
use crate::fleet::Fleet;
use crate::fleet::client::Product;
use crate::fleet::tally::Traffic;
use crate::schemes::{Account, Finished, Predictor};

/// Executes a U-Net of which workers multiply some layers.
pub struct Shared {
    whole: Whole,
    groups: Groups,
    precision: Precision,
    dialogues: Vec<Dialogue>,
    runtime: Handle,
    /// Of each layer that is sent, with the entries of one group.
    sent: HashMap<String, Sent>,
    /// The same as what a worker is asked for, in the order of the walk.
    products: Arc<[Product]>,
    own: HashMap<String, Own>,
    verifier: Option<Verifier>,
    flop: u64,
}

/// One group's part of a layer's input.
struct Part {
    share: Vec<u8>,
    carries: Carries,
    step: f64,
    /// What each worker multiplies, the share holder last, where that is checked.
    shares: Option<Vec<Vec<i32>>>,
}

impl Shared {
    /// The user's side `whole`, the workers, and the layers that they multiply, in the order of the walk.
    ///
    /// # Errors
    /// As [`Dialogue::new`].
    pub fn new(
        whole: Whole,
        groups: Groups,
        precision: Precision,
        sent: Vec<Sent>,
        fleet: Fleet,
    ) -> Result<Self> {
        let (clients, runtime) = fleet.into_clients();
        let mut clients = clients.into_iter();
        let dialogues = (0..groups.number).map(|_| {
            let of_group = clients.by_ref().take(groups.size).collect();
            Dialogue::new(&groups, of_group, runtime.clone())
        });
        let dialogues = dialogues.collect::<Result<_>>()?;
        let sent = sent.iter().map(|sent| sent.of_entries(groups.entries));
        let sent: Vec<Sent> = sent.collect();
        let products = sent.iter().map(|sent| Product {
            layer: sent.layer.clone(),
            input: sent.input,
            enlarged: sent.enlarged,
            bytes: Sent::bytes(sent.products(), precision.down()),
        });
        Ok(Self {
            products: products.collect(),
            sent: sent
                .into_iter()
                .map(|sent| (sent.layer.clone(), sent))
                .collect(),
            whole,
            groups,
            precision,
            dialogues,
            runtime,
            own: HashMap::new(),
            verifier: None,
            flop: 0,
        })
    }

    /// The same, with some products checked.
    pub fn checked_by(self, verifier: Option<Verifier>) -> Self {
        Self { verifier, ..self }
    }

    /// The output `[B, C_out, H, W]` of the layer `name` for the input `x` `[B, C, H, W]`; none where it is not sent.
    fn multiplied(&mut self, name: &str, x: &Tensor<4>) -> Result<Option<Tensor<4>>> {
        let Some(sent) = self.sent.get(name) else {
            return Ok(None);
        };
        let [batch, c, rows, columns] = x.dims();
        if [self.groups.entries, rows, columns] != sent.input
            || batch != self.groups.entries * self.groups.number
            || c != sent.c_in
        {
            let reason = format!("{name}: an input of {:?} was not foreseen", x.dims());
            return Err(Error::Request(reason));
        }
        let weights = self.whole.weights();
        if !self.own.contains_key(name) {
            let own = Own::new(weights, sent, self.precision, self.verifier.as_mut())?;
            self.own.insert(name.to_owned(), own);
        }
        let missing = || Error::Request(format!("{name}: its weights are gone"));
        let own = self.own.get(name).ok_or_else(missing)?;
        let product = self.products.iter().find(|product| product.layer == name);
        let product = product.ok_or_else(missing)?;
        let x = HostTensor::from_device(x.clone())?;
        let entries = x.data.chunks(sent.features());
        let parts = entries.zip(&mut self.dialogues);
        let checked = match &mut self.verifier {
            Some(verifier) => verifier.chooses()?,
            None => false,
        };
        let (precision, bits) = (self.precision, self.groups.share_bits());
        let parts = parts.map(|(x, dialogue)| hide(x, sent, dialogue, (precision, bits), checked));
        let parts = parts.collect::<Result<Vec<Part>>>()?;
        let (sends, hidden): (Vec<_>, Vec<_>) = (parts.into_iter())
            .map(|part| (part.share, (part.carries, part.step, part.shares)))
            .unzip();
        let sends = self.dialogues.iter_mut().zip(sends);
        let sends = sends.map(|(dialogue, share)| dialogue.send(product, share));
        let runtime = &self.runtime;
        // The carries are multiplied while the share travels.
        let (answers, carried) = std::thread::scope(|scope| {
            let carried = scope.spawn(|| {
                let each = hidden.into_iter();
                each.map(|(carries, step, shares)| {
                    let expected = own.check.as_ref().zip(shares);
                    let expected = expected.map(|(check, shares)| expected_of(check, sent, shares));
                    (own.multiply(sent, carries), step, expected)
                })
                .collect::<Vec<_>>()
            });
            let answers = runtime.block_on(try_join_all(sends));
            let carried = carried.join();
            (
                answers,
                carried.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            )
        });
        let mut output = Vec::with_capacity(self.groups.number * sent.products());
        let parts = self.dialogues.iter_mut().zip(answers?);
        let inputs = x.data.chunks(sent.features());
        for (((dialogue, last), (mut y, step, expected)), x) in parts.zip(carried).zip(inputs) {
            let mut packed = dialogue.drawn()?;
            packed.push(last);
            let words = packed.iter().enumerate().map(|(worker, packed)| {
                unpack(packed, sent.products(), self.precision.down())
                    .map_err(|e| dialogue.nonsense(worker, &e.to_string()))
            });
            let words = words.collect::<Result<Vec<_>>>()?;
            let [_, _, h, w] = sent.output;
            let outputs = Outputs {
                scales: &own.scales,
                values: h * w,
            };
            if let Some((check, expected)) = own.check.as_ref().zip(expected) {
                let bits = (0..).map(|worker| self.groups.bits(worker));
                let each = words.iter().zip(&expected).zip(bits);
                for (worker, ((words, expected), bits)) in each.enumerate() {
                    let apart = check.mean(words, expected, outputs, bits)?;
                    if !is_honest(apart, expected.len() / VECTORS) {
                        return Err(dialogue.wrong(worker, name, apart));
                    }
                }
            }
            join(&words, &mut y, outputs, &own.bias, step, self.precision)?;
            self.flop += own.adapt(sent, x, &mut y);
            output.extend(y);
            dialogue.count(sent.flop, sent.features() as u64);
            self.flop += sent.carries_flop(self.groups.size);
        }
        let [_, c_out, h, w] = sent.output;
        let output = HostTensor::new([batch, c_out, h, w], output)?;
        Ok(Some(output.into_device(self.whole.device())?))
    }
}

/// The input `x` of `sent` hidden by the masks of the group of `dialogue`, whose share holder has words of so many bits.
fn hide(
    x: &[f32],
    sent: &Sent,
    dialogue: &mut Dialogue,
    (precision, bits): (Precision, u32),
    checked: bool,
) -> Result<Part> {
    let [_, rows, columns] = sent.input;
    let sizes = [sent.c_in, rows, columns];
    let extent = Extent::of_windows(x, sizes, sent.kernel, sent.enlarged)?;
    let masks = dialogue.masks(x.len())?;
    let step = extent.step(precision, masks.len() + 1);
    let (share, carries) = split(x, step, &masks, precision)?;
    let packed = pack(&share, bits)?;
    let mut shares = masks;
    shares.push(share);
    Ok(Part {
        share: packed,
        carries,
        step,
        shares: checked.then_some(shares),
    })
}

impl Account for Shared {
    fn traffic(&self) -> Option<Traffic> {
        let mut all = Traffic::default();
        self.dialogues
            .iter()
            .for_each(|dialogue| all.add(&dialogue.traffic()));
        Some(all)
    }

    fn finish(self) -> Finished {
        let clients = self.dialogues.into_iter().flat_map(Dialogue::finish);
        Finished {
            user_flop: self.whole.flop() + self.flop,
            fleet: Some(Fleet::of_clients(clients.collect(), self.runtime)),
            ..Finished::default()
        }
    }
}

impl Executor for Shared {
    type Feature = Tensor<4>;
    type Tokens = Tensor<3>;
    type Embedding = Tensor<2>;
    type Error = Error;

    fn conv(&mut self, layer: &Conv2d, x: &Tensor<4>) -> Result<Tensor<4>> {
        match self.multiplied(&layer.name, x)? {
            Some(y) => Ok(y),
            None => Ok(self.whole.conv(layer, x)?),
        }
    }

    /// What is sent is what was not enlarged yet: a quarter of it.
    fn upsample_conv(
        &mut self,
        conv: &Conv2d,
        x: &Tensor<4>,
        like: &Tensor<4>,
    ) -> Result<Tensor<4>> {
        match self.multiplied(&conv.name, x)? {
            Some(y) => Ok(y),
            None => Ok(self.whole.upsample_conv(conv, x, like)?),
        }
    }

    // The user's own.

    fn group_norm(&mut self, layer: &GroupNorm, x: &Tensor<4>) -> Result<Tensor<4>> {
        Ok(self.whole.group_norm(layer, x)?)
    }

    fn group_norm_silu(&mut self, layer: &GroupNorm, x: &Tensor<4>) -> Result<Tensor<4>> {
        Ok(self.whole.group_norm_silu(layer, x)?)
    }

    fn embed_time(&mut self, layer: &TimeEmbedding, timestep: f64) -> Result<Tensor<2>> {
        Ok(self.whole.embed_time(layer, timestep)?)
    }

    fn upsample(&mut self, x: &Tensor<4>, like: &Tensor<4>) -> Result<Tensor<4>> {
        Ok(self.whole.upsample(x, like)?)
    }

    fn self_attention(&mut self, layer: &Attention, x: &Tensor<3>) -> Result<Tensor<3>> {
        Ok(self.whole.self_attention(layer, x)?)
    }

    fn cross_attention(&mut self, layer: &Attention, x: &Tensor<3>) -> Result<Tensor<3>> {
        Ok(self.whole.cross_attention(layer, x)?)
    }

    lacuna_model::whole_does_the_rest!(whole);
}

/// Predicts call by call: seed holders are asked ahead for all of one.
pub struct Calls<'a> {
    /// The walk.
    pub unet: &'a UNet,
    /// Who executes it.
    pub executor: Shared,
}

impl Predictor for Calls<'_> {
    fn predict(&mut self, sample: HostTensor, timestep: f64) -> Result<HostTensor> {
        let sample = sample.into_device(self.executor.whole.device())?;
        let products = self.executor.products.clone();
        for dialogue in &mut self.executor.dialogues {
            dialogue.begin(&products)?;
        }
        let output = self.unet.forward(&mut self.executor, &sample, timestep);
        self.executor.dialogues.iter_mut().for_each(Dialogue::end);
        let output = HostTensor::from_device(output?)?;
        output.check_finite("the noise prediction")?;
        Ok(output)
    }

    fn traffic(&self) -> Option<Traffic> {
        self.executor.traffic()
    }

    fn finish(self: Box<Self>) -> Finished {
        self.executor.finish()
    }
}

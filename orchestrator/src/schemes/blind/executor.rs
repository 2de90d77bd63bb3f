//! The executor that has workers multiply shares of features, layer by layer.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::Tensor;
use futures::future::try_join_all;
use lacuna_model::executor::Executor;
use lacuna_model::host::OnDevice;
use lacuna_model::layers::{Attention, Conv2d, FeedForward, GroupNorm, Linear};
use lacuna_model::ops;
use lacuna_model::unet::{TimeEmbedding, UNet};
use lacuna_model::whole::Whole;
use lacuna_shares::Shares;
use lacuna_shares::bands::Band;
use lacuna_shares::check::VECTORS;
use lacuna_shares::join::join;
use lacuna_shares::split::{Carries, split};
use lacuna_wire::HostTensor;
use tokio::runtime::Handle;

use super::dialogue::Dialogue;
use super::groups::Groups;
use super::own::Own;
use super::sent::Sent;
use super::verifier::{Verifier, is_honest};
use crate::error::{Error, Result};
use crate::fleet::Fleet;
use crate::fleet::client::Product;
use crate::fleet::tally::Traffic;
use crate::schemes::{Account, Finished, Predictor};

/// Executes a U-Net of which workers multiply some layers.
pub struct Shared {
    whole: Whole,
    groups: Groups,
    dialogues: Vec<Dialogue>,
    runtime: Handle,
    /// What is sent, by the first layer of each, with the entries of one group.
    sent: HashMap<String, Arc<Exchanged>>,
    /// What a seed holder is asked for, in the order of the walk.
    drawn: Arc<[Product]>,
    /// By layer.
    own: HashMap<String, Own>,
    verifier: Option<Verifier>,
    flop: u64,
}

/// What is sent, and how.
struct Exchanged {
    sent: Sent,
    /// In which the share holder is sent its share and answers.
    bands: Vec<Band>,
    /// In which a seed holder answers.
    whole: Vec<Band>,
    /// What the share holder is asked for.
    product: Product,
}

/// One group's part of a layer's input.
struct Part {
    share: Vec<u8>,
    carries: Carries,
    step: f64,
    /// What each worker multiplies, the share holder last, where that is checked.
    shares: Option<Vec<Vec<i32>>>,
}

/// What the user makes of a part while its share travels: of each layer.
struct Beside {
    /// The product of the carries.
    carried: Vec<f32>,
    /// Of each worker, where it is checked.
    expected: Option<Vec<Vec<f32>>>,
}

impl Shared {
    /// The user's side `whole`, the workers, and what they multiply, in the order of the walk.
    ///
    /// # Errors
    /// As [`Dialogue::new`].
    pub fn new(whole: Whole, groups: Groups, sent: Vec<Sent>, fleet: Fleet) -> Result<Self> {
        let (clients, runtime) = fleet.into_clients();
        let mut clients = clients.into_iter();
        let dialogues = (0..groups.number).map(|_| {
            let of_group = clients.by_ref().take(groups.size).collect();
            Dialogue::new(&groups, of_group, runtime.clone())
        });
        let dialogues = dialogues.collect::<Result<_>>()?;
        let (up, down) = (groups.share_bits(), groups.shares().down());
        let mut drawn = Vec::with_capacity(sent.len());
        let mut exchanged = HashMap::with_capacity(sent.len());
        for sent in sent {
            let sent = sent.of_entries(groups.entries);
            let bands = sent.bands(sent.bands_at(up))?;
            let whole = sent.bands(1)?;
            drawn.push(sent.product(&whole, down));
            let product = sent.product(&bands, down);
            let name = sent.name().to_owned();
            let of = Exchanged {
                sent,
                bands,
                whole,
                product,
            };
            exchanged.insert(name, Arc::new(of));
        }
        Ok(Self {
            sent: exchanged,
            drawn: drawn.into(),
            whole,
            groups,
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

    /// What is sent at the layer `name`; none where nothing is.
    fn exchanged(&self, name: &str) -> Option<Arc<Exchanged>> {
        self.sent.get(name).cloned()
    }

    /// The output `[B, C_out, H, W]` of the layer `name` for the input `x` `[B, C, H, W]`; none where it is not sent.
    fn map(&mut self, name: &str, x: &Tensor<4>) -> Result<Option<Tensor<4>>> {
        let Some(of) = self.exchanged(name) else {
            return Ok(None);
        };
        let [batch, c, rows, columns] = x.dims();
        self.check_input(&of.sent, [batch, rows, columns], c)?;
        let x = HostTensor::from_device(x.clone())?;
        let outputs = self.multiplied(&of, &x.data)?.into_iter();
        let output = outputs.zip(&of.sent.layers).next();
        let (y, layer) = output.ok_or_else(|| Error::Request(format!("{name}: no output")))?;
        let [h, w] = of.sent.convolution(layer.outputs).out_size();
        let y = HostTensor::new([batch, layer.outputs, h, w], y)?;
        Ok(Some(y.into_device(self.whole.device())?))
    }

    /// The outputs `[B, T, D_out]` of the linear map `name`, and of those that are sent with it, for the input `x`
    /// `[B, T, D]`; none where it is not sent.
    fn tokens<const N: usize>(
        &mut self,
        name: &str,
        x: &Tensor<3>,
    ) -> Result<Option<[Tensor<3>; N]>> {
        let Some(of) = self.exchanged(name).filter(|of| of.sent.layers.len() == N) else {
            return Ok(None);
        };
        let [batch, tokens, c] = x.dims();
        self.check_input(&of.sent, [batch, tokens, 1], c)?;
        let x = HostTensor::from_device(x.clone())?;
        let each = self.multiplied(&of, &x.data)?.into_iter();
        let each = each.zip(&of.sent.layers).map(|(y, layer)| {
            let y = HostTensor::new([batch, tokens, layer.outputs], y)?;
            Ok(y.into_device(self.whole.device())?)
        });
        let each = each.collect::<Result<Vec<_>>>()?;
        let outputs = each.try_into();
        outputs
            .map(Some)
            .map_err(|_| Error::Request(format!("{name}: not as many outputs as layers")))
    }

    /// That an input of so many batch entries, rows and columns is what was counted with.
    fn check_input(&self, sent: &Sent, [batch, rows, columns]: [usize; 3], c: usize) -> Result<()> {
        let entries = self.groups.entries;
        let foreseen = [entries, rows, columns] == sent.input
            && batch == entries * self.groups.number
            && c == sent.c_in;
        match foreseen {
            true => Ok(()),
            false => Err(Error::Request(format!(
                "{}: an input of {:?} and {c} channels was not foreseen",
                sent.name(),
                [batch, rows, columns]
            ))),
        }
    }

    /// The output of each layer of `of` for the input `x`, all batch entries one after the other.
    fn multiplied(&mut self, of: &Exchanged, x: &[f32]) -> Result<Vec<Vec<f32>>> {
        let sent = &of.sent;
        for layer in &sent.layers {
            if !self.own.contains_key(&layer.layer) {
                let weights = self.whole.weights();
                let own = Own::new(
                    weights,
                    sent,
                    layer,
                    self.groups.shares(),
                    self.verifier.as_mut(),
                )?;
                self.own.insert(layer.layer.clone(), own);
            }
        }
        let own = sent.layers.iter().map(|layer| {
            let gone = || Error::Request(format!("{}: its weights are gone", layer.layer));
            self.own.get(&layer.layer).ok_or_else(gone)
        });
        let own = own.collect::<Result<Vec<&Own>>>()?;
        let checked = match &mut self.verifier {
            Some(verifier) => verifier.chooses()?,
            None => false,
        };
        let (kind, bits) = (self.groups.shares(), self.groups.share_bits());
        let parts = x.chunks(sent.features()).zip(&mut self.dialogues);
        let parts = parts.map(|(x, dialogue)| hide(x, of, dialogue, (kind, bits), checked));
        let mut parts = parts.collect::<Result<Vec<Part>>>()?;
        let shares = parts.iter_mut().map(|part| std::mem::take(&mut part.share));
        let sends = self.dialogues.iter_mut().zip(shares);
        let sends = sends.map(|(dialogue, share)| dialogue.send(&of.product, share));
        let sends: Vec<_> = sends.collect();
        let runtime = &self.runtime;
        // The carries are multiplied while the share travels.
        let (answers, beside) = std::thread::scope(|scope| {
            let beside = scope.spawn(|| {
                let each = parts.iter();
                each.map(|part| beside(part, sent, &own))
                    .collect::<Vec<_>>()
            });
            let answers = runtime.block_on(try_join_all(sends));
            let beside = beside.join();
            (
                answers,
                beside.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            )
        });
        let mut outputs = vec![Vec::new(); sent.layers.len()];
        let groups = self.dialogues.iter_mut().zip(answers?);
        let groups = groups.zip(&parts).zip(beside);
        for ((((dialogue, last), part), beside), x) in groups.zip(x.chunks(sent.features())) {
            let drawn = dialogue.drawn()?;
            let packed = drawn.iter().map(|drawn| (drawn, &of.whole));
            let packed = packed.chain([(&last, &of.bands)]).enumerate();
            // Of each worker, of each layer.
            let words = packed.map(|(worker, (packed, bands))| {
                let words = sent.read(packed, bands, kind.down());
                words.map_err(|e| dialogue.nonsense(worker, &e.to_string()))
            });
            let mut words = words.collect::<Result<Vec<_>>>()?;
            let each = own.iter().zip(beside).zip(&sent.layers).zip(&mut outputs);
            for (i, (((own, mut beside), layer), output)) in each.enumerate() {
                let of_layer = words.iter_mut().map(|words| std::mem::take(&mut words[i]));
                let words: Vec<Vec<i32>> = of_layer.collect();
                if let Some(expected) = &beside.expected
                    && let Some((worker, apart)) = liar(own, sent, &self.groups, &words, expected)?
                {
                    return Err(dialogue.wrong(worker, &layer.layer, apart));
                }
                let y = &mut beside.carried;
                join(&words, y, own.lie(sent), &own.bias, part.step, kind)?;
                self.flop += own.adapt(sent, x, y);
                output.append(y);
            }
            dialogue.count(sent.flop(), sent.features() as u64);
            self.flop += sent.carries_flop(kind, self.groups.size);
        }
        Ok(outputs)
    }
}

/// The input `x` hidden by the masks of the group of `dialogue`, whose share holder has words of so many bits.
fn hide(
    x: &[f32],
    of: &Exchanged,
    dialogue: &mut Dialogue,
    (kind, bits): (Shares, u32),
    checked: bool,
) -> Result<Part> {
    let extent = of.sent.extent(x)?;
    let masks = dialogue.masks(x.len())?;
    let step = extent.step(kind, masks.len() + 1);
    let (share, carries) = split(x, step, &masks, kind)?;
    let rows = of.bands.iter().map(|band| band.input.clone());
    let packed = of.sent.planes().pack(&share, rows, bits)?;
    let mut shares = masks;
    shares.push(share);
    Ok(Part {
        share: packed,
        carries,
        step,
        shares: checked.then_some(shares),
    })
}

/// What of a part is made at home, for each of its layers.
fn beside(part: &Part, sent: &Sent, own: &[&Own]) -> Vec<Beside> {
    let each = own.iter().map(|own| {
        let expected = own.check.as_ref().zip(part.shares.as_ref());
        Beside {
            carried: own.multiply(sent, &part.carries),
            expected: expected.map(|(check, shares)| check.expected(sent, shares)),
        }
    });
    each.collect()
}

/// The first of a group's workers whose `words` are too far from what is `expected`, and how far; none where all are honest.
fn liar(
    own: &Own,
    sent: &Sent,
    groups: &Groups,
    words: &[Vec<i32>],
    expected: &[Vec<f32>],
) -> Result<Option<(usize, f64)>> {
    let Some(check) = &own.check else {
        return Ok(None);
    };
    for (worker, (words, expected)) in words.iter().zip(expected).enumerate() {
        let apart = check.mean(words, expected, own.lie(sent), groups.bits(worker))?;
        if !is_honest(apart, expected.len() / VECTORS) {
            return Ok(Some((worker, apart)));
        }
    }
    Ok(None)
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
        match self.map(&layer.name, x)? {
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
        match self.map(&conv.name, x)? {
            Some(y) => Ok(y),
            None => Ok(self.whole.upsample_conv(conv, x, like)?),
        }
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor<3>) -> Result<Tensor<3>> {
        match self.tokens(&layer.name, x)? {
            Some([y]) => Ok(y),
            None => Ok(self.whole.linear(layer, x)?),
        }
    }

    fn self_attention(&mut self, layer: &Attention, x: &Tensor<3>) -> Result<Tensor<3>> {
        let [q, k, v] = match self.tokens(&layer.to_q.name, x)? {
            Some(all) => all,
            None => [
                self.linear(&layer.to_q, x)?,
                self.linear(&layer.to_k, x)?,
                self.linear(&layer.to_v, x)?,
            ],
        };
        let h = self.whole.attend_to(layer, q, [k, v]);
        self.linear(&layer.to_out, &h)
    }

    fn cross_attention(&mut self, layer: &Attention, x: &Tensor<3>) -> Result<Tensor<3>> {
        let q = self.linear(&layer.to_q, x)?;
        let keys = self.whole.prompt_keys(layer)?;
        let h = self.whole.attend_to(layer, q, keys);
        self.linear(&layer.to_out, &h)
    }

    fn feed_forward(&mut self, layer: &FeedForward, x: &Tensor<3>) -> Result<Tensor<3>> {
        let h = self.linear(&layer.up, x)?;
        self.linear(&layer.down, &ops::geglu(h))
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
        let drawn = self.executor.drawn.clone();
        for dialogue in &mut self.executor.dialogues {
            dialogue.begin(&drawn)?;
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

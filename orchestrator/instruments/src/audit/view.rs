//! What one provider has of a picture: everything that its worker was sent, and everything that follows
//! from it.
//!
//! A worker computes from what it is sent and the public weights alone. So what was sent is kept
//! ([`lacuna_orchestrator::fleet::tap`]), and the provider's own work is done again here: with the worker's own code
//! ([`lacuna_worker::strip`]) under `resident`, piece by piece under `ppidm`.

use std::collections::{BTreeMap, HashMap, VecDeque};

use burn::tensor::Tensor;
use lacuna_model::host::OnDevice;
use lacuna_model::partition::{Rows, cut};
use lacuna_model::unet::{CONV_OUT, UNet};
use lacuna_model::weights::Weights;
use lacuna_protocol::exchange::Assignment;
use lacuna_protocol::session::Work;
use lacuna_wire::HostTensor;
use lacuna_wire::Payload;
use lacuna_worker::Model;
use lacuna_worker::strip::{self, Incoming, Outside};

use super::arrange::{by_channel, by_pixel, by_token, side_by_side};
use super::uniformity::Words;
use crate::error::{Error, Result};
use lacuna_orchestrator::fleet::Piece;
use lacuna_orchestrator::fleet::tap::Heard;

/// What a provider has of one step, as the attacks read it. A batch's entries (the halves of a guided step) are
/// put side by side.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// By stage of the U-Net: its rows of the stage's last feature map, rows sent beside them, and
    /// statistics of the whole.
    pub stages: BTreeMap<String, Vec<f32>>,
    /// Of each of its own latents `[rows columns, D]`: the noisy latents, the prediction, and the features
    /// of the last stage, as far as it has them.
    pub pixels: Option<HostTensor>,
    /// Everybody's keys and values in the last self-attention of the finest level that has one,
    /// `[T, D]`, where attention is broadcast.
    pub keys: Option<HostTensor>,
    /// The same attention's tile, where workers attend to tiles.
    pub tile: Option<Tile>,
    /// What the prompt became, `[tokens, D]`: its embedding, or keys and values made of it.
    pub prompt: Option<HostTensor>,
    /// By stage: its rows of the stage's last feature map as a map, `[B, C, rows, W]`.
    pub maps: BTreeMap<String, HostTensor>,
    /// Words of shares, where they are what it has.
    pub words: Vec<Words>,
}

impl View {
    /// What several providers have of one step, put together.
    ///
    /// # Errors
    /// [`lacuna_wire::Error::WrongShape`] when they have maps of different rows.
    pub fn together(views: Vec<Self>) -> lacuna_wire::Result<Self> {
        let mut all = Self::default();
        let mut pixels = Vec::new();
        for view in views {
            for (stage, features) in view.stages {
                all.stages.entry(stage).or_default().extend(features);
            }
            for (stage, map) in view.maps {
                let both = match all.maps.remove(&stage) {
                    Some(before) => by_channel(&[&before, &map])?,
                    None => map,
                };
                all.maps.insert(stage, both);
            }
            pixels.extend(view.pixels);
            all.words.extend(view.words);
            all.keys = all.keys.or(view.keys);
            all.tile = all.tile.or(view.tile);
            all.prompt = all.prompt.or(view.prompt);
        }
        if !pixels.is_empty() {
            all.pixels = Some(side_by_side(&pixels)?);
        }
        Ok(all)
    }
}

/// Queries, keys and values of one self-attention, `[B, T, C]` each.
#[derive(Clone, Debug)]
pub struct Tile {
    /// Those that it made of its own rows.
    pub own: [HostTensor; 3],
    /// Those that it was sent, permuted and rotated.
    pub sent: [HostTensor; 3],
}

type Named = HashMap<String, HostTensor>;

/// The views of a `resident` session's steps, of the worker that was given `assignment`.
///
/// # Errors
/// [`Error::Request`] when features travel as codes; those of the walk.
pub fn of_walk(
    unet: &UNet,
    weights: &Weights,
    assignment: Assignment,
    heard: Heard,
) -> Result<Vec<View>> {
    let mut replay = Replay {
        heard: heard.messages.into(),
        scene: Scene::default(),
        views: Vec::new(),
        prompt: None,
        ended: false,
    };
    match strip::run(unet, weights.clone(), assignment, &mut replay) {
        // A walk has no other end than that nothing more comes.
        Err(error) if !replay.ended => Err(error.into()),
        _ => Ok(replay.views),
    }
}

/// Brings a strip what its worker was sent, and keeps what there is to see.
struct Replay {
    heard: VecDeque<Incoming>,
    /// The step that the walk is at.
    scene: Scene,
    views: Vec<View>,
    /// Sent once, known for good.
    prompt: Option<HostTensor>,
    /// Whether all that was heard has been brought.
    ended: bool,
}

/// One step while it is walked.
#[derive(Default)]
struct Scene {
    begin: Named,
    /// The last feature map of each stage.
    blocks: BTreeMap<String, HostTensor>,
    /// What was sent beside: halo rows and statistics, the last of each stage.
    beside: BTreeMap<String, Vec<f32>>,
    keys: Option<[HostTensor; 2]>,
    tile: Option<Tile>,
}

impl Replay {
    fn next(&mut self) -> lacuna_protocol::Result<Incoming> {
        let next = self.heard.pop_front();
        self.ended = next.is_none();
        next.ok_or(lacuna_protocol::Error::Closed)
    }

    /// Keeps what of a message the attacks read; `out` is what the worker handed out for it.
    fn keep(&mut self, at: &str, sent: &Named, out: Option<&Named>) {
        if at == "begin" {
            if let Some(prompt) = sent.get("prompt") {
                self.prompt = last_entry(prompt);
            }
            self.scene.begin = sent.clone();
            return;
        }
        let three = |named: &Named| -> Option<[HostTensor; 3]> {
            let [q, k, v] = ["q", "k", "v"].map(|name| named.get(name).cloned());
            Some([q?, k?, v?])
        };
        // Attentions of the same or of a finer level take the place of those before.
        let finer = |x: &HostTensor, than: Option<&HostTensor>| {
            than.is_none_or(|than| x.shape[1] >= than.shape[1])
        };
        if at.starts_with("tiles ") {
            if let (Some(sent), Some(own)) = (three(sent), out.and_then(three))
                && finer(&own[0], self.scene.tile.as_ref().map(|t| &t.own[0]))
            {
                self.scene.tile = Some(Tile { own, sent });
            }
        } else if let (Some(k), Some(v)) = (sent.get("k"), sent.get("v")) {
            if finer(k, self.scene.keys.as_ref().map(|[k, _]| k)) {
                self.scene.keys = Some([k.clone(), v.clone()]);
            }
        } else if let Some(stage) = at.split_once(' ').and_then(|(_, layer)| stage_of(layer)) {
            let names = ["above", "below", "moments"];
            let beside = names.iter().filter_map(|name| sent.get(*name));
            let beside: Vec<f32> = beside.flat_map(|x| x.data.iter().copied()).collect();
            if !beside.is_empty() {
                self.scene.beside.insert(stage, beside);
            }
        }
    }

    /// The step ended with the prediction `y`.
    fn end(&mut self, y: Option<&HostTensor>) -> lacuna_protocol::Result<()> {
        let scene = std::mem::take(&mut self.scene);
        let finest = finest(&scene.blocks);
        let of_pixels = [scene.begin.get("x"), y, finest].into_iter().flatten();
        let pixels = by_pixel(&of_pixels.collect::<Vec<_>>())?;
        let keys = scene.keys.map(|keys| by_token(&keys)).transpose()?;
        let mut stages: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for (stage, block) in &scene.blocks {
            stages.insert(stage.clone(), block.data.clone());
        }
        for (stage, beside) in scene.beside {
            stages.entry(stage).or_default().extend(beside);
        }
        self.views.push(View {
            stages,
            pixels,
            keys,
            tile: scene.tile,
            prompt: self.prompt.clone(),
            maps: scene.blocks,
            words: Vec::new(),
        });
        Ok(())
    }
}

impl Outside for &mut Replay {
    fn wait(&mut self) -> lacuna_protocol::Result<Incoming> {
        let (at, tensors) = self.next()?;
        let sent = decoded(&tensors)?;
        self.keep(&at, &sent, None);
        Ok((at, tensors))
    }

    fn exchange(
        &mut self,
        at: String,
        out: HashMap<String, Payload>,
    ) -> lacuna_protocol::Result<Incoming> {
        let out = decoded(&out)?;
        if at == "end" {
            self.end(out.get("y"))?;
            return self.wait();
        }
        let (at, tensors) = self.next()?;
        let sent = decoded(&tensors)?;
        self.keep(&at, &sent, Some(&out));
        Ok((at, tensors))
    }

    fn observe(&mut self, block: &str, x: &Tensor<4>) -> lacuna_protocol::Result<()> {
        if let Some(stage) = stage_of(block).filter(|_| !block.contains("samplers")) {
            let x = HostTensor::from_device(x.clone())?;
            self.scene.blocks.insert(stage, x);
        }
        Ok(())
    }
}

/// The tensors as plain numbers.
fn decoded(tensors: &HashMap<String, Payload>) -> lacuna_wire::Result<Named> {
    let decode = |(name, payload): (&String, &Payload)| {
        let tensor = match payload {
            Payload::F64 { shape, data } => {
                let data = data.iter().map(|x| *x as f32).collect();
                HostTensor::new(shape.clone(), data)?
            }
            Payload::Codes { .. } => {
                let reason = "an audit reads f32, f16 and bf16 on the wire, not codes";
                return Err(lacuna_wire::Error::Message(reason.into()));
            }
            other => other.clone().into_tensor(name)?,
        };
        Ok((name.clone(), tensor))
    };
    tensors.iter().map(decode).collect()
}

/// The views of a `ppidm` session that ran `steps` steps. Of each stage it has the input of the last
/// convolution with the rows beside it; of the prompt, keys and values of the first cross-attention; and it
/// computes its rows of the prediction.
///
/// # Errors
/// Those of the layers.
pub fn of_pieces(model: &Model, heard: Heard, steps: usize) -> Result<Vec<View>> {
    let per_step = heard.pieces.len() / steps.max(1);
    let of_step = heard.pieces.chunks_exact(per_step.max(1));
    of_step
        .map(|pieces| of_step_pieces(model, pieces))
        .collect()
}

fn of_step_pieces(model: &Model, pieces: &[Piece]) -> Result<View> {
    let mut view = View::default();
    for piece in pieces {
        match (&piece.work, &piece.inputs[..]) {
            (Work::Attention { .. }, [_, k, v]) if view.prompt.is_none() => {
                let both = [last_entry(k), last_entry(v)];
                let both: Vec<HostTensor> = both.into_iter().flatten().collect();
                view.prompt = Some(side_by_side(&both)?);
            }
            (work @ Work::Conv { layer, .. }, [x]) if layer == CONV_OUT => {
                let y = model.run(work, vec![x.clone()])?.into_tensor(layer)?;
                let own = without_halo(x)?;
                view.pixels = by_pixel(&[&y, &own])?;
                view.stages.insert(CONV_OUT.into(), x.data.clone());
                view.maps.insert(CONV_OUT.into(), own);
            }
            (Work::Conv { layer, .. }, [x]) if !layer.contains("samplers") => {
                if let Some(stage) = stage_of(layer) {
                    view.maps.insert(stage.clone(), without_halo(x)?);
                    view.stages.insert(stage, x.data.clone());
                }
            }
            _ => {}
        }
    }
    if view.stages.is_empty() {
        let reason = "the provider was sent no strip; choose another with --provider";
        return Err(Error::Request(reason.into()));
    }
    Ok(view)
}

/// A convolution's input without the one row above and the one below.
fn without_halo(x: &HostTensor) -> Result<HostTensor> {
    let [.., rows, _] = x.dims::<4>()?;
    let own = 1..rows as isize - 1;
    Ok(cut(x, Rows::OfFeature, &own)?)
}

/// `down_blocks.1` of `down_blocks.1.resnets.0.conv1`, `mid_block` of what lies there; none of the first
/// and last layers.
pub fn stage_of(layer: &str) -> Option<String> {
    let mut parts = layer.split('.');
    match (parts.next()?, parts.next()) {
        (mid @ "mid_block", _) => Some(mid.to_owned()),
        (side @ ("down_blocks" | "up_blocks"), Some(index)) => Some(format!("{side}.{index}")),
        _ => None,
    }
}

/// The last of the stages on the way up, which has the rows of the latents.
pub fn finest(blocks: &BTreeMap<String, HostTensor>) -> Option<&HostTensor> {
    let up = blocks.iter().filter(|(stage, _)| stage.starts_with("up"));
    up.map(|(_, x)| x).max_by_key(|x| x.shape[2])
}

/// The last batch entry, which is the conditional one.
fn last_entry(x: &HostTensor) -> Option<HostTensor> {
    let [batch, rows, width] = x.dims().ok()?;
    let data = x.data[(batch.checked_sub(1)?) * rows * width..].to_vec();
    HostTensor::new([rows, width], data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_belong_to_stages() {
        let stages = [
            ("down_blocks.1.resnets.0.conv1", Some("down_blocks.1")),
            ("mid_block.attentions.0", Some("mid_block")),
            ("conv_in", None),
        ];
        for (layer, stage) in stages {
            assert_eq!(stage_of(layer).as_deref(), stage);
        }
    }
}

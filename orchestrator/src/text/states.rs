//! Token ids to hidden states, through a text encoder's layers.

use std::borrow::Cow;

use burn::tensor::module::embedding;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use lacuna_model::host::OnDevice;
use lacuna_model::layers::Parameter;
use lacuna_model::ops;
use lacuna_model::weights::{Stored, Weights, list};
use lacuna_wire::HostTensor;

use super::clip::{ClipTextLayers, POSITION_EMBEDDING, TOKEN_EMBEDDING};
use super::encoder::EncoderLayer;
use crate::error::{Error, Result};

/// What a text encoder makes of prompts.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Hidden states `[B, T, D]`.
    pub states: Tensor<3>,
    /// The whole text `[B, D_pooled]`, of a model that has the map to it.
    pub pooled: Option<Tensor<2>>,
}

/// Which hidden states of a text encoder are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Those after the last layer but so many, normalised: Stable Diffusion's.
    Normalised(usize),
    /// Those before the last layer and so many more, as they are: SDXL's.
    Penultimate(usize),
}

/// Tokens of one's own, and their vectors in place of the vocabulary's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnTokens {
    ids: Vec<u32>,
    /// `D` values of each.
    values: Vec<f32>,
}

impl OwnTokens {
    /// And those of `ids` with `vectors` `[N, D]`.
    pub fn add(&mut self, ids: &[u32], vectors: &HostTensor) {
        self.ids.extend(ids);
        self.values.extend(&vectors.data);
    }

    fn place(&self, id: u32) -> Option<usize> {
        self.ids.iter().position(|own| *own == id)
    }
}

/// Where a token's vector is.
enum Vector {
    /// A row of the vocabulary's table.
    Table(i32),
    /// One of one's own.
    Own(usize),
}

/// Prompts of equally many tokens, and which of their states are wanted.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Token ids of each.
    pub prompts: Vec<Vec<u32>>,
    /// Of all of them.
    pub wanted: Wanted,
}

/// Prompts on their way through the layers.
struct Underway<'a> {
    asked: &'a Asked,
    /// Layers until their states.
    depth: usize,
    /// After the layers that they have passed.
    x: Tensor<3>,
    /// After so many as `depth` says.
    states: Option<Tensor<3>>,
}

impl Underway<'_> {
    /// Through the next layer, the one of such an index; where it `pools`, beyond the states that are wanted.
    fn pass(
        &mut self,
        index: usize,
        layer: &EncoderLayer,
        weights: &Weights,
        pools: bool,
    ) -> Result<()> {
        if index == self.depth {
            self.states = Some(self.x.clone());
        }
        if index >= self.depth && !pools {
            return Ok(());
        }
        self.x = layer.forward(weights, self.x.clone(), true)?;
        Ok(())
    }
}

/// What each of `asked` becomes in a text encoder that knows the tokens `own`, too. Its weights are read a layer at a time,
/// while the layer before is computed, and dropped again: first there are its tables, from then on no more than two layers.
///
/// # Errors
/// [`Error::Tokens`] for an id outside the vocabulary, prompts of unequal length or too many tokens, or where more layers
/// are left out than there are; as [`Weights::load_part`].
pub fn encode_stored(
    stored: &Stored<ClipTextLayers>,
    own: &OwnTokens,
    asked: &[Asked],
    device: &Device,
) -> Result<Vec<Encoded>> {
    let weights = |part: &[Parameter]| Ok(Cow::Owned(stored.load_part(part, device)?));
    stored.layers().encode(asked, own, weights)
}

impl ClipTextLayers {
    /// What each of `asked` becomes, by what `weights` gives of the parameters that it is asked for.
    pub(super) fn encode<'a, 'w>(
        &self,
        asked: &'a [Asked],
        own: &OwnTokens,
        weights: impl Fn(&[Parameter]) -> Result<Cow<'w, Weights>> + Sync,
    ) -> Result<Vec<Encoded>> {
        // Before anything is read.
        let place = |asked: &'a Asked| {
            let Asked { prompts, wanted } = asked;
            Ok((asked, self.depth_of(*wanted)?, self.vectors(prompts, own)?))
        };
        let places = asked.iter().map(place).collect::<Result<Vec<_>>>()?;

        let tables = weights(&self.first())?;
        let mut runs = Vec::with_capacity(places.len());
        for (asked, depth, vectors) in places {
            runs.push(Underway {
                asked,
                depth,
                x: self.embed(asked.prompts.len(), &vectors, own, &tables)?,
                states: None,
            });
        }
        drop(tables);

        let pools = self.pooled.is_some();
        let deepest = runs.iter().map(|run| run.depth).max().unwrap_or(0);
        let count = if pools { self.layers.len() } else { deepest };
        let read = |index: usize| {
            let layer = self.layers[..count].get(index);
            layer.map(|layer| weights(&list(layer))).transpose()
        };
        let (mut index, mut held) = (0, read(0)?);
        while let Some(weights) = held {
            let layer = &self.layers[index];
            let mut next = Ok(None);
            // Computed by this thread, so that it does not wait for a layer to be read in the midst of another.
            let passed = rayon::in_place_scope(|scope| {
                scope.spawn(|_| next = read(index + 1));
                let mut runs = runs.iter_mut();
                runs.try_for_each(|run| run.pass(index, layer, &weights, pools))
            });
            passed?;
            held = next?;
            index += 1;
        }

        let weights = weights(&self.last())?;
        let runs = runs.into_iter();
        runs.map(|run| self.end(run, &weights)).collect()
    }

    /// How many layers come before the states that are wanted.
    fn depth_of(&self, wanted: Wanted) -> Result<usize> {
        let (left_out, skip) = match wanted {
            Wanted::Normalised(skip) => (skip, skip),
            Wanted::Penultimate(skip) => (skip.saturating_add(1), skip),
        };
        self.layers.len().checked_sub(left_out).ok_or_else(|| {
            Error::Tokens(format!(
                "clip skip {skip}: the text encoder has {} layers",
                self.layers.len()
            ))
        })
    }

    /// What prompts become that have passed the layers.
    fn end(&self, run: Underway<'_>, weights: &Weights) -> Result<Encoded> {
        let Asked { prompts, wanted } = run.asked;
        let norm = |x| ops::layer_norm(weights, &self.final_norm, x);
        let states = run.states.unwrap_or_else(|| run.x.clone());
        let states = match wanted {
            Wanted::Normalised(_) => norm(states)?,
            Wanted::Penultimate(_) => states,
        };
        let Some((at, project)) = &self.pooled else {
            return Ok(Encoded {
                states,
                pooled: None,
            });
        };
        let last = norm(run.x)?;
        let rows = prompts.iter().enumerate().map(|(row, ids)| {
            let one = last.clone().narrow(0, row, 1);
            one.narrow(1, at.place(ids), 1)
        });
        let whole = Tensor::cat(rows.collect(), 0).squeeze_dim::<2>(1);
        Ok(Encoded {
            states,
            pooled: Some(ops::linear(weights, project, whole)?),
        })
    }

    /// Where the vectors of the tokens of `prompts` are, prompt after prompt.
    fn vectors(&self, prompts: &[Vec<u32>], own: &OwnTokens) -> Result<Vec<Vector>> {
        let t = prompts.first().map_or(0, Vec::len);
        if t == 0 || t > self.places || prompts.iter().any(|p| p.len() != t) {
            let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
            return Err(Error::Tokens(format!(
                "prompts of {lengths:?} tokens, but equal lengths from 1 to {} are wanted",
                self.places
            )));
        }
        let vector = |&id: &u32| match (own.place(id), i32::try_from(id)) {
            (Some(place), _) => Ok(Vector::Own(place)),
            (None, Ok(index)) if (id as usize) < self.vocabulary => Ok(Vector::Table(index)),
            _ => Err(Error::Tokens(format!(
                "token id {id}, but the vocabulary has {} entries",
                self.vocabulary
            ))),
        };
        prompts.iter().flatten().map(vector).collect()
    }

    /// Tokens whose vectors are `vectors`, of `b` prompts, and their positions: `[B, T, D]`.
    fn embed(
        &self,
        b: usize,
        vectors: &[Vector],
        own: &OwnTokens,
        weights: &Weights,
    ) -> Result<Tensor<3>> {
        let (t, d) = (vectors.len() / b.max(1), self.width);
        let device = weights.device();
        let ids = vectors.iter().map(|vector| match vector {
            Vector::Table(index) => *index,
            // Its own vector takes the place of this one.
            Vector::Own(_) => 0,
        });
        let ids = TensorData::new(ids.collect::<Vec<i32>>(), [b, t]);
        let ids = Tensor::<2, Int>::from_data(ids, device);
        let mut tokens = embedding(weights.matrix(&weight(TOKEN_EMBEDDING))?, ids);
        let is_own = |vector: &Vector| matches!(vector, Vector::Own(_));
        if vectors.iter().any(is_own) {
            let is_own: Vec<bool> = vectors.iter().map(is_own).collect();
            let is_own = Tensor::<3, Bool>::from_data(TensorData::new(is_own, [b, t, 1]), device);
            let zeros = vec![0.0; d];
            let rows = vectors.iter().flat_map(|vector| match vector {
                Vector::Own(place) => &own.values[place * d..][..d],
                Vector::Table(_) => &zeros,
            });
            let rows = HostTensor::new([b, t, d], rows.copied().collect::<Vec<_>>())?;
            tokens = tokens.mask_where(is_own.expand([b, t, d]), rows.into_device(device)?);
        }
        let positions = weights.matrix(&weight(POSITION_EMBEDDING))?;
        Ok(tokens + positions.narrow(0, 0, t).unsqueeze::<3>())
    }
}

fn weight(layer: &str) -> String {
    format!("{layer}.weight")
}

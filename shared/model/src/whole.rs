//! The whole tensor on one device: the `local` scheme, and what every other scheme must equal.

use std::collections::HashMap;

use burn::tensor::{Device, Tensor, TensorData};

use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::layers::{Attention, Conv2d, FeedForward, GroupNorm, LayerNorm, Linear, attention_flop};
use crate::ops;
use crate::unet::TimeEmbedding;
use crate::weights::Weights;

/// What the prompt became, on the device.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// The text encoder's output, `[B, T, D]`.
    pub context: Tensor<3>,
    /// SDXL's second input.
    pub added: Option<AddedConditioning>,
    /// The guidance scale, for a model that takes it as an input.
    pub guidance: Option<Guidance>,
}

/// A guidance scale as an input of the U-Net.
#[derive(Clone, Debug, PartialEq)]
pub enum Guidance {
    /// The scale.
    Scale(f32),
    /// What became of it elsewhere, `[time_cond_proj_dim]`, as [`TimeEmbedding::guidance_embedding`] makes it.
    Embedding(Vec<f32>),
}

impl Guidance {
    /// Its embedding, of so many channels.
    ///
    /// # Errors
    /// [`Error::Conditioning`] for an embedding of another width.
    fn embedding(self, channels: usize) -> Result<Vec<f32>> {
        match self {
            Self::Scale(scale) => Ok(TimeEmbedding::guidance_embedding(scale, channels)),
            Self::Embedding(values) if values.len() == channels => Ok(values),
            Self::Embedding(_) => Err(Error::Conditioning(
                "the guidance scale's embedding is not as wide as time_cond_proj_dim says",
            )),
        }
    }
}

impl Conditioning {
    /// A prompt's embedding `[B, T, D]`, and nothing else.
    pub fn of_text(context: Tensor<3>) -> Self {
        Self {
            context,
            added: None,
            guidance: None,
        }
    }

    /// Tokens `T` of the prompt.
    pub fn tokens(&self) -> usize {
        let [_, tokens, _] = self.context.dims();
        tokens
    }
}

/// SDXL's pooled text and picture sizes.
#[derive(Clone, Debug)]
pub struct AddedConditioning {
    /// `[B, D]`.
    pub pooled: Tensor<2>,
    /// Original, crop and target sizes of each batch entry.
    pub sizes: Vec<[f32; 6]>,
}

/// Is shown every block's output under the block's name.
pub type Observer = Box<dyn FnMut(&str, &Tensor<4>) + Send>;

/// Executes a U-Net on one device.
pub struct Whole {
    weights: Weights,
    /// None where the prompt is not to be known.
    conditioning: Option<Conditioning>,
    /// Keys and values of the prompt by layer: the same at every step. The weights that make them may be gone.
    prompt_keys: HashMap<String, [Tensor<3>; 2]>,
    flop: u64,
    observer: Option<Observer>,
}

impl Whole {
    /// An executor over `weights`, with the prompt.
    pub fn new(weights: Weights, conditioning: Conditioning) -> Self {
        Self {
            conditioning: Some(conditioning),
            ..Self::without_prompt(weights)
        }
    }

    /// An executor that cannot do cross-attention.
    pub fn without_prompt(weights: Weights) -> Self {
        Self {
            weights,
            conditioning: None,
            prompt_keys: HashMap::new(),
            flop: 0,
            observer: None,
        }
    }

    /// The same for the batch entries `start..start + len`, with nothing done yet but what the prompt became.
    pub fn of_entries(&self, start: usize, len: usize) -> Self {
        let conditioning = self.conditioning.as_ref().map(|all| Conditioning {
            context: all.context.clone().narrow(0, start, len),
            added: all.added.as_ref().map(|added| AddedConditioning {
                pooled: added.pooled.clone().narrow(0, start, len),
                sizes: added.sizes.iter().skip(start).take(len).copied().collect(),
            }),
            guidance: all.guidance.clone(),
        });
        let of_entries = |keys: &[Tensor<3>; 2]| keys.clone().map(|x| x.narrow(0, start, len));
        let keys = self.prompt_keys.iter();
        let keys = keys.map(|(layer, keys)| (layer.clone(), of_entries(keys)));
        Self {
            conditioning,
            prompt_keys: keys.collect(),
            ..Self::without_prompt(self.weights.clone())
        }
    }

    /// From now on knows the prompt.
    pub fn set_prompt(&mut self, conditioning: Conditioning) {
        self.conditioning = Some(conditioning);
        self.prompt_keys.clear();
    }

    /// The prompt's embedding, `[B, T, D]`, where it is known.
    pub fn prompt(&self) -> Option<&Tensor<3>> {
        self.conditioning.as_ref().map(|c| &c.context)
    }

    /// From now on shows every block's output to `observer`, to compare or record it.
    pub fn show_blocks_to(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    /// Work done so far: convolutions, linear maps and attention products, multiply and add
    /// counted as two.
    pub fn flop(&self) -> u64 {
        self.flop
    }

    /// The weights it computes with.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        self.weights.device()
    }

    /// Queries, keys and values of an attention layer: `q` from `x`, the others from the same
    /// tokens or the prompt's.
    ///
    /// # Errors
    /// [`MissingTensor`](lacuna_wire::Error::MissingTensor) when the weights lack the layer; as [`Self::prompt_keys`].
    pub fn project(
        &mut self,
        layer: &Attention,
        x: &Tensor<3>,
        prompt: bool,
    ) -> Result<[Tensor<3>; 3]> {
        let q = self.apply(&layer.to_q, x.clone())?;
        let [k, v] = if prompt {
            self.prompt_keys(layer)?
        } else {
            [
                self.apply(&layer.to_k, x.clone())?,
                self.apply(&layer.to_v, x.clone())?,
            ]
        };
        Ok([q, k, v])
    }

    /// Keys and values of the prompt, `[B, 77, C]`, for a cross-attention layer; made once.
    ///
    /// # Errors
    /// [`MissingTensor`](lacuna_wire::Error::MissingTensor) when the weights lack the layer, [`Error::Conditioning`] when the prompt is
    /// not known here.
    pub fn prompt_keys(&mut self, layer: &Attention) -> Result<[Tensor<3>; 2]> {
        if let Some(keys) = self.prompt_keys.get(&layer.name) {
            return Ok(keys.clone());
        }
        let keys = prompt_keys(&self.weights, layer, self.prompt())?;
        Ok(self.know_prompt_keys(layer, keys))
    }

    /// Makes them with `weights`, which nobody needs for them after that.
    ///
    /// # Errors
    /// As [`Self::prompt_keys`].
    pub fn make_prompt_keys(&mut self, layer: &Attention, weights: &Weights) -> Result<()> {
        let keys = prompt_keys(weights, layer, self.prompt())?;
        self.know_prompt_keys(layer, keys);
        Ok(())
    }

    fn know_prompt_keys(&mut self, layer: &Attention, keys: [Tensor<3>; 2]) -> [Tensor<3>; 2] {
        let [batch, tokens, _] = keys[0].dims();
        for linear in [&layer.to_k, &layer.to_v] {
            self.flop += linear.flop(batch * tokens);
        }
        self.prompt_keys.insert(layer.name.clone(), keys.clone());
        keys
    }

    /// The products of an attention layer: `[B, T, C]` from `q` `[B, T, C]`, `k` and `v` `[B, S, C]`.
    pub fn attend_to(
        &mut self,
        layer: &Attention,
        q: Tensor<3>,
        [k, v]: [Tensor<3>; 2],
    ) -> Tensor<3> {
        let [b, t, c] = q.dims();
        self.flop += b as u64 * attention_flop(t, k.dims()[1], c);
        ops::attention(q, k, v, layer.heads, false)
    }

    /// A linear map, counted.
    fn apply<const D: usize>(&mut self, layer: &Linear, x: Tensor<D>) -> Result<Tensor<D>> {
        let rows: usize = x.dims()[..D - 1].iter().product();
        self.flop += layer.flop(rows);
        ops::linear(&self.weights, layer, x)
    }

    fn attend(&mut self, layer: &Attention, x: &Tensor<3>, prompt: bool) -> Result<Tensor<3>> {
        let [q, k, v] = self.project(layer, x, prompt)?;
        let h = self.attend_to(layer, q, [k, v]);
        self.apply(&layer.to_out, h)
    }
}

/// Keys and values that `layer` makes of the prompt's embedding.
fn prompt_keys(
    weights: &Weights,
    layer: &Attention,
    context: Option<&Tensor<3>>,
) -> Result<[Tensor<3>; 2]> {
    let context = context.ok_or(Error::Conditioning("the prompt is not known here"))?;
    Ok([
        ops::linear(weights, &layer.to_k, context.clone())?,
        ops::linear(weights, &layer.to_v, context.clone())?,
    ])
}

/// Inside an `impl Executor` over the tensors of one device: leaves what needs no other row to the
/// [`Whole`] in the field `$whole`.
#[macro_export]
macro_rules! whole_does_the_rest {
    // The question marks turn the error into the executor's own, which may be the same.
    ($whole:ident) => {
        #[allow(clippy::needless_question_mark)]
        fn add_embedding(
            &mut self,
            project: &$crate::layers::Linear,
            x: Self::Feature,
            embedding: &Self::Embedding,
        ) -> Result<Self::Feature, Self::Error> {
            Ok(self.$whole.add_embedding(project, x, embedding)?)
        }

        #[allow(clippy::needless_question_mark)]
        fn add(
            &mut self,
            a: Self::Feature,
            b: &Self::Feature,
        ) -> Result<Self::Feature, Self::Error> {
            Ok(self.$whole.add(a, b)?)
        }

        #[allow(clippy::needless_question_mark)]
        fn concat(
            &mut self,
            a: Self::Feature,
            b: Self::Feature,
        ) -> Result<Self::Feature, Self::Error> {
            Ok(self.$whole.concat(a, b)?)
        }

        #[allow(clippy::needless_question_mark)]
        fn to_tokens(&mut self, x: &Self::Feature) -> Result<Self::Tokens, Self::Error> {
            Ok(self.$whole.to_tokens(x)?)
        }

        #[allow(clippy::needless_question_mark)]
        fn to_feature(
            &mut self,
            x: Self::Tokens,
            like: &Self::Feature,
        ) -> Result<Self::Feature, Self::Error> {
            Ok(self.$whole.to_feature(x, like)?)
        }

        #[allow(clippy::needless_question_mark)]
        fn layer_norm(
            &mut self,
            layer: &$crate::layers::LayerNorm,
            x: &Self::Tokens,
        ) -> Result<Self::Tokens, Self::Error> {
            Ok(self.$whole.layer_norm(layer, x)?)
        }

        #[allow(clippy::needless_question_mark)]
        fn add_tokens(
            &mut self,
            a: Self::Tokens,
            b: &Self::Tokens,
        ) -> Result<Self::Tokens, Self::Error> {
            Ok(self.$whole.add_tokens(a, b)?)
        }
    };
}

/// The same for the linear maps of tokens that are no part of an attention.
#[macro_export]
macro_rules! whole_maps_tokens {
    ($whole:ident) => {
        #[allow(clippy::needless_question_mark)]
        fn linear(
            &mut self,
            layer: &$crate::layers::Linear,
            x: &Self::Tokens,
        ) -> Result<Self::Tokens, Self::Error> {
            Ok(self.$whole.linear(layer, x)?)
        }

        #[allow(clippy::needless_question_mark)]
        fn feed_forward(
            &mut self,
            layer: &$crate::layers::FeedForward,
            x: &Self::Tokens,
        ) -> Result<Self::Tokens, Self::Error> {
            Ok(self.$whole.feed_forward(layer, x)?)
        }
    };
}

impl Executor for Whole {
    type Feature = Tensor<4>;
    type Tokens = Tensor<3>;
    type Embedding = Tensor<2>;
    type Error = Error;

    fn embed_time(&mut self, layer: &TimeEmbedding, timestep: f64) -> Result<Tensor<2>> {
        let device = self.device().clone();
        let row = |values: Vec<f32>| {
            let shape = [1, values.len()];
            Tensor::<2>::from_data(TensorData::new(values, shape), &device)
        };
        let mut sinusoid = row(layer.sinusoid(timestep, layer.channels));
        if let Some(project) = &layer.guidance {
            let known = self.conditioning.as_ref();
            let guidance = known.and_then(|known| known.guidance.clone());
            let guidance = guidance.ok_or(Error::Conditioning(
                "the model wants the guidance scale (time_cond_proj_dim)",
            ))?;
            let embedding = row(guidance.embedding(project.d_in)?);
            sinusoid = sinusoid + self.apply(project, embedding)?;
        }
        let h = self.apply(&layer.linear_1, sinusoid)?;
        let embedding = self.apply(&layer.linear_2, ops::silu(h))?;
        let Some(added) = &layer.added else {
            return Ok(embedding);
        };
        let added_input = self.conditioning.as_ref().and_then(|c| c.added.clone());
        let Some(input) = added_input else {
            return Err(Error::Conditioning(
                "the model wants pooled text and sizes (addition_embed_type = text_time)",
            ));
        };
        let batch = input.pooled.dims()[0];
        if input.sizes.len() != batch {
            return Err(Error::Conditioning(
                "there are not as many sizes as batch entries",
            ));
        }
        let rows = input.sizes.iter().map(|sizes| {
            let each = sizes.iter();
            let each = each.flat_map(|size| layer.sinusoid(f64::from(*size), added.channels));
            row(each.collect())
        });
        let sizes = ops::like(Tensor::cat(rows.collect(), 0), &input.pooled);
        let h = Tensor::cat(vec![input.pooled, sizes], 1);
        let h = self.apply(&added.linear_1, h)?;
        let h = self.apply(&added.linear_2, ops::silu(h))?;
        Ok(ops::add(embedding, h))
    }

    fn conv(&mut self, layer: &Conv2d, x: &Tensor<4>) -> Result<Tensor<4>> {
        let y = ops::conv2d(&self.weights, layer, x.clone())?;
        let [b, _, h, w] = y.dims();
        self.flop += layer.flop(b * h * w);
        Ok(y)
    }

    fn group_norm(&mut self, layer: &GroupNorm, x: &Tensor<4>) -> Result<Tensor<4>> {
        ops::group_norm(&self.weights, layer, x.clone(), false)
    }

    fn group_norm_silu(&mut self, layer: &GroupNorm, x: &Tensor<4>) -> Result<Tensor<4>> {
        ops::group_norm(&self.weights, layer, x.clone(), true)
    }

    fn add_embedding(
        &mut self,
        project: &Linear,
        x: Tensor<4>,
        embedding: &Tensor<2>,
    ) -> Result<Tensor<4>> {
        let shift = self.apply(project, ops::silu(embedding.clone()))?;
        let [rows, c] = shift.dims();
        Ok(ops::add(x, shift.reshape([rows, c, 1, 1])))
    }

    fn add(&mut self, a: Tensor<4>, b: &Tensor<4>) -> Result<Tensor<4>> {
        Ok(ops::add(a, b.clone()))
    }

    fn concat(&mut self, a: Tensor<4>, b: Tensor<4>) -> Result<Tensor<4>> {
        let b = ops::like(b, &a);
        Ok(Tensor::cat(vec![a, b], 1))
    }

    fn upsample(&mut self, x: &Tensor<4>, like: &Tensor<4>) -> Result<Tensor<4>> {
        let [_, _, h, w] = like.dims();
        Ok(ops::enlarge(x.clone(), [h, w]))
    }

    fn to_tokens(&mut self, x: &Tensor<4>) -> Result<Tensor<3>> {
        let [b, c, h, w] = x.dims();
        Ok(x.clone().reshape([b, c, h * w]).swap_dims(1, 2))
    }

    fn to_feature(&mut self, x: Tensor<3>, like: &Tensor<4>) -> Result<Tensor<4>> {
        let [b, _, c] = x.dims();
        let [_, _, h, w] = like.dims();
        Ok(x.swap_dims(1, 2).reshape([b, c, h, w]))
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor<3>) -> Result<Tensor<3>> {
        self.apply(layer, x.clone())
    }

    fn layer_norm(&mut self, layer: &LayerNorm, x: &Tensor<3>) -> Result<Tensor<3>> {
        ops::layer_norm(&self.weights, layer, x.clone())
    }

    fn self_attention(&mut self, layer: &Attention, x: &Tensor<3>) -> Result<Tensor<3>> {
        self.attend(layer, x, false)
    }

    fn cross_attention(&mut self, layer: &Attention, x: &Tensor<3>) -> Result<Tensor<3>> {
        self.attend(layer, x, true)
    }

    fn feed_forward(&mut self, layer: &FeedForward, x: &Tensor<3>) -> Result<Tensor<3>> {
        let h = self.apply(&layer.up, x.clone())?;
        self.apply(&layer.down, ops::geglu(h))
    }

    fn add_tokens(&mut self, a: Tensor<3>, b: &Tensor<3>) -> Result<Tensor<3>> {
        Ok(ops::add(a, b.clone()))
    }

    fn observe(&mut self, block: &str, x: &Tensor<4>) -> Result<()> {
        if let Some(observer) = &mut self.observer {
            observer(block, x);
        }
        Ok(())
    }
}

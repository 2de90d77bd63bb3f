//! From a prompt to what the U-Net is told of it, by all of a model's text encoders.

use burn::tensor::{Device, Tensor};
use lacuna_model::host::OnDevice;
use lacuna_model::survey::MOST_PROMPT_TOKENS;
use lacuna_model::unet::UNet;
use lacuna_model::weights::Stored;
use lacuna_model::whole::{AddedConditioning, Conditioning};
use lacuna_wire::HostTensor;
use serde::{Deserialize, Serialize};

use super::clip::{ClipTextEncoder, ClipTextLayers, Encoded, OwnTokens, Wanted};
use super::embedding::{Embedding, EmbeddingFile};
use super::syntax::PromptSyntax;
use super::tokenizer::{Chunk, ClipTokenizer, LeftOut};
use crate::error::{Error, Result};
use crate::family::Family;

/// What a picture is to be of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// What to see.
    #[serde(rename = "prompt")]
    pub text: String,
    /// What belongs to it.
    #[serde(flatten)]
    pub options: PromptOptions,
}

/// How a prompt is read, and what else a model is told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PromptOptions {
    /// What not to see. None is not the same as an empty text: of SDXL's models it may mean no text at all.
    pub negative_prompt: Option<String>,
    /// Last layers of the text encoders that are left out; as in the reference, not for the negative prompt.
    pub clip_skip: usize,
    /// How both prompts are written.
    pub syntax: PromptSyntax,
    /// What an SDXL model is told of the picture's sizes.
    pub sizes: MicroConditioning,
}

impl Prompt {
    /// What to see, and nothing else.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            options: PromptOptions::default(),
        }
    }

    /// The same, and what not to see.
    pub fn without(mut self, negative: impl Into<String>) -> Self {
        self.options.negative_prompt = Some(negative.into());
        self
    }
}

/// What an SDXL model is told of a picture beside its text (Podell et al. 2023, section 2.2): as which picture of its
/// training to see it. Rows before columns; what is none is the picture's own size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MicroConditioning {
    /// The size before it was scaled for training.
    pub original: Option<[usize; 2]>,
    /// Rows and columns that were cut off at the top and at the left.
    pub crop: [usize; 2],
    /// The size that it was scaled to.
    pub target: Option<[usize; 2]>,
}

impl MicroConditioning {
    /// The six numbers, for a picture of `size` rows and columns.
    fn of(self, size: [usize; 2]) -> [f32; 6] {
        let [original, target] = [self.original, self.target].map(|it| it.unwrap_or(size));
        let all = [original, self.crop, target];
        std::array::from_fn(|i| all[i / 2][i % 2] as f32)
    }
}

/// The text encoders of a model, in the order in which the U-Net takes what they give.
pub struct TextEncoders {
    family: Family,
    encoders: Vec<One>,
    /// What prompts call embeddings by.
    embeddings: Vec<String>,
    /// Whether no negative prompt means zeros.
    zeros_for_none: bool,
}

/// A text encoder.
struct One {
    tokenizer: ClipTokenizer,
    stored: Stored<ClipTextLayers>,
    /// Tokens of embeddings.
    own: OwnTokens,
}

impl One {
    /// A text as it is encoded, and what of it is left out.
    fn read(&self, text: &str, syntax: PromptSyntax) -> Result<(Vec<Chunk>, Option<LeftOut>)> {
        match syntax {
            PromptSyntax::Plain => {
                let (ids, left_out) = self.tokenizer.cut(text)?;
                let weights = vec![1.0; ids.len()];
                Ok((vec![Chunk { ids, weights }], left_out))
            }
            PromptSyntax::Long | PromptSyntax::Weighted => {
                Ok((self.tokenizer.chunks(&syntax.sections(text)?)?, None))
            }
        }
    }

    /// Fills up to `count` with chunks of no text.
    fn fill(&self, chunks: &mut Vec<Chunk>, count: usize) {
        chunks.resize_with(count.max(chunks.len()), || self.tokenizer.chunk(&[], &[]));
    }
}

impl TextEncoders {
    /// `encoders` of a model of `family`, in the order in which the U-Net takes what they give; where `zeros_for_none`,
    /// no negative prompt means zeros.
    pub fn new(
        family: Family,
        encoders: Vec<(ClipTokenizer, Stored<ClipTextLayers>)>,
        zeros_for_none: bool,
    ) -> Self {
        let one = |(tokenizer, stored)| One {
            tokenizer,
            stored,
            own: OwnTokens::default(),
        };
        Self {
            family,
            encoders: encoders.into_iter().map(one).collect(),
            embeddings: Vec::new(),
            zeros_for_none,
        }
    }

    /// From now on knows the embedding of `file`. Gives what identifies it.
    ///
    /// # Errors
    /// As [`Embedding::open`]; [`Error::Embedding`] where its name is a token already.
    pub fn add(&mut self, file: &EmbeddingFile) -> Result<String> {
        let layers = self.encoders.iter().map(|one| one.stored.layers());
        let widths: Vec<usize> = layers.map(ClipTextLayers::width).collect();
        let room = self.encoders.first().map_or(0, |one| one.tokenizer.room());
        let embedding = Embedding::open(file, &widths, room)?;
        for (one, vectors) in self.encoders.iter_mut().zip(&embedding.vectors) {
            let ids = one.tokenizer.add(embedding.tokens().collect());
            let ids = ids.map_err(|reason| Error::embedding(&file.path, reason))?;
            one.own.add(&ids, vectors);
        }
        self.embeddings.push(embedding.token);
        Ok(embedding.digest)
    }

    /// That they fit each other and the U-Net.
    ///
    /// # Errors
    /// [`Error::Request`] or [`Error::Tokens`], naming what does not.
    pub fn check(&self, unet: &UNet) -> Result<()> {
        let unfit = |what: &str, got: usize, wanted: usize| {
            Err(Error::Request(format!(
                "the model's parts do not fit: {what} {got}, the U-Net takes {wanted}"
            )))
        };
        let layers = || self.encoders.iter().map(|one| one.stored.layers());
        let width = layers().map(ClipTextLayers::width).sum();
        if width != unet.context_width {
            return unfit(
                "the text encoder gives a width of",
                width,
                unet.context_width,
            );
        }
        match (&unet.time.added, self.family) {
            (None, Family::StableDiffusionXl) => {
                return Err(Error::Request(
                    "the U-Net has no addition_embed_type; SDXL's has text_time".into(),
                ));
            }
            (None, _) => {}
            (Some(added), Family::StableDiffusionXl) => {
                let pooled: usize = layers().filter_map(ClipTextLayers::pooled_width).sum();
                let wanted = added.linear_1.d_in.saturating_sub(6 * added.channels);
                if pooled != wanted {
                    return unfit("the whole text's vector has a width of", pooled, wanted);
                }
            }
            (Some(_), _) => {
                return Err(Error::Request(
                    "the U-Net's addition_embed_type is text_time, which needs a second text encoder; \
                     only StableDiffusionXLPipeline has it"
                        .into(),
                ));
            }
        }
        for One {
            tokenizer, stored, ..
        } in &self.encoders
        {
            let (length, places) = (tokenizer.length(), stored.layers().places());
            if length > places {
                return Err(Error::Tokens(format!(
                    "model_max_length is {length}, max_position_embeddings {places}"
                )));
            }
            if length != self.tokens() {
                return Err(Error::Tokens(format!(
                    "model_max_length is {} in one, {length} in the other",
                    self.tokens()
                )));
            }
        }
        Ok(())
    }

    /// Tokens `T` of every chunk of a prompt.
    pub fn tokens(&self) -> usize {
        let first = self.encoders.first();
        first.map_or(0, |one| one.tokenizer.length())
    }

    /// The words of a prompt that are more than one token of the first tokenizer, each once; embeddings are none.
    ///
    /// # Errors
    /// [`Error::Prompt`] when the tokenizer refuses, or a weight is too large.
    pub fn split_words(&self, prompt: &Prompt) -> Result<Vec<String>> {
        let mut split: Vec<String> = Vec::new();
        let Some(one) = self.encoders.first() else {
            return Ok(split);
        };
        let negative = prompt.options.negative_prompt.as_deref();
        for text in [Some(&*prompt.text), negative].into_iter().flatten() {
            for run in prompt.options.syntax.sections(text)?.concat() {
                let embeddings = self.embeddings.iter();
                let text = embeddings.fold(run.text, |text, token| text.replace(token, " "));
                for word in one.tokenizer.split_words(&text)? {
                    if !split.iter().any(|known| known == word) {
                        split.push(word.to_owned());
                    }
                }
            }
        }
        Ok(split)
    }

    /// The embeddings that neither of the prompts calls, as they are encoded.
    ///
    /// # Errors
    /// As [`Self::split_words`].
    pub fn unused(&self, prompt: &Prompt) -> Result<Vec<&str>> {
        let mut unused: Vec<&str> = self.embeddings.iter().map(String::as_str).collect();
        let Some(one) = self.encoders.first() else {
            return Ok(unused);
        };
        let negative = prompt.options.negative_prompt.as_deref();
        for text in [Some(&*prompt.text), negative].into_iter().flatten() {
            let (chunks, _) = one.read(text, prompt.options.syntax)?;
            let said = |token: &str| {
                let id = one.tokenizer.id(token);
                chunks
                    .iter()
                    .any(|chunk| id.is_some_and(|id| chunk.ids.contains(&id)))
            };
            unused.retain(|token| !said(token));
        }
        Ok(unused)
    }

    /// The chunks of both texts for each text encoder, equally many; without a negative text, of the one.
    fn read(&self, texts: &[&str], syntax: PromptSyntax) -> Result<Vec<Vec<Vec<Chunk>>>> {
        let mut all = Vec::with_capacity(self.encoders.len());
        for (i, one) in self.encoders.iter().enumerate() {
            let mut of_one = Vec::with_capacity(texts.len());
            for text in texts {
                let (chunks, left_out) = one.read(text, syntax)?;
                if let Some(left_out) = left_out.filter(|_| i == 0) {
                    tracing::warn!("{left_out}; --prompt-syntax long takes all of it");
                }
                of_one.push(chunks);
            }
            all.push(of_one);
        }
        let count = all.iter().flatten().map(Vec::len).max().unwrap_or(1);
        let most = MOST_PROMPT_TOKENS / self.tokens().max(1);
        if count > most.max(1) {
            return Err(Error::Prompt(format!(
                "it takes {count} chunks of {} tokens, at most {most} are taken; shorten it",
                self.tokens()
            )));
        }
        for (one, of_one) in self.encoders.iter().zip(&mut all) {
            of_one.iter_mut().for_each(|chunks| one.fill(chunks, count));
        }
        Ok(all)
    }

    /// What the U-Net is told of `prompt`, `T` tokens for each of its chunks, for a picture of `size` rows and columns: the negative prompt's first if
    /// `guided`. Each text encoder is loaded on `device` for it, and dropped before the next.
    ///
    /// # Errors
    /// [`Error::Prompt`] when a tokenizer refuses, a weight is too large or a prompt too long; as [`Stored::load_part`].
    pub fn encode(
        &self,
        prompt: &Prompt,
        guided: bool,
        size: [usize; 2],
        device: &Device,
    ) -> Result<Conditioning> {
        let Prompt { text, options } = prompt;
        let negative = options.negative_prompt.as_deref();
        let zeros = guided && negative.is_none() && self.zeros_for_none;
        let negative = (guided && !zeros).then_some(negative.unwrap_or_default());
        let mut states = Vec::new();
        let mut pooled = None;
        let texts: Vec<&str> = [Some(&**text), negative].into_iter().flatten().collect();
        let read = self.read(&texts, options.syntax)?;
        for (one, chunks) in self.encoders.iter().zip(read) {
            let encoder = ClipTextEncoder::load_stored(&one.stored, device)?;
            let encoder = encoder.knowing(one.own.clone());
            let encode = |chunks: &[Chunk], skip| {
                let wanted = match self.family {
                    Family::StableDiffusionXl => Wanted::Penultimate(skip),
                    Family::StableDiffusion | Family::LatentConsistency => Wanted::Normalised(skip),
                };
                let ids: Vec<Vec<u32>> = chunks.iter().map(|chunk| chunk.ids.clone()).collect();
                encoder.encode(&ids, wanted)?.joined(chunks)
            };
            let mut chunks = chunks.iter();
            let mut both = Vec::with_capacity(2);
            for (chunks, skip) in chunks.by_ref().zip([options.clip_skip, 0]) {
                both.insert(0, encode(chunks, skip)?);
            }
            if zeros {
                both.insert(0, both[0].zeros_like());
            }
            let (each, whole): (Vec<_>, Vec<_>) =
                both.into_iter().map(|one| (one.states, one.pooled)).unzip();
            states.push(Tensor::cat(each, 0));
            let whole: Option<Vec<_>> = whole.into_iter().collect();
            pooled = whole.map(|whole| Tensor::cat(whole, 0)).or(pooled);
        }
        let context = Tensor::cat(states, 2);
        let [batch, _, _] = context.dims();
        let added = match self.family {
            Family::StableDiffusionXl => pooled.map(|pooled| AddedConditioning {
                pooled,
                sizes: vec![options.sizes.of(size); batch],
            }),
            Family::StableDiffusion | Family::LatentConsistency => None,
        };
        Ok(Conditioning {
            added,
            ..Conditioning::of_text(context)
        })
    }
}

impl Encoded {
    /// Of chunks, one text `[1, N T, D]`: the states of each token are multiplied with its weight, and then those of its chunk
    /// with what brings their mean back to what it was. The whole text's vector is the first chunk's.
    fn joined(self, chunks: &[Chunk]) -> Result<Self> {
        let weighs = |chunk: &Chunk| chunk.weights.iter().any(|weight| *weight != 1.0);
        let [n, t, d] = self.states.dims();
        let mut parts = Vec::with_capacity(n);
        for (i, chunk) in chunks.iter().enumerate() {
            let states = self.states.clone().narrow(0, i, 1);
            if !weighs(chunk) {
                parts.push(states);
                continue;
            }
            let mut host = HostTensor::from_device(states)?;
            weigh(&mut host.data, &chunk.weights, d);
            let named = format!("the states of chunk {} of the weighted prompt", i + 1);
            host.check_finite(&named)?;
            parts.push(host.into_device(&self.states.device())?);
        }
        let states = Tensor::cat(parts, 0).reshape([1, n * t, d]);
        let pooled = self.pooled.map(|pooled| pooled.narrow(0, 0, 1));
        Ok(Self { states, pooled })
    }

    fn zeros_like(&self) -> Self {
        Self {
            states: self.states.zeros_like(),
            pooled: self.pooled.as_ref().map(Tensor::zeros_like),
        }
    }
}

/// Multiplies rows of `d` values with their weights, and all with what brings the mean back.
fn weigh(states: &mut [f32], weights: &[f32], d: usize) {
    let sum = |states: &[f32]| states.iter().map(|v| f64::from(*v)).sum::<f64>();
    let before = sum(states);
    for (row, weight) in states.chunks_mut(d.max(1)).zip(weights) {
        row.iter_mut().for_each(|v| *v *= weight);
    }
    let back = (before / sum(states)) as f32;
    // Of no weight at all there is nothing to bring back.
    if back.is_finite() {
        states.iter_mut().for_each(|v| *v *= back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_leave_the_mean_as_it_was() {
        let mut states = [1.0, 3.0, 2.0, -1.0];
        weigh(&mut states, &[1.0, 2.0], 2);
        // 1, 3, 4, -2 have a sum of 6, where it was 5.
        let want = [5.0 / 6.0, 2.5, 20.0 / 6.0, -10.0 / 6.0];
        let near = states
            .iter()
            .zip(want)
            .all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6);
        assert!(near, "{states:?}");
        let mut states = [1.0, 1.0];
        weigh(&mut states, &[0.0], 2);
        assert_eq!(states, [0.0, 0.0]);
    }

    #[test]
    fn sizes_are_the_pictures_own_where_nobody_says() {
        let own = MicroConditioning::default();
        assert_eq!(own.of([768, 512]), [768.0, 512.0, 0.0, 0.0, 768.0, 512.0]);
        let other = MicroConditioning {
            original: Some([100, 200]),
            crop: [3, 4],
            target: None,
        };
        assert_eq!(other.of([768, 512]), [100.0, 200.0, 3.0, 4.0, 768.0, 512.0]);
    }
}

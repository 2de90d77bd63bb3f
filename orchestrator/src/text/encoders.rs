//! From a prompt to what the U-Net is told of it, by all of a model's text encoders.

use burn::tensor::{Device, Tensor};
use lacuna_kernels::allocator::give_back_freed_pages;
use lacuna_model::host::OnDevice;
use lacuna_model::survey::MOST_PROMPT_TOKENS;
use lacuna_model::unet::UNet;
use lacuna_model::weights::Stored;
use lacuna_model::whole::{AddedConditioning, Conditioning};
use lacuna_wire::HostTensor;

use super::chunk::{Chunk, weigh};
use super::clip::ClipTextLayers;
use super::embedding::{Embedding, EmbeddingFile};
use super::prompt::{MicroConditioning, Prompt, PromptOptions};
use super::states::{Asked, Encoded, OwnTokens, Wanted, encode_stored};
use super::syntax::PromptSyntax;
use super::tokenizer::{ClipTokenizer, LeftOut};
use crate::error::{Error, Result};
use crate::family::Family;

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

    /// That prompts can be read with these `options`, before any work is done.
    ///
    /// # Errors
    /// [`Error::Request`] for a clip skip beyond the layers that there are, and for sizes that only SDXL's models are told.
    pub fn check_options(&self, options: &PromptOptions) -> Result<()> {
        let xl = self.family == Family::StableDiffusionXl;
        if !xl && options.sizes != MicroConditioning::default() {
            return Err(Error::Request(format!(
                "--original-size, --crop and --target-size are for SDXL's models; this one is of {}",
                self.family
            )));
        }
        for (i, one) in self.encoders.iter().enumerate() {
            let depth = one.stored.layers().depth();
            // SDXL leaves one out in any case.
            let most = depth.saturating_sub(usize::from(xl));
            if options.clip_skip > most {
                return Err(Error::Request(format!(
                    "--clip-skip {}: text encoder {} of this model has {depth} layers, so that it can be {most} at most",
                    options.clip_skip,
                    i + 1
                )));
            }
        }
        Ok(())
    }

    /// The chunks of both texts for each text encoder, equally many; without a negative text, of the one.
    fn read(&self, texts: &[&str], syntax: PromptSyntax) -> Result<Vec<Vec<Vec<Chunk>>>> {
        let mut all = Vec::with_capacity(self.encoders.len());
        for (i, one) in self.encoders.iter().enumerate() {
            let mut of_one = Vec::with_capacity(texts.len());
            for (text, of) in texts.iter().zip(["the prompt", "the negative prompt"]) {
                let (chunks, left_out) = one.read(text, syntax)?;
                if let Some(left_out) = left_out.filter(|_| i == 0) {
                    tracing::warn!("{of} {left_out}; --prompt-syntax long takes all of it");
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

    /// What the U-Net is told of `prompt`, `T` tokens for each of its chunks, for a picture of `size` rows and columns: the
    /// negative prompt's first if `guided`. The text encoders are read for it ([`encode_stored`]).
    ///
    /// # Errors
    /// As [`Self::check_options`]; [`Error::Prompt`] when a tokenizer refuses, a weight is too large or a prompt too long; as
    /// [`Stored::load_part`].
    pub fn encode(
        &self,
        prompt: &Prompt,
        guided: bool,
        size: [usize; 2],
        device: &Device,
    ) -> Result<Conditioning> {
        let Prompt { text, options } = prompt;
        self.check_options(options)?;
        let negative = options.negative_prompt.as_deref();
        let zeros = guided && negative.is_none() && self.zeros_for_none;
        let negative = (guided && !zeros).then_some(negative.unwrap_or_default());
        let mut states = Vec::new();
        let mut pooled = None;
        let texts: Vec<&str> = [Some(&**text), negative].into_iter().flatten().collect();
        let read = self.read(&texts, options.syntax)?;
        for (one, chunks) in self.encoders.iter().zip(read) {
            let asked = chunks.iter().zip([options.clip_skip, 0]);
            let asked: Vec<Asked> = asked
                .map(|(chunks, skip)| Asked {
                    prompts: chunks.iter().map(|chunk| chunk.ids.clone()).collect(),
                    wanted: match self.family {
                        Family::StableDiffusionXl => Wanted::Penultimate(skip),
                        Family::StableDiffusion | Family::LatentConsistency => {
                            Wanted::Normalised(skip)
                        }
                    },
                })
                .collect();
            let both = encode_stored(&one.stored, &one.own, &asked, device)?;
            let both = both.into_iter().zip(&chunks);
            let both = both.map(|(encoded, chunks)| encoded.joined(chunks));
            let mut both = both.collect::<Result<Vec<_>>>()?;
            both.reverse();
            if zeros {
                both.insert(0, both[0].zeros_like());
            }
            let (each, whole): (Vec<_>, Vec<_>) =
                both.into_iter().map(|one| (one.states, one.pooled)).unzip();
            states.push(Tensor::cat(each, 0));
            let whole: Option<Vec<_>> = whole.into_iter().collect();
            pooled = whole.map(|whole| Tensor::cat(whole, 0)).or(pooled);
        }
        give_back_freed_pages();
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

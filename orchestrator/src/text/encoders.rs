//! From a prompt to what the U-Net is told of it, by all of a model's text encoders.

use burn::tensor::{Device, Tensor};
use lacuna_model::unet::UNet;
use lacuna_model::weights::Stored;
use lacuna_model::whole::{AddedConditioning, Conditioning};
use serde::{Deserialize, Serialize};

use super::clip::{ClipTextEncoder, ClipTextLayers, Encoded, Wanted};
use super::tokenizer::ClipTokenizer;
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
    encoders: Vec<(ClipTokenizer, Stored<ClipTextLayers>)>,
    /// Whether no negative prompt means zeros.
    zeros_for_none: bool,
}

impl TextEncoders {
    /// `encoders` of a model of `family`, in the order in which the U-Net takes what they give; where `zeros_for_none`,
    /// no negative prompt means zeros.
    pub fn new(
        family: Family,
        encoders: Vec<(ClipTokenizer, Stored<ClipTextLayers>)>,
        zeros_for_none: bool,
    ) -> Self {
        Self {
            family,
            encoders,
            zeros_for_none,
        }
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
        let layers = || self.encoders.iter().map(|(_, stored)| stored.layers());
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
        for (tokenizer, stored) in &self.encoders {
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

    /// Tokens `T` of every prompt.
    pub fn tokens(&self) -> usize {
        self.encoders.first().map_or(0, |(first, _)| first.length())
    }

    /// The words of a prompt that are more than one token of the first tokenizer, each once.
    ///
    /// # Errors
    /// [`Error::Prompt`] when the tokenizer refuses.
    pub fn split_words<'a>(&self, prompt: &'a str) -> Result<Vec<&'a str>> {
        match self.encoders.first() {
            Some((tokenizer, _)) => tokenizer.split_words(prompt),
            None => Ok(Vec::new()),
        }
    }

    /// What the U-Net is told of `prompt`, for a picture of `size` rows and columns: the negative prompt's first if
    /// `guided`. Each text encoder is loaded on `device` for it, and dropped before the next.
    ///
    /// # Errors
    /// [`Error::Prompt`] when a tokenizer refuses; as [`Stored::load_part`].
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
        for (tokenizer, stored) in &self.encoders {
            let encoder = ClipTextEncoder::load_stored(stored, device)?;
            let encode = |text: &str, skip| {
                let wanted = match self.family {
                    Family::StableDiffusionXl => Wanted::Penultimate(skip),
                    Family::StableDiffusion | Family::LatentConsistency => Wanted::Normalised(skip),
                };
                encoder.encode(&[tokenizer.encode(text)?], wanted)
            };
            let mut both = vec![encode(text, options.clip_skip)?];
            if let Some(negative) = negative {
                both.insert(0, encode(negative, 0)?);
            } else if zeros {
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
    fn zeros_like(&self) -> Self {
        Self {
            states: self.states.zeros_like(),
            pooled: self.pooled.as_ref().map(Tensor::zeros_like),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

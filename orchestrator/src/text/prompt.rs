//! What a picture is to be of, as it is asked for.

use serde::{Deserialize, Serialize};

use super::syntax::PromptSyntax;

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
    pub(super) fn of(self, size: [usize; 2]) -> [f32; 6] {
        let [original, target] = [self.original, self.target].map(|it| it.unwrap_or(size));
        let all = [original, self.crop, target];
        std::array::from_fn(|i| all[i / 2][i % 2] as f32)
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

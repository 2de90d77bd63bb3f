//! How a prompt is read.

use clap::Args;

use super::size::parse_size;
use crate::text::{MicroConditioning, Prompt, PromptOptions, PromptSyntax};

/// How a prompt is read, and what else a model is told.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct PromptArguments {
    /// What not to see [default: no text; of SDXL's models nothing at all, which "" is not].
    #[arg(short, long, allow_hyphen_values = true)]
    pub negative_prompt: Option<String>,
    /// How the prompts are written.
    #[arg(long, value_enum, value_name = "SYNTAX", default_value = "plain")]
    pub prompt_syntax: PromptSyntax,
    /// Leave out so many of the text encoders' last layers.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub clip_skip: usize,
    /// SDXL: the size that the picture is said to have had before it was scaled [default: its size].
    #[arg(long, value_name = "WxH", value_parser = parse_size)]
    pub original_size: Option<[usize; 2]>,
    /// SDXL: columns and rows that the picture is said to have lost at the left and at the top [default: 0x0].
    #[arg(long, value_name = "WxH", value_parser = parse_size)]
    pub crop: Option<[usize; 2]>,
    /// SDXL: the size that the picture is said to have been scaled to [default: its size].
    #[arg(long, value_name = "WxH", value_parser = parse_size)]
    pub target_size: Option<[usize; 2]>,
}

impl PromptArguments {
    /// As the model takes it.
    pub fn options(&self) -> PromptOptions {
        let rows_first = |[width, height]: [usize; 2]| [height, width];
        PromptOptions {
            negative_prompt: self.negative_prompt.clone(),
            clip_skip: self.clip_skip,
            syntax: self.prompt_syntax,
            sizes: MicroConditioning {
                original: self.original_size.map(rows_first),
                crop: self.crop.map(rows_first).unwrap_or_default(),
                target: self.target_size.map(rows_first),
            },
        }
    }

    /// `text` with these options.
    pub fn prompt(&self, text: impl Into<String>) -> Prompt {
        Prompt {
            text: text.into(),
            options: self.options(),
        }
    }
}

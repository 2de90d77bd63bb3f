//! Prompt to embeddings: the tokenizer and the text encoder.

mod clip;
mod clip_config;
mod encoder;
mod encoders;
mod json;
mod tokenizer;
mod tokenizer_config;
mod tokenizer_files;

pub use clip::{ClipTextEncoder, ClipTextLayers, Encoded, Wanted};
pub use clip_config::{
    ClipTextConfig, ClipVisionConfig, PooledAt, PooledConfig, WITHOUT_EFFECT as CLIP_WITHOUT_EFFECT,
};
pub use encoder::{Activation, EncoderConfig, EncoderLayer};
pub use encoders::{MicroConditioning, Prompt, PromptOptions, TextEncoders};
pub use tokenizer::ClipTokenizer;
pub use tokenizer_config::WITHOUT_EFFECT as TOKENIZER_WITHOUT_EFFECT;

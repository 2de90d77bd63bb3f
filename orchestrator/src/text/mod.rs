//! Prompt to embeddings: the tokenizer and the text encoder.

mod clip;
mod clip_config;
mod tokenizer;
mod tokenizer_files;

pub use clip::{ClipTextEncoder, ClipTextLayers};
pub use clip_config::{Activation, ClipTextConfig};
pub use tokenizer::ClipTokenizer;

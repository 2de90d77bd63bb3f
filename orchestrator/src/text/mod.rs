//! Prompt to embeddings: the tokenizer and the text encoder.

mod clip;
mod clip_config;
mod encoder;
mod tokenizer;
mod tokenizer_files;

pub use clip::{ClipTextEncoder, ClipTextLayers};
pub use clip_config::{ClipTextConfig, ClipVisionConfig};
pub use encoder::{Activation, EncoderConfig, EncoderLayer};
pub use tokenizer::ClipTokenizer;

//! Prompt to embeddings: the tokenizer and the text encoder.

mod clip;
mod clip_config;
mod encoder;
mod json;
mod tokenizer;
mod tokenizer_config;
mod tokenizer_files;

pub use clip::{ClipTextEncoder, ClipTextLayers};
pub use clip_config::{ClipTextConfig, ClipVisionConfig, WITHOUT_EFFECT as CLIP_WITHOUT_EFFECT};
pub use encoder::{Activation, EncoderConfig, EncoderLayer};
pub use tokenizer::ClipTokenizer;
pub use tokenizer_config::WITHOUT_EFFECT as TOKENIZER_WITHOUT_EFFECT;

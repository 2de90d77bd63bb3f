//! Prompt to embeddings: the tokenizer and the text encoder.

mod chunk;
mod clip;
mod clip_config;
mod clip_words;
mod embedding;
mod encoder;
mod encoders;
mod json;
mod prompt;
mod states;
mod syntax;
mod tokenizer;
mod tokenizer_config;
mod tokenizer_files;

pub use clip::{ClipTextEncoder, ClipTextLayers};
pub use clip_config::{
    ClipTextConfig, ClipVisionConfig, PooledAt, PooledConfig, WITHOUT_EFFECT as CLIP_WITHOUT_EFFECT,
};
pub use embedding::{Embedding, EmbeddingFile};
pub use encoder::{Activation, EncoderConfig, EncoderLayer};
pub use encoders::TextEncoders;
pub use prompt::{MicroConditioning, Prompt, PromptOptions};
pub use states::{Asked, Encoded, OwnTokens, Wanted, encode_stored};
pub use syntax::PromptSyntax;
pub use tokenizer::ClipTokenizer;
pub use tokenizer_config::WITHOUT_EFFECT as TOKENIZER_WITHOUT_EFFECT;

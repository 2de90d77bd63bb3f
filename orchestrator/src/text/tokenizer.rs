//! CLIP's tokenizer: byte-level BPE over lower-cased words.

use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{self, Lowercase, NFC, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use super::tokenizer_files::TokenizerFiles;
use crate::error::{Error, Result};

/// CLIP's words: the special tokens, English contractions, runs of letters, single digits, runs of
/// anything else but space.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Prompts to token ids.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    length: usize,
    bos: u32,
    eos: u32,
    pad: u32,
}

impl ClipTokenizer {
    /// Loads the tokenizer in `dir`: `tokenizer.json`, or `vocab.json` and `merges.txt`; with
    /// `tokenizer_config.json` and `special_tokens_map.json` where they are there.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] or [`shared::Error::Read`], naming the file.
    pub fn load(dir: &Path) -> Result<Self> {
        let files = TokenizerFiles::read(dir)?;
        let source = files.source.clone();
        Self::build(files).map_err(|reason| Error::tokenizer(&source, reason))
    }

    fn build(files: TokenizerFiles) -> tokenizers::Result<Self> {
        let TokenizerFiles {
            vocabulary,
            merges,
            added,
            special,
            length,
            ..
        } = files;
        let vocabulary: Vocab = vocabulary.into_iter().collect();
        let model = BPE::builder()
            .vocab_and_merges(vocabulary, merges)
            .end_of_word_suffix("</w>".into())
            .unk_token(special.unk.content.clone())
            .build()?;
        let mut tokenizer = Tokenizer::new(model);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
        tokenizer.with_normalizer(Some(normalizers::Sequence::new(vec![
            NFC.into(),
            spaces.into(),
            Lowercase.into(),
        ])))?;
        let words = SplitPattern::Regex(WORDS.into());
        let words = Split::new(words, SplitDelimiterBehavior::Removed, true)?;
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
            words.into(),
            ByteLevel::default().add_prefix_space(false).into(),
        ])));

        for (id, token) in &added {
            tokenizer.add_tokens([token.clone()])?;
            if tokenizer.token_to_id(&token.content) != Some(*id) {
                return Err(format!("added token {:?} cannot have id {id}", token.content).into());
            }
        }
        let (bos, eos, pad) = (&special.bos, &special.eos, &special.pad);
        let roles = [bos, eos, &special.unk, pad].into_iter();
        let missing: Vec<AddedToken> = roles
            .chain(&special.more)
            .filter(|token| !added.values().any(|a| a.content == token.content))
            .cloned()
            .collect();
        tokenizer.add_special_tokens(missing)?;

        let id = |token: &AddedToken| {
            tokenizer
                .token_to_id(&token.content)
                .ok_or_else(|| format!("special token {:?} has no id", token.content))
        };
        let (bos, eos, pad) = (id(bos)?, id(eos)?, id(pad)?);
        Ok(Self {
            tokenizer,
            length,
            bos,
            eos,
            pad,
        })
    }

    /// Number of tokens `T` of every prompt, with start, end and padding.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The `T` token ids of a prompt: start, its tokens, end, padding. Tokens beyond `T - 2` are
    /// left out, with a warning.
    ///
    /// # Errors
    /// [`Error::Prompt`] when the vocabulary has no token for a part of the prompt.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode_fast(prompt, false)
            .map_err(|e| Error::Prompt(e.to_string()))?;
        let tokens = encoding.get_ids();
        let kept = tokens.len().min(self.length.saturating_sub(2));
        if kept < tokens.len() {
            tracing::warn!(
                tokens = tokens.len(),
                kept,
                "the prompt is too long: the tokens at its end are ignored"
            );
        }
        let mut ids = Vec::with_capacity(self.length);
        ids.push(self.bos);
        ids.extend(&tokens[..kept]);
        ids.push(self.eos);
        ids.resize(self.length, self.pad);
        Ok(ids)
    }
}

//! CLIP's tokenizer: byte-level BPE over lower-cased words.

use std::collections::HashSet;
use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{self, Lowercase, NFC, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, Encoding, SplitDelimiterBehavior, Tokenizer};

use super::tokenizer_config::Side;
use super::tokenizer_files::TokenizerFiles;
use crate::error::{Error, Result};

/// CLIP's words: the special tokens, English contractions, runs of letters, single digits, runs of
/// anything else but space.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A token that stands for itself and others behind it.
#[derive(Debug)]
struct Vectors {
    token: String,
    all: String,
}

/// Prompts to token ids.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    length: usize,
    bos: u32,
    eos: u32,
    pad: u32,
    /// Where a short prompt is filled up.
    padding: Side,
    /// Where a long prompt is cut.
    truncation: Side,
    /// Tokens of textual inversion with several vectors.
    vectors: Vec<Vectors>,
}

impl ClipTokenizer {
    /// Loads the tokenizer in `dir`: `tokenizer.json`, or `vocab.json` and `merges.txt`; with
    /// `tokenizer_config.json` and `special_tokens_map.json` where they are there.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] or [`lacuna_model::Error::Read`], naming the file.
    pub fn load(dir: &Path) -> Result<Self> {
        let files = TokenizerFiles::read(dir)?;
        let source = files.source.clone();
        Self::build(files).map_err(|reason| Error::tokenizer(&source, reason))
    }

    /// CLIP's own tokenizer, from the file in which its makers published it, `bpe_simple_vocab_16e6.txt.gz` (or the same
    /// unpacked).
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn of_clip(path: &Path) -> Result<Self> {
        let files = TokenizerFiles::of_clip(path)?;
        Self::build(files).map_err(|reason| Error::tokenizer(path, reason))
    }

    /// The same, which fills a short prompt up with `token`.
    ///
    /// # Errors
    /// [`Error::Prompt`] where there is no such token.
    pub fn padded_with(self, token: &str) -> Result<Self> {
        let id = self.tokenizer.token_to_id(token);
        let pad = id.ok_or_else(|| Error::Prompt(format!("there is no token {token:?}")))?;
        Ok(Self { pad, ..self })
    }

    fn build(files: TokenizerFiles) -> tokenizers::Result<Self> {
        let TokenizerFiles {
            vocabulary,
            merges,
            added,
            special,
            length,
            padding,
            truncation,
            split_special,
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
        let all = special.all.iter();
        let missing: Vec<AddedToken> = all
            .filter(|token| !added.values().any(|a| a.content == token.content))
            .cloned()
            .collect();
        tokenizer.add_special_tokens(missing)?;
        tokenizer.set_encode_special_tokens(split_special);

        let id = |token: &AddedToken| {
            tokenizer
                .token_to_id(&token.content)
                .ok_or_else(|| format!("special token {:?} has no id", token.content))
        };
        let (bos, eos, pad) = (id(&special.bos)?, id(&special.eos)?, id(&special.pad)?);
        Ok(Self {
            vectors: several_vectors(&tokenizer),
            tokenizer,
            length,
            bos,
            eos,
            pad,
            padding,
            truncation,
        })
    }

    /// Number of tokens `T` of every prompt, with start, end and padding.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The `T` token ids of a prompt: start, its tokens, end, padding (before them or behind, as the
    /// files say). Tokens beyond `T - 2` are left out, with a warning.
    ///
    /// # Errors
    /// [`Error::Prompt`] when the vocabulary has no token for a part of the prompt.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenize(&self.with_all_vectors(prompt)?)?;
        let tokens = encoding.get_ids();
        let kept = tokens.len().min(self.length.saturating_sub(2));
        let left_out = tokens.len() - kept;
        let (tokens, place) = match self.truncation {
            Side::Right => (&tokens[..kept], "end"),
            Side::Left => (&tokens[left_out..], "beginning"),
        };
        if left_out > 0 {
            tracing::warn!(
                tokens = kept + left_out,
                kept,
                "the prompt is too long: the tokens at its {place} are ignored"
            );
        }
        let mut ids = Vec::with_capacity(self.length);
        ids.push(self.bos);
        ids.extend(tokens);
        ids.push(self.eos);
        let padding = vec![self.pad; self.length.saturating_sub(ids.len())];
        let parts = match self.padding {
            Side::Right => [ids, padding],
            Side::Left => [padding, ids],
        };
        Ok(parts.concat())
    }

    /// The words of a prompt that are more than one token, each once.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn split_words<'a>(&self, prompt: &'a str) -> Result<Vec<&'a str>> {
        let mut split = Vec::new();
        let words = prompt.split(|c: char| !(c.is_alphanumeric() || c == '\''));
        for word in words.filter(|word| !word.is_empty()) {
            if self.tokenize(word)?.len() > 1 && !split.contains(&word) {
                split.push(word);
            }
        }
        Ok(split)
    }

    /// The prompt with each token of textual inversion as all of its vectors.
    fn with_all_vectors(&self, prompt: &str) -> Result<String> {
        let mut whole = prompt.to_owned();
        if self.vectors.is_empty() {
            return Ok(whole);
        }
        // With the tokens' texts, which the fast way leaves out. A token that was found in lower case is
        // not the token with capitals, as in the reference.
        let encoding = self.tokenizer.encode(prompt, false);
        let encoding = encoding.map_err(|e| Error::Prompt(e.to_string()))?;
        let tokens = encoding.get_tokens();
        for vectors in self.vectors.iter().filter(|v| tokens.contains(&v.token)) {
            whole = whole.replace(&vectors.token, &vectors.all);
        }
        Ok(whole)
    }

    fn tokenize(&self, prompt: &str) -> Result<Encoding> {
        let encoding = self.tokenizer.encode_fast(prompt, false);
        encoding.map_err(|e| Error::Prompt(e.to_string()))
    }
}

/// Of the added tokens, those with a `token_1` beside them: `token token_1 token_2` and so on is what
/// they stand for.
fn several_vectors(tokenizer: &Tokenizer) -> Vec<Vectors> {
    let added = tokenizer.get_added_tokens_decoder();
    let names: HashSet<&str> = added.values().map(|token| token.content.as_str()).collect();
    let of = |token: &AddedToken| {
        let token = &token.content;
        let numbered = (1usize..).map(|i| format!("{token}_{i}"));
        let more = numbered.take_while(|name| names.contains(name.as_str()));
        let all: Vec<String> = std::iter::once(token.clone()).chain(more).collect();
        (all.len() > 1).then(|| Vectors {
            token: token.clone(),
            all: all.join(" "),
        })
    };
    added.values().filter_map(of).collect()
}

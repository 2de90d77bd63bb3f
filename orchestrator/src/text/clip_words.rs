//! CLIP's way from words to tokens, as the reference builds it.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{self, Lowercase, NFC, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::json::Vocabulary;

/// CLIP's words: the special tokens, English contractions, runs of letters, single digits, runs of
/// anything else but space.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// What ends the last token of a word.
pub(super) const END_OF_WORD: &str = "</w>";

/// A tokenizer of this vocabulary and these merges, with `unknown` for what the former lacks.
///
/// # Errors
/// Those of the library, for merges that the vocabulary does not have.
pub(super) fn clip_words(
    vocabulary: Vocabulary,
    merges: Vec<(String, String)>,
    unknown: &str,
) -> tokenizers::Result<Tokenizer> {
    let vocabulary: Vocab = vocabulary.into_iter().collect();
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .end_of_word_suffix(END_OF_WORD.into())
        .unk_token(unknown.to_owned())
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
    Ok(tokenizer)
}

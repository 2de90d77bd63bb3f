//! The files of a CLIP tokenizer: vocabulary and merges, in all their published forms.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::{AddedToken, Tokenizer};

use super::json::{Vocabulary, parse, read_text};
use super::tokenizer_config::{END, START, Side, SpecialTokens, TokenizerConfig};
use crate::error::{Error, Result};

/// What the files say, before any of it is put to work.
pub(super) struct TokenizerFiles {
    /// The file of the vocabulary, for errors.
    pub source: PathBuf,
    /// Token to id.
    pub vocabulary: Vocabulary,
    /// Pairs that join into one token, the most eager first.
    pub merges: Vec<(String, String)>,
    /// Tokens that are found in a prompt before it is split, by id.
    pub added: BTreeMap<u32, AddedToken>,
    /// Tokens with a role.
    pub special: SpecialTokens,
    /// Number of tokens that a prompt is cut or filled to.
    pub length: usize,
    /// Where a short prompt is filled up.
    pub padding: Side,
    /// Where a long prompt is cut.
    pub truncation: Side,
    /// Whether special tokens within a prompt are split like words.
    pub split_special: bool,
    /// How words become tokens, where a file is to say it.
    pub written: Option<Box<Tokenizer>>,
}

/// `tokenizer.json`, the parts that differ between CLIP models. The rest of it describes the same
/// pipeline each time, which [`super::ClipTokenizer`] builds itself, as the reference does.
#[derive(Deserialize)]
struct TokenizerJson {
    model: ModelJson,
    #[serde(default)]
    added_tokens: Vec<AddedTokenJson>,
    padding: Option<SideJson>,
    truncation: Option<SideJson>,
}

/// Counts where `tokenizer_config.json` names no side.
#[derive(Deserialize)]
struct SideJson {
    direction: Option<String>,
}

impl SideJson {
    fn side(self) -> Option<Side> {
        self.direction.as_deref().and_then(Side::from_name)
    }
}

#[derive(Deserialize)]
struct ModelJson {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocabulary,
    merges: Vec<MergeJson>,
}

/// Old files write a pair as one string.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeJson {
    Pair(String, String),
    Joined(String),
}

#[derive(Deserialize)]
struct AddedTokenJson {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

impl TokenizerFiles {
    /// Reads `dir`, which holds `tokenizer.json`, or `vocab.json` and `merges.txt`.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let mut config = TokenizerConfig::read(dir)?;
        let mut added = std::mem::take(&mut config.added);
        let whole = dir.join("tokenizer.json");
        let (source, vocabulary, merges) = if whole.is_file() {
            let parsed: TokenizerJson = parse(&read_text(&whole)?, &whole)?;
            if parsed.model.kind.as_deref().is_some_and(|k| k != "BPE") {
                return Err(Error::tokenizer(&whole, "the model is not of type BPE"));
            }
            if !config.listed {
                added.extend(parsed.added_tokens.into_iter().map(|t| (t.id, t.token)));
            }
            config.padding = config.padding.or(parsed.padding.and_then(SideJson::side));
            config.truncation = config
                .truncation
                .or(parsed.truncation.and_then(SideJson::side));
            let merges = parsed.model.merges.iter().map(MergeJson::split);
            let merges = number_lines(merges, &whole)?;
            (whole, parsed.model.vocab, merges)
        } else {
            let vocab_path = dir.join("vocab.json");
            let vocabulary = parse(&read_text(&vocab_path)?, &vocab_path)?;
            let merges_path = dir.join("merges.txt");
            let text = read_text(&merges_path)?;
            let lines = text.lines().filter(|line| !line.starts_with("#version"));
            let merges = number_lines(lines.map(|line| line.split_once(' ')), &merges_path)?;
            (vocab_path, vocabulary, merges)
        };
        check_vocabulary(&vocabulary, &merges, &source)?;

        let special = config.special(&added)?;
        for token in added.values_mut() {
            token.special |= special.all.iter().any(|role| role.content == token.content);
        }
        Ok(Self {
            source,
            vocabulary,
            merges,
            added,
            special,
            length: config.length,
            padding: config.padding.unwrap_or(Side::Right),
            truncation: config.truncation.unwrap_or(Side::Right),
            split_special: config.split_special,
            written: None,
        })
    }

    /// The same, with all that `tokenizer.json` says of how words become tokens.
    pub(super) fn read_as_written(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bad = |reason: String| Error::tokenizer(&path, reason);
        if !path.is_file() {
            let reason = "a PreTrainedTokenizerFast is what this file says, which is missing";
            return Err(bad(reason.into()));
        }
        let text = read_text(&path)?;
        let mut written: Tokenizer = text.parse().map_err(|e| bad(format!("{e}")))?;
        // The pipeline asks for its own.
        written.with_padding(None);
        written
            .with_truncation(None)
            .map_err(|e| bad(e.to_string()))?;
        Ok(Self {
            written: Some(Box::new(written)),
            ..Self::read(dir)?
        })
    }
}

/// Bytes of an unpacked vocabulary at most; CLIP's has 3 MB.
const LARGEST: u64 = 64 << 20;
/// Tokens of CLIP's vocabulary: bytes, bytes that end a word, merges, start and end. The file holds more merges.
const TOKENS: usize = 49_408;

impl TokenizerFiles {
    /// Reads CLIP's own file: a line of comment, and a merge on each line.
    pub(super) fn of_clip(path: &Path) -> Result<Self> {
        let bad = |reason: String| Error::tokenizer(path, reason);
        let file = File::open(path).map_err(|e| bad(e.to_string()))?;
        let packed = path.extension().is_some_and(|ending| ending == "gz");
        let reader: Box<dyn Read> = match packed {
            true => Box::new(flate2::read::GzDecoder::new(file)),
            false => Box::new(file),
        };
        let mut text = String::new();
        let read = reader.take(LARGEST).read_to_string(&mut text);
        read.map_err(|e| bad(e.to_string()))?;
        let bytes: Vec<String> = clip_bytes().map(String::from).collect();
        let lines = text.lines().skip(1).take(TOKENS - 2 * bytes.len() - 2);
        let merges = number_lines(lines.map(|line| line.split_once(' ')), path)?;
        let ends = bytes.iter().map(|byte| format!("{byte}</w>"));
        let joined = merges.iter().map(|(a, b)| format!("{a}{b}"));
        let special = [START, END].map(str::to_owned);
        let tokens = bytes
            .iter()
            .cloned()
            .chain(ends)
            .chain(joined)
            .chain(special);
        let mut vocabulary = Vocabulary::default();
        for token in tokens {
            // Two merges may make one token.
            let id = vocabulary.len() as u32;
            vocabulary.entry(token).or_insert(id);
        }
        if merges.is_empty() {
            return Err(bad("there are no merges in it".into()));
        }
        check_vocabulary(&vocabulary, &merges, path)?;
        let config = TokenizerConfig::without_files(path)?;
        let added = BTreeMap::new();
        Ok(Self {
            source: path.to_owned(),
            special: config.special(&added)?,
            vocabulary,
            merges,
            added,
            length: config.length,
            padding: Side::Right,
            truncation: Side::Right,
            split_special: false,
            written: None,
        })
    }
}

/// The 256 bytes as CLIP writes them, in its order: those that can be printed as themselves, then the others as letters
/// from 256 on.
fn clip_bytes() -> impl Iterator<Item = char> {
    let printed = || {
        ('!'..='~')
            .chain('\u{a1}'..='\u{ac}')
            .chain('\u{ae}'..='\u{ff}')
    };
    let others = 256 - printed().count() as u32;
    printed().chain((256..256 + others).filter_map(char::from_u32))
}

impl MergeJson {
    fn split(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(a, b) => Some((a, b)),
            Self::Joined(pair) => pair.split_once(' '),
        }
    }
}

fn number_lines<'a>(
    pairs: impl Iterator<Item = Option<(&'a str, &'a str)>>,
    path: &Path,
) -> Result<Vec<(String, String)>> {
    pairs
        .enumerate()
        .map(|(i, pair)| match pair {
            Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => {
                Ok((a.to_owned(), b.to_owned()))
            }
            _ => {
                let reason = format!("merge {} is not a pair of tokens", i + 1);
                Err(Error::tokenizer(path, reason))
            }
        })
        .collect()
}

/// What the BPE model relies on: an id names one token, and merges lead from tokens to a token.
fn check_vocabulary(
    vocabulary: &Vocabulary,
    merges: &[(String, String)],
    path: &Path,
) -> Result<()> {
    let mut by_id = BTreeMap::new();
    for (token, id) in vocabulary {
        if let Some(other) = by_id.insert(id, token) {
            let reason = format!("tokens {other:?} and {token:?} both have id {id}");
            return Err(Error::tokenizer(path, reason));
        }
    }
    for (a, b) in merges {
        for token in [a.clone(), b.clone(), format!("{a}{b}")] {
            if !vocabulary.contains_key(&token) {
                let reason =
                    format!("the merge of {a:?} and {b:?} needs the unknown token {token:?}");
                return Err(Error::tokenizer(path, reason));
            }
        }
    }
    Ok(())
}

//! The files of a CLIP tokenizer: vocabulary, merges and special tokens, in all their published forms.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::error::{Error, Result};

/// Token to id.
pub(super) type Vocabulary = BTreeMap<String, u32>;

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
}

/// The tokens with a role; each may also be written in a prompt.
pub(super) struct SpecialTokens {
    /// Opens every prompt.
    pub bos: AddedToken,
    /// Closes every prompt.
    pub eos: AddedToken,
    /// Stands for what the vocabulary lacks.
    pub unk: AddedToken,
    /// Fills a prompt up.
    pub pad: AddedToken,
    /// Without a role of their own.
    pub more: Vec<AddedToken>,
}

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Tokens of a prompt where `tokenizer_config.json` gives no number: CLIP's own.
const DEFAULT_LENGTH: usize = 77;

/// `tokenizer.json`, the parts that differ between CLIP models. The rest of it describes the same
/// pipeline each time, which [`super::ClipTokenizer`] builds itself, as the reference does.
#[derive(Deserialize)]
struct TokenizerJson {
    model: ModelJson,
    #[serde(default)]
    added_tokens: Vec<AddedTokenJson>,
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
    pub fn read(dir: &Path) -> Result<Self> {
        let config_path = dir.join("tokenizer_config.json");
        let mut config = read_object(&config_path)?.unwrap_or_default();
        check_class(&config, &config_path)?;
        let mut added;
        let listed = config.remove("added_tokens_decoder");
        if let Some(listed) = &listed {
            added = parse_decoder(listed, &config_path)?;
        } else {
            config.extend(read_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default());
            added = parse_old_added(&dir.join("added_tokens.json"), &config)?;
        }

        let whole = dir.join("tokenizer.json");
        let (source, vocabulary, merges) = if whole.is_file() {
            let parsed: TokenizerJson = parse(&read_text(&whole)?, &whole)?;
            if parsed.model.kind.as_deref().is_some_and(|k| k != "BPE") {
                return Err(Error::tokenizer(&whole, "the model is not of type BPE"));
            }
            if listed.is_none() {
                added.extend(parsed.added_tokens.into_iter().map(|t| (t.id, t.token)));
            }
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

        let special = SpecialTokens::read(&config, &added, &config_path)?;
        let length = read_length(&config, &config_path)?;
        Ok(Self {
            source,
            vocabulary,
            merges,
            added,
            special,
            length,
        })
    }
}

impl MergeJson {
    fn split(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(a, b) => Some((a, b)),
            Self::Joined(pair) => pair.split_once(' '),
        }
    }
}

impl SpecialTokens {
    /// Takes the roles from `tokenizer_config.json` (or `special_tokens_map.json`, already merged
    /// into it), their properties from `added` where a token is listed there.
    fn read(
        config: &Map<String, Value>,
        added: &BTreeMap<u32, AddedToken>,
        path: &Path,
    ) -> Result<Self> {
        let listed = |token: AddedToken| {
            let same = added.values().find(|a| a.content == token.content);
            same.cloned().unwrap_or(token)
        };
        let role = |key: &str, default: &str| match config.get(key).filter(|v| !v.is_null()) {
            None => Ok(listed(AddedToken::from(default, true))),
            Some(value) => parse_special(value, key, path).map(listed),
        };
        let mut more = Vec::new();
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            match config.get(key) {
                Some(Value::Array(tokens)) => {
                    for token in tokens {
                        more.push(listed(parse_special(token, key, path)?));
                    }
                }
                Some(Value::Object(tokens)) => {
                    for token in tokens.values() {
                        more.push(listed(parse_special(token, key, path)?));
                    }
                }
                _ => {}
            }
        }
        Ok(Self {
            bos: role("bos_token", START)?,
            eos: role("eos_token", END)?,
            unk: role("unk_token", END)?,
            pad: role("pad_token", END)?,
            more,
        })
    }
}

/// A special token is written as its text or as an object with its properties.
fn parse_special(value: &Value, key: &str, path: &Path) -> Result<AddedToken> {
    let token = match value {
        Value::String(text) => AddedToken::from(text, true),
        object => parse_added(object)
            .map_err(|e| Error::tokenizer(path, format!("{key}: {e}")))?
            .special(true),
    };
    if token.content.is_empty() {
        return Err(Error::tokenizer(path, format!("{key} is empty")));
    }
    Ok(token)
}

fn parse_added(value: &Value) -> Result<AddedToken, serde_json::Error> {
    // The properties that are absent are off; serde wants them spelled out.
    let mut object = Map::new();
    for key in ["single_word", "lstrip", "rstrip", "normalized", "special"] {
        object.insert(key.into(), Value::Bool(false));
    }
    if let Value::Object(given) = value {
        object.extend(given.clone());
    }
    object.remove("__type");
    serde_json::from_value(Value::Object(object))
}

/// `added_tokens_decoder`: id (as a string) to token.
fn parse_decoder(value: &Value, path: &Path) -> Result<BTreeMap<u32, AddedToken>> {
    let bad = |reason: String| Error::tokenizer(path, format!("added_tokens_decoder: {reason}"));
    let Value::Object(entries) = value else {
        return Err(bad("not an object".into()));
    };
    let mut out = BTreeMap::new();
    for (id, token) in entries {
        let number = id.parse().map_err(|e| bad(format!("{id}: {e}")))?;
        let token = parse_added(token).map_err(|e| bad(format!("{id}: {e}")))?;
        out.insert(number, token);
    }
    Ok(out)
}

/// `added_tokens.json`, before `added_tokens_decoder`: token to id, e.g. of textual inversion.
fn parse_old_added(path: &Path, config: &Map<String, Value>) -> Result<BTreeMap<u32, AddedToken>> {
    let has_role = |content: &str| {
        let text = |value: &Value| value.as_str() == Some(content);
        config
            .values()
            .any(|v| text(v) || v.get("content").is_some_and(text))
    };
    if !path.is_file() {
        return Ok(BTreeMap::new());
    }
    let ids: Vocabulary = parse(&read_text(path)?, path)?;
    let tokens = ids.into_iter().map(|(content, id)| {
        let special = has_role(&content);
        (id, AddedToken::from(content, special))
    });
    Ok(tokens.collect())
}

fn check_class(config: &Map<String, Value>, path: &Path) -> Result<()> {
    match config.get("tokenizer_class").and_then(Value::as_str) {
        None | Some("CLIPTokenizer" | "CLIPTokenizerFast") => Ok(()),
        Some(other) => {
            let reason = format!("tokenizer_class {other} is not supported, only CLIPTokenizer is");
            Err(Error::tokenizer(path, reason))
        }
    }
}

/// The reference writes 1e30 for "no limit"; the text encoder has one all the same.
fn read_length(config: &Map<String, Value>, path: &Path) -> Result<usize> {
    let Some(value) = config.get("model_max_length").filter(|v| !v.is_null()) else {
        return Ok(DEFAULT_LENGTH);
    };
    match value.as_f64() {
        Some(n) if n > 1e6 => Ok(DEFAULT_LENGTH),
        Some(n) if n >= 2.0 && n.fract() == 0.0 => Ok(n as usize),
        _ => Err(Error::tokenizer(
            path,
            format!("model_max_length = {value}: at least 2 is needed, for start and end"),
        )),
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

/// A JSON object, or none where there is no such file.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.is_file() {
        return Ok(None);
    }
    parse(&read_text(path)?, path).map(Some)
}

fn read_text(path: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(path).map_err(|e| shared::Error::read(path, e))?)
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::tokenizer(path, e))
}

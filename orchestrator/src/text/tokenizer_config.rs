//! `tokenizer_config.json` and the two older files beside it: special tokens, the prompt's length, and
//! on which side it is cut and filled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lacuna_model::config::WithoutEffect;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::json::{Vocabulary, parse, read_object, read_text};
use crate::error::{Error, Result};

/// Keys of the reference's class and its bases that never change the token ids of a prompt.
pub const WITHOUT_EFFECT: WithoutEffect = &[
    ("add_bos_token", "start and end are always added"),
    ("add_eos_token", "start and end are always added"),
    (
        "add_prefix_space",
        "words are split the same way either way",
    ),
    ("auto_map", DESCRIPTION),
    ("backend", DESCRIPTION),
    ("chat_template", "only for chats"),
    ("clean_up_tokenization_spaces", DECODING),
    ("do_lower_case", "prompts are always lower-cased"),
    ("errors", DECODING),
    ("files_loaded", DESCRIPTION),
    ("from_slow", DESCRIPTION),
    ("is_local", DESCRIPTION),
    ("local_files_only", DESCRIPTION),
    ("max_length", "the pipeline asks for model_max_length"),
    ("merges_file", "the file beside is read"),
    ("model_input_names", "only says what is given besides"),
    ("name_or_path", DESCRIPTION),
    (
        "pad_to_multiple_of",
        "the pipeline asks for model_max_length",
    ),
    ("pad_token_type_id", "only says what is given besides"),
    ("processor_class", DESCRIPTION),
    ("response_template", "only for chats"),
    ("special_tokens_map_file", "the file beside is read"),
    ("stride", "only for parts that were cut off"),
    ("tokenizer_file", "the file beside is read"),
    ("truncation_strategy", "there is one text only"),
    ("trust_remote_code", DESCRIPTION),
    ("use_fast", DESCRIPTION),
    ("verbose", DESCRIPTION),
    ("vocab_file", "the file beside is read"),
];

const DESCRIPTION: &str = "only describes the files";
const DECODING: &str = "only for text from tokens";

/// Keys that would take the place of the files beside, or of the words' split.
const REFUSED: [&str; 7] = [
    "gguf_file",
    "init_inputs",
    "merges",
    "tokenizer_object",
    "tokenizer_padding",
    "tokenizer_truncation",
    "vocab",
];

/// Tokens of a prompt where the file gives no number: CLIP's own.
const DEFAULT_LENGTH: usize = 77;

pub(super) const START: &str = "<|startoftext|>";
pub(super) const END: &str = "<|endoftext|>";

/// A side of the prompt's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

impl Side {
    /// A side by its name, whatever its case.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "left" => Some(Self::Left),
            "right" => Some(Self::Right),
            _ => None,
        }
    }
}

/// What the files say but for vocabulary and merges.
pub(super) struct TokenizerConfig {
    /// Tokens that are found in a prompt before it is split, by id.
    pub added: BTreeMap<u32, AddedToken>,
    /// Whether `tokenizer_config.json` lists them itself, so that no other file counts.
    pub listed: bool,
    /// What is left: tokens with a role, and others that are not listed.
    keys: Map<String, Value>,
    /// `tokenizer_config.json`, for errors.
    path: PathBuf,
    /// Number of tokens that a prompt is cut or filled to.
    pub length: usize,
    /// Where a short prompt is filled up, if the file says.
    pub padding: Option<Side>,
    /// Where a long prompt is cut, if the file says.
    pub truncation: Option<Side>,
    /// Whether special tokens within a prompt are split like words.
    pub split_special: bool,
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
    /// All of them, and those without a role here, in the order in which they take ids.
    pub all: Vec<AddedToken>,
}

impl TokenizerConfig {
    /// Reads `dir`; every file may be missing.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        let mut keys = read_object(&path)?.unwrap_or_default();
        let decoder = keys.remove("added_tokens_decoder");
        let added = match &decoder {
            Some(listed) => parse_decoder(listed, &path)?,
            None => {
                keys.extend(read_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default());
                parse_old_added(&dir.join("added_tokens.json"), &keys)?
            }
        };
        check_class(keys.remove("tokenizer_class"), &path)?;
        let config = Self {
            added,
            listed: decoder.is_some(),
            length: take_length(&mut keys, &path)?,
            padding: take_side(&mut keys, "padding_side", &path)?,
            truncation: take_side(&mut keys, "truncation_side", &path)?,
            split_special: take_flag(&mut keys, "split_special_tokens", &path)?,
            keys,
            path,
        };
        config.check()?;
        Ok(config)
    }

    /// What the class says by itself, for the vocabulary at `path`.
    pub(super) fn without_files(path: &Path) -> Result<Self> {
        let mut keys = Map::new();
        Ok(Self {
            added: BTreeMap::new(),
            listed: false,
            length: take_length(&mut keys, path)?,
            padding: None,
            truncation: None,
            split_special: false,
            keys,
            path: path.to_owned(),
        })
    }

    /// What is left must be tokens or keys without effect; of others the reference takes no notice.
    fn check(&self) -> Result<()> {
        let refused = |key: &&str| match self.keys.get(*key) {
            None | Some(Value::Null) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(_) => true,
        };
        if let Some(key) = REFUSED.iter().find(|key| refused(key)) {
            let reason = format!("{key} is not supported; leave it to the files beside");
            return Err(Error::tokenizer(&self.path, reason));
        }
        let known = |key: &str| {
            is_role(key)
                || LISTS.contains(&key)
                || REFUSED.contains(&key)
                || WITHOUT_EFFECT.iter().any(|(known, _)| *known == key)
        };
        let stray = |(key, value): &(&String, &Value)| {
            !key.starts_with('_') && !value.is_null() && !known(key) && !is_own_token(key, value)
        };
        let strays: Vec<&str> = self
            .keys
            .iter()
            .filter(stray)
            .map(|(k, _)| k.as_str())
            .collect();
        if !strays.is_empty() {
            let (path, strays) = (self.path.display(), strays.join(", "));
            tracing::warn!("{path}: ignored, as the class has no such key: {strays}");
        }
        Ok(())
    }

    /// The special tokens; each has the properties that it has in `added`, where it is listed there.
    ///
    /// # Errors
    /// [`Error::Tokenizer`], naming the key of a token that is none.
    pub(super) fn special(&self, added: &BTreeMap<u32, AddedToken>) -> Result<SpecialTokens> {
        let listed = |token: AddedToken| {
            let same = added.values().find(|a| a.content == token.content);
            same.cloned().unwrap_or(token).special(true)
        };
        let parse = |key: &str, value: &Value| parse_special(value, key, &self.path).map(listed);
        let role = |key: &str, default: &str| match self.keys.get(key) {
            None => Ok(listed(AddedToken::from(default, true))),
            Some(value) => parse(key, value),
        };
        let own = |key: &str| self.keys.get(key).filter(|value| !value.is_null());
        let (bos, eos, unk, pad) = (
            role("bos_token", START)?,
            role("eos_token", END)?,
            role("unk_token", END)?,
            role("pad_token", END)?,
        );
        let mut all = vec![bos.clone(), eos.clone(), unk.clone()];
        for key in ["sep_token", "pad_token", "cls_token", "mask_token"] {
            match (key, own(key)) {
                ("pad_token", _) => all.push(pad.clone()),
                (_, Some(value)) => all.push(parse(key, value)?),
                (_, None) => {}
            }
        }
        for (key, value) in &self.keys {
            if is_own_token(key, value) {
                all.push(parse(key, value)?);
            }
        }
        // The older name counts only where the newer lists nothing.
        for key in LISTS {
            let tokens: Vec<&Value> = match self.keys.get(key) {
                Some(Value::Array(tokens)) => tokens.iter().collect(),
                Some(Value::Object(tokens)) => tokens.values().collect(),
                _ => continue,
            };
            for token in &tokens {
                all.push(parse(key, token)?);
            }
            if !tokens.is_empty() {
                break;
            }
        }
        Ok(SpecialTokens {
            bos,
            eos,
            unk,
            pad,
            all,
        })
    }
}

/// Lists of special tokens without a role, the first that is not empty counts.
const LISTS: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

fn is_role(key: &str) -> bool {
    let roles = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];
    key.strip_suffix("_token")
        .is_some_and(|role| roles.contains(&role))
}

/// A token under a key of the model's own, `image_token` for example.
fn is_own_token(key: &str, value: &Value) -> bool {
    let is_token = value.is_string() || value.get("content").is_some();
    key.ends_with("_token") && !is_role(key) && is_token
}

/// A special token is written as its text or as an object with its properties.
fn parse_special(value: &Value, key: &str, path: &Path) -> Result<AddedToken> {
    let token = match value {
        Value::String(text) => AddedToken::from(text, true),
        object => parse_added(object, true)
            .map_err(|e| Error::tokenizer(path, format!("{key} = {object}: {e}")))?
            .special(true),
    };
    if token.content.is_empty() {
        return Err(Error::tokenizer(path, format!("{key} is empty")));
    }
    Ok(token)
}

fn parse_added(value: &Value, special: bool) -> Result<AddedToken, serde_json::Error> {
    let given = value.as_object().cloned().unwrap_or_default();
    let special = special || given.get("special") == Some(&Value::Bool(true));
    // The properties that are absent have defaults; serde wants them spelled out.
    let mut object = Map::new();
    for key in ["single_word", "lstrip", "rstrip", "special"] {
        object.insert(key.into(), Value::Bool(false));
    }
    object.insert("normalized".into(), Value::Bool(!special));
    object.extend(given);
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
        let token = parse_added(token, false).map_err(|e| bad(format!("{id}: {e}")))?;
        out.insert(number, token);
    }
    Ok(out)
}

/// `added_tokens.json`, before `added_tokens_decoder`: token to id, e.g. of textual inversion.
fn parse_old_added(path: &Path, keys: &Map<String, Value>) -> Result<BTreeMap<u32, AddedToken>> {
    let has_role = |content: &str| {
        let text = |value: &Value| value.as_str() == Some(content);
        let is = |value: &Value| text(value) || value.get("content").is_some_and(text);
        let listed = |value: &Value| value.as_array().is_some_and(|list| list.iter().any(is));
        keys.values().any(|value| is(value) || listed(value))
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

fn check_class(class: Option<Value>, path: &Path) -> Result<()> {
    match class.as_ref().and_then(Value::as_str) {
        // Which of them it is, is the pipeline's to say.
        None
        | Some(
            "CLIPTokenizer" | "CLIPTokenizerFast" | "PreTrainedTokenizerFast" | "TokenizersBackend",
        ) => Ok(()),
        Some(other) => {
            let reason = format!(
                "tokenizer_class {other} is not supported, only CLIPTokenizer and PreTrainedTokenizerFast are"
            );
            Err(Error::tokenizer(path, reason))
        }
    }
}

/// The reference writes 1e30 for "no limit"; the text encoder has one all the same.
fn take_length(keys: &mut Map<String, Value>, path: &Path) -> Result<usize> {
    let older = keys.remove("max_len");
    let Some(value) = keys
        .remove("model_max_length")
        .or(older)
        .filter(|v| !v.is_null())
    else {
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

fn take_side(keys: &mut Map<String, Value>, key: &str, path: &Path) -> Result<Option<Side>> {
    let Some(value) = keys.remove(key) else {
        return Ok(None);
    };
    let named = value
        .as_str()
        .filter(|name| ["left", "right"].contains(name));
    match named.and_then(Side::from_name) {
        Some(side) => Ok(Some(side)),
        None => {
            let reason = format!("{key} = {value}: left or right is expected");
            Err(Error::tokenizer(path, reason))
        }
    }
}

fn take_flag(keys: &mut Map<String, Value>, key: &str, path: &Path) -> Result<bool> {
    match keys.remove(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(on)) => Ok(on),
        Some(value) => {
            let reason = format!("{key} = {value}: true or false is expected");
            Err(Error::tokenizer(path, reason))
        }
    }
}

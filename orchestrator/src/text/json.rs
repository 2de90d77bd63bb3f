//! Reading the tokenizer's JSON files, with errors that name them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Token to id.
pub(super) type Vocabulary = BTreeMap<String, u32>;

/// A JSON object, or none where there is no such file.
pub(super) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.is_file() {
        return Ok(None);
    }
    parse(&read_text(path)?, path).map(Some)
}

pub(super) fn read_text(path: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(path).map_err(|e| lacuna_model::Error::read(path, e))?)
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::tokenizer(path, e))
}

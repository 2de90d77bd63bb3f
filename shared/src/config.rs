//! Reading a diffusers config: every key is honoured, checked, or an error that names it.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A config's keys, taken out one by one; what is left at the end is unknown.
///
/// Published files write `null` where a class has a default, so a null reads as an absent key.
/// Keys that begin with `_` (`_class_name`, `_diffusers_version`) carry no arithmetic.
#[derive(Debug)]
pub struct ConfigReader {
    source: String,
    keys: Map<String, Value>,
}

impl ConfigReader {
    /// Reads the JSON object in `path`.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Json`], or [`Error::UnsupportedConfig`] when it is no object.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::read(path, e))?;
        let value = serde_json::from_str(&text).map_err(|cause| Error::Json {
            path: path.to_owned(),
            cause,
        })?;
        Self::new(path.display().to_string(), value)
    }

    /// Reads a JSON object; `source` is what errors call it.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`] when the value is no object.
    pub fn new(source: impl Into<String>, value: Value) -> Result<Self> {
        let source = source.into();
        match value {
            Value::Object(keys) => Ok(Self { source, keys }),
            other => Err(Error::UnsupportedConfig {
                config: source,
                key: "(the file)".into(),
                value: other.to_string(),
                hint: "a JSON object is expected".into(),
            }),
        }
    }

    /// Takes a key out; null counts as absent.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.keys.remove(key).filter(|v| !v.is_null())
    }

    /// Takes a key of a type that serde reads.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`] when the value has another type.
    pub fn optional<T: serde::de::DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        serde_json::from_value(value.clone())
            .map(Some)
            .map_err(|e| self.unsupported(key, &value, &e.to_string()))
    }

    /// Takes a key, or its default.
    ///
    /// # Errors
    /// As [`Self::optional`].
    pub fn or<T: serde::de::DeserializeOwned>(&mut self, key: &str, default: T) -> Result<T> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    /// Takes a key that must be there.
    ///
    /// # Errors
    /// As [`Self::optional`], and [`Error::MissingConfig`].
    pub fn required<T: serde::de::DeserializeOwned>(&mut self, key: &str) -> Result<T> {
        self.optional(key)?.ok_or_else(|| Error::MissingConfig {
            config: self.source.clone(),
            key: key.into(),
        })
    }

    /// Takes a key that is one value for all `n` blocks or a list with one value for each.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`] when it is neither, or the list has another length.
    pub fn per_block<T: serde::de::DeserializeOwned + Clone>(
        &mut self,
        key: &str,
        n: usize,
        default: T,
    ) -> Result<Vec<T>> {
        let Some(value) = self.take(key) else {
            return Ok(vec![default; n]);
        };
        let parsed = if value.is_array() {
            serde_json::from_value::<Vec<T>>(value.clone())
        } else {
            serde_json::from_value::<T>(value.clone()).map(|v| vec![v; n])
        };
        match parsed {
            Ok(list) if list.len() == n => Ok(list),
            Ok(list) => {
                let hint = format!("{} values for {n} blocks", list.len());
                Err(self.unsupported(key, &value, &hint))
            }
            Err(e) => Err(self.unsupported(key, &value, &e.to_string())),
        }
    }

    /// Takes a key whose only supported values are given (an absent key is always fine), for all
    /// blocks or in a list with one value for each.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`] for any other value.
    pub fn only(&mut self, key: &str, supported: &[Value]) -> Result<()> {
        let is_supported = |value: &Value| supported.iter().any(|s| same(s, value));
        let all_supported = |value: &Value| match value.as_array() {
            Some(list) => list.iter().all(is_supported),
            None => is_supported(value),
        };
        match self.take(key) {
            Some(value) if !all_supported(&value) => {
                let list: Vec<String> = supported.iter().map(Value::to_string).collect();
                let hint = if list.is_empty() {
                    "only null is".to_owned()
                } else {
                    format!("only {} is", list.join(" or "))
                };
                Err(self.unsupported(key, &value, &hint))
            }
            _ => Ok(()),
        }
    }

    /// Takes keys that do not change the arithmetic of inference in f32.
    pub fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.keys.remove(*key);
        }
    }

    /// An error about a key's value.
    pub fn unsupported(&self, key: &str, value: &Value, hint: &str) -> Error {
        Error::UnsupportedConfig {
            config: self.source.clone(),
            key: key.into(),
            value: value.to_string(),
            hint: hint.into(),
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`Error::UnknownConfig`] for a key that nobody took and that is not null.
    pub fn finish(self) -> Result<()> {
        let unknown = self
            .keys
            .into_iter()
            .find(|(key, value)| !key.starts_with('_') && !value.is_null());
        match unknown {
            Some((key, value)) => Err(Error::UnknownConfig {
                config: self.source,
                key,
                value: value.to_string(),
            }),
            None => Ok(()),
        }
    }
}

/// Equality with 1 and 1.0 the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) => x == y,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn reader(value: Value) -> ConfigReader {
        ConfigReader::new("config.json", value).unwrap()
    }

    #[test]
    fn null_reads_as_absent() {
        let mut r = reader(json!({"a": null, "_class_name": "X"}));
        assert_eq!(r.or("a", 3).unwrap(), 3);
        r.finish().unwrap();
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = reader(json!({"dual_mixer": 2})).finish().unwrap_err();
        assert!(error.to_string().contains("dual_mixer = 2"), "{error}");
    }

    #[test]
    fn an_unsupported_value_is_named() {
        let mut r = reader(json!({"act_fn": "mish"}));
        let error = r.only("act_fn", &[json!("silu")]).unwrap_err();
        assert!(error.to_string().contains("act_fn = \"mish\""), "{error}");
    }

    #[test]
    fn a_list_is_supported_when_each_of_its_values_is() {
        let mut r = reader(json!({"a": [false, false], "b": [false, true]}));
        r.only("a", &[json!(false)]).unwrap();
        assert!(r.only("b", &[json!(false)]).is_err());
    }

    #[test]
    fn numbers_compare_by_value() {
        let mut r = reader(json!({"scale": 1}));
        r.only("scale", &[json!(1.0)]).unwrap();
    }

    #[test]
    fn a_list_must_have_one_value_for_each_block() {
        let mut r = reader(json!({"heads": [1, 2], "depth": 4}));
        assert_eq!(r.per_block("depth", 3, 1).unwrap(), [4, 4, 4]);
        let error = r.per_block("heads", 3, 1).unwrap_err();
        assert!(
            error.to_string().contains("2 values for 3 blocks"),
            "{error}"
        );
    }
}

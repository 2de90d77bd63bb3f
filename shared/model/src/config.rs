//! Reading a diffusers config: every key that the reference's class takes is honoured, refused by
//! name, or listed with the reason why it changes nothing. What that class does not take it ignores
//! with a warning, and so do we.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Keys that never change the picture, each with the reason.
pub type WithoutEffect = &'static [(&'static str, &'static str)];

/// The largest whole number that is taken for a size; vocabularies have some 10^5 entries.
const LARGEST: u64 = 1 << 20;

/// Most layers of a kind; the largest models have less.
const MOST_LAYERS: usize = 100;

/// A config's keys, taken out one by one; what is left at the end is unknown.
///
/// A null is not an absent key: the reference hands it to the class, where it means `None`. It is
/// taken where `None` is the class's own default ([`Self::optional`]) or means off
/// ([`Self::flag`]), and refused elsewhere. Keys listed in `_use_default_values` count as absent, as
/// there; others that begin with `_` carry no arithmetic.
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
        let value = serde_json::from_str(&text).map_err(|cause| Error::json(path, &text, cause))?;
        Self::new(path.display().to_string(), value)
    }

    /// Reads a JSON object; `source` is what errors call it.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`] when the value is no object.
    pub fn new(source: impl Into<String>, value: Value) -> Result<Self> {
        let source = source.into();
        match value {
            Value::Object(mut keys) => {
                if let Some(Value::Array(defaults)) = keys.remove("_use_default_values") {
                    for key in defaults.iter().filter_map(Value::as_str) {
                        keys.remove(key);
                    }
                }
                Ok(Self { source, keys })
            }
            other => Err(Error::UnsupportedConfig {
                config: source,
                key: "(the file)".into(),
                value: other.to_string(),
                hint: "a JSON object is expected".into(),
            }),
        }
    }

    /// Takes a key out whose default is `None`, as which null reads.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.keys.remove(key).filter(|v| !v.is_null())
    }

    /// Takes a key of a type that serde reads, whose default is `None`, as which null reads.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`] when the value has another type.
    pub fn optional<T: serde::de::DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        self.check_size(key, &value)?;
        serde_json::from_value(value.clone())
            .map(Some)
            .map_err(|e| self.unsupported(key, &value, &e.to_string()))
    }

    /// Takes a key, or its default.
    ///
    /// # Errors
    /// As [`Self::optional`].
    pub fn or<T: serde::de::DeserializeOwned>(&mut self, key: &str, default: T) -> Result<T> {
        self.refuse_null(key)?;
        Ok(self.optional(key)?.unwrap_or(default))
    }

    /// Takes a switch, or its default; null is off.
    ///
    /// # Errors
    /// As [`Self::optional`].
    pub fn flag(&mut self, key: &str, default: bool) -> Result<bool> {
        let default = default && !self.is_null(key);
        Ok(self.optional(key)?.unwrap_or(default))
    }

    /// Whether a key is there and null.
    pub fn is_null(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(Value::is_null)
    }

    /// Whether a key is not there, or null.
    pub fn is_absent(&self, key: &str) -> bool {
        self.keys.get(key).is_none_or(Value::is_null)
    }

    fn refuse_null(&self, key: &str) -> Result<()> {
        if self.is_null(key) {
            let hint = "leave the key out for its default";
            return Err(self.unsupported(key, &Value::Null, hint));
        }
        Ok(())
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
        self.refuse_null(key)?;
        let Some(value) = self.take(key) else {
            return Ok(vec![default; n]);
        };
        self.check_size(key, &value)?;
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

    /// That no whole number in a value is larger than any size of a model: layers are made of them, and products.
    fn check_size(&self, key: &str, value: &Value) -> Result<()> {
        fn too_large(value: &Value) -> bool {
            match value {
                Value::Array(list) => list.iter().any(too_large),
                value => value.as_u64().is_some_and(|n| n > LARGEST),
            }
        }
        match too_large(value) {
            true => Err(self.unsupported(key, value, &format!("at most {LARGEST}"))),
            false => Ok(()),
        }
    }

    /// That a key's numbers of layers, of which all are made when the config is read, are from 1 to 100.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`].
    pub fn check_layers(&self, key: &str, layers: &[usize]) -> Result<()> {
        match layers.iter().all(|n| (1..=MOST_LAYERS).contains(n)) {
            true => Ok(()),
            false => {
                let hint = format!("from 1 to {MOST_LAYERS}");
                Err(self.unsupported(key, &layers.into(), &hint))
            }
        }
    }

    /// Takes a key whose only supported values are given; an absent key is always fine, and null where
    /// off is (none supported means null alone).
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`] for any other value.
    pub fn only(&mut self, key: &str, supported: &[Value]) -> Result<()> {
        let off = [Value::Null, Value::Bool(false)];
        if !supported.is_empty() && !supported.iter().any(|s| off.contains(s)) {
            self.refuse_null(key)?;
        }
        match self.take(key) {
            Some(value) if !supported.iter().any(|s| same(s, &value)) => {
                Err(self.not_among(key, &value, supported))
            }
            _ => Ok(()),
        }
    }

    /// The same for a key with one value for all blocks or a list with one for each.
    ///
    /// # Errors
    /// As [`Self::only`].
    pub fn only_each(&mut self, key: &str, supported: &[Value]) -> Result<()> {
        let listed = self.keys.get(key).and_then(Value::as_array);
        let listed = listed.filter(|list| !list.is_empty()).cloned();
        let Some(list) = listed else {
            return self.only(key, supported);
        };
        self.keys.remove(key);
        match list.iter().all(|v| supported.iter().any(|s| same(s, v))) {
            true => Ok(()),
            false => Err(self.not_among(key, &Value::Array(list), supported)),
        }
    }

    fn not_among(&self, key: &str, value: &Value, supported: &[Value]) -> Error {
        let list: Vec<String> = supported.iter().map(Value::to_string).collect();
        let list = match list.as_slice() {
            [] => "null".to_owned(),
            list => list.join(" or "),
        };
        self.unsupported(key, value, &format!("only {list} is"))
    }

    /// Takes keys that do not change the picture.
    pub fn ignore(&mut self, keys: WithoutEffect) {
        for (key, _) in keys {
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

    /// Ends the reading: warns of keys that nobody took, which the reference ignores too, and gives
    /// their names. Nulls and keys that begin with `_` pass.
    pub fn finish(self) -> Vec<String> {
        let left = self.keys.into_iter();
        let strays = left.filter(|(key, value)| !key.starts_with('_') && !value.is_null());
        let strays: Vec<String> = strays.map(|(key, _)| key).collect();
        if !strays.is_empty() {
            let keys = strays.join(", ");
            tracing::warn!(
                "{}: ignored, as the class has no such key: {keys}",
                self.source
            );
        }
        strays
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
    fn null_is_none_or_off_and_never_the_default() {
        let mut r = reader(json!({"a": null, "b": null, "c": null, "d": null}));
        assert_eq!(r.optional::<usize>("a").unwrap(), None);
        assert!(!r.flag("b", true).unwrap());
        for error in [
            r.or("c", 3).unwrap_err(),
            r.per_block("d", 2, 1).unwrap_err(),
        ] {
            assert!(error.to_string().contains(" = null"), "{error}");
        }
        assert!(r.flag("absent", true).unwrap());
    }

    #[test]
    fn a_key_that_was_left_at_its_default_is_absent() {
        let mut r = reader(json!({"a": 1, "b": 2, "_use_default_values": ["a"]}));
        assert_eq!((r.or("a", 7).unwrap(), r.or("b", 7).unwrap()), (7, 2));
    }

    #[test]
    fn strays_are_named_and_pass() {
        let r = reader(json!({"dual_mixer": 2, "decay": 0.9, "_class_name": "X", "none": null}));
        assert_eq!(r.finish(), ["decay", "dual_mixer"]);
    }

    #[test]
    fn no_size_is_larger_than_a_model() {
        let mut r =
            reader(json!({"a": u64::MAX, "b": 1_u64 << 60, "c": [8, 1_u64 << 60], "d": 1 << 20}));
        for error in [
            r.or::<usize>("a", 1).unwrap_err(),
            r.per_block::<usize>("b", 2, 1).unwrap_err(),
            r.per_block::<usize>("c", 2, 1).unwrap_err(),
        ] {
            assert!(error.to_string().ends_with("(at most 1048576)"), "{error}");
        }
        assert_eq!(r.or("d", 1).unwrap(), 1 << 20);
        for layers in [vec![0], vec![2, 101]] {
            let error = r.check_layers("layers", &layers).unwrap_err().to_string();
            assert!(
                error.contains("layers = [") && error.ends_with("(from 1 to 100)"),
                "{error}"
            );
        }
        r.check_layers("layers", &[1, 100]).unwrap();
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
        r.only_each("a", &[json!(false)]).unwrap();
        assert!(r.only_each("b", &[json!(false)]).is_err());
    }

    #[test]
    fn numbers_compare_by_value() {
        let mut r = reader(json!({"scale": 1, "null": null}));
        r.only("scale", &[json!(1.0)]).unwrap();
        assert!(r.only("null", &[json!(1.0)]).is_err());
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

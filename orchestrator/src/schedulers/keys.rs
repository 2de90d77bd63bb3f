//! How single keys of a `scheduler_config.json` are read, and how they are refused.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::SchedulerError;

/// Removes `key` from the object and reads it; a null counts as missing.
pub(super) fn take<T: DeserializeOwned>(
    map: &mut Map<String, Value>,
    key: &'static str,
) -> Result<Option<T>, SchedulerError> {
    match map.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(&value)
            .map(Some)
            .map_err(|error| unsupported(key, value, error.to_string())),
    }
}

/// Takes a switch; null is off.
pub(super) fn flag(
    map: &mut Map<String, Value>,
    key: &'static str,
) -> Result<Option<bool>, SchedulerError> {
    match map.get(key) {
        Some(Value::Null) => {
            map.remove(key);
            Ok(Some(false))
        }
        _ => take(map, key),
    }
}

/// Null is no value of the keys that every class reads; `steps_offset` is set by the pipeline all the same
/// ([`crate::corrections`]).
pub(super) fn refuse_nulls(map: &mut Map<String, Value>) -> Result<(), SchedulerError> {
    if map.get("steps_offset").is_some_and(Value::is_null) {
        map.insert("steps_offset".into(), Value::from(0));
    }
    let trained = map
        .get("trained_betas")
        .is_some_and(|betas| !betas.is_null());
    let betas: &[&'static str] = match trained {
        true => &[],
        false => &["beta_start", "beta_end", "beta_schedule"],
    };
    let always = ["num_train_timesteps", "prediction_type", "timestep_spacing"];
    for key in always.iter().chain(betas) {
        if map.get(*key).is_some_and(Value::is_null) {
            return Err(unsupported(
                key,
                Value::Null,
                "leave the key out for its default",
            ));
        }
    }
    Ok(())
}

/// The error for a value that is there but cannot be honoured.
pub(super) fn unsupported(
    key: &'static str,
    value: impl std::fmt::Display,
    reason: impl Into<String>,
) -> SchedulerError {
    SchedulerError::Unsupported {
        key,
        value: value.to_string(),
        reason: reason.into(),
    }
}

/// An error if a switch for something that is not implemented is on.
pub(super) fn refuse(key: &'static str, switch: Option<bool>) -> Result<(), SchedulerError> {
    match switch {
        Some(true) => {
            let reason = "not implemented; choose a scheduler without it by --scheduler";
            Err(unsupported(key, true, reason))
        }
        _ => Ok(()),
    }
}

/// The meaning of a text value among `choices` (name and meaning); the first choice is the default.
pub(super) fn choose<T: Copy>(
    key: &'static str,
    value: Option<&str>,
    choices: &[(&'static str, T)],
) -> Result<T, SchedulerError> {
    let name = value.unwrap_or(choices[0].0);
    match choices.iter().find(|(choice, _)| *choice == name) {
        Some((_, meaning)) => Ok(*meaning),
        None => {
            let names: Vec<_> = choices.iter().map(|(choice, _)| *choice).collect();
            let names = names.join(", ");
            let reason = format!("expected one of {names}, or another scheduler by --scheduler");
            Err(unsupported(key, format!("{name:?}"), reason))
        }
    }
}

/// The same JSON with every bare `-Infinity` (outside a string) replaced by `null`.
pub(super) fn without_infinities(text: &str) -> String {
    const WORD: &str = "-Infinity";
    let mut out = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if !in_string && rest.starts_with(WORD) {
            out.push_str("null");
            rest = &rest[WORD.len()..];
            continue;
        }
        in_string ^= c == '"' && !escaped;
        escaped = in_string && c == '\\' && !escaped;
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_infinity_is_not_touched() {
        let text = r#"{"_note": "\"-Infinity\\", "x": "-Infinity", "é": -Infinity}"#;
        let want = r#"{"_note": "\"-Infinity\\", "x": "-Infinity", "é": null}"#;
        assert_eq!(without_infinities(text), want);
    }
}

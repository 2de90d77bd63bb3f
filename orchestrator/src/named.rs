//! Values by the names that they have in files, flags and messages.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value as files and flags name it.
pub fn name<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// A value by its name.
///
/// # Errors
/// A line that says which names there are.
pub fn by_name<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    serde_json::from_value(name.into()).map_err(|e| e.to_string())
}

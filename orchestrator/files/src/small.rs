//! Small files that a user gives: read whole, no more than such a file can be; and what is said of them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Far more than any list of workers or policy has.
const MOST: u64 = 1 << 20;

/// The text of a file that a person wrote.
///
/// # Errors
/// Those of the file; one that is larger than a mebibyte, or no text.
pub fn read_small(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MOST + 1).read_to_string(&mut text)?;
    match text.len() as u64 {
        0..=MOST => Ok(text),
        _ => Err(io::Error::other(
            "more than a mebibyte: is it the right file?",
        )),
    }
}

/// Whether it is one of serde's sentences that tell the value that was found.
fn shows_value(found: &str) -> bool {
    ["invalid type", "invalid value"]
        .iter()
        .any(|begin| found.starts_with(begin))
}

/// What is wrong in a TOML file, and where. Its lines may hold secrets, so none is shown, nor a value; of the line's
/// beginning only one of `keys`, which is surely none.
pub fn without_source(text: &str, error: &toml::de::Error, keys: &[&str]) -> String {
    let at = error.span().map_or(0, |span| span.start);
    let before = text.get(..at).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    let message = error.message();
    let reason = match message.split_once(", expected ") {
        Some((found, expected)) if shows_value(found) => {
            format!("wanted is {expected}")
        }
        _ => message.to_owned(),
    };
    let key = key_at(text, error, keys);
    let key = key.map_or(String::new(), |key| format!(" ({key})"));
    format!("line {line}, column {column}{key}: {reason}")
}

/// Which of `keys` stands where a TOML file is wrong, if one does.
pub fn key_at<'a>(text: &'a str, error: &toml::de::Error, keys: &[&str]) -> Option<&'a str> {
    let at = error.span().map_or(0, |span| span.start);
    let start = text.get(..at)?.rfind('\n').map_or(0, |end| end + 1);
    let key = text.get(start..)?.split('=').next()?.trim();
    keys.contains(&key).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "x".repeat(MOST as usize)).unwrap();
        assert_eq!(read_small(&path).unwrap().len() as u64, MOST);
        std::fs::write(&path, "x".repeat(MOST as usize + 1)).unwrap();
        let error = read_small(&path).unwrap_err().to_string();
        assert!(error.contains("mebibyte"), "{error}");
        #[cfg(target_os = "linux")]
        assert!(read_small(Path::new("/dev/zero")).is_err());
    }
}

//! Models that a worker is sent and keeps: `/v1/models`. They belong to no session, and so to no version of the protocol.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The file that says what network it is.
pub const CONFIG: &str = "config.json";
/// The one in its place that says of which model it is another, changed by adapters: [`Adapted`].
pub const ADAPTED: &str = "adapted.json";
/// The one file of weights of a model in the layout in which Stable Diffusion was published: it tells its own config, where none is
/// beside.
pub const ORIGINAL: &str = "original.safetensors";
/// How the names of files of weights end.
const WEIGHTS: &str = ".safetensors";
/// And the one that says which of them holds what.
const INDEX: &str = ".safetensors.index.json";
/// Most characters of a file's name.
const MOST_NAME: usize = 128;
/// Most files of a model.
pub const MOST_FILES: usize = 256;
/// Most bytes of a file of JSON: far more than any has.
pub const MOST_JSON: u64 = 4 << 20;
/// Most adapters of a model.
const MOST_ADAPTERS: usize = 64;

/// A file and how much of it there is, or shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSize {
    /// Its name, without a folder.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
}

/// `POST /v1/models/{digest}`: the files that make up a model, before they are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// All of them.
    pub files: Vec<FileSize>,
}

/// [`ADAPTED`]: a model that is another one, which the worker holds, with low-rank adapters. So the large one need not be sent
/// again for a small change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapted {
    /// Digest of the other.
    pub model: String,
    /// The adapters, in the order in which they are merged.
    pub adapters: Vec<StoredAdapter>,
}

/// An adapter of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredAdapter {
    /// Its file: the digest of what is in it, and `.safetensors`. One that a worker keeps of another model is not sent again.
    pub file: String,
    /// What its change is multiplied with.
    pub strength: f32,
}

/// The name of the file of an adapter whose content has this `digest`.
pub fn adapter_file(digest: &blake3::Hash) -> String {
    format!("{}{WEIGHTS}", digest.to_hex())
}

/// Whether it may be the name of an adapter's file.
pub fn is_adapter_file(name: &str) -> bool {
    name.strip_suffix(WEIGHTS).is_some_and(is_digest)
}

impl Adapted {
    /// That every name in it is one that may be looked for.
    ///
    /// # Errors
    /// [`Error::Announced`], naming what is wrong.
    pub fn check(&self) -> Result<()> {
        let wrong = |reason: &str| Err(Error::Announced(format!("{ADAPTED}: {reason}")));
        if !is_digest(&self.model) {
            return wrong("the model's digest is not 64 digits");
        }
        if !(1..=MOST_ADAPTERS).contains(&self.adapters.len()) {
            return wrong(&format!("1 to {MOST_ADAPTERS} adapters"));
        }
        for StoredAdapter { file, strength } in &self.adapters {
            if !is_adapter_file(file) {
                return wrong("an adapter's file is named by its digest");
            }
            if !strength.is_finite() {
                return wrong("a strength that is not finite");
            }
        }
        Ok(())
    }
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Whether the model is there: nothing is to be sent.
    pub held: bool,
    /// How much of each file is there.
    pub files: Vec<FileSize>,
    /// Bytes of one request at most.
    pub piece: usize,
}

/// The answer to `POST /v1/models/{digest}/{file}/{offset}`, whose body is of the file from that byte on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Bytes of the file that are there now.
    pub bytes: u64,
}

/// A model that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Digest of its U-Net, with the adapters that it came with.
    pub digest: String,
    /// Digest of the model that it is with adapters, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapts: Option<String>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Seconds since it was last used, or came.
    pub idle_seconds: u64,
    /// Whether somebody uses it.
    pub used: bool,
}

/// `GET /v1/models`: what a worker keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The models, the last used first.
    pub models: Vec<Kept>,
    /// Digests of those that are not all there.
    pub unfinished: Vec<String>,
    /// Bytes that are taken: of models, and of what was announced.
    pub bytes: u64,
    /// And at most.
    pub most: u64,
}

impl Stored {
    /// Whether the model of `digest`, or a part of it, is there.
    pub fn has(&self, digest: &str) -> bool {
        let kept = self.models.iter().map(|kept| &kept.digest);
        kept.chain(&self.unfinished).any(|held| held == digest)
    }
}

/// Whether it may be the digest of a model: 64 digits, as BLAKE3 has them.
pub fn is_digest(text: &str) -> bool {
    let digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    text.len() == 64 && text.bytes().all(digit)
}

/// Whether a file of a model may have the name: it leads to no other folder, and is of a kind that models have.
pub fn is_file_name(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let kind =
        [CONFIG, ADAPTED].contains(&name) || name.ends_with(WEIGHTS) || name.ends_with(INDEX);
    kind && name.len() <= MOST_NAME && !name.starts_with('.') && name.bytes().all(letter)
}

impl Announcement {
    /// Bytes of all files together, once every name and size is one that a model may have.
    ///
    /// # Errors
    /// [`Error::Announced`], naming what is wrong.
    pub fn check(&self) -> Result<u64> {
        let wrong = |reason: String| Err(Error::Announced(reason));
        if self.files.len() > MOST_FILES {
            return wrong(format!(
                "{} files; a model has {MOST_FILES} at most",
                self.files.len()
            ));
        }
        let mut names = HashSet::new();
        let mut all = 0_u64;
        for FileSize { name, bytes } in &self.files {
            if !is_file_name(name) {
                let name: String = name.escape_debug().take(100).collect();
                return wrong(format!(
                    "the file {name:?}; there are {CONFIG}, {ADAPTED}, *{WEIGHTS} and *{INDEX}, of letters, digits and . _ -"
                ));
            }
            if !names.insert(name) {
                return wrong(format!("the file {name} twice"));
            }
            let json = name.ends_with(".json");
            if *bytes == 0 || json && *bytes > MOST_JSON {
                return wrong(format!("the file {name} of {bytes} bytes"));
            }
            all = match all.checked_add(*bytes) {
                Some(all) => all,
                None => return wrong("more bytes than can be counted".into()),
            };
        }
        let has = |wanted: &str| names.iter().any(|name| *name == wanted);
        if !names.iter().any(|name| name.ends_with(WEIGHTS)) {
            return wrong(format!("no *{WEIGHTS}"));
        }
        match (has(CONFIG) || has(ORIGINAL), has(ADAPTED)) {
            (true, false) | (false, true) => Ok(all),
            (false, false) => wrong(format!("none of {CONFIG}, {ORIGINAL} and {ADAPTED}")),
            (true, true) => wrong(format!("{ADAPTED}, and {CONFIG} or {ORIGINAL}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(files: &[(&str, u64)]) -> Announcement {
        let file = |(name, bytes): &(&str, u64)| FileSize {
            name: (*name).into(),
            bytes: *bytes,
        };
        Announcement {
            files: files.iter().map(file).collect(),
        }
    }

    #[test]
    fn names_lead_nowhere_else() {
        for good in [
            "config.json",
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
            "diffusion_pytorch_model.safetensors.index.json",
        ] {
            assert!(is_file_name(good), "{good}");
        }
        let long = format!("{}.safetensors", "x".repeat(MOST_NAME));
        for bad in [
            "",
            ".safetensors",
            "..",
            "../config.json",
            "a/config.json",
            "a\\b.safetensors",
            "/etc/x.safetensors",
            "x.safetensors\0",
            "x.safetensors/",
            "x .safetensors",
            "é.safetensors",
            "other.json",
            "model.bin",
            "x.safetensors.index.fp16.json",
            &long,
        ] {
            assert!(!is_file_name(bad), "{bad}");
        }
        assert!(is_digest(&"0f".repeat(32)));
        for bad in [
            "",
            "0f",
            &"0F".repeat(32),
            &"0f".repeat(33),
            &"..".repeat(32),
        ] {
            assert!(!is_digest(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_announced_may_be_a_model() {
        let both = [(CONFIG, 10), ("x.safetensors", 20)];
        assert_eq!(announced(&both).check().unwrap(), 30);
        for (other, bytes) in [(ADAPTED, 10), (ORIGINAL, 10)] {
            let both = [(other, bytes), ("x.safetensors", 20)];
            assert_eq!(announced(&both).check().unwrap(), 30);
        }
        assert_eq!(announced(&[(ORIGINAL, 10)]).check().unwrap(), 10);
        let many: Vec<(String, u64)> = (0..MOST_FILES)
            .map(|i| (format!("{i}.safetensors"), 1))
            .collect();
        let mut many: Vec<(&str, u64)> = many.iter().map(|(n, b)| (n.as_str(), *b)).collect();
        many.push((CONFIG, 1));
        for (files, told) in [
            (&many[..], "257 files"),
            (&[(CONFIG, 10)], "no *.safetensors"),
            (&[], "no *.safetensors"),
            (&[(CONFIG, 10), ("../x.safetensors", 1)], "../x.safetensors"),
            (&[(CONFIG, 10), (CONFIG, 10)], "twice"),
            (&[(CONFIG, 10), ("x.safetensors", 0)], "0 bytes"),
            (&[(CONFIG, MOST_JSON + 1), ("x.safetensors", 1)], CONFIG),
            (
                &[("x.safetensors", 1), ("y.safetensors", 1)],
                "none of config.json",
            ),
            (
                &[(CONFIG, 1), (ADAPTED, 1), ("x.safetensors", 1)],
                "adapted.json, and",
            ),
            (&[(ORIGINAL, 1), (ADAPTED, 1)], "adapted.json, and"),
            (&[(CONFIG, 10), ("x.safetensors", u64::MAX)], "counted"),
        ] {
            let error = announced(files).check().unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
    #[test]
    fn adapters_are_named_by_their_digests() {
        let name = adapter_file(&blake3::hash(b"adapter"));
        assert!(is_file_name(&name) && is_adapter_file(&name), "{name}");
        let adapted = |model: &str, file: &str, strength| Adapted {
            model: model.into(),
            adapters: vec![StoredAdapter {
                file: file.into(),
                strength,
            }],
        };
        let digest = "0f".repeat(32);
        adapted(&digest, &name, -0.5).check().unwrap();
        let none = Adapted {
            adapters: Vec::new(),
            ..adapted(&digest, &name, 1.0)
        };
        for (bad, told) in [
            (adapted("../..", &name, 1.0), "64 digits"),
            (adapted(&digest, "x.safetensors", 1.0), "by its digest"),
            (
                adapted(&digest, &format!("../{name}"), 1.0),
                "by its digest",
            ),
            (adapted(&digest, &name, f32::NAN), "not finite"),
            (none, "1 to 64"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}

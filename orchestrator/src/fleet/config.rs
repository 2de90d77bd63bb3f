//! Which workers there are: a TOML file.

use std::path::Path;

use reqwest::Url;
use serde::Deserialize;

use crate::error::{Error, Result};

/// The workers of a run. `configs/fleet.example.toml` shows the file.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// In the order of their strips, from the top of the picture.
    pub workers: Vec<WorkerConfig>,
    /// Those that take the place of one that is lost.
    pub spares: Vec<WorkerConfig>,
}

/// One worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Where it listens.
    pub url: Url,
    /// Whose machine it is. Providers do not collude; two workers of one provider are one view.
    pub provider: String,
    /// What it wants to be shown.
    pub token: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    worker: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    url: String,
    provider: String,
    token: Option<String>,
    /// An environment variable that holds the token, to keep it out of the file.
    token_env: Option<String>,
    /// Whether it only steps in for another.
    #[serde(default)]
    spare: bool,
}

/// The most strips that a picture is cut into.
pub const MAX_WORKERS: usize = 16;

impl FleetConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::FleetFile`], saying which worker and field.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| fleet_error(path, e))?;
        Self::parse(&text).map_err(|reason| fleet_error(path, reason))
    }

    /// `n` workers at as many providers, to plan with and never to be reached.
    ///
    /// # Errors
    /// None: the entries are well formed.
    pub fn imagined(n: usize) -> Result<Self> {
        let entry = |i| format!("[[worker]]\nurl = \"http://{i}.invalid\"\nprovider = \"{i}\"\n");
        let text: String = (0..n).map(entry).collect();
        Self::parse(&text).map_err(Error::Request)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string().trim().to_owned())?;
        let mut config = Self {
            workers: Vec::new(),
            spares: Vec::new(),
        };
        for (i, entry) in file.worker.into_iter().enumerate() {
            let list = match entry.spare {
                true => &mut config.spares,
                false => &mut config.workers,
            };
            let worker = entry.resolve();
            list.push(worker.map_err(|reason| format!("worker {}: {reason}", i + 1))?);
        }
        if !(1..=MAX_WORKERS).contains(&config.workers.len()) {
            return Err(format!(
                "{} [[worker]] entries that are no spares; there must be 1 to {MAX_WORKERS}",
                config.workers.len()
            ));
        }
        Ok(config)
    }

    /// The fleet without the worker at `url`: a spare in its place, or one fewer; none when nobody is
    /// left.
    pub fn without(&self, url: &str) -> Option<Self> {
        let mut left = self.clone();
        let place = left.workers.iter().position(|w| w.url.as_str() == url)?;
        if left.spares.is_empty() {
            left.workers.remove(place);
        } else {
            left.workers[place] = left.spares.remove(0);
        }
        (!left.workers.is_empty()).then_some(left)
    }
}

impl Entry {
    fn resolve(self) -> Result<WorkerConfig, String> {
        let url = Url::parse(&self.url).map_err(|e| format!("url {:?}: {e}", self.url))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("url {:?} is neither http nor https", self.url));
        }
        let token =
            match (self.token, self.token_env) {
                (Some(_), Some(_)) => return Err("both token and token_env are given".into()),
                (token, None) => token,
                (None, Some(name)) => Some(std::env::var(&name).map_err(|_| {
                    format!("the environment variable {name} (token_env) is not set")
                })?),
            };
        Ok(WorkerConfig {
            url,
            provider: self.provider,
            token,
        })
    }
}

fn fleet_error(path: &Path, reason: impl ToString) -> Error {
    Error::FleetFile {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/fleet.example.toml");
        let text = std::fs::read_to_string(path).unwrap();
        // The example takes its tokens from variables that are not set here: read the names as tokens.
        let text = text.replace("token_env", "token");
        let fleet = FleetConfig::parse(&text).unwrap();
        assert_eq!(fleet.workers.len(), 4);
        assert!(fleet.workers.iter().all(|w| w.token.is_some()));
        assert_eq!(fleet.spares.len(), 1);
    }

    #[test]
    fn a_spare_takes_the_place_of_a_lost_worker() {
        let entry = |name: &str, more: &str| {
            format!("[[worker]]\nurl = \"http://{name}\"\nprovider = \"{name}\"\n{more}\n")
        };
        let text = entry("a", "") + &entry("s", "spare = true") + &entry("b", "");
        let providers = |fleet: &FleetConfig| {
            let each = fleet.workers.iter().map(|w| w.provider.clone());
            each.collect::<Vec<_>>().join("")
        };
        let fleet = FleetConfig::parse(&text).unwrap();
        assert_eq!(providers(&fleet), "ab");
        assert!(fleet.without("http://c/").is_none());
        let fleet = fleet.without("http://a/").unwrap();
        assert_eq!(providers(&fleet), "sb");
        let fleet = fleet.without("http://b/").unwrap();
        assert_eq!(providers(&fleet), "s");
        assert!(fleet.without("http://s/").is_none());
    }

    #[test]
    fn a_bad_file_names_the_worker_and_the_field() {
        for (text, part) in [
            ("", "0 [[worker]]"),
            (
                "[[worker]]\nurl = \"http://a\"\nprovider = \"p\"\nspare = true",
                "0 [[worker]] entries that are no spares",
            ),
            ("[[worker]]\nurl = \"http://a\"", "provider"),
            (
                "[[worker]]\nurl = \"nowhere\"\nprovider = \"p\"",
                "worker 1: url \"nowhere\"",
            ),
            (
                "[[worker]]\nurl = \"ftp://a\"\nprovider = \"p\"",
                "neither http nor https",
            ),
            (
                "[[worker]]\nurl = \"http://a\"\nprovider = \"p\"\ntokn = \"x\"",
                "tokn",
            ),
            (
                "[[worker]]\nurl = \"http://a\"\nprovider = \"p\"\ntoken_env = \"LACUNA_NOT_SET\"",
                "LACUNA_NOT_SET",
            ),
        ] {
            let error = FleetConfig::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}

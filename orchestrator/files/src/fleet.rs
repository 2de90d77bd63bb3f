//! Which workers there are: a TOML file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use http::HeaderValue;
use lacuna_channel::Pin;
pub use lacuna_channel::client::Trust;
use lacuna_channel::tokens;
use serde::Deserialize;
use url::Url;

use crate::address::{LOOPBACK, host};
use crate::error::{Error, Result};
use crate::small;

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
    /// How it is known to be who is meant, beside or in place of what the system trusts.
    pub trust: Trust,
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
    /// A file that holds it.
    token_file: Option<PathBuf>,
    /// What its public key hashes to.
    pin: Option<String>,
    /// Authorities that its certificate must be of.
    ca: Option<PathBuf>,
    /// A certificate to show it, and its key.
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
    /// Whether it only steps in for another.
    #[serde(default)]
    spare: bool,
}

/// Where a token is kept outside of the file.
#[derive(Clone, Copy, Debug)]
pub enum Kept<'a> {
    /// In an environment variable.
    Variable(&'a str),
    /// In another file, which is looked for from the fleet file's folder.
    File(&'a Path),
}

/// What is kept in a place; none where there is nothing.
pub type Lookup<'a> = &'a dyn Fn(Kept<'_>) -> Option<String>;

/// The most strips that a picture is cut into.
pub const MAX_WORKERS: usize = 16;

impl FleetConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::FleetFile`], saying which worker and field.
    pub fn from_file(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let read = |file: &Path| small::read_small(&folder.join(file)).ok();
        Self::read(path, &|kept| match kept {
            Kept::Variable(name) => std::env::var(name).ok(),
            Kept::File(file) => {
                let first = |text: String| Some(tokens::listed(&text).next()?.token.to_owned());
                read(file).and_then(first)
            }
        })
    }

    /// Reads the file for a plan, which reaches nobody: tokens that are kept elsewhere need not be there.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn to_plan_with(path: &Path) -> Result<Self> {
        Self::read(path, &|_| Some(String::new()))
    }

    fn read(path: &Path, lookup: Lookup<'_>) -> Result<Self> {
        let text = small::read_small(path).map_err(|e| fleet_error(path, e))?;
        let mut config = Self::parse(&text, lookup).map_err(|reason| fleet_error(path, reason))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let all = config.workers.iter_mut().chain(&mut config.spares);
        let files = all.flat_map(|worker| {
            let Trust {
                authorities, own, ..
            } = &mut worker.trust;
            authorities.iter_mut().chain(own.iter_mut().flatten())
        });
        files.for_each(|file| *file = folder.join(&*file));
        for (host, providers) in config.shared_hosts() {
            let providers = providers.join(", ");
            tracing::warn!(
                "{host} is the machine of several providers ({providers}): whoever owns it sees what all of them see"
            );
        }
        Ok(config)
    }

    /// `n` workers at as many providers, to plan with and never to be reached.
    ///
    /// # Errors
    /// None: the entries are well formed.
    pub fn imagined(n: usize) -> Result<Self> {
        let entry = |i| format!("[[worker]]\nurl = \"http://{i}.invalid\"\nprovider = \"{i}\"\n");
        let text: String = (0..n).map(entry).collect();
        Self::parse(&text, &|_| None).map_err(Error::Workers)
    }

    /// Reads the file's text; `lookup` tells what is kept elsewhere.
    ///
    /// # Errors
    /// What is wrong, in words that hold no token.
    pub fn parse(text: &str, lookup: Lookup<'_>) -> Result<Self, String> {
        let file: File =
            toml::from_str(text).map_err(|e| small::without_source(text, &e, &KEYS))?;
        let mut config = Self {
            workers: Vec::new(),
            spares: Vec::new(),
        };
        for (i, entry) in file.worker.into_iter().enumerate() {
            let list = match entry.spare {
                true => &mut config.spares,
                false => &mut config.workers,
            };
            let worker = entry.resolve(lookup);
            list.push(worker.map_err(|reason| format!("worker {}: {reason}", i + 1))?);
        }
        if !(1..=MAX_WORKERS).contains(&config.workers.len()) {
            return Err(format!(
                "{} [[worker]] entries that are no spares; there must be 1 to {MAX_WORKERS}",
                config.workers.len()
            ));
        }
        config.check_providers()?;
        Ok(config)
    }

    /// Those that compute, then those that stand by.
    pub fn everybody(&self) -> impl Iterator<Item = &WorkerConfig> {
        self.workers.iter().chain(&self.spares)
    }

    /// One worker cannot be two providers'.
    fn check_providers(&self) -> Result<(), String> {
        let mut known: BTreeMap<(String, u16), &WorkerConfig> = BTreeMap::new();
        for worker in self.everybody() {
            let port = worker.url.port_or_known_default().unwrap_or_default();
            let other = *known.entry((host(&worker.url), port)).or_insert(worker);
            if other.provider != worker.provider {
                return Err(format!(
                    "{} and {} are one worker, under two providers ({} and {}); what it sees it sees as one: \
                     give both one provider",
                    other.url, worker.url, other.provider, worker.provider
                ));
            }
        }
        let mut keys: BTreeMap<Pin, &WorkerConfig> = BTreeMap::new();
        let pinned = self.everybody().filter_map(|w| Some((w.trust.pin?, w)));
        for (pin, worker) in pinned {
            let other = *keys.entry(pin).or_insert(worker);
            if other.provider != worker.provider {
                return Err(format!(
                    "{} and {} have one public key ({pin}), under two providers ({} and {}): whoever has it is both; \
                     give each worker a key of its own, or both one provider",
                    other.url, worker.url, other.provider, worker.provider
                ));
            }
        }
        Ok(())
    }

    /// Machines of which several providers have workers, but for this one.
    fn shared_hosts(&self) -> BTreeMap<String, Vec<&str>> {
        let mut hosts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for worker in self.everybody() {
            let providers = hosts.entry(host(&worker.url)).or_default();
            if !providers.contains(&worker.provider.as_str()) {
                providers.push(&worker.provider);
            }
        }
        hosts.retain(|host, providers| host != LOOPBACK && providers.len() > 1);
        hosts
    }

    /// What the fleet can be without the worker at `url`, the best first: a spare of the same provider in its place, which
    /// shows nobody anything new; one of a provider that holds no other strip; any other spare; without a spare in its
    /// place, one fewer, where anybody is left. None where it does not compute.
    pub fn without(&self, url: &str) -> Vec<Self> {
        let Some(place) = self.workers.iter().position(|w| w.url.as_str() == url) else {
            return Vec::new();
        };
        let lost = &self.workers[place];
        let holds = |provider: &str| self.workers.iter().any(|w| w.provider == provider);
        let mut spares: Vec<usize> = (0..self.spares.len()).collect();
        spares.sort_by_key(|&spare| match self.spares[spare].provider.as_str() {
            same if same == lost.provider => 0,
            other if !holds(other) => 1,
            _ => 2,
        });
        let replaced = |spare| {
            let mut left = self.clone();
            left.workers[place] = left.spares.remove(spare);
            left
        };
        let mut all: Vec<Self> = spares.into_iter().map(replaced).collect();
        let mut fewer = self.clone();
        fewer.workers.remove(place);
        if !fewer.workers.is_empty() {
            all.push(fewer);
        }
        all
    }
}

impl Entry {
    fn resolve(self, lookup: Lookup<'_>) -> Result<WorkerConfig, String> {
        // It may hold a password where there is an @, however it is written, or a key where there is a ?: neither is
        // for others to read.
        let shown = match self.url.contains(['@', '%', '?']) {
            true => "url".to_owned(),
            false => format!("url {:?}", self.url),
        };
        let url = Url::parse(&self.url).map_err(|e| format!("{shown}: {e}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("{shown} is neither http nor https"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!(
                "{shown}: it holds a user name or a password, which would be shown; a worker takes a token: \
                 give token or token_env"
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!(
                "{shown}: it must end with the path, without ? and #"
            ));
        }
        let token = match (self.token, self.token_env, self.token_file) {
            (token, None, None) => token,
            (None, Some(name), None) => Some(lookup(Kept::Variable(&name)).ok_or_else(|| {
                format!("the environment variable {name} (token_env) is not set")
            })?),
            (None, None, Some(file)) => Some(lookup(Kept::File(&file)).ok_or_else(|| {
                let file = file.display();
                format!("there is no token in {file} (token_file), from the fleet file's folder")
            })?),
            _ => return Err("more than one of token, token_env and token_file".into()),
        };
        let own = match (self.client_cert, self.client_key) {
            (Some(certificate), Some(key)) => Some([certificate, key]),
            (None, None) => None,
            _ => return Err("client_cert and client_key belong together".into()),
        };
        let pin = self.pin.map(|pin| pin.parse()).transpose();
        let trust = Trust {
            pin: pin.map_err(|e: lacuna_channel::Error| format!("pin: {e}"))?,
            authorities: self.ca,
            own,
        };
        if url.scheme() != "https" && trust != Trust::default() {
            return Err(format!(
                "{shown}: pin, ca, client_cert and client_key are for https"
            ));
        }
        if let Some(token) = &token
            && HeaderValue::from_str(token).is_err()
        {
            let reason =
                "the token holds characters that a request cannot carry, such as a line's end";
            return Err(reason.into());
        }
        if self.provider.is_empty() || self.provider.contains(char::is_control) {
            return Err("provider: a name, without control characters".into());
        }
        Ok(WorkerConfig {
            url,
            provider: self.provider,
            token,
            trust,
        })
    }
}

/// What a worker's entry has.
const KEYS: [&str; 10] = [
    "url",
    "provider",
    "token",
    "token_env",
    "token_file",
    "pin",
    "ca",
    "client_cert",
    "client_key",
    "spare",
];

fn fleet_error(path: &Path, reason: impl ToString) -> Error {
    Error::FleetFile {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests;

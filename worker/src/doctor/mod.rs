//! What this machine has for a worker, what it lacks, and how to mend that.
//!
//! - [`machine`]: where files of the system and variables are looked up.
//! - `vulkan`: the loader and its drivers.
//! - `nvidia`: a GPU of NVIDIA's, and what its container toolkit puts into a container.
//! - `devices`: what opens, and computes right.
//! - `files`: the model, the store, and the worker's identity.
//! - here: all of it together.

mod devices;
mod files;
pub mod machine;
mod nvidia;
mod vulkan;

use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use lacuna_model::device::{DeviceChoice, Precision};
use serde::Serialize;

pub use machine::Machine;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It is not there.
    Missing,
    /// It is there, and of no use.
    Broken,
}

/// Something that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// How it is.
    pub state: State,
    /// What was looked at.
    pub what: String,
    /// What was found, and where it is not as it should be, what to do.
    pub said: String,
    /// Whether a worker cannot serve because of it.
    pub stops: bool,
}

impl Finding {
    fn new(state: State, what: impl Into<String>, said: impl Into<String>) -> Self {
        Self {
            state,
            what: what.into(),
            said: said.into(),
            stops: false,
        }
    }

    fn ok(what: impl Into<String>, said: impl Into<String>) -> Self {
        Self::new(State::Ok, what, said)
    }

    fn missing(what: impl Into<String>, said: impl Into<String>) -> Self {
        Self::new(State::Missing, what, said)
    }

    fn broken(what: impl Into<String>, said: impl Into<String>) -> Self {
        Self::new(State::Broken, what, said)
    }

    /// One that ends a worker's start.
    fn stopping(self) -> Self {
        Self {
            stops: true,
            ..self
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "ok",
            State::Missing => "missing",
            State::Broken => "broken",
        };
        write!(f, "{state}: {}: {}", self.what, self.said)
    }
}

/// What a worker would be started with, as far as it must be there.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Where it is to compute.
    pub device: DeviceChoice,
    /// In which numbers.
    pub precision: Precision,
    /// Whether a GPU may be emulated.
    pub allow_software: bool,
    /// A model's folder, or its one file.
    pub model: Option<PathBuf>,
    /// Of a model in one file: a folder of the same kind.
    pub model_config: Option<PathBuf>,
    /// The folder of the store.
    pub store: Option<PathBuf>,
    /// The folder of an identity.
    pub identity: Option<PathBuf>,
    /// A certificate and its key.
    pub tls: Option<[PathBuf; 2]>,
    /// Authorities of clients.
    pub client_authorities: Option<PathBuf>,
    /// A file of tokens.
    pub token_file: Option<PathBuf>,
    /// Flags with the addresses that they name.
    pub addresses: Vec<(&'static str, SocketAddr)>,
    /// Why these flags are refused together, if they are.
    pub refused: Option<String>,
}

impl Asked {
    /// Whether a worker would look for such a device.
    fn wants(&self, device: DeviceChoice) -> bool {
        [device, DeviceChoice::Auto].contains(&self.device)
    }
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether a worker could serve.
    pub serves: bool,
    /// The device that it would take: `cpu`, `wgpu` or `cuda`.
    pub device: Option<&'static str>,
    /// Each thing that was looked at.
    pub findings: Vec<Finding>,
}

/// A line for each, and one of what follows.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        let stopping = self.findings.iter().filter(|finding| finding.stops);
        let stopping: Vec<&str> = stopping.map(|finding| finding.what.as_str()).collect();
        match (self.serves, self.device) {
            (true, Some(device)) => writeln!(f, "a worker can serve on {device}"),
            _ => writeln!(f, "a worker cannot serve: {}", stopping.join(", ")),
        }
    }
}

/// Looks at `machine` for a worker that is started as `asked`.
pub fn examine(asked: &Asked, machine: &Machine) -> Report {
    let mut findings = Vec::new();
    let has_nvidia = nvidia::is_there(machine);
    if asked.wants(DeviceChoice::Wgpu) {
        findings.extend(vulkan::examine(machine, has_nvidia));
    }
    if asked.device != DeviceChoice::Cpu {
        findings.extend(nvidia::examine(asked, machine));
    }
    let device = devices::examine(asked, has_nvidia, &mut findings);
    findings.extend(files::examine(asked));
    if let Some(reason) = &asked.refused {
        findings.push(Finding::broken("flags", reason).stopping());
    }
    findings.extend(asked.addresses.iter().map(port));
    Report {
        serves: findings.iter().all(|finding| !finding.stops),
        device,
        findings,
    }
}

/// Whether a worker could listen there.
fn port(&(flag, address): &(&'static str, SocketAddr)) -> Finding {
    let what = format!("{flag} {address}");
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(what, "free"),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Finding::broken(
            what,
            "somebody listens there; if it is no worker that runs already, give another port",
        )
        .stopping(),
        Err(error) => Finding::broken(
            what,
            format!("{error}; give an address of this machine, and a port above 1023"),
        )
        .stopping(),
    }
}

#[cfg(test)]
mod tests;

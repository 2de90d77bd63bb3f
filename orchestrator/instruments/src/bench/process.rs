//! Workers in this process or in processes of their own, and what memory each takes.
//!
//! A worker's process is this program again, by its hidden command `bench-worker`. It chooses a port
//! and a token, prints both, and ends with its standard input, so that it does not outlive whoever started it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use lacuna_model::device::OpenDevice;
use lacuna_model::memory;
use lacuna_worker::Model;
use serde::Serialize;
use tokio::task::spawn_blocking;

use super::asked::{SubjectArguments, UNetArguments};
use super::subject::Subject;
use crate::error::{Error, Result};
use lacuna_orchestrator::fleet::config::{FleetConfig, Trust, WorkerConfig};
use lacuna_orchestrator::fleet::local::LocalWorkers;
use lacuna_orchestrator::output::console::print;

/// Arguments of the hidden `lacuna bench-worker`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    #[command(flatten)]
    unet: UNetArguments,
    #[arg(long)]
    batch: usize,
    #[arg(long)]
    rows: usize,
    #[arg(long)]
    columns: usize,
}

/// Serves until the standard input ends.
///
/// # Errors
/// A model, config or device that cannot be had.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let unet = arguments.unet.clone();
    let (model, device) = spawn_blocking(move || unet.load()).await??;
    let latents = [arguments.batch, arguments.rows, arguments.columns];
    let worker = LocalWorkers::start(1, &Arc::new(model), &device, latents).await?;
    for WorkerConfig { url, token, .. } in &worker.config().workers {
        print(format_args!(
            "{url} {}",
            token.as_deref().unwrap_or_default()
        ))?;
    }
    spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    Ok(())
}

/// The workers of all rows; a row of fewer takes the first ones.
pub struct Workers {
    config: FleetConfig,
    processes: Vec<Process>,
    /// Those in this process, which end with it.
    _local: Option<LocalWorkers>,
}

impl Workers {
    /// `n` workers in this process that share the subject's weights.
    ///
    /// # Errors
    /// [`lacuna_orchestrator::Error::LocalWorker`], also when the subject has not all of them.
    pub async fn in_this_process(n: usize, subject: &Subject, device: &OpenDevice) -> Result<Self> {
        let Some(weights) = subject.whole.clone() else {
            return Err(Error::local_worker(&"the weights are not all here"));
        };
        let unet = &subject.unet;
        let model = Model::new(unet.layers().clone(), weights, unet.digest());
        let local = LocalWorkers::start(n, &Arc::new(model), device, subject.latents).await?;
        Ok(Self {
            config: local.config().clone(),
            processes: Vec::new(),
            _local: Some(local),
        })
    }

    /// `n` workers in processes of their own, each with weights of its own.
    ///
    /// # Errors
    /// A process that does not start; it says why itself.
    pub async fn in_processes(
        n: usize,
        arguments: &SubjectArguments,
        latents: [usize; 3],
    ) -> anyhow::Result<Self> {
        let processes = (0..n).map(|_| Process::start(&arguments.unet, latents));
        let mut processes = processes.collect::<Result<Vec<_>>>()?;
        // All load at the same time; each is waited for in turn.
        let (workers, processes) = spawn_blocking(move || {
            let workers = processes.iter_mut().enumerate();
            let workers = workers.map(|(i, process)| process.ready(format!("process-{i}")));
            workers
                .collect::<Result<Vec<_>>>()
                .map(|workers| (workers, processes))
        })
        .await?
        .context("a worker's process did not get ready")?;
        Ok(Self {
            config: FleetConfig {
                workers,
                spares: Vec::new(),
            },
            processes,
            _local: None,
        })
    }

    /// Where they listen.
    pub fn config(&self) -> &FleetConfig {
        &self.config
    }

    /// From now on [`Self::memory`] is of what comes, where the system can forget what was.
    pub fn forget_peaks(&self) {
        let pids = self.processes.iter().map(|process| process.child.id());
        pids.chain([std::process::id()])
            .for_each(memory::forget_peak);
    }

    /// The most memory that was resident at once, with the first `n` workers' where they are processes of
    /// their own. None where the system does not tell.
    pub fn memory(&self, n: usize) -> Option<Memory> {
        let workers = self.processes.iter().take(n);
        Some(Memory {
            orchestrator_bytes: memory::peak()?,
            workers_bytes: workers
                .map(|process| memory::peak_of_process(process.child.id()))
                .collect::<Option<_>>()?,
        })
    }
}

/// Most resident memory of each process (Linux's VmHWM).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// This process: the user's side, and the workers where they are no processes of their own.
    pub orchestrator_bytes: u64,
    /// The workers that are processes of their own.
    pub workers_bytes: Vec<u64>,
}

impl Memory {
    /// The greater of each.
    pub fn max(self, other: Self) -> Self {
        let pairs = self.workers_bytes.into_iter().zip(other.workers_bytes);
        Self {
            orchestrator_bytes: self.orchestrator_bytes.max(other.orchestrator_bytes),
            workers_bytes: pairs.map(|(a, b)| a.max(b)).collect(),
        }
    }
}

/// A worker's process; it ends when this is dropped.
struct Process {
    child: Child,
}

impl Process {
    fn start(arguments: &UNetArguments, [batch, rows, columns]: [usize; 3]) -> Result<Self> {
        let failed = |e: std::io::Error| Error::local_worker(&e);
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg("bench-worker");
        match &arguments.model {
            Some(model) => command.arg("--model").arg(model),
            None => command.arg("--config").arg(&arguments.config),
        };
        if let Some(variant) = &arguments.variant {
            command.args(["--variant", variant]);
        }
        if let Some(folder) = &arguments.model_config {
            command.arg("--model-config").arg(folder);
        }
        for adapter in &arguments.lora {
            let mut given = adapter.path.clone().into_os_string();
            given.push(format!(":{}", adapter.strength));
            command.arg("--lora").arg(given);
        }
        if arguments.allow_software {
            command.arg("--allow-software");
        }
        for (flag, value) in [
            ("--device", arguments.device.to_string()),
            ("--batch", batch.to_string()),
            ("--rows", rows.to_string()),
            ("--columns", columns.to_string()),
        ] {
            command.args([flag, &value]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().map_err(failed)?;
        Ok(Self { child })
    }

    /// Waits for what it prints when it listens.
    fn ready(&mut self, provider: String) -> Result<WorkerConfig> {
        let failed = |reason: &dyn std::fmt::Display| Error::local_worker(reason);
        let mut line = String::new();
        if let Some(stdout) = self.child.stdout.take() {
            let read = BufReader::new(stdout).read_line(&mut line);
            read.map_err(|e| failed(&e))?;
        }
        let Some((url, token)) = line.trim().split_once(' ') else {
            return Err(failed(&"it ended before it listened"));
        };
        Ok(WorkerConfig {
            url: url.parse().map_err(|e| failed(&e))?,
            provider,
            token: Some(token.to_owned()),
            trust: Trust::default(),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; waiting keeps no zombie.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greater_mark_of_each_process_counts() {
        let memory = |orchestrator_bytes, workers_bytes: [u64; 2]| Memory {
            orchestrator_bytes,
            workers_bytes: workers_bytes.to_vec(),
        };
        assert_eq!(memory(3, [1, 5]).max(memory(2, [4, 4])), memory(3, [4, 5]));
    }
}

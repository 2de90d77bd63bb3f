//! What a run took and who saw what, for `--report`.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::fleet::tally::{Kind, Seen, Tally, Traffic};
use crate::generator::Generator;
use crate::policy::ledger::Ledger;

/// The report of one run, all its pictures together.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// Where the U-Net was computed.
    pub scheme: String,
    /// What of it was chosen, as bits and groups.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub placement: serde_json::Value,
    /// Digest of the U-Net's weights.
    pub model: String,
    /// Of the first picture; the next ones count on.
    pub seed: u64,
    /// Files written.
    pub pictures: Vec<String>,
    /// Why there are no more of them. Absent where all were made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Seconds by phase.
    pub seconds: Seconds,
    /// The most memory that this process held, in bytes, with workers that it started. Absent where the
    /// system does not say (see [`lacuna_model::memory::peak`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// The user's part of the U-Net.
    pub user: User,
    /// Each worker's part, from the top of the picture.
    pub workers: Vec<Worker>,
    /// Bytes by kind of layer, all workers together.
    pub kinds: BTreeMap<Kind, Traffic>,
    /// What each provider saw of any one picture.
    pub ledger: Ledger,
}

/// Seconds by phase.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Seconds {
    /// Checking the model's files, and loading of the U-Net what is needed here.
    pub load: f64,
    /// Starting or reaching the workers.
    pub connect: f64,
    /// Prompt to embeddings.
    pub text: f64,
    /// All sampler steps.
    pub denoise: f64,
    /// Latents to pictures.
    pub decode: f64,
    /// A picture that others are made from to latents.
    pub encode: f64,
    /// Everything.
    pub total: f64,
}

/// The user's part of the U-Net.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct User {
    /// Work, multiply and add counted as two, in 10^9.
    pub gflop: f64,
    /// Sent to all workers.
    pub bytes_up: u64,
    /// Received from all workers.
    pub bytes_down: u64,
}

/// One worker's part.
#[derive(Clone, Debug, Serialize)]
pub struct Worker {
    /// Its address.
    pub url: String,
    /// Whose it is.
    pub provider: String,
    /// Requests, and the bytes of their bodies.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Work, multiply and add counted as two, in 10^9.
    pub gflop: f64,
    /// Share of the picture's rows that it computed, over all layers: 0 to 1.
    pub rows: f64,
    /// The same with the halo rows that it was sent beside its own.
    pub rows_with_halo: f64,
}

impl Worker {
    /// The worker of an account, without anything done.
    fn new(tally: &Tally) -> Self {
        Self {
            url: tally.url.clone(),
            provider: tally.provider.clone(),
            traffic: Traffic::default(),
            gflop: 0.0,
            rows: 0.0,
            rows_with_halo: 0.0,
        }
    }
}

impl Report {
    /// Adds what `generator` did and was shown.
    pub fn add_accounts(&mut self, generator: &Generator) {
        let accounts = generator.denoiser.accounts();
        self.seconds.connect = accounts.connect.as_secs_f64();
        self.seconds.denoise = accounts.denoise.as_secs_f64();
        self.user.gflop = accounts.user_flop as f64 / 1e9;
        self.placement = generator.denoiser.setting.scheme.placement();
        self.ledger = Ledger::of_run(&generator.denoiser.setting, &accounts.pictures);
        let pictures = accounts.pictures.iter();
        pictures.for_each(|tallies| self.add_tallies(tallies));
    }

    /// Adds the accounts of one picture's sessions; a worker that had several saw what all of them showed.
    pub fn add_tallies(&mut self, tallies: &[Tally]) {
        for tally in tallies {
            let total = tally.total();
            self.user.bytes_up += total.bytes_up;
            self.user.bytes_down += total.bytes_down;
            for (kind, traffic) in &tally.kinds {
                self.kinds.entry(*kind).or_default().add(traffic);
            }
            let known = self.workers.iter().position(|w| w.url == tally.url);
            let place = known.unwrap_or_else(|| {
                self.workers.push(Worker::new(tally));
                self.workers.len() - 1
            });
            let worker = &mut self.workers[place];
            worker.traffic.add(&total);
            worker.gflop += tally.flop as f64 / 1e9;
            let mut seen = Seen::default();
            let sessions = tallies.iter().filter(|other| other.url == tally.url);
            sessions.for_each(|session| seen.extend(&session.seen));
            // Parts of different pictures do not add up to a larger part of one.
            worker.rows = worker.rows.max(seen.rows.share());
            worker.rows_with_halo = worker.rows_with_halo.max(seen.rows_with_halo.share());
        }
    }

    /// What each worker saw, as lines of a table.
    pub fn table(&self) -> String {
        if self.workers.is_empty() {
            return String::new();
        }
        let mut lines = vec![format!(
            "{:<14} {:>8} {:>10} {:>10} {:>9} {:>7} {:>10}",
            "provider", "requests", "MB up", "MB down", "GFLOP", "rows", "with halo"
        )];
        lines.extend(self.workers.iter().map(|w| {
            format!(
                "{:<14} {:>8} {:>10.1} {:>10.1} {:>9.1} {:>6.1}% {:>9.1}%",
                w.provider,
                w.traffic.requests,
                w.traffic.bytes_up as f64 / 1e6,
                w.traffic.bytes_down as f64 / 1e6,
                w.gflop,
                w.rows * 100.0,
                w.rows_with_halo * 100.0
            )
        }));
        lines.push(format!(
            "{:<14} {:>8} {:>10.1} {:>10.1} {:>9.1} {:>6.1}%",
            "you",
            "",
            self.user.bytes_up as f64 / 1e6,
            self.user.bytes_down as f64 / 1e6,
            self.user.gflop,
            100.0
        ));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::config::FleetConfig;

    #[test]
    fn a_worker_whose_strip_was_cut_anew_saw_both_strips() {
        let config = FleetConfig::imagined(1).unwrap();
        let session = |rows: std::ops::Range<usize>| {
            let mut tally = Tally::new(&config.workers[0]);
            tally.seen.add_strip(&rows, 8);
            tally
        };
        let mut report = Report::default();
        report.add_tallies(&[session(2..4), session(3..6)]);
        let [worker] = &report.workers[..] else {
            panic!("{:?}", report.workers);
        };
        assert_eq!((worker.rows, worker.rows_with_halo), (0.5, 0.75));
        // Another picture shows no larger part of one.
        report.add_tallies(&[session(0..3)]);
        assert_eq!(report.workers[0].rows, 0.5);
    }
}

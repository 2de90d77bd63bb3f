//! Schemes, wires and numbers of workers side by side, over a link: what `lacuna bench` times.
//!
//! - [`asked`]: what is to be timed, as the command line says it.
//! - [`subject`]: what is timed: a model's picture, or U-Net calls of random weights.
//! - [`case`]: the combinations, one for each row.
//! - [`process`]: workers in this process or in their own, and what memory they take.
//! - [`row`]: what the sessions of one case took.
//! - [`table`]: the rows as text.
//! - [`plot`]: the rows as a drawing.

pub mod asked;
pub mod case;
pub mod plot;
pub mod process;
pub mod row;
pub mod subject;
pub mod table;

use std::sync::Arc;

use serde::Serialize;
use tokio::task::spawn_blocking;

use crate::error::Result;
use case::Case;
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::fleet::emulated::EmulatedLink;
use lacuna_orchestrator::fleet::link::Link;
use lacuna_orchestrator::progress::Progress;
use process::Workers;
use row::{Row, Summary};
use subject::{Session, Subject};

/// Calls of each row before the turns that count: the second sends changes where the wire does.
const WARM_UP_CALLS: usize = 2;

/// A run of the command, as `--json` prints it.
#[derive(Serialize)]
pub struct Report {
    /// This program's.
    pub version: &'static str,
    /// What every session computes.
    pub subject: subject::Description,
    /// Sessions of each row.
    pub turns: usize,
    /// None without an emulated link.
    pub link: Option<Link>,
    /// Whether every worker is a process of its own.
    pub separate: bool,
    /// One of each case.
    pub rows: Vec<Summary>,
}

/// What is timed, and how often.
pub struct Bench {
    /// What every session computes.
    pub subject: Arc<Subject>,
    /// What the rows are.
    pub cases: Vec<Case>,
    /// Sessions of each row. The rows take turns; a turn of two calls before them only warms up.
    pub turns: usize,
    /// An emulated connection to the workers.
    pub link: Option<Link>,
}

impl Bench {
    /// Times every row on `workers`.
    ///
    /// # Errors
    /// Sizes that do not fit, or a device or worker that fails.
    pub async fn run(self, workers: &Workers) -> anyhow::Result<Vec<Summary>> {
        let Self {
            subject,
            cases,
            turns,
            link,
        } = self;
        let mut rows = cases
            .into_iter()
            .map(|case| {
                let counts = subject
                    .setting(&case)
                    .first_calls(subject.unet.layers(), case.workers)?;
                Ok(Row::new(case, counts))
            })
            .collect::<Result<Vec<_>>>()?;
        let emulated = match link {
            Some(link) => Some(EmulatedLink::start(workers.config(), link).await?),
            None => None,
        };
        let config = emulated
            .as_ref()
            .map_or(workers.config(), EmulatedLink::config);
        let bar = Progress::new("session", (turns + 1) * rows.len());
        for turn in 0..=turns {
            let calls = match turn {
                0 => WARM_UP_CALLS.min(subject.calls),
                _ => subject.calls,
            };
            for row in &mut rows {
                bar.about(row.case.label());
                workers.forget_peaks();
                let session = session(&subject, &row.case, config, calls).await?;
                row.add(session, turn > 0);
                row.see_memory(workers.memory(row.case.workers));
                bar.step();
            }
        }
        Ok(row::summarise(&rows, link))
    }
}

/// One session of a case.
async fn session(
    subject: &Arc<Subject>,
    case: &Case,
    config: &FleetConfig,
    calls: usize,
) -> anyhow::Result<Session> {
    let setting = subject.setting(case);
    let fleet = (case.workers > 0).then(|| FleetConfig {
        workers: config.workers.iter().take(case.workers).cloned().collect(),
        spares: Vec::new(),
    });
    let subject = subject.clone();
    Ok(spawn_blocking(move || subject.run(setting, fleet, calls)).await??)
}

//! `lacuna bench`: schemes, wires and numbers of workers side by side, over a link.
//!
//! - [`subject`]: what is timed: a model's picture, or U-Net calls of random weights.
//! - [`case`]: the combinations, one for each row.
//! - [`process`]: workers in this process or in their own, and what memory they take.
//! - [`row`]: what the sessions of one case took.
//! - [`table`]: the rows as text.
//! - [`plot`]: the rows as a drawing.

mod case;
mod plot;
pub mod process;
mod row;
mod subject;
mod table;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::task::spawn_blocking;

use crate::cost::Link;
use crate::cost::count::{Count, first_calls};
use crate::error::{Error, Result};
use crate::fleet::Fleet;
use crate::fleet::config::{FleetConfig, MAX_WORKERS};
use crate::fleet::link::EmulatedLink;
use crate::output::{check_writable, write_whole};
use case::{Case, Combinations};
use process::Workers;
use row::{Row, Summary};
use subject::{Session, Subject, SubjectArguments};

/// Arguments of `lacuna bench`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    #[command(flatten)]
    subject: SubjectArguments,
    #[command(flatten)]
    combinations: Combinations,
    /// Sessions of each row. The rows take turns; a turn of two calls before them only warms up.
    #[arg(long, default_value_t = 1)]
    turns: usize,
    /// Emulate a connection to the workers: 5g (the paper's), fibre, lan, or up and down in 10^6 bits a
    /// second and milliseconds, such as 50,200,30.
    #[arg(long)]
    link: Option<Link>,
    /// Give every worker a process of its own, and say what memory each takes at most. Each holds all
    /// weights; without this they share one copy.
    #[arg(long)]
    separate: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Where to draw seconds and bytes: a file that ends in .svg (other formats are not supported).
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// Calls of each row before the turns that count: the second sends changes where the wire does.
const WARM_UP_CALLS: usize = 2;

/// A run of the command, as `--json` prints it.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    subject: subject::Description,
    turns: usize,
    /// None without an emulated link.
    link: Option<Link>,
    /// Whether every worker is a process of its own.
    separate: bool,
    rows: Vec<Summary>,
}

/// Runs the command.
///
/// # Errors
/// A bad argument, a model or config that cannot be read, or a device or worker that fails.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    check(&arguments)?;
    let cases = arguments.combinations.cases();
    let (subject, device) = Subject::open(&arguments.subject, !arguments.separate).await?;
    let mut rows = cases
        .into_iter()
        .map(|case| Ok(Row::new(case, counts_of(&case, &subject)?)))
        .collect::<Result<Vec<_>>>()?;
    let most = rows.iter().map(|row| row.case.workers).max().unwrap_or(0);
    let workers = if arguments.separate {
        Workers::in_processes(most, &arguments.subject, subject.latents).await?
    } else {
        Workers::in_this_process(most, &subject, &device).await?
    };
    let link = match arguments.link {
        Some(link) => Some(EmulatedLink::start(workers.config(), link).await?),
        None => None,
    };
    let config = link.as_ref().map_or(workers.config(), EmulatedLink::config);

    let bar = progress_bar((arguments.turns + 1) * rows.len());
    for turn in 0..=arguments.turns {
        let calls = match turn {
            0 => WARM_UP_CALLS.min(subject.calls),
            _ => subject.calls,
        };
        for row in &mut rows {
            bar.set_message(row.case.label());
            workers.forget_peaks();
            let session = session(&subject, row.case, config, calls).await?;
            row.add(session, turn > 0).await;
            row.see_memory(workers.memory(row.case.workers));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        subject: subject.describe(&arguments.subject),
        turns: arguments.turns,
        link: arguments.link,
        separate: arguments.separate,
        rows: row::summarise(&rows, arguments.link),
    };
    if let Some(path) = &arguments.plot {
        write_whole(path, plot::draw(&report)?.as_bytes())?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", table::table(&report));
    }
    Ok(())
}

/// What can be refused before anything is loaded.
fn check(arguments: &Arguments) -> Result<()> {
    let refuse = |reason: String| Err(Error::Request(reason));
    arguments.subject.check()?;
    for n in &arguments.combinations.workers {
        if !(1..=MAX_WORKERS).contains(n) {
            return refuse(format!("--workers {n}: from 1 to {MAX_WORKERS}"));
        }
    }
    if arguments.turns == 0 {
        return refuse("--turns 0: at least one".into());
    }
    let Some(path) = &arguments.plot else {
        return Ok(());
    };
    if path.extension().is_none_or(|ending| ending != "svg") {
        return refuse(format!(
            "--plot {}: plots are SVG; give a file that ends in .svg",
            path.display()
        ));
    }
    check_writable(path)
}

/// What the first two calls of the case send and compute, from the config alone.
fn counts_of(case: &Case, subject: &Subject) -> Result<[Count; 2]> {
    first_calls(subject.unet(), &subject.setting(case), case.workers)
}

/// One session of a case.
async fn session(
    subject: &Arc<Subject>,
    case: Case,
    config: &FleetConfig,
    calls: usize,
) -> anyhow::Result<Session> {
    let setting = subject.setting(&case);
    let fleet: Option<Fleet> = match case.workers {
        0 => None,
        n => {
            let config = FleetConfig {
                workers: config.workers.iter().take(n).cloned().collect(),
                spares: Vec::new(),
            };
            let opened = setting.open(&config, subject.digest(), subject.unet());
            Some(opened.await?)
        }
    };
    let subject = subject.clone();
    Ok(spawn_blocking(move || subject.run(setting, fleet, calls)).await??)
}

fn progress_bar(sessions: usize) -> ProgressBar {
    let bar = ProgressBar::new(sessions as u64);
    // The template is a constant; a mistake in it only costs the style.
    if let Ok(style) = ProgressStyle::with_template("{bar:30} session {pos}/{len}, {msg}") {
        bar.set_style(style);
    }
    bar
}

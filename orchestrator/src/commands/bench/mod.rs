//! `lacuna bench`: schemes, wires and numbers of workers side by side, over a link.
//!
//! - `subject`: what is timed: a model's picture, or U-Net calls of random weights.
//! - `case`: the combinations, one for each row.
//! - [`process`]: workers in this process or in their own, and what memory they take.
//! - `row`: what the sessions of one case took.
//! - `table`: the rows as text.
//! - `plot`: the rows as a drawing.

mod case;
mod plot;
pub mod process;
mod row;
mod subject;
mod table;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use tokio::task::spawn_blocking;

use crate::error::Result;
use crate::fleet::Fleet;
use crate::fleet::config::FleetConfig;
use crate::fleet::emulated::EmulatedLink;
use crate::fleet::link::Link;
use crate::limits;
use crate::output::console::Console;
use crate::output::{Outputs, write_whole};
use crate::progress::Progress;
use case::{Case, Combinations};
use process::Workers;
use row::{Row, Summary};
use subject::{Session, Subject, SubjectArguments};

/// Arguments of `lacuna bench`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna bench --model assets/demo-model --link 5g --wires f32,f16,delta4 --plot bench.svg
  lacuna bench --config sdxl --batch 1 --calls 1 --schemes local,resident")]
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
    let console = Console::new(check(&arguments)?.take_stdout());
    let cases = arguments.combinations.cases()?;
    let (subject, device) = Subject::open(&arguments.subject, !arguments.separate).await?;
    let mut rows = cases
        .into_iter()
        .map(|case| {
            let counts = subject
                .setting(&case)
                .first_calls(subject.unet(), case.workers)?;
            Ok(Row::new(case, counts))
        })
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

    let bar = Progress::new("session", (arguments.turns + 1) * rows.len());
    for turn in 0..=arguments.turns {
        let calls = match turn {
            0 => WARM_UP_CALLS.min(subject.calls),
            _ => subject.calls,
        };
        for row in &mut rows {
            bar.about(row.case.label());
            workers.forget_peaks();
            let session = session(&subject, &row.case, config, calls).await?;
            row.add(session, turn > 0).await;
            row.see_memory(workers.memory(row.case.workers));
            bar.step();
        }
    }
    drop(bar);
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
        console.line(serde_json::to_string_pretty(&report)?);
    } else {
        console.line(table::table(&report));
    }
    Ok(console.finish()?)
}

/// What can be refused before anything is loaded. Gives the files that will be written.
fn check(arguments: &Arguments) -> Result<Outputs> {
    arguments.subject.check()?;
    limits::check("--turns", arguments.turns, limits::COUNT)?;
    let mut outputs = Outputs::default();
    if let Some(path) = &arguments.plot {
        outputs.add_ending("--plot", path, 1, "svg")?;
    }
    outputs.check()?;
    Ok(outputs)
}

/// One session of a case.
async fn session(
    subject: &Arc<Subject>,
    case: &Case,
    config: &FleetConfig,
    calls: usize,
) -> anyhow::Result<Session> {
    let setting = subject.setting(case);
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

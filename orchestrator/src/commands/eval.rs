//! `lacuna eval`: many prompts under several settings, from the same noise, against the uncut model.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::{Args, Subcommand};
use tokio::task::spawn_blocking;

use crate::evaluation::asked::RunArguments;
use crate::evaluation::html;
use crate::evaluation::results::Results;
use crate::evaluation::store::Store;
use crate::evaluation::summary::Summary;
use crate::evaluation::table::{Texts, rows_csv};
use crate::interrupt;
use crate::output::console::Console;
use crate::output::{make_directory, write_whole};

/// Arguments of `lacuna eval`.
#[derive(Args, Clone, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  lacuna eval --prompts prompts.txt --schemes ppidm,resident:wire=f16 --out runs/a
  lacuna eval --experiment table-4 --limit 16 --out runs/table-4
  lacuna eval merge runs/0 runs/1 --out runs/all"
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Makes one result of the shards of a run. Their pictures need not be there.
    Merge {
        /// The shards' directories.
        #[arg(required = true)]
        shards: Vec<PathBuf>,
        /// Where to write the results.
        #[arg(short, long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Runs the command. A picture that cannot be made is named and left out; the others are made, and the run
/// fails at its end.
///
/// # Errors
/// What is off in the arguments and files, by name; a worker that is lost; any picture that is missing.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Some(Command::Merge { shards, out }) => {
            spawn_blocking(move || merge(&shards, &out)).await?
        }
        None => evaluate(arguments.run).await,
    }
}

fn merge(shards: &[PathBuf], out: &Path) -> anyhow::Result<()> {
    if out.join("run.json").exists() {
        bail!(
            "--out {}: there is a run in it; give another",
            out.display()
        );
    }
    let results = Results::merge(shards)?;
    make_directory(out)?;
    finish(&results, out, 0)
}

async fn evaluate(arguments: RunArguments) -> anyhow::Result<()> {
    let (run, out) = arguments.prepare().await?;
    spawn_blocking(move || {
        let unread = interrupt::advise(run.go(), || {
            "what was made is kept; the same command goes on from there".into()
        })?;
        finish(&Results::of(Store::read(&out)?), &out, unread)
    })
    .await?
}

/// Writes the results to `out`, and says in the end whether anything is missing.
fn finish(results: &Results, out: &Path, unread: usize) -> anyhow::Result<()> {
    let summary = Summary::of(results)?;
    let table = Texts::of(&summary, &results.record).markdown();
    let files = [
        ("rows.csv", rows_csv(results)?),
        ("rows.json", serde_json::to_vec_pretty(&results.rows)?),
        ("summary.json", serde_json::to_vec_pretty(&summary)?),
        ("summary.md", table.clone().into_bytes()),
        ("report.html", html::page(results, &summary).into_bytes()),
    ];
    for (name, bytes) in files {
        write_whole(&out.join(name), &bytes)?;
    }
    let console = Console::default();
    console.line(table.trim_end());
    console.line(out.join("report.html").display());
    console.finish()?;
    match summary.failed.len() + unread {
        0 => Ok(()),
        n => bail!(
            "{n} of the pictures could not be made or measured; each is named in {}",
            out.join("summary.json").display()
        ),
    }
}

//! The command line of `lacuna`.

use clap::{Parser, Subcommand};

use crate::commands::{audit, bench, cost, eval, generate, metrics, plan, workers};

/// Makes pictures from text on clouds that you do not trust.
#[derive(Parser)]
#[command(name = "lacuna", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes pictures from a prompt.
    Generate(Box<generate::Arguments>),
    /// Measures pictures against others: two files, or two folders.
    Metrics(metrics::Arguments),
    /// Makes and measures many pictures under several settings.
    Eval(Box<eval::Arguments>),
    /// Shows how the workers are.
    Workers(workers::Arguments),
    /// Says what a scheme sends and computes, from a model's config alone.
    Cost(cost::Arguments),
    /// Chooses the fastest placement that a policy allows.
    Plan(plan::Arguments),
    /// Attacks what a provider sees: what could it recover?
    Audit(audit::Arguments),
    /// Times pictures, or U-Net calls of random weights, under several schemes over a link.
    Bench(bench::Arguments),
    /// A worker of `bench --separate`; ends when its standard input does.
    #[command(hide = true)]
    BenchWorker(bench::process::Arguments),
}

impl Cli {
    /// Runs the command that was given.
    ///
    /// # Errors
    /// Those of the command, each in one line.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Generate(arguments) => generate::run(*arguments).await,
            Command::Metrics(arguments) => metrics::run(arguments).await,
            Command::Eval(arguments) => eval::run(*arguments).await,
            Command::Workers(arguments) => workers::run(arguments).await,
            Command::Cost(arguments) => cost::run(arguments).await,
            Command::Plan(arguments) => plan::run(arguments).await,
            Command::Audit(arguments) => audit::run(arguments).await,
            Command::Bench(arguments) => bench::run(arguments).await,
            Command::BenchWorker(arguments) => bench::process::run(arguments).await,
        }
    }
}

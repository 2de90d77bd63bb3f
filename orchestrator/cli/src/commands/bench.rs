//! `lacuna bench`: schemes, wires and numbers of workers side by side, over a link.

use std::path::PathBuf;

use clap::Args;

use lacuna_instruments::bench::asked::SubjectArguments;
use lacuna_instruments::bench::case::Combinations;
use lacuna_instruments::bench::process::Workers;
use lacuna_instruments::bench::subject::Subject;
use lacuna_instruments::bench::{Bench, Report, plot, table};
use lacuna_orchestrator::fleet::link::Link;
use lacuna_orchestrator::limits;
use lacuna_orchestrator::output::console::Console;
use lacuna_orchestrator::output::{Outputs, write_whole};

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

/// Runs the command.
///
/// # Errors
/// A bad argument, a model or config that cannot be read, or a device or worker that fails.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let console = Console::new(check(&arguments)?.take_stdout());
    let cases = arguments.combinations.cases()?;
    let (subject, device) = Subject::open(&arguments.subject, !arguments.separate).await?;
    let most = cases.iter().map(|case| case.workers).max().unwrap_or(0);
    let workers = if arguments.separate {
        subject.check_separate(&cases)?;
        Workers::in_processes(most, &arguments.subject, subject.latents).await?
    } else {
        Workers::in_this_process(most, &subject, &device).await?
    };
    let described = subject.describe(&arguments.subject);
    let bench = Bench {
        subject,
        cases,
        turns: arguments.turns,
        link: arguments.link,
    };
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        subject: described,
        turns: arguments.turns,
        link: arguments.link,
        separate: arguments.separate,
        rows: bench.run(&workers).await?,
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
fn check(arguments: &Arguments) -> anyhow::Result<Outputs> {
    arguments.subject.check()?;
    limits::check("--turns", arguments.turns, limits::COUNT)?;
    let mut outputs = Outputs::default();
    if let Some(path) = &arguments.plot {
        outputs.add_ending("--plot", path, 1, "svg")?;
    }
    outputs.check()?;
    Ok(outputs)
}

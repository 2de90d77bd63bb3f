//! The command line of `lacuna`.

use std::ffi::OsString;

use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{audit, bench, cost, eval, generate, metrics, models, plan, unet, workers};
use crate::given;
use lacuna_instruments::bench::process;

/// Makes pictures from text on clouds that you do not trust.
///
/// Every flag is also an environment variable: --save-latents is LACUNA_SAVE_LATENTS. What is on the command line
/// counts.
#[derive(Parser)]
#[command(
    name = "lacuna",
    version,
    after_help = "Examples:
  lacuna generate \"a large red circle on a yellow background\"
                                                      a picture of the demo model, in this repository
  lacuna generate -m MODEL -p \"a lighthouse\" -o a.png   one of a model of yours
  lacuna plan --policy private --workers 4            what four clouds would take, and see
  lacuna COMMAND --help                               more examples"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes pictures from a prompt.
    Generate(Box<generate::Arguments>),
    /// Serves the U-Net to other programs on this machine: pipelines of `diffusers`, split.
    Unet(Box<unet::Arguments>),
    /// Measures pictures against others: two files, or two folders.
    Metrics(metrics::Arguments),
    /// Makes and measures many pictures under several settings.
    Eval(Box<eval::Arguments>),
    /// Shows how the workers are.
    Workers(workers::Arguments),
    /// Sends models to the workers, and shows and removes those that they keep.
    Models(models::Arguments),
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
    BenchWorker(process::Arguments),
}

impl Cli {
    /// Reads a command line (with the program's name), and the environment for what is not on it.
    ///
    /// # Errors
    /// What is wrong with it; also where help or the version is asked for, to be printed.
    pub fn read(words: Vec<OsString>) -> Result<Self, clap::Error> {
        let command = with_environment(Self::command(), &words);
        let mut matches = command.clone().try_get_matches_from(&words)?;
        let mut command = command;
        if let Some(words) = given::resumed(&command, &matches, &words)? {
            command = with_environment(Self::command(), &words);
            matches = command.clone().try_get_matches_from(&words)?;
        }
        let mut cli = Self::from_arg_matches(&matches)?;
        if let Command::Generate(arguments) = &mut cli.command
            && let Some((name, matches)) = matches.subcommand()
            && let Some(command) = command.find_subcommand(name)
        {
            arguments.given = given::words(command, matches)?;
        }
        Ok(cli)
    }

    /// Runs the command that was given.
    ///
    /// # Errors
    /// Those of the command, each in one line.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Generate(arguments) => generate::run(*arguments).await,
            Command::Unet(arguments) => unet::run(*arguments).await,
            Command::Metrics(arguments) => metrics::run(arguments).await,
            Command::Eval(arguments) => eval::run(*arguments).await,
            Command::Workers(arguments) => workers::run(arguments).await,
            Command::Models(arguments) => models::run(arguments).await,
            Command::Cost(arguments) => cost::run(arguments).await,
            Command::Plan(arguments) => plan::run(arguments).await,
            Command::Audit(arguments) => audit::run(arguments).await,
            Command::Bench(arguments) => bench::run(arguments).await,
            Command::BenchWorker(arguments) => process::run(arguments).await,
        }
    }
}

/// Gives every flag of a command an environment variable: `LACUNA_` and its name. Not where `words` have a flag that
/// excludes it: what is on the command line counts.
fn with_environment(command: clap::Command, words: &[OsString]) -> clap::Command {
    let given: Vec<&Arg> = command
        .get_arguments()
        .filter(|flag| words.iter().any(|word| is_of(flag, word)))
        .collect();
    let excluded = |flag: &Arg| {
        let among = |of: &Arg, other: &Arg| {
            let conflicts = command.get_arg_conflicts_with(of);
            conflicts.iter().any(|arg| arg.get_id() == other.get_id())
        };
        given
            .iter()
            .any(|given| among(given, flag) || among(flag, given))
    };
    let variables: Vec<(String, String)> = command
        .get_arguments()
        .filter(|flag| flag.get_env().is_none() && !excluded(flag))
        .filter_map(|flag| Some((flag.get_id().to_string(), variable(flag.get_long()?))))
        .collect();
    let command = variables
        .into_iter()
        .fold(command, |command, (id, variable)| {
            command.mut_arg(id, |flag| {
                let flag = flag.env(variable).hide_env(true);
                match flag.get_action() {
                    ArgAction::SetTrue => flag.value_parser(switch),
                    _ => flag,
                }
            })
        });
    command.mut_subcommands(|command| with_environment(command, words))
}

/// What a variable says that stands for a flag without a value; nothing is no. A word that is neither yes nor no must
/// not lift a refusal.
fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Ok(true),
        "" | "0" | "no" | "n" | "false" | "f" | "off" => Ok(false),
        _ => Err("1, yes, true or on; 0, no, false, off or nothing".into()),
    }
}

/// Whether a word is the flag, by any of its names.
fn is_of(flag: &Arg, word: &OsString) -> bool {
    let word = word.to_string_lossy();
    if let Some(long) = word.strip_prefix("--") {
        let long = long.split('=').next().unwrap_or_default();
        let aliases = flag.get_all_aliases().unwrap_or_default();
        return flag.get_long() == Some(long) || aliases.contains(&long);
    }
    let short = word.strip_prefix('-').and_then(|rest| rest.chars().next());
    short.is_some() && flag.get_short() == short
}

/// The environment variable of the flag `--long`.
fn variable(long: &str) -> String {
    format!("LACUNA_{}", long.replace('-', "_").to_uppercase())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Calls `each` with every flag of every command.
    fn walk(command: &clap::Command, each: &mut dyn FnMut(&Arg)) {
        command.get_arguments().for_each(&mut *each);
        for command in command.get_subcommands() {
            walk(command, each);
        }
    }

    #[test]
    fn every_flag_is_an_environment_variable() {
        Cli::command().debug_assert();
        let command = with_environment(Cli::command(), &[]);
        let mut flags = 0;
        walk(&command, &mut |flag| {
            let Some(long) = flag.get_long() else {
                return;
            };
            let variable = flag.get_env().and_then(|name| name.to_str());
            let name = variable.unwrap_or_default();
            assert!(name.starts_with("LACUNA_"), "--{long} is {variable:?}");
            flags += 1;
        });
        assert!(flags > 80, "{flags}");
    }

    #[test]
    fn what_is_on_the_command_line_excludes_a_variable() {
        let words = ["lacuna", "generate", "x", "--workers=2"].map(OsString::from);
        let command = with_environment(Cli::command(), &words);
        let mut variables = BTreeSet::new();
        walk(command.find_subcommand("generate").unwrap(), &mut |flag| {
            variables.extend(flag.get_env().map(OsString::from));
        });
        let has = |name: &str| variables.contains(std::ffi::OsStr::new(name));
        assert!(!has("LACUNA_FLEET") && has("LACUNA_WORKERS") && has("LACUNA_STEPS"));
    }

    #[test]
    fn a_switch_is_yes_or_no() {
        for yes in ["1", "yes", "TRUE", "on"] {
            assert_eq!(switch(yes), Ok(true), "{yes}");
        }
        for no in ["", "0", "No", "false", "off"] {
            assert_eq!(switch(no), Ok(false), "{no}");
        }
        for neither in ["maybe", "2", " "] {
            assert!(switch(neither).is_err(), "{neither}");
        }
    }

    #[test]
    fn flags_that_begin_like_others_are_understood() {
        for words in [
            &["generate", "x", "--negative-prompt", "-blurry"][..],
            &["generate", "--prompt", "-x", "--seed", "-1"],
            &[
                "generate", "-m", "model", "-p", "x", "-o", "a.png", "-n", "-y", "-s", "-9",
            ],
            &["generate", "x", "--wire", "fp16"],
            &["generate", "x", "--wire", "halo=float16,attention=bfloat16"],
            &["bench", "--seed", "-1", "--wires", "fp32,fp16"],
        ] {
            let line = [&["lacuna"], words].concat();
            let read = Cli::try_parse_from(&line).map(|_| ());
            assert!(read.is_ok(), "{line:?}: {}", read.unwrap_err());
        }
    }

    #[test]
    fn messages_name_flags_that_there_are() {
        let mut known = BTreeSet::from(["help".to_owned(), "version".to_owned()]);
        walk(&Cli::command(), &mut |flag| {
            let aliases = flag.get_all_aliases().unwrap_or_default();
            let names = flag.get_long().into_iter().chain(aliases);
            known.extend(names.map(str::to_owned));
        });
        let mut named = 0;
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in ["src", "../src", "../instruments/src", "../served/src"] {
            each_source(&here.join(folder), &mut |path, text| {
                // Tests may name what there is not.
                let code = text.split("#[cfg(test)]\nmod tests").next();
                let lines = code.unwrap_or_default().lines();
                let lines = lines.filter(|line| !line.trim_start().starts_with("//"));
                for flag in lines.flat_map(flags_in) {
                    let path = path.display();
                    assert!(known.contains(&flag), "{path}: there is no --{flag}");
                    named += 1;
                }
            });
        }
        assert!(named > 40, "{named}");
    }

    fn each_source(folder: &Path, each: &mut dyn FnMut(&Path, &str)) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                each_source(&path, each);
            } else {
                each(&path, &std::fs::read_to_string(&path).unwrap());
            }
        }
    }

    /// What stands behind `--` in a line.
    fn flags_in(line: &str) -> Vec<String> {
        let parts = line.split("--").skip(1).map(|part| {
            let end =
                part.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
            part[..end.unwrap_or(part.len())]
                .trim_end_matches('-')
                .to_owned()
        });
        parts.filter(|flag| flag.len() > 1).collect()
    }
}

//! The flags of a command as they were given, to be given again: a checkpoint keeps them.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use lacuna_model::weights::AdapterFile;
use lacuna_orchestrator::checkpoint::Run;
use lacuna_orchestrator::text::EmbeddingFile;

/// The command that has checkpoints.
pub const GENERATE: &str = "generate";
const RESUME: &str = "resume";
const CHECKPOINT: &str = "checkpoint";

/// The flags of `command` that `matches` say were given, on the command line or in the environment, each with its value as one
/// word. Paths are whole, so that they lead to the same files from every folder.
///
/// # Errors
/// Those of the system, which may not say where this is.
pub fn words(command: &Command, matches: &ArgMatches) -> std::io::Result<Vec<OsString>> {
    let mut words = Vec::new();
    for flag in command.get_arguments() {
        let id = flag.get_id().as_str();
        let source = matches.value_source(id);
        if !matches!(
            source,
            Some(ValueSource::CommandLine | ValueSource::EnvVariable)
        ) {
            continue;
        }
        // What is not named, is the prompt.
        let name = flag.get_long().unwrap_or("prompt");
        if matches!(flag.get_action(), ArgAction::SetTrue) {
            words.extend(matches.get_flag(id).then(|| format!("--{name}").into()));
            continue;
        }
        for value in matches.get_raw(id).into_iter().flatten() {
            let mut word = OsString::from(format!("--{name}="));
            word.push(whole(flag, value)?);
            words.push(word);
        }
    }
    Ok(words)
}

/// The value of a flag; a path from the root, where it is one.
fn whole(flag: &Arg, value: &OsStr) -> std::io::Result<OsString> {
    let kind = flag.get_value_parser().type_id();
    let path = kind == std::any::TypeId::of::<PathBuf>()
        || kind == std::any::TypeId::of::<AdapterFile>()
        || kind == std::any::TypeId::of::<EmbeddingFile>()
        // Either a number or, as it was before --fleet, a file.
        || (flag.get_id() == "workers" && Path::new(value).is_file());
    // A policy has a name, if it is no file.
    let named = flag.get_id() == "policy" && !Path::new(value).is_file();
    match path && !named && value != "-" {
        true => Ok(std::path::absolute(value)?.into_os_string()),
        false => Ok(value.to_owned()),
    }
}

/// The command line with what the checkpoint that it names holds: what is given now counts. None where it names none.
///
/// # Errors
/// That the checkpoint cannot be read.
pub fn resumed(
    command: &Command,
    matches: &ArgMatches,
    line: &[OsString],
) -> Result<Option<Vec<OsString>>, clap::Error> {
    let Some((GENERATE, now)) = matches.subcommand() else {
        return Ok(None);
    };
    let Some(folder) = now.get_one::<PathBuf>(RESUME) else {
        return Ok(None);
    };
    let run = Run::read(folder);
    let run = run.map_err(|e| clap::Error::raw(ErrorKind::ValueValidation, format!("{e}\n")))?;
    let Some(generate) = command.find_subcommand(GENERATE) else {
        return Ok(None);
    };
    let here = |flag: &&Arg| {
        let source = now.value_source(flag.get_id().as_str());
        source == Some(ValueSource::CommandLine)
    };
    let here: Vec<&Arg> = generate.get_arguments().filter(here).collect();
    let among = |conflicts: Vec<&Arg>, flag: &Arg| {
        let mut conflicts = conflicts.into_iter();
        conflicts.any(|other| other.get_id() == flag.get_id())
    };
    let counts = |word: &&String| {
        let name = word.trim_start_matches("--").split('=').next();
        let known = generate
            .get_arguments()
            .find(|flag| flag.get_long() == name);
        known.is_some_and(|flag| {
            let given = here.iter().any(|now| {
                now.get_id() == flag.get_id()
                    || among(generate.get_arg_conflicts_with(now), flag)
                    || among(generate.get_arg_conflicts_with(flag), now)
            });
            !given && flag.get_long() != Some(CHECKPOINT)
        })
    };
    // Behind the program's and the command's names.
    let (names, given) = line.split_at(line.len().min(2));
    let kept = run.flags.iter().filter(counts).map(OsString::from);
    let kept: Vec<OsString> = kept.collect();
    Ok(Some([names, &kept, given].concat()))
}

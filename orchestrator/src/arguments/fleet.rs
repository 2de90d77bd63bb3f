//! The workers: of a file, or so many.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::error::{Error, Result};
use crate::fleet::config::MAX_WORKERS;
use crate::limits;
use crate::schemes::Scheme;

/// The workers: of a file, or so many.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Workers")]
pub struct FleetArguments {
    /// A TOML file that lists the workers (see configs/fleet.example.toml).
    #[arg(long, value_name = "FILE", conflicts_with = "workers")]
    fleet: Option<PathBuf>,
    /// Without --fleet: so many workers [default: 4, or as many as there are rows for].
    #[arg(
        long,
        value_name = "N",
        aliases = ["local-workers", "providers"],
        value_parser = parse_workers
    )]
    workers: Option<Workers>,
}

/// What `--workers` says.
#[derive(Clone, Debug)]
enum Workers {
    Number(usize),
    /// As it was before `--fleet`.
    File(PathBuf),
}

fn parse_workers(text: &str) -> std::result::Result<Workers, String> {
    let digits = text.trim_start_matches(['-', '+']);
    match digits.bytes().all(|b| b.is_ascii_digit()) {
        true => match text.parse() {
            Ok(n) => Ok(Workers::Number(n)),
            Err(_) => Err(format!("from 1 to {MAX_WORKERS}")),
        },
        false => Ok(Workers::File(text.into())),
    }
}

impl FleetArguments {
    /// The file that lists them.
    pub fn file(&self) -> Option<&Path> {
        match (&self.fleet, &self.workers) {
            (Some(file), _) | (None, Some(Workers::File(file))) => Some(file),
            _ => None,
        }
    }

    /// A number of them must be one that can be had.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn check(&self) -> Result<()> {
        match self.number() {
            Some(n) => limits::check("--workers", n, MAX_WORKERS),
            None => Ok(()),
        }
    }

    /// How many there shall be, where there is no file.
    pub fn number(&self) -> Option<usize> {
        match self.workers {
            Some(Workers::Number(n)) => Some(n),
            _ => None,
        }
    }

    /// Where nobody else computes, nothing is asked of workers or of the way to them.
    ///
    /// # Errors
    /// [`Error::Request`], naming the flag.
    pub fn check_used(&self, scheme: &dyn Scheme, insecure: bool, measure: bool) -> Result<()> {
        let flags = [
            ("--fleet", self.file().is_some()),
            ("--workers", self.number().is_some()),
            ("--insecure", insecure),
            ("--measure", measure),
        ];
        match flags.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) if !scheme.can_use_workers() => Err(Error::Request(format!(
                "{flag}: the scheme {} has no workers; leave it out",
                scheme.name()
            ))),
            _ => Ok(()),
        }
    }

    /// The file that lists them, where there must be one.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn required(&self) -> Result<&Path> {
        self.file().ok_or_else(|| {
            Error::Request(match self.number() {
                Some(n) => format!("--workers {n}: a number does not say where they are; give --fleet FILE, which lists them"),
                None => "--fleet is missing: a file that lists the workers".into(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        fleet: FleetArguments,
    }

    fn line(words: &str) -> std::result::Result<Line, clap::Error> {
        Line::try_parse_from(["x"].into_iter().chain(words.split_whitespace()))
    }

    #[test]
    fn older_names_mean_what_they_meant() {
        for words in ["--fleet f.toml", "--workers f.toml"] {
            let fleet = line(words).unwrap().fleet;
            assert_eq!(fleet.file(), Some(Path::new("f.toml")));
            assert_eq!(fleet.number(), None);
        }
        for words in ["--workers 3", "--local-workers 3", "--providers 3"] {
            let fleet = line(words).unwrap().fleet;
            assert_eq!((fleet.file(), fleet.number()), (None, Some(3)));
        }
        for wrong in ["--workers 0", "--workers 17"] {
            let error = line(wrong).unwrap().fleet.check().unwrap_err().to_string();
            assert_eq!(error, format!("{wrong}: from 1 to 16"));
        }
        let error = line("--workers 18446744073709551616").err().unwrap();
        assert!(error.to_string().contains("1 to 16"), "{error}");
        assert!(line("--fleet f.toml --workers 2").is_err());
    }
}

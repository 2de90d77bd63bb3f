//! `--scheme`, and the options of all schemes.

use std::sync::Arc;

use clap::builder::PossibleValuesParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use lacuna_model::unet::UNet;

use crate::error::{Error, Result};
use crate::policy::{Policy, Views};
use crate::schemes::blind::Blind;
use crate::schemes::registry::{DEFAULT, SCHEMES, find, possible_values};
use crate::schemes::{Options, Scheme, Setting};

/// The scheme that was asked for, with its options.
#[derive(Clone, Debug)]
pub struct SchemeArguments {
    /// The scheme.
    pub scheme: Arc<dyn Scheme>,
    /// Whether somebody named it.
    named: bool,
    /// The share of what workers compute that is checked.
    verify: Option<f64>,
}

const FLAG: &str = "scheme";
const VERIFY: &str = "verify";

fn cannot_check(scheme: &str) -> String {
    format!(
        "--verify: the scheme {scheme} cannot check what workers compute, with these options; ppidm, blind and resident by \
         the wires f32, f16 and bf16 can"
    )
}

fn parse_share(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share from 0 to 1".into()),
    }
}

impl SchemeArguments {
    /// The same where nobody named a scheme and `policy` lets providers see nothing: the scheme for that.
    ///
    /// # Errors
    /// [`Error::Request`] where it cannot check what it was asked to.
    pub fn under(&mut self, policy: Option<&Policy>) -> Result<()> {
        let nothing = policy.is_some_and(|policy| policy.views == Views::Nothing);
        if self.named || !nothing {
            return Ok(());
        }
        let blind = Blind::default().scheme();
        let checked = self
            .verify
            .map_or(Some(blind.clone()), |share| blind.verified(share));
        self.scheme = checked.ok_or_else(|| Error::Request(cannot_check(Blind::NAME)))?;
        Ok(())
    }

    /// The scheme for latents of `[B, H, W]` and a prompt of `tokens` tokens.
    pub fn setting(&self, unet: &UNet, latents: [usize; 3], tokens: usize) -> Setting {
        Setting::new(self.scheme.clone(), unet, latents, tokens)
    }
}

impl Args for SchemeArguments {
    fn augment_args(command: Command) -> Command {
        let scheme = Arg::new(FLAG)
            .long(FLAG)
            .value_name("SCHEME")
            .default_value(DEFAULT)
            .value_parser(PossibleValuesParser::new(possible_values()))
            .help("Where the U-Net is computed")
            .help_heading("Scheme");
        let verify = Arg::new(VERIFY)
            .long(VERIFY)
            .value_name("SHARE")
            .num_args(0..=1)
            .default_missing_value("1")
            .value_parser(parse_share)
            .help(
                "Check so large a share of what workers compute, 0 to 1 [without a value: all of it]; \
                 who answers wrong numbers is named, and the picture ends",
            )
            .help_heading("Scheme");
        let command = command.arg(scheme).arg(verify);
        SCHEMES
            .iter()
            .fold(command, |command, entry| entry.with_flags(command))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SchemeArguments {
    /// No flag is dropped without a word: each must be of the scheme that is asked for.
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let name = matches
            .get_one::<String>(FLAG)
            .map_or(DEFAULT, String::as_str);
        let refuse = |reason: String| clap::Error::raw(ErrorKind::ArgumentConflict, reason);
        let Some(entry) = find(name) else {
            return Err(refuse(format!(
                "--scheme {name}: there is no such scheme\n"
            )));
        };
        for other in SCHEMES.iter().filter(|other| other.name != name) {
            let flags = other.with_flags(Command::new(other.name));
            let given = flags.get_arguments().find(|flag| {
                let given = matches.try_contains_id(flag.get_id().as_str());
                given.unwrap_or(false)
            });
            if let Some(flag) = given.and_then(|flag| flag.get_long()) {
                // Whoever named no scheme means that of the flag.
                let said = matches.value_source(FLAG) != Some(ValueSource::DefaultValue);
                let fix = match said {
                    true => "leave it out".to_owned(),
                    false => format!("give --scheme {}", other.name),
                };
                return Err(refuse(format!(
                    "--{flag}: it is of the scheme {}, this is {name}; {fix}\n",
                    other.name
                )));
            }
        }
        let mut scheme = entry.read(matches)?;
        let verify = matches.get_one::<f64>(VERIFY).copied();
        if let Some(share) = verify {
            let checked = scheme.verified(share);
            scheme = checked.ok_or_else(|| refuse(format!("{}\n", cannot_check(name))))?;
        }
        let named = matches.value_source(FLAG) != Some(ValueSource::DefaultValue);
        Ok(Self {
            scheme,
            named,
            verify,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        scheme: SchemeArguments,
    }

    #[test]
    fn each_flag_is_of_its_scheme() {
        let read = |words: &str| {
            Line::try_parse_from(
                ["x"]
                    .into_iter()
                    .chain(words.split(' ').filter(|w| !w.is_empty())),
            )
        };
        let label = |words: &str| read(words).unwrap().scheme.scheme.label();
        assert_eq!(label(""), "resident, f32");
        assert_eq!(label("--wire f16"), "resident, f16");
        assert_eq!(label("--scheme ppidm --groupnorm averaged"), "ppidm");
        for (words, parts) in [
            (
                "--scheme local --wire f16",
                ["--wire", "of the scheme resident, this is local"],
            ),
            (
                "--groupnorm exact",
                ["--groupnorm", "of the scheme ppidm, this is resident"],
            ),
            ("--scheme residnt", ["residnt", "resident"]),
        ] {
            let error = read(words).err().unwrap().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}

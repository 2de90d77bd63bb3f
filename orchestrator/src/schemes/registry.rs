//! Which schemes there are, and their options as flags and as text.

use std::sync::Arc;

use clap::builder::PossibleValue;
use clap::{ArgMatches, Command};

use super::auto::Auto;
use super::blind::Blind;
use super::local::Local;
use super::ppidm::Ppidm;
use super::resident::Resident;
use super::{Options, Scheme};

/// The schemes, in the order in which a comparison shows them. A new one is a line here.
pub static SCHEMES: [Entry; 5] = [
    Entry::of::<Local>(),
    Entry::of::<Resident>(),
    Entry::of::<Blind>(),
    Entry::of::<Ppidm>(),
    Entry::standing_for_others(),
];

/// The scheme where nobody says.
pub const DEFAULT: &str = Resident::NAME;

/// A scheme whose options are yet to be read.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The scheme's name.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    flags: fn(Command) -> Command,
    read: fn(&ArgMatches) -> Result<Arc<dyn Scheme>, clap::Error>,
}

impl Entry {
    /// The scheme of these options.
    pub const fn of<O: Options>() -> Self {
        Self {
            name: O::NAME,
            about: O::ABOUT,
            flags: O::augment_args,
            read: |matches| Ok(O::from_arg_matches(matches)?.scheme()),
        }
    }

    /// Whichever of the others is best.
    const fn standing_for_others() -> Self {
        Self {
            read: |_| Ok(Auto::of(others).scheme()),
            ..Self::of::<Auto>()
        }
    }

    /// `command` with the scheme's flags.
    pub fn with_flags(&self, command: Command) -> Command {
        (self.flags)(command)
    }

    /// The scheme, with its options from `matches` of [`Self::with_flags`].
    ///
    /// # Errors
    /// None beyond those of the flags' own values.
    pub fn read(&self, matches: &ArgMatches) -> Result<Arc<dyn Scheme>, clap::Error> {
        (self.read)(matches)
    }

    /// Names of the options, without dashes.
    pub fn options(&self) -> Vec<String> {
        let command = self.with_flags(Command::new(self.name));
        let names = command.get_arguments().filter_map(|flag| flag.get_long());
        names.map(str::to_owned).collect()
    }

    /// The scheme with `options`, each a name and a value.
    ///
    /// # Errors
    /// A line that names the option or the value that is off.
    pub fn with_options(&self, options: &[(String, String)]) -> Result<Arc<dyn Scheme>, String> {
        let words = options
            .iter()
            .map(|(name, value)| format!("--{name}={value}"));
        let command = self.with_flags(Command::new(self.name).no_binary_name(true));
        let scheme = command
            .try_get_matches_from(words)
            .and_then(|matches| self.read(&matches));
        scheme.map_err(|error| first_line(&error))
    }
}

/// All that are schemes of their own, with their options open.
pub fn others() -> Vec<Arc<dyn Scheme>> {
    // Options that are left out are never off.
    let all = SCHEMES
        .iter()
        .filter_map(|entry| entry.with_options(&[]).ok());
    all.filter(|scheme| !scheme.stands_for_others()).collect()
}

/// The entry of a name.
pub fn find(name: &str) -> Option<&'static Entry> {
    SCHEMES.iter().find(|entry| entry.name == name)
}

/// All names, for messages.
pub fn names() -> String {
    let names: Vec<&str> = SCHEMES.iter().map(|entry| entry.name).collect();
    match names.split_last() {
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

/// The names as values of a flag, each with its help.
pub fn possible_values() -> Vec<PossibleValue> {
    let value = |entry: &Entry| PossibleValue::new(entry.name).help(entry.about);
    SCHEMES.iter().map(value).collect()
}

/// What is wrong, without the hints that clap adds for a terminal.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_of_schemes_and_of_their_options_are_unique() {
        let mut names = BTreeSet::new();
        let mut options = BTreeSet::new();
        for entry in &SCHEMES {
            assert!(names.insert(entry.name), "{}", entry.name);
            assert_eq!(find(entry.name).unwrap().about, entry.about);
            for option in entry.options() {
                assert!(options.insert(option.clone()), "{option}");
            }
            let scheme = entry.with_options(&[]).unwrap();
            assert_eq!(scheme.name(), entry.name);
        }
        assert!(find(DEFAULT).is_some() && find("residnt").is_none());
        assert_eq!(super::names(), "local, resident, blind, ppidm and auto");
    }

    #[test]
    fn what_is_off_in_an_option_is_named() {
        let with = |option: &str, value: &str| {
            let options = [(option.to_owned(), value.to_owned())];
            find("resident").unwrap().with_options(&options)
        };
        assert_eq!(with("wire", "f16").unwrap().label(), "resident, f16");
        assert!(with("wire", "f17").unwrap_err().contains("f17"));
        assert!(with("wires", "f16").unwrap_err().contains("--wires"));
    }
}

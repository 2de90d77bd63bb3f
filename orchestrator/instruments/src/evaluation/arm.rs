//! Settings to compare, as `--schemes` names them.

use std::sync::Arc;

use clap::Parser;

use crate::error::{Error, Result};
use crate::evaluation::record::{self, GIVEN};
use lacuna_orchestrator::arguments::size::parse_size;
use lacuna_orchestrator::schemes::Options as _;
use lacuna_orchestrator::schemes::Scheme;
use lacuna_orchestrator::schemes::local::Local;
use lacuna_orchestrator::schemes::spec::Spec;

/// A scheme with options, such as `resident:wire=f16;workers=2`.
#[derive(Clone, Debug)]
pub struct ArmSetting {
    /// As it was written.
    pub name: String,
    /// Where the U-Net is computed.
    pub scheme: Arc<dyn Scheme>,
    /// What is not as by default.
    pub options: Options,
    /// The paper's row that it stands beside, in an experiment.
    pub paper: Option<&'static str>,
}

/// The options of an arm that are not its scheme's, without dashes.
#[derive(Parser, Clone, Debug)]
#[command(no_binary_name = true)]
pub struct Options {
    /// Number of workers: the first of the file's, or so many started here.
    #[arg(long)]
    pub workers: Option<usize>,
    /// Sampler steps.
    #[arg(long)]
    pub steps: Option<usize>,
    /// Columns x rows of the picture.
    #[arg(long, value_parser = parse_size)]
    pub size: Option<[usize; 2]>,
}

impl ArmSetting {
    /// Reads a list, as [`Spec::parse_list`] does.
    ///
    /// # Errors
    /// [`Error::Request`], naming the arm that is off.
    pub fn parse_list(text: &str) -> Result<Vec<Self>> {
        let specs = Spec::parse_list(text).map_err(refuse)?;
        let arms = specs.into_iter().map(Self::of);
        let arms: Vec<Self> = arms.collect::<Result<_>>()?;
        for (i, arm) in arms.iter().enumerate() {
            if arms[..i].iter().any(|other| other.folder() == arm.folder()) {
                return Err(refuse(format!("{} is there twice", arm.name)));
            }
        }
        Ok(arms)
    }

    /// Reads one.
    ///
    /// # Errors
    /// As [`Self::parse_list`].
    pub fn parse(name: &str) -> Result<Self> {
        Self::of(Spec::parse(name).map_err(refuse)?)
    }

    fn of(spec: Spec) -> Result<Self> {
        let flags = spec.others.iter();
        let flags = flags.map(|(name, value)| format!("--{name}={value}"));
        let options = Options::try_parse_from(flags).map_err(|e| {
            let text = e.to_string();
            let line = text.lines().next().unwrap_or_default();
            let line = line.trim_start_matches("error: ");
            refuse(format!("{:?}: {line}", spec.text))
        })?;
        Ok(Self {
            scheme: spec.scheme().map_err(refuse)?,
            name: spec.text,
            options,
            paper: None,
        })
    }

    /// The folder of its pictures.
    pub fn folder(&self) -> String {
        let letter = |c: char| match c {
            'a'..='z' | '0'..='9' | '=' | '-' => c,
            ',' => '+',
            _ => '_',
        };
        self.name.to_ascii_lowercase().chars().map(letter).collect()
    }

    /// The uncut model with the same steps and size; its name is that of its folder.
    pub fn reference(&self) -> Self {
        let Options { steps, size, .. } = self.options;
        let steps = steps.map(|steps| format!("-steps={steps}"));
        let size = size.map(|[width, height]| format!("-size={width}x{height}"));
        Self {
            name: format!(
                "reference{}{}",
                steps.unwrap_or_default(),
                size.unwrap_or_default()
            ),
            scheme: Local {}.scheme(),
            options: self.options.clone(),
            paper: None,
        }
    }

    /// What the run's record says of it.
    pub fn record(&self, given: bool) -> record::Arm {
        record::Arm {
            name: self.name.clone(),
            folder: self.folder(),
            reference: match given {
                true => GIVEN.to_owned(),
                false => self.reference().folder(),
            },
            workers: self.options.workers,
            paper: self.paper.map(str::to_owned),
        }
    }
}

fn refuse(reason: String) -> Error {
    Error::Request(format!("--schemes: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arm_is_a_scheme_with_options_of_its_own() {
        let text = "ppidm:groupnorm=local;offload=conv,norm,resident, \
                    resident:wire=halo=f16,attention=delta4;workers=2,local:steps=3;size=64x32";
        let arms = ArmSetting::parse_list(text).unwrap();
        assert_eq!(arms[0].scheme.promised_psnr(), Some(0.0));
        assert_eq!(arms[2].options.workers, Some(2));
        assert_eq!(arms[3].options.size, Some([64, 32]));
        assert_eq!(arms[3].reference().folder(), "reference-steps=3-size=64x32");
        assert_eq!(
            arms[2].folder(),
            "resident_wire=halo=f16+attention=delta4_workers=2"
        );
    }

    #[test]
    fn what_is_off_is_named() {
        for (text, parts) in [
            ("ppidm,residnt", ["residnt", "none of local"]),
            ("ppidm:wires=f16", ["ppidm:wires=f16", "--wires"]),
            ("ppidm:wire=f16", ["ppidm:wire=f16", "--wire"]),
            ("resident:wire=f17", ["resident:wire=f17", "f17"]),
            ("resident:steps=x", ["resident:steps=x", "--steps"]),
            ("local,local", ["local", "twice"]),
        ] {
            let error = ArmSetting::parse_list(text).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}

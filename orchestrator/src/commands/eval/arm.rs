//! Settings to compare, as `--schemes` names them.

use clap::Parser;

use crate::commands::{SchemeArguments, parse_size};
use crate::error::{Error, Result};
use crate::evaluation::record::{self, GIVEN};
use crate::schemes::Scheme;

/// A scheme with options, such as `resident:wire=f16;workers=2`.
#[derive(Clone, Debug)]
pub struct ArmSetting {
    /// As it was written.
    pub name: String,
    /// Where the U-Net is computed.
    pub scheme: Scheme,
    /// What is not as by default.
    pub options: Options,
    /// The paper's row that it stands beside, in an experiment.
    pub paper: Option<&'static str>,
}

/// The flags of an arm, without their dashes.
#[derive(Parser, Clone, Debug)]
#[command(no_binary_name = true)]
pub struct Options {
    #[command(flatten)]
    pub settings: SchemeArguments,
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
    /// Reads a list. A comma begins the next arm where a scheme follows it; other commas are of an option's
    /// value.
    ///
    /// # Errors
    /// [`Error::Request`], naming the arm that is off.
    pub fn parse_list(text: &str) -> Result<Vec<Self>> {
        let mut names: Vec<String> = Vec::new();
        for piece in text.split(',') {
            let piece = piece.trim();
            match names.last_mut() {
                Some(last) if scheme_of(piece).is_none() && last.contains(':') => {
                    last.push(',');
                    last.push_str(piece);
                }
                _ => names.push(piece.to_owned()),
            }
        }
        let arms: Vec<Self> = names
            .iter()
            .map(|name| Self::parse(name))
            .collect::<Result<_>>()?;
        for (i, arm) in arms.iter().enumerate() {
            if arms[..i].iter().any(|other| other.folder() == arm.folder()) {
                let reason = format!("--schemes: {} is there twice", arm.name);
                return Err(Error::Request(reason));
            }
        }
        Ok(arms)
    }

    /// Reads one.
    ///
    /// # Errors
    /// As [`Self::parse_list`].
    pub fn parse(name: &str) -> Result<Self> {
        let refuse = |reason: String| Error::Request(format!("--schemes: {name:?}: {reason}"));
        let scheme = scheme_of(name)
            .ok_or_else(|| refuse("it begins with none of local, ppidm and resident".into()))?;
        let options = name.split_once(':').map_or("", |(_, options)| options);
        let flags = options
            .split(';')
            .filter(|option| !option.trim().is_empty());
        let flags = flags
            .map(|option| match option.split_once('=') {
                Some((key, value)) => Ok([format!("--{}", key.trim()), value.trim().to_owned()]),
                None => Err(refuse(format!("{option:?} is no option=value"))),
            })
            .collect::<Result<Vec<_>>>()?;
        let options = Options::try_parse_from(flags.concat()).map_err(|e| {
            let text = e.to_string();
            let line = text.lines().next().unwrap_or_default();
            refuse(line.trim_start_matches("error: ").to_owned())
        })?;
        let settings: &SchemeArguments = &options.settings;
        let unused = settings.check(scheme);
        unused.map_err(|e| refuse(e.to_string()))?;
        Ok(Self {
            name: name.to_owned(),
            scheme,
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
            scheme: Scheme::Local,
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

fn scheme_of(name: &str) -> Option<Scheme> {
    let scheme = name.split(':').next().unwrap_or_default().trim();
    <Scheme as clap::ValueEnum>::from_str(scheme, false).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schemes::ppidm::GroupNormMode;

    #[test]
    fn a_list_is_cut_where_a_scheme_begins() {
        let text = "ppidm:groupnorm=local;offload=conv,norm,resident, \
                    resident:wire=halo=f16,attention=delta4;workers=2,local:steps=3;size=64x32";
        let arms = ArmSetting::parse_list(text).unwrap();
        let names: Vec<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(names[0], "ppidm:groupnorm=local;offload=conv,norm");
        assert_eq!(names[1], "resident");
        assert_eq!(
            names[2],
            "resident:wire=halo=f16,attention=delta4;workers=2"
        );
        let options = &arms[0].options.settings;
        assert_eq!(options.groupnorm, Some(GroupNormMode::Local));
        let offload = options.offload.unwrap();
        assert!(offload.conv && offload.norm && !offload.attention);
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
            ("residnt", ["residnt", "none of local"]),
            ("ppidm,residnt", ["residnt", "none of local"]),
            ("ppidm:wires=f16", ["ppidm:wires=f16", "--wires"]),
            ("resident:wire=f17", ["resident:wire=f17", "f17"]),
            ("resident:lanes", ["resident:lanes", "option=value"]),
            ("local,local", ["local", "twice"]),
            ("", ["\"\"", "none of local"]),
        ] {
            let error = ArmSetting::parse_list(text).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}

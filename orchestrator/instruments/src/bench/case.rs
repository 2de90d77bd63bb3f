//! The combinations that are timed, one for each row.

use std::sync::Arc;

use clap::Args;

use crate::error::{Error, Result};
use lacuna_orchestrator::fleet::config::MAX_WORKERS;
use lacuna_orchestrator::limits;
use lacuna_orchestrator::schemes::spec::Spec;
use lacuna_orchestrator::schemes::{Scheme, Setting};
use lacuna_orchestrator::unet_source::UNetSource;

/// Lists, of which every combination is a row; those that make no difference to a scheme are left out.
#[derive(Args, Clone, Debug)]
pub struct Combinations {
    /// Schemes, separated by commas; ratios are to the first row, PSNR is against local. Options of one, which the
    /// lists below then leave alone: resident:wire=f16;lanes=false
    #[arg(long, default_value = "local,ppidm,resident")]
    schemes: String,
    /// Numbers of workers, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [4])]
    workers: Vec<usize>,
    /// resident: how features travel (see generate --wire), separated by commas [default: f32]. One for each use is
    /// a flag of its own: --wires f32,f16 --wires halo=f16,attention=delta4.
    #[arg(long, value_name = "WIRES")]
    wires: Vec<String>,
    /// resident: who attends to the whole picture at every level (see generate --self-attention),
    /// separated by commas [default: paired].
    #[arg(long, value_delimiter = ',')]
    self_attentions: Vec<String>,
    /// ppidm: how strips' statistics become a group normalisation; all but exact lose quality [default: exact].
    #[arg(long)]
    groupnorm: Option<String>,
    /// resident: whether workers may know the prompt: hidden or shared [default: hidden].
    #[arg(long)]
    workers_prompt: Option<String>,
    /// resident: whether workers get their rows of the noisy latents: hidden or shared [default: shared].
    #[arg(long)]
    workers_latents: Option<String>,
    /// resident: whether the entries of a batch go side by side: true or false [default: true].
    #[arg(long)]
    lanes: Option<String>,
}

/// A scheme with its settings.
#[derive(Clone, Debug)]
pub struct Case {
    /// The scheme.
    pub scheme: Arc<dyn Scheme>,
    /// Number of workers; 0 where the scheme needs none.
    pub workers: usize,
}

/// Options of a scheme, each a name and a value.
type Chosen = Vec<(String, String)>;

impl Combinations {
    /// Every combination once, by scheme, then workers, then attention, then wire.
    ///
    /// # Errors
    /// [`Error::Request`], naming what is off.
    pub fn cases(&self) -> Result<Vec<Case>> {
        for n in &self.workers {
            limits::check("--workers", *n, MAX_WORKERS)?;
        }
        let wrong = |reason: String| Error::Request(format!("--schemes: {reason}"));
        let mut cases: Vec<(Case, String)> = Vec::new();
        for spec in Spec::parse_list(&self.schemes).map_err(wrong)? {
            if let Some((name, _)) = spec.others.first() {
                let reason = format!("{:?}: the scheme has no option {name}", spec.text);
                return Err(wrong(reason));
            }
            let lists = self.lists(&spec);
            for workers in &self.workers {
                for options in combine(&spec.options, &lists) {
                    let scheme = spec.entry.with_options(&options).map_err(wrong)?;
                    let workers = match scheme.needs_workers() {
                        true => *workers,
                        false => 0,
                    };
                    // What it says of itself is all that tells it from others.
                    let itself = format!("{workers} {scheme:?}");
                    if cases.iter().all(|(_, other)| *other != itself) {
                        cases.push((Case { scheme, workers }, itself));
                    }
                }
            }
        }
        Ok(cases.into_iter().map(|(case, _)| case).collect())
    }

    /// The lists of options that the scheme has, and that it was not given a value of.
    fn lists(&self, spec: &Spec) -> Vec<(&'static str, Vec<String>)> {
        // The parts of a mixed value are separated by commas too.
        let each = |list: &String| match list.contains('=') {
            true => vec![list.clone()],
            false => list.split(',').map(|wire| wire.trim().to_owned()).collect(),
        };
        let one = |value: &Option<String>| value.iter().cloned().collect();
        let lists = [
            ("self-attention", self.self_attentions.clone()),
            ("wire", self.wires.iter().flat_map(each).collect()),
            ("groupnorm", one(&self.groupnorm)),
            ("workers-prompt", one(&self.workers_prompt)),
            ("workers-latents", one(&self.workers_latents)),
            ("lanes", one(&self.lanes)),
        ];
        let known = spec.entry.options();
        let open = |name: &str| {
            known.iter().any(|known| known == name)
                && spec.options.iter().all(|(given, _)| given != name)
        };
        let lists = lists.into_iter();
        lists
            .filter(|(name, values)| open(name) && !values.is_empty())
            .collect()
    }
}

/// `given` with one value of each list, in every combination; the last list's values change fastest.
fn combine(given: &Chosen, lists: &[(&'static str, Vec<String>)]) -> Vec<Chosen> {
    lists
        .iter()
        .fold(vec![given.clone()], |all, (name, values)| {
            let with = |chosen: &Chosen, value: &String| {
                let mut chosen = chosen.clone();
                chosen.push(((*name).to_owned(), value.clone()));
                chosen
            };
            let each = all.iter();
            each.flat_map(|chosen| values.iter().map(|value| with(chosen, value)))
                .collect()
        })
}

impl Case {
    /// The case for latents of `[batch, rows, columns]` and a prompt of `tokens` tokens.
    pub fn setting(&self, unet: &UNetSource, latents: [usize; 3], tokens: usize) -> Setting {
        let setting = Setting::new(self.scheme.clone(), unet.layers(), latents, tokens);
        setting.adapted(unet.is_adapted())
    }

    /// The case in a few words.
    pub fn label(&self) -> String {
        let workers = match self.workers {
            0 => None,
            1 => Some("1 worker".to_owned()),
            n => Some(format!("{n} workers")),
        };
        let details = self.scheme.details().into_iter().map(|(_, value)| value);
        let parts = [Some(self.scheme.name().to_owned()), workers];
        let parts = parts.into_iter().flatten().chain(details);
        parts.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        combinations: Combinations,
    }

    fn cases(arguments: &[&str]) -> Result<Vec<Case>> {
        let line = Line::try_parse_from(["bench"].iter().chain(arguments)).unwrap();
        line.combinations.cases()
    }

    fn labels(arguments: &[&str]) -> Vec<String> {
        cases(arguments).unwrap().iter().map(Case::label).collect()
    }

    #[test]
    fn what_makes_no_difference_is_no_row() {
        let arguments = [
            "--workers",
            "1,2,2",
            "--wires",
            "f32,f16",
            "--self-attentions",
            "qkv",
        ];
        assert_eq!(
            labels(&arguments),
            [
                "local",
                "ppidm, 1 worker",
                "ppidm, 2 workers",
                "resident, 1 worker, qkv, f32",
                "resident, 1 worker, qkv, f16",
                "resident, 2 workers, qkv, f32",
                "resident, 2 workers, qkv, f16",
            ]
        );
    }

    #[test]
    fn what_a_scheme_was_given_no_list_changes() {
        let arguments = [
            "--schemes",
            "resident:wire=int8,resident",
            "--wires",
            "f32,f16",
        ];
        assert_eq!(
            labels(&arguments),
            [
                "resident, 4 workers, paired, int8",
                "resident, 4 workers, paired, f32",
                "resident, 4 workers, paired, f16",
            ]
        );
    }

    #[test]
    fn a_mixed_wire_is_a_flag_of_its_own() {
        let mixed = "halo=f16,attention=delta4";
        let arguments = [
            "--schemes",
            "resident",
            "--wires",
            "int8, bf16",
            "--wires",
            mixed,
        ];
        assert_eq!(
            labels(&arguments),
            [
                "resident, 4 workers, paired, int8",
                "resident, 4 workers, paired, bf16",
                "resident, 4 workers, paired, halo=f16,attention=delta4",
            ]
        );
        for wrong in ["f31", "f32,", "halo=f16,f32", "hola=f16"] {
            let error = cases(&["--wires", wrong]).unwrap_err().to_string();
            assert!(error.contains("wire"), "{wrong}: {error}");
        }
        for (wrong, part) in [
            ("residnt", "residnt"),
            ("resident:steps=3", "no option steps"),
            ("resident:wire=f31", "f31"),
        ] {
            let error = cases(&["--schemes", wrong]).unwrap_err().to_string();
            assert!(error.contains(part), "{wrong}: {error}");
        }
    }
}

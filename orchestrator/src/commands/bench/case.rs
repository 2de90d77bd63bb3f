//! The combinations that are timed, one for each row.

use clap::Args;
use shared::placement::{Attentions, Latents, Prompt, SelfAttention, Wires};
use shared::unet::UNet;

use crate::commands::{SchemeArguments, by_name, parse_wires};
use crate::policy::name;
use crate::schemes::ppidm::GroupNormMode;
use crate::schemes::{Scheme, Setting};

/// Lists, of which every combination is a row; those that make no difference to a scheme are left out.
#[derive(Args, Clone, Debug)]
pub struct Combinations {
    /// Schemes, separated by commas; ratios are to the first row, PSNR is against local.
    #[arg(long, value_delimiter = ',', default_values_t = [Scheme::Local, Scheme::Ppidm, Scheme::Resident])]
    schemes: Vec<Scheme>,
    /// Numbers of workers, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [4])]
    pub workers: Vec<usize>,
    /// resident: how features travel (see generate --wire), separated by commas. One for each use is a
    /// flag of its own: --wires f32,f16 --wires halo=f16,attention=delta4.
    #[arg(long, value_name = "WIRES", default_value = "f32", value_parser = parse_list)]
    wires: Vec<WireList>,
    /// resident: who attends to the whole picture at every level (see generate --self-attention),
    /// separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "paired", value_parser = by_name::<SelfAttention>)]
    self_attentions: Vec<SelfAttention>,
    /// ppidm: how strips' statistics become a group normalisation; all but exact lose quality.
    #[arg(long, value_enum, default_value_t)]
    groupnorm: GroupNormMode,
    /// resident: whether workers may know the prompt: hidden or shared.
    #[arg(long, default_value = "hidden", value_parser = by_name::<Prompt>)]
    workers_prompt: Prompt,
    /// resident: whether workers get their rows of the noisy latents: hidden or shared.
    #[arg(long, default_value = "shared", value_parser = by_name::<Latents>)]
    workers_latents: Latents,
    /// resident: whether the entries of a batch go side by side: true or false.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    lanes: bool,
}

/// What one `--wires` lists.
#[derive(Clone, Debug, PartialEq)]
struct WireList(Vec<Wires>);

fn parse_list(text: &str) -> Result<WireList, String> {
    // The parts of a mixed value are separated by commas too.
    let each: Vec<&str> = match text.contains('=') {
        true => vec![text],
        false => text.split(',').map(str::trim).collect(),
    };
    let wires = each.into_iter().map(parse_wires);
    Ok(WireList(wires.collect::<Result<_, _>>()?))
}

/// A scheme with its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// The scheme.
    pub scheme: Scheme,
    /// Number of workers; 0 where the scheme needs none.
    pub workers: usize,
    settings: SchemeArguments,
}

impl Combinations {
    /// Every combination once, by scheme, then workers, then attention, then wire.
    pub fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        let each = self.schemes.iter().flat_map(|scheme| self.of(*scheme));
        for case in each {
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
        cases
    }

    /// Those of one scheme, each with what it makes no use of at its default.
    fn of(&self, scheme: Scheme) -> Vec<Case> {
        let plain = SchemeArguments {
            groupnorm: None,
            offload: None,
            self_attention: None,
            workers_prompt: None,
            workers_latents: None,
            lanes: Some(true),
            wire: None,
        };
        let case = |workers, settings| Case {
            scheme,
            workers,
            settings,
        };
        let ppidm = SchemeArguments {
            groupnorm: Some(self.groupnorm),
            ..plain
        };
        match scheme {
            Scheme::Local => vec![case(0, plain)],
            Scheme::Ppidm => self.workers.iter().map(|n| case(*n, ppidm)).collect(),
            Scheme::Resident => self
                .workers
                .iter()
                .flat_map(|n| self.self_attentions.iter().map(move |how| (n, how)))
                .flat_map(|at| self.wires.iter().flat_map(|w| &w.0).map(move |w| (at, w)))
                .map(|((n, how), wire)| {
                    let settings = SchemeArguments {
                        self_attention: Some(Attentions::all(*how)),
                        workers_prompt: Some(self.workers_prompt),
                        workers_latents: Some(self.workers_latents),
                        lanes: Some(self.lanes),
                        wire: Some(*wire),
                        ..plain
                    };
                    case(*n, settings)
                })
                .collect(),
        }
    }
}

impl Case {
    /// The case for latents of `[batch, rows, columns]` and a prompt of `tokens` tokens.
    pub fn setting(&self, unet: &UNet, latents: [usize; 3], tokens: usize) -> Setting {
        self.settings.setting(self.scheme, unet, latents, tokens)
    }

    /// How features travel, where the scheme lets one choose.
    pub fn wire(&self) -> Option<String> {
        let Wires { halo, attention } = self.settings.asked().placement().wires;
        let resident = self.scheme == Scheme::Resident;
        resident.then(|| match halo == attention {
            true => name(&halo),
            false => format!("halo={},attention={}", name(&halo), name(&attention)),
        })
    }

    /// Who attends to the whole picture, where the scheme lets one choose.
    pub fn self_attention(&self) -> Option<String> {
        let resident = self.scheme == Scheme::Resident;
        let attentions = self.settings.asked().placement().self_attention;
        resident.then(|| name(&attentions.at(0)))
    }

    /// The case in a few words.
    pub fn label(&self) -> String {
        let workers = match self.workers {
            0 => None,
            1 => Some("1 worker".to_owned()),
            n => Some(format!("{n} workers")),
        };
        let parts = [Some(self.scheme.to_string()), workers];
        let parts = parts
            .into_iter()
            .chain([self.self_attention(), self.wire()]);
        parts.flatten().collect::<Vec<_>>().join(", ")
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

    fn labels(arguments: &[&str]) -> Vec<String> {
        let line = Line::try_parse_from(["bench"].iter().chain(arguments)).unwrap();
        line.combinations.cases().iter().map(Case::label).collect()
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
            assert!(
                Line::try_parse_from(["bench", "--wires", wrong]).is_err(),
                "{wrong}"
            );
        }
    }
}

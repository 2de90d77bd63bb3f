//! The paper's experiments on pictures, as lists of arms.

use lacuna_orchestrator::family::Family;

use super::arm::ArmSetting;
use crate::error::Result;

/// The paper's experiments, by the tables that they make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Experiment {
    /// 2, 4 and 8 workers.
    #[value(name = "table-4")]
    Table4,
    /// Convolutions, attention and normalisations in strips, singly and together.
    #[value(name = "table-5")]
    Table5,
    /// 30 to 70 sampler steps.
    #[value(name = "table-6")]
    Table6,
    /// Half the model's own size to twice that.
    #[value(name = "table-7")]
    Table7,
}

/// The paper's scheme with its normalisation in two readings (each strip by its own statistics, as the text
/// says, and all by their averages), then ours.
const SCHEMES: [&str; 3] = [
    "ppidm:groupnorm=local",
    "ppidm:groupnorm=averaged",
    "resident:wire=f32",
];

impl Experiment {
    /// What is compared, on a model of `family` whose own pictures have `size`.
    ///
    /// # Errors
    /// As [`ArmSetting::parse`].
    pub fn arms(self, family: Family, size: [usize; 2]) -> Result<Vec<ArmSetting>> {
        let of_workers = match family {
            Family::StableDiffusionXl => [
                "SDXL, Art, Ours-2",
                "SDXL, Art, Ours-4",
                "SDXL, Art, Ours-8",
            ],
            Family::StableDiffusion | Family::LatentConsistency => {
                ["SD, Art, Ours-2", "SD, Art, Ours-4", "SD, Art, Ours-8"]
            }
        };
        let options: Vec<(String, &'static str)> = match self {
            Self::Table4 => {
                let rows = [2, 4, 8].into_iter().zip(of_workers);
                rows.map(|(n, row)| (format!("workers={n}"), row)).collect()
            }
            Self::Table5 => return table_5(),
            Self::Table6 => ["30", "40", "50", "60", "70"]
                .map(|steps| (format!("workers=4;steps={steps}"), steps))
                .into(),
            Self::Table7 => [(1, "256"), (2, "512"), (3, "768"), (4, "1024")]
                .map(|(halves, row)| {
                    let [width, height] = size.map(|side| side * halves / 2);
                    (format!("workers=4;size={width}x{height}"), row)
                })
                .into(),
        };
        let arms = options.into_iter().flat_map(|(options, row)| {
            SCHEMES.map(|scheme| arm(&format!("{scheme};{options}"), row))
        });
        arms.collect()
    }
}

/// Without a normalisation in strips there is nothing to lose by one.
fn table_5() -> Result<Vec<ArmSetting>> {
    const ROWS: [(&str, &str); 7] = [
        ("conv", "SD + Ppiconv"),
        ("attention", "SD + Ppiatt"),
        ("norm", "SD + Ppign"),
        ("conv,attention", "SD + Ppiconv + Ppiatt"),
        ("conv,norm", "SD + Ppiconv + Ppign"),
        ("attention,norm", "SD + Ppiatt + Ppign"),
        ("conv,attention,norm", "PPIDM"),
    ];
    let of_row = |(offload, row): (&str, &'static str)| {
        let norms: &[&str] = match offload.contains("norm") {
            true => &["local", "averaged", "exact"],
            false => &["exact"],
        };
        let name = |norm| format!("ppidm:groupnorm={norm};workers=4;offload={offload}");
        let arms = norms.iter().map(|norm| arm(&name(norm), row));
        arms.collect::<Vec<_>>()
    };
    ROWS.into_iter().flat_map(of_row).collect()
}

fn arm(name: &str, row: &'static str) -> Result<ArmSetting> {
    Ok(ArmSetting {
        paper: Some(row),
        ..ArmSetting::parse(name)?
    })
}

impl std::fmt::Display for Experiment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Table4 => "table-4",
            Self::Table5 => "table-5",
            Self::Table6 => "table-6",
            Self::Table7 => "table-7",
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;
    use crate::evaluation::paper::table;

    #[test]
    fn every_arm_stands_beside_a_printed_row() {
        for experiment in Experiment::value_variants() {
            let table = table(&experiment.to_string()).unwrap();
            for (family, model) in [
                (Family::StableDiffusion, "SD, "),
                (Family::StableDiffusionXl, "SDXL, "),
            ] {
                let arms = experiment.arms(family, [128, 128]).unwrap();
                for arm in &arms {
                    let row = table.rows.iter().find(|row| Some(row.label) == arm.paper);
                    let label = row.expect(&arm.name).label;
                    assert!(*experiment != Experiment::Table4 || label.starts_with(model));
                }
                assert!(arms.len() >= 9, "{experiment}");
            }
        }
    }

    #[test]
    fn sizes_are_halves_of_the_models_own() {
        let arms = Experiment::Table7
            .arms(Family::StableDiffusion, [128, 96])
            .unwrap();
        let sizes: Vec<_> = arms.iter().filter_map(|arm| arm.options.size).collect();
        assert_eq!(sizes[0], [64, 48]);
        assert_eq!(sizes[11], [256, 192]);
    }
}

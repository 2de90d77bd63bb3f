//! The schedulers there are: one list of their names here, their `diffusers` classes and what they are.

use clap::builder::PossibleValue;

use super::SchedulerError;

/// The schedulers there are, by the names that `--scheduler` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "ENTRIES says what each is")]
pub enum SchedulerKind {
    Ddim,
    Ddpm,
    Pndm,
    Lms,
    Euler,
    EulerAncestral,
    Heun,
    Kdpm2,
    Kdpm2Ancestral,
    DpmSolver,
    DpmSolverSde,
    DpmSingle,
    Deis,
    UniPc,
    Lcm,
    Tcd,
}

/// A scheduler as users and model files name it.
struct Entry {
    kind: SchedulerKind,
    /// What `--scheduler` takes.
    name: &'static str,
    /// The class in `model_index.json`; the first scheduler of a class is meant where a file names it.
    class: &'static str,
    /// For `--help`.
    what: &'static str,
}

const DPM_MULTISTEP: &str = "DPMSolverMultistepScheduler";

/// In the order of the enum.
const ENTRIES: [Entry; 16] = [
    Entry {
        kind: SchedulerKind::Ddim,
        name: "ddim",
        class: "DDIMScheduler",
        what: "DDIM; --eta adds fresh noise",
    },
    Entry {
        kind: SchedulerKind::Ddpm,
        name: "ddpm",
        class: "DDPMScheduler",
        what: "DDPM; adds fresh noise on every step",
    },
    Entry {
        kind: SchedulerKind::Pndm,
        name: "pndm",
        class: "PNDMScheduler",
        what: "PNDM (also known as PLMS); calls the network once more than there are steps",
    },
    Entry {
        kind: SchedulerKind::Lms,
        name: "lms",
        class: "LMSDiscreteScheduler",
        what: "Linear multistep",
    },
    Entry {
        kind: SchedulerKind::Euler,
        name: "euler",
        class: "EulerDiscreteScheduler",
        what: "Euler",
    },
    Entry {
        kind: SchedulerKind::EulerAncestral,
        name: "euler-a",
        class: "EulerAncestralDiscreteScheduler",
        what: "Euler ancestral; adds fresh noise on every step",
    },
    Entry {
        kind: SchedulerKind::Heun,
        name: "heun",
        class: "HeunDiscreteScheduler",
        what: "Heun; calls the network twice a step, but for the last",
    },
    Entry {
        kind: SchedulerKind::Kdpm2,
        name: "kdpm2",
        class: "KDPM2DiscreteScheduler",
        what: "DPM-Solver-2 in noise levels; calls the network twice a step, but for the last",
    },
    Entry {
        kind: SchedulerKind::Kdpm2Ancestral,
        name: "kdpm2-a",
        class: "KDPM2AncestralDiscreteScheduler",
        what: "The same, ancestral: adds fresh noise on every step",
    },
    Entry {
        kind: SchedulerKind::DpmSolver,
        name: "dpm++",
        class: DPM_MULTISTEP,
        what: "DPM-Solver++, multistep (2M)",
    },
    Entry {
        kind: SchedulerKind::DpmSolverSde,
        name: "dpm++-sde",
        class: DPM_MULTISTEP,
        what: "The same with fresh noise on every step (2M SDE)",
    },
    Entry {
        kind: SchedulerKind::DpmSingle,
        name: "dpm++-single",
        class: "DPMSolverSinglestepScheduler",
        what: "DPM-Solver++, singlestep",
    },
    Entry {
        kind: SchedulerKind::Deis,
        name: "deis",
        class: "DEISMultistepScheduler",
        what: "DEIS",
    },
    Entry {
        kind: SchedulerKind::UniPc,
        name: "unipc",
        class: "UniPCMultistepScheduler",
        what: "UniPC",
    },
    Entry {
        kind: SchedulerKind::Lcm,
        name: "lcm",
        class: "LCMScheduler",
        what: "For latent consistency models, in few steps",
    },
    Entry {
        kind: SchedulerKind::Tcd,
        name: "tcd",
        class: "TCDScheduler",
        what: "For trajectory consistency models, in few steps; --eta adds fresh noise",
    },
];

static KINDS: [SchedulerKind; ENTRIES.len()] = {
    let mut kinds = [SchedulerKind::Ddim; ENTRIES.len()];
    let mut i = 0;
    while i < kinds.len() {
        kinds[i] = ENTRIES[i].kind;
        i += 1;
    }
    kinds
};

/// Classes, by how they begin, whose networks learned another form of noise than a variance-preserving
/// schedule of betas.
const FOREIGN: [&str; 6] = [
    "EDM",
    "FlowM",
    "CMStochastic",
    "ScoreSde",
    "KarrasVe",
    "SCM",
];

impl SchedulerKind {
    /// The scheduler for a `diffusers` class name, as in `model_index.json`.
    ///
    /// # Errors
    /// [`SchedulerError::Foreign`], [`SchedulerError::UnknownClass`].
    pub fn from_class_name(name: &str) -> Result<Self, SchedulerError> {
        Self::check_origin(name)?;
        let entry = ENTRIES.iter().find(|entry| entry.class == name);
        entry
            .map(|entry| entry.kind)
            .ok_or_else(|| SchedulerError::UnknownClass(name.to_owned()))
    }

    /// Checks that a model whose own scheduler is of the class `name` can be sampled by one of these.
    ///
    /// # Errors
    /// [`SchedulerError::Foreign`].
    pub fn check_origin(name: &str) -> Result<(), SchedulerError> {
        match FOREIGN.iter().any(|start| name.starts_with(start)) {
            true => Err(SchedulerError::Foreign(name.to_owned())),
            false => Ok(()),
        }
    }

    /// The `diffusers` class that it follows.
    pub fn class(self) -> &'static str {
        self.entry().class
    }

    /// Whether `--eta`, an amount of fresh noise, means something to it.
    pub fn takes_eta(self) -> bool {
        matches!(self, Self::Ddim | Self::Tcd)
    }

    /// Calls of the network in a sampler step, but for the last.
    pub(super) fn calls_each(self) -> usize {
        match self {
            Self::Heun | Self::Kdpm2 | Self::Kdpm2Ancestral => 2,
            _ => 1,
        }
    }

    /// Whether it visits some of the timesteps that a distilled model's teacher visited.
    pub(super) fn of_a_teacher(self) -> bool {
        matches!(self, Self::Lcm | Self::Tcd)
    }

    /// The classes that are known, with commas.
    pub(super) fn class_names() -> String {
        let mut names: Vec<&str> = ENTRIES.iter().map(|entry| entry.class).collect();
        names.dedup();
        names.join(", ")
    }

    fn entry(self) -> &'static Entry {
        &ENTRIES[self as usize]
    }
}

impl clap::ValueEnum for SchedulerKind {
    fn value_variants<'a>() -> &'a [Self] {
        &KINDS
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let entry = self.entry();
        Some(PossibleValue::new(entry.name).help(entry.what))
    }
}

impl std::fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.entry().name)
    }
}

impl std::str::FromStr for SchedulerKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        clap::ValueEnum::from_str(name, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_the_order_of_the_enum() {
        for (i, entry) in ENTRIES.iter().enumerate() {
            assert_eq!(entry.kind as usize, i, "{}", entry.name);
            assert_eq!(entry.name.parse(), Ok(entry.kind));
            assert_eq!(entry.kind.to_string(), entry.name);
        }
    }

    #[test]
    fn a_class_means_its_first_scheduler() {
        let kind = |name| SchedulerKind::from_class_name(name).unwrap();
        assert_eq!(kind(DPM_MULTISTEP), SchedulerKind::DpmSolver);
        assert_eq!(kind("TCDScheduler"), SchedulerKind::Tcd);
        for (name, way_out) in [("SASolverScheduler", true), ("EDMEulerScheduler", false)] {
            let error = SchedulerKind::from_class_name(name)
                .unwrap_err()
                .to_string();
            assert!(error.contains(name), "{error}");
            assert_eq!(
                error.contains("choose one by --scheduler"),
                way_out,
                "{error}"
            );
            assert_eq!(SchedulerKind::check_origin(name).is_ok(), way_out);
        }
    }
}

//! What any one provider may see, what each does see, and the fastest way that is allowed.
//!
//! - [`ledger`]: what each provider sees.
//! - [`foretold`]: that in words, before it is shown.
//! - [`plan`]: chooses a placement under a policy.
//! - [`ways`]: everything that could be done, home included, side by side.
//! - here: the policy, a TOML file or one that comes along, and its rules.

pub mod foretold;
pub mod ledger;
pub mod plan;
pub mod ways;

use std::path::{Path, PathBuf};

use lacuna_protocol::placement::{Latents, Prompt, SelfAttention, Wire};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fleet::config::MAX_WORKERS;
use crate::named::name;
use crate::schemes::{Rules, Setting, Uses};
use lacuna_files::small;
use ledger::{Ledger, SLACK};

/// The policies that come along, by name: those of `configs/policies`, and those that `lacuna audit` attacks.
const BUILT_IN: [(&str, &str); 8] = [
    (
        PRIVATE,
        include_str!("../../../configs/policies/private.toml"),
    ),
    (
        "nothing",
        include_str!("../../../configs/policies/nothing.toml"),
    ),
    ("fast", include_str!("../../../configs/policies/fast.toml")),
    (
        "paper",
        include_str!("../../../configs/policies/paper.toml"),
    ),
    (
        "prompt-shared",
        include_str!("../../../configs/audit/prompt-shared.toml"),
    ),
    ("tiled", include_str!("../../../configs/audit/tiled.toml")),
    (
        "broadcast",
        include_str!("../../../configs/audit/broadcast.toml"),
    ),
    ("blind", include_str!("../../../configs/audit/blind.toml")),
];

/// The policy that holds where none is named and workers are a provider's.
pub const PRIVATE: &str = "private";

/// What any one provider may see, and what may be traded for speed. `configs/policies/` has examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Where it was read from, or the name of one that comes along.
    #[serde(skip)]
    pub file: PathBuf,
    /// Most of the latents' rows that one provider may compute, 0 to 1.
    pub max_rows: f64,
    /// Whether providers may know the prompt.
    pub prompt: Prompt,
    /// Whether providers may get their rows of the noisy latents, and give those of the prediction.
    #[serde(default)]
    pub latents: Latents,
    /// Whether providers may hold the U-Net's adapters, or know their digest.
    #[serde(default)]
    pub adapters: Adapters,
    /// How self-attention may be done.
    pub self_attention: Vec<SelfAttention>,
    /// Number types that features may travel in.
    pub wires: Vec<Wire>,
    /// How much of the picture's quality may be traded.
    pub quality: Quality,
    /// What a provider may have of the picture at all.
    #[serde(default)]
    pub views: Views,
    /// How many providers may put together what they have and still see no more than is allowed.
    #[serde(default)]
    pub collusion: Collusion,
}

/// What a provider may have of the picture at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Views {
    /// What the other rules bound.
    #[default]
    Bounded,
    /// Nothing: what it has is independent of the picture.
    Nothing,
}

/// Whether providers may hold the U-Net's adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adapters {
    /// They may.
    #[default]
    Shared,
    /// They may not, nor their digest: which face or style a picture is of stays with the user.
    Hidden,
}

/// How many providers may collude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Collusion {
    /// So many.
    Of(std::num::NonZeroUsize),
    /// All but one.
    AllBut(AllButOne),
}

/// `N-1`, of N providers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllButOne {
    /// As a policy's file has it.
    #[serde(rename = "N-1")]
    One,
}

impl Default for Collusion {
    fn default() -> Self {
        Self::Of(std::num::NonZeroUsize::MIN)
    }
}

impl Collusion {
    /// The number of `providers` that may collude: one at least.
    pub fn of(self, providers: usize) -> usize {
        match self {
            Self::Of(n) => n.get(),
            Self::AllBut(AllButOne::One) => providers.saturating_sub(1).max(1),
        }
    }
}

/// Its rules.
const RULES: [&str; 9] = [
    "max_rows",
    "prompt",
    "latents",
    "adapters",
    "self_attention",
    "wires",
    "quality",
    "views",
    "collusion",
];

/// What is wrong in a policy's file: drawn where one of the rules is, and else without what stands there, for it may be
/// another file, with secrets.
fn told(text: &str, error: &toml::de::Error) -> String {
    match small::key_at(text, error, &RULES) {
        Some(_) => error.to_string().trim().into(),
        None => small::without_source(text, error, &RULES),
    }
}

/// How near the picture must come to the uncut one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    /// To rounding.
    Exact,
    /// To so many dB.
    Psnr(f64),
}

impl Quality {
    fn allows(self, setting: &Setting) -> bool {
        match (self, setting.scheme.promised_psnr()) {
            (_, None) => true,
            (Self::Exact, Some(_)) => false,
            (Self::Psnr(least), Some(promised)) => promised >= least,
        }
    }
}

impl Policy {
    /// The policy of a name that this program knows (`private`, `fast`, `paper`, and those of the audit), else the
    /// file. A file of such a name is `./name`.
    ///
    /// # Errors
    /// [`Error::PolicyFile`], saying which rule is off.
    pub fn open(name: &Path) -> Result<Self> {
        match BUILT_IN.iter().find(|(known, _)| name == Path::new(known)) {
            Some((_, text)) => Self::parse(name, text),
            None => Self::from_file(name),
        }
    }

    /// The one that holds where none is named.
    ///
    /// # Errors
    /// None: it is well formed.
    pub fn private() -> Result<Self> {
        Self::open(Path::new(PRIVATE))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::PolicyFile`], saying which rule is off.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = small::read_small(path).map_err(|e| Error::PolicyFile {
            path: path.to_owned(),
            reason: match e.kind() {
                std::io::ErrorKind::NotFound => {
                    format!("{e}; private, nothing, fast and paper are known by name")
                }
                _ => e.to_string(),
            },
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let wrong = |reason: String| Error::PolicyFile {
            path: path.to_owned(),
            reason,
        };
        let policy: Self = toml::from_str(text).map_err(|e| wrong(told(text, &e)))?;
        if !(policy.max_rows > 0.0 && policy.max_rows <= 1.0) {
            return Err(wrong(format!(
                "max_rows = {}: above 0, at most 1",
                policy.max_rows
            )));
        }
        if let Quality::Psnr(least) = policy.quality
            && !(least.is_finite() && least >= 0.0)
        {
            return Err(wrong(format!(
                "quality = {{ psnr = {least} }}: a number of dB, 0 or more; or \"exact\""
            )));
        }
        if policy.self_attention.is_empty() || policy.wires.is_empty() {
            return Err(wrong(
                "self_attention and wires must each allow something".into(),
            ));
        }
        Ok(Self {
            file: path.to_owned(),
            ..policy
        })
    }

    /// The same, but that one provider may compute `share` of the rows.
    ///
    /// # Errors
    /// [`Error::Request`] when that is no share.
    pub fn with_max_rows(self, share: f64) -> Result<Self> {
        if !(share > 0.0 && share <= 1.0) {
            let reason = format!("--max-rows {share}: above 0, at most 1");
            return Err(Error::Request(reason));
        }
        Ok(Self {
            max_rows: share,
            ..self
        })
    }

    /// What it leaves to be chosen.
    pub fn rules(&self) -> Rules<'_> {
        Rules {
            prompt: self.prompt,
            latents: self.latents,
            self_attention: &self.self_attention,
            wires: &self.wires,
        }
    }

    fn collusion_rule(&self) -> String {
        format!("collusion = {}", name(&self.collusion))
    }

    /// The rules by which it allows more than `other`, each as the file has it.
    pub fn weaker_than(&self, other: &Self) -> Vec<String> {
        let mut weaker = Vec::new();
        if self.max_rows > other.max_rows + SLACK {
            weaker.push(format!("max_rows = {}", self.max_rows));
        }
        if self.prompt == Prompt::Shared && other.prompt == Prompt::Hidden {
            weaker.push("prompt = shared".into());
        }
        if self.latents == Latents::Shared && other.latents == Latents::Hidden {
            weaker.push("latents = shared".into());
        }
        if self.adapters == Adapters::Shared && other.adapters == Adapters::Hidden {
            weaker.push("adapters = shared".into());
        }
        if self.views == Views::Bounded && other.views == Views::Nothing {
            weaker.push("views = bounded".into());
        }
        if self.collusion.of(MAX_WORKERS) < other.collusion.of(MAX_WORKERS) {
            weaker.push(format!("collusion = {}", name(&self.collusion)));
        }
        let more = |how: &&SelfAttention| !other.self_attention.contains(how);
        let more: Vec<String> = self.self_attention.iter().filter(more).map(name).collect();
        if !more.is_empty() {
            weaker.push(format!("self_attention = {}", more.join(", ")));
        }
        weaker
    }

    /// Checks that computing by `setting`, which shows each provider what `ledger` says, is allowed.
    ///
    /// # Errors
    /// [`Error::Policy`], naming the rule.
    pub fn check(&self, setting: &Setting, ledger: &Ledger) -> Result<()> {
        let refuse_with = |rule: &str, reason: String, advice: String| {
            Err(Error::Policy {
                policy: self.file.clone(),
                rule: rule.to_owned(),
                reason,
                advice,
            })
        };
        let refuse = |rule: &str, reason: String| refuse_with(rule, reason, String::new());
        let colluding = self.collusion.of(ledger.providers.len());
        if self.views == Views::Nothing && !ledger.providers.is_empty() {
            let label = setting.scheme.label();
            match ledger.hidden_from {
                None => {
                    let reason = format!("under {label} a provider has something of the picture");
                    let advice = "; --scheme blind shows nothing, nor does --scheme local".into();
                    return refuse_with("views = nothing", reason, advice);
                }
                Some(most) if most < colluding => {
                    let reason = format!(
                        "under {label} {colluding} providers together could have all of the picture, {most} nothing"
                    );
                    return refuse(&self.collusion_rule(), reason);
                }
                Some(_) => {}
            }
        }
        let together = ledger.most_rows_of(colluding);
        if colluding > 1 && together > self.max_rows + SLACK {
            let reason = format!(
                "{colluding} providers together would have {:.1} % of the rows, where {} is the most",
                100.0 * together,
                self.max_rows
            );
            return refuse(&self.collusion_rule(), reason);
        }
        // Of those that compute too much the one that computes the most is named.
        let mut views: Vec<_> = ledger.providers.iter().collect();
        views.sort_by(|(_, a), (_, b)| b.rows.total_cmp(&a.rows));
        for (provider, view) in views {
            if view.rows > self.max_rows + SLACK {
                let reason = format!(
                    "provider {provider} would compute {:.1} % of the rows",
                    100.0 * view.rows
                );
                let rule = format!("max_rows = {}", self.max_rows);
                let [_, rows, _] = setting.sizes.latents;
                let coarsest = rows >> setting.sizes.levels.saturating_sub(1);
                let strips = coarsest.min(MAX_WORKERS);
                return refuse_with(
                    &rule,
                    reason,
                    foretold::rows_advice(ledger, self.max_rows, strips),
                );
            }
            if view.prompt && self.prompt == Prompt::Hidden {
                let reason = format!("provider {provider} would get what the prompt became");
                return refuse("prompt = hidden", reason);
            }
            if view.latents && self.latents == Latents::Hidden {
                let reason = format!("provider {provider} would get its rows of the latents");
                return refuse("latents = hidden", reason);
            }
            if view.adapters && self.adapters == Adapters::Hidden {
                let reason =
                    format!("provider {provider} would hold the adapters of the U-Net (--lora)");
                let advice = "; --scheme blind keeps them with you, as --scheme local does".into();
                return refuse_with("adapters = hidden", reason, advice);
            }
        }
        let Uses {
            self_attention,
            wires,
        } = setting.scheme.uses(setting.sizes.levels);
        let forbidden = |how: &&SelfAttention| !self.self_attention.contains(how);
        if let Some(how) = self_attention.iter().find(forbidden) {
            let reason = not_among(how, &self.self_attention);
            return refuse("self_attention", reason);
        }
        if let Some(wire) = wires.iter().find(|wire| !self.wires.contains(wire)) {
            return refuse("wires", not_among(wire, &self.wires));
        }
        if !self.quality.allows(setting) {
            let label = setting.scheme.label();
            let promised = setting.scheme.promised_psnr().unwrap_or(f64::INFINITY);
            let reason = match self.quality {
                Quality::Exact => format!(
                    "{label} gives a picture at {promised} dB of the uncut one or more, where it must be that one"
                ),
                Quality::Psnr(least) => format!(
                    "{label} promises {promised} dB to the uncut picture, where {least} is the least"
                ),
            };
            return refuse("quality", reason);
        }
        Ok(())
    }
}

/// That `one` is none of `all`, which are named.
fn not_among<T: Serialize>(one: &T, all: &[T]) -> String {
    let all: Vec<String> = all.iter().map(name).collect();
    format!("{} is not among them ({})", name(one), all.join(", "))
}

//! What a run is, and what it finds: the types of its files.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::shard::Shard;
use crate::metrics::inception::InputResize;
use crate::metrics::kid::Subsets;
use crate::metrics::lpips::Net;
use crate::metrics::metric::Metric;
use crate::metrics::sets::Network;
use lacuna_orchestrator::text::PromptOptions;

/// What a run is: another run's results do not belong with its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The paper's experiment, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experiment: Option<String>,
    /// Digest of the U-Net's weights.
    pub model: String,
    /// Digests of the adapters and the embeddings, those of text encoders among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<String>,
    /// The model's directory, as it was given.
    pub model_name: String,
    /// How many prompts there are, in all shards.
    pub prompts: usize,
    /// Digest of the prompts.
    pub prompts_digest: String,
    /// Of the first prompt; the next ones count on.
    pub seed: u64,
    /// Sampler steps, where an arm does not say.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f32,
    /// How every prompt is read.
    #[serde(flatten)]
    pub options: PromptOptions,
    /// The sampler; the model's own if none is named.
    pub scheduler: Option<String>,
    /// Columns and rows of the pictures, where an arm does not say.
    pub size: [usize; 2],
    /// What is compared.
    pub arms: Vec<Arm>,
    /// Pictures to compare with in place of the uncut model's.
    pub reference: Option<String>,
    /// Digest of the names and sizes of the pictures that were given, of either kind.
    pub given: Option<String>,
    /// The set to compare sets with in place of the reference.
    pub fid_reference: Option<String>,
    /// Each metric with a digest of its weights, where it has any.
    pub metrics: BTreeMap<Metric, String>,
    /// The network of LPIPS, where that is measured.
    pub lpips_net: Option<Net>,
    /// Whose way of resizing pictures, where sets are measured.
    pub fid_resize: Option<InputResize>,
    /// The draw of KID, where that is measured.
    pub kid: Option<Subsets>,
    /// Which prompts are here.
    pub shard: Shard,
}

/// One setting that is compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arm {
    /// As it was given.
    pub name: String,
    /// The folder of its pictures.
    pub folder: String,
    /// The folder of what they are compared with.
    pub reference: String,
    /// How many workers there are, if any.
    pub workers: Option<usize>,
    /// The paper's row that it stands beside, in an experiment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paper: Option<String>,
}

/// One picture of an arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// [`Arm::name`].
    pub arm: String,
    /// Which prompt, from 0.
    pub index: usize,
    /// Of the noise.
    pub seed: u64,
    /// The prompt.
    pub prompt: String,
    /// What was measured.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Outcome {
    /// There is none.
    Failed {
        /// Why.
        failed: String,
    },
    /// It was measured.
    Measured(Values),
}

/// What was measured of a picture; what was not wanted is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Values {
    /// Whether no byte differs from the reference.
    pub identical: bool,
    /// In dB; absent for identical pictures, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psnr: Option<f64>,
    /// 1 for equal pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssim: Option<f64>,
    /// 0 for equal pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips: Option<f64>,
    /// 0 to 100; of the setting's own picture and the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

impl Outcome {
    /// What was measured, if it was.
    pub fn measured(&self) -> Option<&Values> {
        match self {
            Self::Measured(values) => Some(values),
            Self::Failed { .. } => None,
        }
    }
}

/// Differences that are told.
const SHOWN: usize = 3;

/// Puts into `all` where `here` is another one than `there`, by the keys that lead to it.
fn tell_apart(there: &Value, here: &Value, path: &str, all: &mut Vec<String>) {
    match (there, here) {
        (a, b) if a == b => {}
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let at = |map: &serde_json::Map<String, Value>| map.get(key).cloned();
                let [a, b] = [at(a), at(b)].map(Option::unwrap_or_default);
                let path = match path {
                    "" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                tell_apart(&a, &b, &path, all);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                tell_apart(a, b, &format!("{path} {}", i + 1), all);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            all.push(format!("{path}: {} there, {} here", a.len(), b.len()));
        }
        (a, b) => all.push(format!("{path}: {a} there, {b} here")),
    }
}

impl Record {
    /// What differs from `other`, shards apart: the name, and both values.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let value = |record: &Self| {
            let mut value = serde_json::to_value(record).unwrap_or_default();
            if let Some(map) = value.as_object_mut() {
                // Shards of a run are compared, and a folder may be called otherwise.
                map.retain(|key, _| key != "shard" && key != "model_name");
            }
            value
        };
        let mut all = Vec::new();
        tell_apart(&value(other), &value(self), "", &mut all);
        let others = all.len().saturating_sub(SHOWN);
        all.truncate(SHOWN);
        let more = match others {
            0 => String::new(),
            n => format!("; and {n} more"),
        };
        (!all.is_empty()).then(|| format!("{}{more}", all.join("; ")))
    }

    /// Whose features sets are compared by.
    pub fn networks(&self) -> impl Iterator<Item = Network> + use<> {
        let metrics = self.metrics.keys();
        let wanted = Network::ALL.map(|network| {
            let of_it = metrics
                .clone()
                .any(|metric| metric.network() == Some(network));
            of_it.then_some(network)
        });
        wanted.into_iter().flatten()
    }

    /// The sets that features are taken of.
    pub fn feature_sets(&self) -> BTreeSet<String> {
        let of_arm = |arm: &Arm| [arm.folder.clone(), self.feature_reference(arm).to_owned()];
        self.arms.iter().flat_map(of_arm).collect()
    }

    /// The set of features that an arm's is compared with.
    pub fn feature_reference<'a>(&self, arm: &'a Arm) -> &'a str {
        match self.fid_reference {
            Some(_) => REAL,
            None => &arm.reference,
        }
    }

    /// Of a prompt.
    pub fn seed_of(&self, index: usize) -> u64 {
        self.seed.wrapping_add(index as u64)
    }
}

/// [`Arm::reference`] where the reference was given, not made.
pub const GIVEN: &str = "given";

/// The set that sets are compared with, where it is not the reference.
pub const REAL: &str = "real";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_is_told_by_the_keys_that_lead_to_it() {
        let told = |there: Value, here: Value| {
            let mut all = Vec::new();
            tell_apart(&there, &here, "", &mut all);
            all
        };
        let arms = |steps: u32, wire: &str| json!({"arms": [{"steps": 3}, {"steps": steps, "wire": wire}], "x": 1});
        assert_eq!(
            told(arms(3, "f32"), arms(4, "f16")),
            [
                "arms 2.steps: 3 there, 4 here",
                r#"arms 2.wire: "f32" there, "f16" here"#
            ]
        );
        assert_eq!(
            told(json!({"arms": [1]}), json!({"arms": [1, 2]})),
            ["arms: 1 there, 2 here"]
        );
        assert_eq!(told(json!({}), json!({"x": 1})), ["x: null there, 1 here"]);
        assert!(told(arms(3, "f32"), arms(3, "f32")).is_empty());
    }
}

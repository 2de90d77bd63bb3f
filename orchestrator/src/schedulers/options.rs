//! Single keys of a scheduler's config, in place of the model's: what the reference's `from_config(config, key=value)` takes.

use std::str::FromStr;

use serde_json::{Map, Value};

use super::keys::unsupported;
use super::{SchedulerConfig, SchedulerError, SchedulerKind};

/// A key with its value, as a flag gives them: `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerOption {
    text: String,
    key: &'static str,
    /// With this key alone.
    config: SchedulerConfig,
}

impl FromStr for SchedulerOption {
    type Err = String;

    /// `KEY=VALUE` with a value of JSON, or a word.
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or("KEY=VALUE, such as timestep_spacing=trailing")?;
        let Some(key) = SchedulerConfig::KEYS.iter().find(|known| **known == key) else {
            let known = SchedulerConfig::KEYS.join(", ");
            return Err(format!("no scheduler has the key {key}; there are {known}"));
        };
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        if value.is_null() {
            return Err(format!("{key} = null: give a value"));
        }
        let one = Map::from_iter([((*key).to_owned(), value)]);
        let config = SchedulerConfig::from_value(one.into()).map_err(|e| e.to_string())?;
        Ok(Self {
            text: text.to_owned(),
            key,
            config,
        })
    }
}

impl std::fmt::Display for SchedulerOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl SchedulerOption {
    /// That the scheduler `kind` reads it.
    ///
    /// # Errors
    /// [`SchedulerError::Unsupported`], with the keys that it reads.
    pub fn check(&self, kind: SchedulerKind) -> Result<(), SchedulerError> {
        if kind.keys().any(|key| key == self.key) {
            return Ok(());
        }
        let (_, value) = self.text.split_once('=').unwrap_or_default();
        let keys: Vec<&str> = kind.keys().collect();
        let reason = format!(
            "{} does not read it; it reads {}",
            kind.class(),
            keys.join(", ")
        );
        Err(unsupported(self.key, value, reason))
    }

    /// `config` with all of `options`; of two with one key the latter counts.
    pub fn apply_all(options: &[Self], config: SchedulerConfig) -> SchedulerConfig {
        let options = options.iter().map(|option| option.config.clone());
        options.fold(config, SchedulerConfig::overridden_by)
    }
}

#[cfg(test)]
mod tests {
    use super::super::TimestepSpacing;
    use super::*;

    #[test]
    fn a_key_takes_the_place_of_the_files() {
        let option = |text: &str| text.parse::<SchedulerOption>();
        let file = SchedulerConfig {
            timestep_spacing: Some(TimestepSpacing::Leading),
            solver_order: Some(3),
            ..SchedulerConfig::default()
        };
        let options = [
            "timestep_spacing=linspace",
            "timestep_spacing=trailing",
            "use_karras_sigmas=true",
            "original_inference_steps=1000",
        ]
        .map(|text| option(text).unwrap());
        assert_eq!(options[1].to_string(), "timestep_spacing=trailing");
        let got = SchedulerOption::apply_all(&options, file.clone());
        let want = SchedulerConfig {
            timestep_spacing: Some(TimestepSpacing::Trailing),
            use_karras_sigmas: Some(true),
            original_inference_steps: Some(1000),
            ..file
        };
        assert_eq!(got, want);
        let told = options[2]
            .check(SchedulerKind::Ddim)
            .unwrap_err()
            .to_string();
        for part in ["use_karras_sigmas", "DDIMScheduler", "clip_sample"] {
            assert!(told.contains(part), "{told}");
        }
        options[2].check(SchedulerKind::Euler).unwrap();
        // It has this one, and takes its timesteps from the teacher all the same.
        assert!(options[1].check(SchedulerKind::Lcm).is_err());
        for (text, told) in [
            ("timestep_spacing", "KEY=VALUE"),
            ("=3", "KEY=VALUE"),
            ("spacing=trailing", "no scheduler has the key spacing"),
            ("timestep_spacing=behind", "timestep_spacing"),
            ("solver_order=two", "solver_order"),
            ("solver_order=null", "give a value"),
        ] {
            let error = option(text).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }
}

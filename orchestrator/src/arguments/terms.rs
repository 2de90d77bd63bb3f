//! On what terms workers are used: which they are, and what they may see.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::error::Result;
use crate::fleet::config::FleetConfig;
use crate::policy::{PRIVATE, Policy};

/// On what terms workers are used.
#[derive(Args, Clone, Debug)]
pub struct TermsArguments {
    /// What any one provider may see: private, nothing, fast, paper, or a TOML file (see configs/policies). The fastest
    /// placement that it allows is taken; what other flags ask of it is kept, or refused [default:
    /// private; none where all workers are on this machine, which are yours].
    #[arg(long, value_name = "NAME|FILE")]
    pub policy: Option<PathBuf>,
    /// Let one provider compute up to this share of the rows, 0 to 1, in place of what the policy says.
    #[arg(long, value_name = "SHARE")]
    pub max_rows: Option<f64>,
    /// How they may be reached.
    #[command(flatten)]
    pub way: WayArguments,
}

/// How workers may be reached.
#[derive(Args, Clone, Copy, Debug)]
pub struct WayArguments {
    /// Reach workers by plain HTTP over a network: everybody on the way can read tokens, and what workers see.
    #[arg(long)]
    pub insecure: bool,
}

impl WayArguments {
    /// Reads the workers' file.
    ///
    /// # Errors
    /// As [`FleetConfig::from_file`] and [`FleetConfig::check_way`].
    pub fn fleet(self, path: &Path) -> Result<FleetConfig> {
        let fleet = FleetConfig::from_file(path)?;
        fleet.check_way(self.insecure)?;
        Ok(fleet)
    }
}

impl TermsArguments {
    /// The policy that is asked for; else `private` where workers of `fleet` are a provider's, and none where
    /// there are no others than the user's own.
    ///
    /// # Errors
    /// As [`Policy::open`] and [`Policy::with_max_rows`].
    pub fn policy(&self, fleet: Option<&FleetConfig>) -> Result<Option<Policy>> {
        let foreign = fleet.is_some_and(|fleet| !fleet.is_own());
        let name = match (&self.policy, self.max_rows) {
            (Some(name), _) => name.as_path(),
            (None, None) if !foreign => return Ok(None),
            (None, _) => Path::new(PRIVATE),
        };
        let policy = Policy::open(name)?;
        Ok(Some(match self.max_rows {
            Some(share) => policy.with_max_rows(share)?,
            None => policy,
        }))
    }
}

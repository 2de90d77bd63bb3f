//! What is settled, and said, before anything is sent.

use std::sync::Arc;

use burn::tensor::Device;
use lacuna_model::device::is_cpu;
use tokio::task::spawn_blocking;

use lacuna_orchestrator::arguments::speed::{ComputeArguments, SpeedArguments};
use lacuna_orchestrator::cost::time::{Source, Speeds};
use lacuna_orchestrator::error::Result;
use lacuna_orchestrator::memory;
use lacuna_orchestrator::output::console::Console;
use lacuna_orchestrator::policy::foretold::Run;
use lacuna_orchestrator::policy::plan::choose;
use lacuna_orchestrator::policy::ways::{Question, Way, all_schemes, best, table, ways};
use lacuna_orchestrator::schemes::Setting;
use lacuna_orchestrator::unet_source::UNetSource;

/// Said where a fleet is given and no policy holds.
pub(super) const OWN_FLEET: &str = "all workers are on this machine, so nobody else's; if a tunnel leads to a provider, give --policy private";

/// A run whose placement is to be settled.
pub(super) struct Before<'a> {
    /// The U-Net.
    pub unet: &'a Arc<UNetSource>,
    /// Where the user computes.
    pub device: &'a Device,
    /// What is said of the machines.
    pub compute: &'a ComputeArguments,
    /// What is said of the connection.
    pub link: &'a SpeedArguments,
    /// Who computes, and on which terms.
    pub run: Run<'a>,
    /// U-Net calls of a picture.
    pub calls: usize,
}

impl Before<'_> {
    /// The setting under the policy: planned where that is possible, checked in any case; and how fast everything is.
    /// Nothing has been sent before the policy allows something, and before it is said what providers will see; then the
    /// connection is measured, with zeros. Where workers are providers', says what a picture would take at home, too.
    ///
    /// # Errors
    /// [`lacuna_orchestrator::Error::Policy`], naming the rule; those of measuring, where that is asked for.
    pub(super) async fn settle(
        &self,
        setting: Setting,
        console: &Console,
    ) -> anyhow::Result<(Setting, Speeds)> {
        let Self { compute, link, .. } = self;
        let fleet = self.run.fleet;
        let mut speeds = compute.given(link, fleet)?;
        // Refused now, rather than after measuring.
        let first = self.permitted(&setting, &speeds)?;
        let foreseen = self.foreseen(&first)?;
        tell(&foreseen, console);
        let foreign = !fleet.is_own();
        if foreign {
            let (compute, link, fleet) = ((*compute).clone(), (*link).clone(), fleet.clone());
            let (device, unet) = (self.device.clone(), self.unet.clone());
            let sizes = setting.sizes;
            let here = move || compute.here(&link, &fleet, &device, unet.layers(), &sizes);
            speeds = spawn_blocking(here).await??;
        }
        if compute.measure || (foreign && speeds.sources.link == Source::Assumed) {
            // A worker that does not answer is for the run to deal with: it may have a spare.
            match speeds.clone().refine(fleet).await {
                Ok(measured) => speeds = measured,
                Err(error) => tracing::warn!("the connection is not measured: {error}"),
            }
        }
        let settled = self.permitted(&setting, &speeds)?;
        let planned = self.foreseen(&settled)?;
        if planned != foreseen {
            console.line("with what was measured, another placement is faster:");
            tell(&planned, console);
        }
        if foreign {
            self.compare(&settled, &speeds, console)?;
        }
        Ok((settled, speeds))
    }

    fn permitted(&self, setting: &Setting, speeds: &Speeds) -> Result<Setting> {
        let Run { policy, fleet, .. } = self.run;
        Ok(choose(self.unet.layers(), policy, setting, fleet, speeds)?.setting)
    }

    fn foreseen(&self, setting: &Setting) -> Result<Vec<String>> {
        self.run.foretell(self.unet.layers(), setting)
    }

    /// What a picture takes by this and by the other ways.
    fn compare(&self, setting: &Setting, speeds: &Speeds, console: &Console) -> Result<()> {
        let Run { policy, fleet, .. } = self.run;
        // A row for each scheme; of the run's own the one that it takes.
        let own = setting.scheme.name();
        let mut schemes = all_schemes();
        if let Some(at) = schemes.iter().position(|scheme| scheme.name() == own) {
            schemes.retain(|scheme| scheme.name() != own);
            schemes.insert(at, setting.scheme.clone());
        }
        let mut ways = ways(&Question {
            unet: self.unet.layers(),
            policy,
            schemes,
            sizes: setting.sizes,
            adapted: setting.adapted,
            fleet,
            speeds,
            calls: self.calls,
            memory: is_cpu(self.device).then(memory::available).flatten(),
        })?;
        // What is not allowed is `lacuna plan`'s to tell; this run and home are told in any case.
        let told = |way: &Way| {
            let scheme = &way.setting.scheme;
            scheme.name() == own || !scheme.needs_workers()
        };
        ways.retain(|way| way.refused.is_none() || told(way));
        console.line(format_args!("for {speeds}:\n{}", table(&ways)));
        if let Some(best) = best(&ways) {
            console.line(best.line());
        }
        Ok(())
    }
}

fn tell(lines: &[String], console: &Console) {
    lines.iter().for_each(|line| console.line(line));
}

//! What is settled, and said, before anything is sent.

use std::sync::Arc;

use burn::tensor::Device;
use lacuna_model::device::is_cpu;
use tokio::task::spawn_blocking;

use super::arguments::Arguments;
use lacuna_orchestrator::cost::time::{Source, Speeds};
use lacuna_orchestrator::error::Result;
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::memory;
use lacuna_orchestrator::output::console::Console;
use lacuna_orchestrator::pipeline::{Pipeline, Sampling};
use lacuna_orchestrator::policy::Policy;
use lacuna_orchestrator::policy::foretold::foretell;
use lacuna_orchestrator::policy::ledger::Ledger;
use lacuna_orchestrator::policy::plan::choose;
use lacuna_orchestrator::policy::ways::{Question, Way, all_schemes, best, table, ways};
use lacuna_orchestrator::schemes::Setting;

/// A run whose placement is to be settled.
pub(super) struct Before<'a> {
    /// What was asked for.
    pub arguments: &'a Arguments,
    /// The model.
    pub pipeline: &'a Arc<Pipeline>,
    /// How it samples.
    pub sampling: &'a Sampling,
    /// Where the user computes.
    pub device: &'a Device,
    /// What the run must keep to.
    pub policy: &'a Policy,
    /// Who computes.
    pub fleet: &'a FleetConfig,
}

impl Before<'_> {
    /// The setting under the policy: planned where that is possible, checked in any case. Nothing has been
    /// sent before the policy allows something, and before it is said what providers will see; then the connection is
    /// measured, with zeros. Where workers are providers', says what a picture would take at home, too.
    ///
    /// # Errors
    /// [`lacuna_orchestrator::Error::Policy`], naming the rule; those of measuring, where that is asked for.
    pub(super) async fn settle(
        &self,
        setting: Setting,
        console: &Console,
    ) -> anyhow::Result<Setting> {
        let Self { arguments, .. } = self;
        let (compute, link) = (&arguments.compute, &arguments.speed);
        let mut speeds = compute.given(link, self.fleet)?;
        // Refused now, rather than after measuring.
        let first = self.permitted(&setting, &speeds)?;
        let foreseen = self.foreseen(&first)?;
        tell(&foreseen, console);
        let foreign = !self.fleet.is_own();
        if foreign {
            let (compute, link, fleet) = (compute.clone(), link.clone(), self.fleet.clone());
            let (device, pipeline) = (self.device.clone(), self.pipeline.clone());
            let sizes = setting.sizes;
            let here = move || compute.here(&link, &fleet, &device, pipeline.unet(), &sizes);
            speeds = spawn_blocking(here).await??;
        }
        if compute.measure || (foreign && speeds.sources.link == Source::Assumed) {
            // A worker that does not answer is for the run to deal with: it may have a spare.
            match speeds.clone().refine(self.fleet).await {
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
        Ok(settled)
    }

    fn permitted(&self, setting: &Setting, speeds: &Speeds) -> Result<Setting> {
        let unet = self.pipeline.unet();
        Ok(choose(unet, self.policy, setting, self.fleet, speeds)?.setting)
    }

    /// What is about to be done, and what each provider will see, in lines.
    fn foreseen(&self, setting: &Setting) -> Result<Vec<String>> {
        let ledger = Ledger::foresee(self.pipeline.unet(), setting, self.fleet, &[])?;
        let title = format!(
            "{}; policy {}",
            this_run(setting),
            self.policy.file.display()
        );
        let seen = foretell(&ledger, self.policy, &Policy::private()?);
        let apart = setting.scheme.apart(self.pipeline.unet(), &setting.sizes)?;
        let adapters = match (self.arguments.model.lora.is_empty(), apart) {
            (true, _) => None,
            (false, None) => {
                Some("whoever runs a worker holds the adapters (--lora), too".to_owned())
            }
            (false, Some(_)) => Some("the adapters (--lora) stay with you".to_owned()),
        };
        // What is computed from the picture has its rows in it, whatever is painted.
        let given = self.arguments.init_image.init_image.is_some();
        let of_image =
            (given && ledger.most().is_some_and(|view| !view.is_of_nothing())).then(|| {
                "these are rows of the picture that you give (--init-image), too, where it is kept"
                    .to_owned()
            });
        let heard = (self.arguments.terms.way.insecure && !self.fleet.is_own()).then(|| {
            "--insecure: whoever listens on the way to all workers has what all of them have"
                .to_owned()
        });
        let lines = std::iter::once(title).chain(seen);
        Ok(lines.chain(of_image).chain(adapters).chain(heard).collect())
    }

    /// What a picture takes by this and by the other ways.
    fn compare(&self, setting: &Setting, speeds: &Speeds, console: &Console) -> Result<()> {
        let (unet, fleet, policy) = (self.pipeline.unet(), self.fleet, self.policy);
        // A row for each scheme; of the run's own the one that it takes.
        let own = setting.scheme.name();
        let mut schemes = all_schemes();
        if let Some(at) = schemes.iter().position(|scheme| scheme.name() == own) {
            schemes.retain(|scheme| scheme.name() != own);
            schemes.insert(at, setting.scheme.clone());
        }
        let mut ways = ways(&Question {
            unet,
            policy,
            schemes,
            sizes: setting.sizes,
            fleet,
            speeds,
            calls: self.pipeline.calls(self.sampling)?,
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

/// What is about to be done, in a few words.
fn this_run(setting: &Setting) -> String {
    let quality = match setting.scheme.promised_psnr() {
        None => "the uncut picture".to_owned(),
        Some(db) => format!("{db:.0} dB at least from the uncut picture, by the demo model"),
    };
    format!("{} ({quality})", setting.scheme.label())
}

fn tell(lines: &[String], console: &Console) {
    lines.iter().for_each(|line| console.line(line));
}

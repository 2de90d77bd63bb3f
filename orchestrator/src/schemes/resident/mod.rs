//! Resident strips: every worker keeps its rows of every feature map for a whole step.
//!
//! - [`conductor`]: the user's walk of the U-Net, exchange by exchange.
//! - [`cloud`]: meets the workers at the exchanges, and does the user's part.
//! - [`count`]: what would travel, without sending it.
//! - [`own`]: the layers that the user computes.
//! - here: that as a predictor.

pub mod cloud;
pub mod conductor;
pub mod count;
pub mod own;

use std::ops::Range;

use shared::exchange::Resident as Seating;
use shared::executor::Executor;
use shared::host::HostTensor;
use shared::partition::{Levels, strips};
use shared::placement::Prompt;
use shared::unet::UNet;
use shared::whole::Whole;

use crate::cost::count::Count;
use crate::error::Result;
use crate::fleet::Fleet;
use crate::fleet::config::FleetConfig;
use crate::fleet::tally::Traffic;
use crate::policy::ledger::Seen;
use crate::schemes::{Finished, Predictor, Setting};
use cloud::Cloud;
use conductor::Conductor;

/// Opens a session on every worker of `config`, each with its strip.
///
/// # Errors
/// [`shared::Error::TooManyStrips`]; as [`Fleet::open`].
pub async fn open(
    config: &FleetConfig,
    digest: &str,
    unet: &UNet,
    setting: &Setting,
) -> Result<Fleet> {
    let [batch, rows, columns] = setting.latents;
    let levels = Levels::new(rows, unet.levels());
    let seatings: Vec<Seating> = cut_strips(&levels, config.workers.len())?
        .into_iter()
        .map(|strip| Seating {
            batch,
            rows,
            columns,
            strip,
            tokens: setting.tokens,
            placement: setting.placement,
        })
        .collect();
    Fleet::open(config, digest, &seatings).await
}

/// The rows that each of `workers` workers computes and is sent, over all levels.
///
/// # Errors
/// [`shared::Error::TooManyStrips`].
pub fn rows_seen(unet: &UNet, setting: &Setting, workers: usize) -> Result<Vec<Seen>> {
    let [_, rows, _] = setting.latents;
    let levels = Levels::new(rows, unet.levels());
    let see = |strip: &Range<usize>| {
        let [mut own, mut with_halo] = Seen::default();
        for level in 0..levels.count() {
            let Range { start, end } = levels.scale(strip, level);
            let [start, end] = [start, end].map(|row| row as isize);
            own.add(start, end, levels.rows(level));
            with_halo.add(start - 1, end + 1, levels.rows(level));
        }
        [own, with_halo]
    };
    Ok(cut_strips(&levels, workers)?.iter().map(see).collect())
}

/// Each worker's rows of the coarsest level.
///
/// # Errors
/// [`shared::Error::TooManyStrips`] when there are not enough.
fn cut_strips(levels: &Levels, workers: usize) -> Result<Vec<Range<usize>>> {
    let rows = levels.coarsest();
    if workers > rows {
        return Err(shared::Error::TooManyStrips { workers, rows }.into());
    }
    Ok(strips(rows, workers))
}

/// Predicts noise on resident strips.
pub struct Resident<'a> {
    unet: &'a UNet,
    rows: usize,
    conductor: Conductor<Cloud>,
}

impl<'a> Resident<'a> {
    /// A predictor over a `fleet` that [`open`] opened, with the user's part in `whole`.
    ///
    /// # Errors
    /// [`crate::Error::Shared`] when the device does not give the prompt back.
    pub fn new(unet: &'a UNet, setting: &Setting, fleet: Fleet, whole: Whole) -> Result<Self> {
        let [_, rows, _] = setting.latents;
        let levels = Levels::new(rows, unet.levels());
        let strips = cut_strips(&levels, fleet.len())?;
        let counts = count::first_calls(unet, setting, fleet.len())?;
        let limit = counts.iter().map(Count::largest_reply).max();
        let prompt = match (setting.placement.prompt, whole.prompt()) {
            (Prompt::Shared, Some(prompt)) => Some(HostTensor::from_device(prompt.clone())?),
            _ => None,
        };
        let cloud = Cloud::new(
            fleet,
            whole,
            prompt,
            setting.placement.wire,
            levels,
            strips,
            limit.unwrap_or(0),
        );
        Ok(Self {
            unet,
            rows,
            conductor: Conductor::new(unet, setting, cloud),
        })
    }
}

impl Predictor for Resident<'_> {
    fn predict(&mut self, sample: HostTensor, timestep: f64) -> Result<HostTensor> {
        let whole = self.conductor.hub.whole();
        let embedding = whole.embed_time(&self.unet.time, timestep)?;
        let embedding = HostTensor::from_device(embedding)?;
        self.conductor.hub.set_step(sample, embedding);
        self.conductor.call(self.unet, self.rows, timestep)?;
        let prediction = self.conductor.hub.take_prediction();
        prediction.ok_or_else(|| shared::Error::Message("the step did not end".into()).into())
    }

    fn traffic(&self) -> Option<Traffic> {
        Some(self.conductor.hub.fleet().traffic())
    }

    fn finish(self: Box<Self>) -> Finished {
        let (whole, fleet) = self.conductor.hub.into_parts();
        Finished {
            user_flop: whole.flop(),
            fleet: Some(fleet),
        }
    }
}

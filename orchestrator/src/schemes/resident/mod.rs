//! Resident strips: every worker keeps its rows of every feature map for a whole step.
//!
//! - [`mod@conductor`]: the user's walk of the U-Net, exchange by exchange.
//! - [`cloud`]: meets the workers at the exchanges, and does the user's part.
//! - [`intake`]: what workers hand out, read and checked.
//! - [`tiles`]: what workers attend to without knowing what it is.
//! - [`count`]: what would travel, without sending it.
//! - [`own`]: the layers that the user computes.
//! - here: that as a predictor.

pub mod cloud;
pub mod conductor;
pub mod count;
pub mod intake;
pub mod own;
pub mod tiles;

use std::ops::Range;

use shared::exchange::{Assignment, Seat};
use shared::executor::Executor;
use shared::host::{HostTensor, OnDevice};
use shared::partition::{Levels, strips};
use shared::placement::{Prompt, SelfAttention, Tile};
use shared::unet::UNet;
use shared::whole::Whole;
use shared::wire::SessionKind;

use crate::cost::count::Count;
use crate::error::Result;
use crate::fleet::Fleet;
use crate::fleet::config::FleetConfig;
use crate::fleet::tally::{Seen, Traffic};
use crate::schemes::{Finished, Predictor, Setting};
use cloud::Cloud;
use conductor::{Conductor, conductor};

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
    let assignments = assignments(unet, setting, config.workers.len())?;
    let kind = |worker: usize| SessionKind::Strip(assignments[worker].clone());
    Fleet::open(config, digest, kind, setting.lane_count()).await
}

/// What each of `workers` workers is told of its place when a session opens.
///
/// # Errors
/// [`shared::Error::TooManyStrips`].
pub fn assignments(unet: &UNet, setting: &Setting, workers: usize) -> Result<Vec<Assignment>> {
    let [batch, rows, columns] = setting.of_lane().latents;
    let levels = Levels::new(rows, unet.levels());
    let strips = cut_strips(&levels, workers)?.into_iter();
    let assign = |(strip, tile)| Assignment {
        batch,
        rows,
        columns,
        strip,
        tokens: setting.tokens,
        placement: setting.placement,
        tile,
    };
    Ok(strips.zip(Tile::grid(workers)).map(assign).collect())
}

/// What each of `workers` workers will be shown.
///
/// # Errors
/// [`shared::Error::TooManyStrips`].
pub fn seen(unet: &UNet, setting: &Setting, workers: usize) -> Result<Vec<Seen>> {
    let [_, rows, _] = setting.latents;
    let levels = Levels::new(rows, unet.levels());
    let attentions = setting.placement.self_attention;
    let tiled = attentions
        .of_levels(levels.count())
        .contains(&SelfAttention::Tiled);
    let see = |(strip, tile): (&Range<usize>, Tile)| {
        let mut seen = Seen::default();
        for level in 0..levels.count() {
            seen.add_strip(&levels.scale(strip, level), levels.rows(level));
        }
        if tiled {
            seen.add_tile(tile);
        }
        seen
    };
    let strips = cut_strips(&levels, workers)?;
    Ok(strips.iter().zip(Tile::grid(workers)).map(see).collect())
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

/// Each worker's place at `level`.
fn seats(levels: &Levels, strips: &[Range<usize>], level: usize) -> Vec<Seat> {
    let tiles = Tile::grid(strips.len());
    let seat = |(strip, tile)| Seat::new(levels, strip, tile, level);
    strips.iter().zip(tiles).map(seat).collect()
}

/// Predicts noise on resident strips.
pub struct Resident<'a> {
    unet: &'a UNet,
    /// Each with as many batch entries.
    lanes: Vec<Conductor<Cloud>>,
}

impl<'a> Resident<'a> {
    /// A predictor over a `fleet` that [`open`] opened, with the user's part in `whole`.
    ///
    /// # Errors
    /// [`crate::Error::Shared`] when the device does not give the prompt back.
    pub fn new(unet: &'a UNet, setting: &Setting, fleet: Fleet, whole: Whole) -> Result<Self> {
        let setting_of_lane = setting.of_lane();
        let [batch, rows, _] = setting_of_lane.latents;
        let levels = Levels::new(rows, unet.levels());
        let strips = cut_strips(&levels, fleet.len())?;
        let counts = count::first_calls(unet, setting, fleet.len())?;
        let limit = counts.iter().map(Count::largest_reply).max();
        let lane = |(i, fleet)| {
            let whole = whole.of_entries(i * batch, batch);
            let prompt = match (setting.placement.prompt, whole.prompt()) {
                (Prompt::Shared, Some(prompt)) => Some(HostTensor::from_device(prompt.clone())?),
                _ => None,
            };
            let cloud = Cloud::new(
                fleet,
                whole,
                prompt,
                setting.placement.wires,
                levels.clone(),
                strips.clone(),
                limit.unwrap_or(0),
            );
            Ok(conductor(unet, &setting_of_lane, cloud))
        };
        let lanes = fleet.split().into_iter().enumerate().map(lane);
        Ok(Self {
            unet,
            lanes: lanes.collect::<Result<_>>()?,
        })
    }
}

/// One lane's prediction.
fn predict(
    unet: &UNet,
    lane: &mut Conductor<Cloud>,
    sample: HostTensor,
    timestep: f64,
) -> Result<HostTensor> {
    let embedding = lane.party.hub.whole().embed_time(&unet.time, timestep)?;
    let embedding = HostTensor::from_device(embedding)?;
    lane.party.hub.set_step(sample, embedding);
    lane.step(unet, timestep)?;
    let prediction = lane.party.hub.take_prediction();
    prediction
        .ok_or_else(|| shared::protocol::Error::OutOfTurn("the step did not end".into()).into())
}

impl Predictor for Resident<'_> {
    fn predict(&mut self, sample: HostTensor, timestep: f64) -> Result<HostTensor> {
        let unet = self.unet;
        if let [lane] = &mut self.lanes[..] {
            return predict(unet, lane, sample, timestep);
        }
        let samples = sample.split_batch(self.lanes.len())?;
        let predictions: Vec<Result<HostTensor>> = std::thread::scope(|scope| {
            let lanes = self.lanes.iter_mut().zip(samples);
            let threads = lanes
                .map(|(lane, sample)| scope.spawn(move || predict(unet, lane, sample, timestep)));
            let threads: Vec<_> = threads.collect();
            let results = threads.into_iter().map(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            results.collect()
        });
        let predictions = predictions.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(HostTensor::join_batch(&predictions)?)
    }

    fn traffic(&self) -> Option<Traffic> {
        let mut all = Traffic::default();
        for lane in &self.lanes {
            all.add(&lane.party.hub.fleet().traffic());
        }
        Some(all)
    }

    fn finish(self: Box<Self>) -> Finished {
        let mut user_flop = 0;
        let parts = self.lanes.into_iter().map(|lane| {
            let (whole, fleet) = lane.party.hub.into_parts();
            user_flop += whole.flop();
            fleet
        });
        let fleet = Fleet::join(parts.collect());
        Finished {
            user_flop,
            fleet,
            ..Finished::default()
        }
    }
}

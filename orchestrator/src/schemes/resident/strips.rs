//! Predicts noise on resident strips.

use lacuna_model::executor::Executor;
use lacuna_model::host::OnDevice;
use lacuna_model::partition::Levels;
use lacuna_model::unet::UNet;
use lacuna_model::whole::Whole;
use lacuna_protocol::placement::Prompt;
use lacuna_wire::HostTensor;

use super::cloud::Cloud;
use super::conductor::{Conductor, conductor};
use super::count;
use super::layout::Layout;
use super::places::cut_strips;
use crate::error::Result;
use crate::fleet::Fleet;
use crate::fleet::tally::Traffic;
use crate::schemes::count::Count;
use crate::schemes::{Finished, Predictor};

/// Predicts noise on resident strips.
pub struct Strips<'a> {
    unet: &'a UNet,
    /// Each with as many batch entries.
    lanes: Vec<Conductor<Cloud>>,
}

impl<'a> Strips<'a> {
    /// A predictor over a `fleet` of sessions with strips, with the user's part in `whole`.
    ///
    /// # Errors
    /// [`crate::Error::Model`] when the device does not give the prompt back.
    pub fn new(unet: &'a UNet, layout: &Layout, fleet: Fleet, whole: Whole) -> Result<Self> {
        let of_lane = layout.of_lane();
        let [batch, rows, _] = of_lane.latents;
        let levels = Levels::new(rows, unet.levels());
        let strips = cut_strips(&levels, fleet.len())?;
        let counts = count::first_calls(unet, layout, fleet.len())?;
        let limit = counts.iter().map(Count::largest_reply).max();
        let lane = |(i, fleet)| {
            let whole = whole.of_entries(i * batch, batch);
            let prompt = match (layout.placement.prompt, whole.prompt()) {
                (Prompt::Shared, Some(prompt)) => Some(HostTensor::from_device(prompt.clone())?),
                _ => None,
            };
            let cloud = Cloud::new(
                fleet,
                whole,
                prompt,
                layout.placement.wires,
                levels.clone(),
                strips.clone(),
                limit.unwrap_or(0),
            );
            Ok(conductor(unet, &of_lane, cloud))
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
    lane.party.hub.begin_step(sample, embedding)?;
    lane.step(unet, timestep)?;
    let prediction = lane.party.hub.take_prediction();
    prediction
        .ok_or_else(|| lacuna_protocol::Error::OutOfTurn("the step did not end".into()).into())
}

impl Predictor for Strips<'_> {
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

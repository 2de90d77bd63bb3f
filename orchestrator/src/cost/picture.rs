//! What one picture takes: all its U-Net calls. Text encoder and VAE, the same under every scheme, come on top.

use lacuna_model::survey::survey;
use lacuna_model::unet::UNet;
use serde::Serialize;

use super::time::Speeds;
use crate::error::Result;
use crate::fleet::link::Link;
use crate::schemes::Setting;
use crate::schemes::count::Count;

/// What travels for one picture: its first call, which brings what later ones need, and the others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PictureTraffic {
    /// U-Net calls.
    pub calls: usize,
    /// Bytes of tensors to all workers.
    pub bytes_up: u64,
    /// Bytes of tensors from all workers.
    pub bytes_down: u64,
    /// Exchanges, one after the other.
    pub round_trips: usize,
    /// On the link, without any computation.
    pub seconds: f64,
}

/// How often a picture of so many `calls` takes what the first call does, and what each later one does.
fn times(calls: usize) -> [usize; 2] {
    [1.min(calls), calls.saturating_sub(1)]
}

impl PictureTraffic {
    /// Of so many calls, of which the first and each later one are `counts`, over `link`.
    pub fn new(counts: &[Count; 2], calls: usize, link: &Link) -> Self {
        let mut traffic = Self {
            calls,
            bytes_up: 0,
            bytes_down: 0,
            round_trips: 0,
            seconds: 0.0,
        };
        for (count, times) in counts.iter().zip(times(calls)) {
            let [up, down] = count.total();
            traffic.bytes_up += times as u64 * up;
            traffic.bytes_down += times as u64 * down;
            traffic.round_trips += times * count.round_trips();
            traffic.seconds += times as f64 * count.link_seconds(link).iter().sum::<f64>();
        }
        traffic
    }
}

/// What one picture takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PictureCost {
    /// U-Net calls.
    pub calls: usize,
    /// All of them.
    pub seconds: f64,
    /// Bytes of tensors to all workers.
    pub bytes_up: u64,
    /// Bytes of tensors from all workers.
    pub bytes_down: u64,
    /// The user's work, multiply and add counted as two, in 10^9.
    pub user_gflop: f64,
    /// All workers' work, likewise.
    pub workers_gflop: f64,
    /// Bytes of the user's memory that the user's part of the U-Net takes, about ([`user_memory`]).
    pub memory: u64,
}

impl PictureCost {
    /// What `calls` calls by `setting` take on `workers` workers.
    ///
    /// # Errors
    /// [`lacuna_model::Error::TooManyStrips`].
    pub fn new(
        unet: &UNet,
        setting: &Setting,
        workers: usize,
        calls: usize,
        speeds: &Speeds,
    ) -> Result<Self> {
        let counts = setting.first_calls(unet, workers)?;
        let traffic = PictureTraffic::new(&counts, calls, &speeds.link);
        let mut cost = Self {
            calls,
            seconds: 0.0,
            bytes_up: traffic.bytes_up,
            bytes_down: traffic.bytes_down,
            user_gflop: 0.0,
            workers_gflop: 0.0,
            memory: user_memory(unet, setting)?,
        };
        for (count, times) in counts.iter().zip(times(calls)) {
            let workers: u64 = count.workers_flop.iter().sum();
            cost.seconds += times as f64 * speeds.seconds(count).total();
            cost.user_gflop += times as f64 * count.user_flop as f64 / 1e9;
            cost.workers_gflop += times as f64 * workers as f64 / 1e9;
        }
        Ok(cost)
    }
}

/// How many times the largest layer's input and output are there at a time, about: what waits for the way up,
/// and what the widest block makes. `lacuna bench --batch 2 --calls 1 --schemes local --json` measures 3.94 GB
/// for SD 1.5, the process included; this gives 3.91.
const LAYERS_AT_A_TIME: u64 = 5;

/// Bytes that the user's part of the U-Net takes, about: the weights that stay for a whole picture, in f32 as they are
/// held, and features of a few times the largest of the layers that the user computes.
///
/// # Errors
/// None today: shapes alone cannot fail.
pub fn user_memory(unet: &UNet, setting: &Setting) -> Result<u64> {
    let mut parameters = setting.user_parameters(unet)?.held;
    if let Some(apart) = setting
        .scheme
        .apart(unet, &setting.sizes)?
        .filter(|apart| !apart.held)
    {
        (_, parameters) = apart.part(&parameters);
    }
    let weights: u64 = parameters
        .iter()
        .map(|parameter| parameter.values() as u64)
        .sum();
    let sizes = &setting.sizes;
    let operations = survey(unet, sizes.latents, sizes.tokens)?;
    let own = setting.scheme.user_features(unet, sizes)?;
    let own = |layer: &String| own.as_ref().is_none_or(|own| own.contains(layer));
    let values = |shape: [usize; 4]| shape.into_iter().map(|n| n as u64).product::<u64>();
    let largest = operations
        .iter()
        .filter(|operation| own(&operation.layer))
        .map(|operation| values(operation.input) + values(operation.output))
        .max()
        .unwrap_or(0);
    Ok((weights + LAYERS_AT_A_TIME * largest) * size_of::<f32>() as u64)
}

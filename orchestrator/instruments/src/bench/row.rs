//! What the sessions of one case took.

use std::collections::BTreeMap;

use serde::Serialize;

use super::case::Case;
use super::process::Memory;
use super::subject::{Output, Session};
use lacuna_orchestrator::fleet::link::Link;
use lacuna_orchestrator::fleet::tally::Traffic;
use lacuna_orchestrator::generator::denoiser::Accounts;
use lacuna_orchestrator::pipeline::Step;
use lacuna_orchestrator::schemes::Options;
use lacuna_orchestrator::schemes::count::{Count, once};
use lacuna_orchestrator::schemes::local::Local;

/// One case's sessions.
pub struct Row {
    /// The case.
    pub case: Case,
    /// What the first two calls of a session send and compute, counted.
    counts: [Count; 2],
    /// Of every call that counts but each session's first.
    seconds: Vec<f64>,
    /// Of each session's first call, which brings along what later ones need not send again.
    first_seconds: Vec<f64>,
    last: Option<Account>,
    memory: Option<Memory>,
}

/// The last session's account.
struct Account {
    /// Of one call behind the first.
    traffic: Traffic,
    /// Of one call behind the first.
    user_gflop: f64,
    workers_gflop: f64,
    output: Output,
}

/// One case in short. A call is a U-Net call with random weights, else a sampler step.
#[derive(Serialize)]
pub struct Summary {
    /// The case in a few words.
    #[serde(skip)]
    pub label: String,
    /// The scheme's name.
    pub scheme: String,
    /// Number of workers.
    pub workers: usize,
    /// The scheme's options that tell one row from another, such as `wire`.
    #[serde(flatten)]
    pub details: BTreeMap<&'static str, String>,
    /// Of the calls behind each session's first; of that where there is no other.
    pub seconds_per_call_median: f64,
    /// The shortest of them.
    pub seconds_per_call_min: f64,
    /// The longest of them.
    pub seconds_per_call_max: f64,
    /// Median of the sessions' first calls.
    pub seconds_first_call: f64,
    /// Median to the first row's.
    pub ratio_to_first_row: f64,
    /// Of the median: what the emulated link takes for the tensors' bytes and the round trips, computed.
    pub link_seconds_per_call: Option<f64>,
    /// How often a call waits for the workers, counted.
    pub round_trips_per_call: usize,
    /// Requests to all workers in a call behind the first.
    pub requests_per_call: u64,
    /// Bodies of those requests.
    pub bytes_up_per_call: u64,
    /// Bodies of the replies.
    pub bytes_down_per_call: u64,
    /// Of the requests' bytes, the tensors' numbers: what `lacuna cost` counts.
    pub payload_bytes_up_per_call: u64,
    /// The same of the replies.
    pub payload_bytes_down_per_call: u64,
    /// The user's work in a call behind the first, multiply and add counted as two, in 10^9.
    pub user_gflop_per_call: f64,
    /// All workers' work, likewise.
    pub workers_gflop_per_call: f64,
    /// Of the result against `local`'s: none where it is infinite, or nothing was done locally.
    pub psnr_db: Option<f64>,
    /// Whether the result has the bits of `local`'s.
    pub identical_to_local: Option<bool>,
    /// Most resident memory while the row was computed, warming up included; where the system cannot
    /// forget older marks, since the start of each process.
    pub peak_memory: Option<Memory>,
}

impl Row {
    /// No session yet; `counts` is what the first two calls of one send.
    pub fn new(case: Case, counts: [Count; 2]) -> Self {
        Self {
            case,
            counts,
            seconds: Vec::new(),
            first_seconds: Vec::new(),
            last: None,
            memory: None,
        }
    }

    /// Takes a session into account, unless it only warms up and is not `counted`.
    pub fn add(&mut self, session: Session, counted: bool) {
        if !counted {
            return;
        }
        let Accounts {
            user_flop,
            pictures,
            ..
        } = session.accounts;
        let workers_flop = pictures.iter().flatten().map(|tally| tally.flop).sum();
        let seconds = session.steps.iter().map(|step| step.took.as_secs_f64());
        let seconds: Vec<f64> = seconds.collect();
        self.first_seconds.extend(seconds.first());
        self.seconds.extend(later(&seconds));
        let calls = session.steps.len() as f64;
        let per_call = |flop: u64, once: u64| flop.saturating_sub(once) as f64 / 1e9 / calls;
        let [user_once, workers_once] = once(&self.counts);
        self.last = Some(Account {
            traffic: of_a_later_call(&session.steps),
            user_gflop: per_call(user_flop, user_once),
            workers_gflop: per_call(workers_flop, workers_once),
            output: session.output,
        });
    }

    /// What memory a session took at most.
    pub fn see_memory(&mut self, memory: Option<Memory>) {
        self.memory = match (self.memory.take(), memory) {
            (Some(before), Some(now)) => Some(before.max(now)),
            (before, now) => before.or(now),
        };
    }
}

/// The calls behind the first, or the only one.
fn later<T>(calls: &[T]) -> &[T] {
    match calls {
        [_, later @ ..] if !later.is_empty() => later,
        all => all,
    }
}

/// Traffic of one call, by what was added behind the first.
fn of_a_later_call(steps: &[Step]) -> Traffic {
    let at = |step: Option<&Step>| step.and_then(|step| step.traffic).unwrap_or_default();
    let (before, calls) = match steps {
        [_] | [] => (Traffic::default(), 1),
        [first, later @ ..] => (at(Some(first)), later.len() as u64),
    };
    let all = at(steps.last());
    let mean = |of: fn(&Traffic) -> u64| (of(&all) - of(&before)) / calls;
    Traffic {
        requests: mean(|t| t.requests),
        bytes_up: mean(|t| t.bytes_up),
        bytes_down: mean(|t| t.bytes_down),
        payload_up: mean(|t| t.payload_up),
        payload_down: mean(|t| t.payload_down),
    }
}

/// All rows in short.
pub fn summarise(rows: &[Row], link: Option<Link>) -> Vec<Summary> {
    let local = rows
        .iter()
        .find(|row| row.case.scheme.name() == Local::NAME);
    let local = local.and_then(|row| row.last.as_ref());
    let first = rows.first().map_or(f64::NAN, |row| median(&row.seconds));
    let each = rows
        .iter()
        .filter_map(|row| Some((row, row.last.as_ref()?)));
    each.map(|(row, last)| {
        let Traffic {
            requests,
            bytes_up,
            bytes_down,
            payload_up,
            payload_down,
        } = last.traffic;
        let round_trips = row.counts[1].round_trips();
        let seconds = median(&row.seconds);
        let psnr = local.map(|local| psnr(&last.output, &local.output));
        Summary {
            label: row.case.label(),
            scheme: row.case.scheme.name().to_owned(),
            workers: row.case.workers,
            details: row.case.scheme.details().into_iter().collect(),
            seconds_per_call_median: seconds,
            seconds_per_call_min: row.seconds.iter().copied().fold(f64::INFINITY, f64::min),
            seconds_per_call_max: row.seconds.iter().copied().fold(0.0, f64::max),
            seconds_first_call: median(&row.first_seconds),
            ratio_to_first_row: seconds / first,
            link_seconds_per_call: link.map(|link| row.counts[1].link_seconds(&link).iter().sum()),
            round_trips_per_call: round_trips,
            requests_per_call: requests,
            bytes_up_per_call: bytes_up,
            bytes_down_per_call: bytes_down,
            payload_bytes_up_per_call: payload_up,
            payload_bytes_down_per_call: payload_down,
            user_gflop_per_call: last.user_gflop,
            workers_gflop_per_call: last.workers_gflop,
            psnr_db: psnr.filter(|db| db.is_finite()),
            identical_to_local: local.map(|local| last.output.values == local.output.values),
            peak_memory: row.memory.clone(),
        }
    })
    .collect()
}

/// `10 log10(R^2 / MSE)` in dB over the range `R` of the reference; infinite when they are equal.
fn psnr(output: &Output, reference: &Output) -> f64 {
    let values = || reference.values.iter().map(|x| f64::from(*x));
    let own_range = || values().fold(f64::MIN, f64::max) - values().fold(f64::MAX, f64::min);
    let range = reference.range.map_or_else(own_range, f64::from);
    let pairs = output.values.iter().zip(values());
    let squares: f64 = pairs.map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let mse = squares / reference.values.len() as f64;
    10.0 * (range * range / mse).log10()
}

/// The middle value, or the mean of the two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    let n = sorted.len();
    (middle(n / 2) + middle(n.saturating_sub(1) / 2)) / 2.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn output(values: &[f32], range: Option<f32>) -> Output {
        Output {
            values: values.to_vec(),
            range,
        }
    }

    #[test]
    fn psnr_is_over_the_range_of_the_reference_unless_told() {
        let reference = output(&[-2.0, 3.0], None);
        assert!((psnr(&output(&[-1.5, 3.5], None), &reference) - 20.0).abs() < 1e-12);
        let reference = output(&[10.0, 20.0], Some(255.0));
        let off = output(&[10.0, 45.5], Some(255.0));
        assert!((psnr(&off, &reference) - (20.0 + 10.0 * 2f64.log10())).abs() < 1e-12);
        assert_eq!(psnr(&reference, &reference), f64::INFINITY);
    }

    #[test]
    fn the_median_of_an_even_number_is_between_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_first_call_counts_only_where_it_is_the_only_one() {
        let step = |done, bytes_up| Step {
            done,
            of: 3,
            took: Duration::ZERO,
            traffic: Some(Traffic {
                bytes_up,
                ..Traffic::default()
            }),
        };
        let steps = [step(1, 100), step(2, 107), step(3, 114)];
        assert_eq!(of_a_later_call(&steps).bytes_up, 7);
        assert_eq!(of_a_later_call(&steps[..1]).bytes_up, 100);
        assert_eq!(later(&[1, 2, 3]), [2, 3]);
        assert_eq!(later(&[1]), [1]);
    }
}

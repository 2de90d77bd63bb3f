//! How fast the user's connection to the workers is, and what they say of themselves.

use std::time::{Duration, Instant};

use futures::future::try_join_all;

use super::client::Client;
use super::config::FleetConfig;
use super::link::Link;
use crate::error::Result;

/// Requests whose round trips are timed, of which the fastest counts.
const ROUND_TRIPS: usize = 3;
/// Bytes to each worker to begin with.
const FEWEST: usize = 64 << 10;
/// And at most: a second of a fast connection.
const MOST: usize = 16 << 20;
/// A transfer that takes so long tells the rate.
const LONG_ENOUGH: Duration = Duration::from_millis(300);

/// What was measured of a fleet.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The user's connection, which all workers share; the round trip is the slowest worker's.
    pub link: Link,
    /// What each worker measured of its device, 10^9 operations a second, where it says.
    pub worker_gflops: Vec<Option<f64>>,
}

/// Measures the connection to the workers of `config`, both ways with all of them at once.
///
/// # Errors
/// As [`Client::info`] and [`Client::probe`]; each names the worker.
pub async fn measure(config: &FleetConfig) -> Result<Measured> {
    let clients = config.workers.iter().map(Client::new);
    let clients = clients.collect::<Result<Vec<Client>>>()?;
    let mut worker_gflops = Vec::new();
    let mut most = MOST;
    let mut round_trip = Duration::ZERO;
    for client in &clients {
        let (info, mut fastest) = client.info().await?;
        for _ in 1..ROUND_TRIPS {
            let (_, took) = client.info().await?;
            fastest = fastest.min(took);
        }
        most = most.min(info.limits.max_body_bytes);
        worker_gflops.push(info.gflops);
        round_trip = round_trip.max(fastest);
    }
    let link = Link {
        uplink_mbps: rate(&clients, round_trip, most, |size| [size, 0]).await?,
        downlink_mbps: rate(&clients, round_trip, most, |size| [0, size]).await?,
        rtt_ms: round_trip.as_secs_f64() * 1e3,
    };
    Ok(Measured {
        link,
        worker_gflops,
    })
}

/// 10^6 bits a second that go through when every client moves as many bytes as `sizes` makes of a size,
/// up and down.
async fn rate(
    clients: &[Client],
    round_trip: Duration,
    most: usize,
    sizes: fn(usize) -> [usize; 2],
) -> Result<f64> {
    let mut size = FEWEST.min(most);
    loop {
        let [up, down] = sizes(size);
        let start = Instant::now();
        try_join_all(clients.iter().map(|client| client.probe(up, down))).await?;
        // What is left of a transfer that the clock cannot see is not zero.
        let took = start.elapsed().saturating_sub(round_trip);
        let took = took.max(Duration::from_micros(1));
        if took >= LONG_ENOUGH || size == most {
            return Ok((size * clients.len() * 8) as f64 / took.as_secs_f64() / 1e6);
        }
        size = (4 * size).min(most);
    }
}

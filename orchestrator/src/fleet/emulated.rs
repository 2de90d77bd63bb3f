//! An emulated link: what a slow connection does to a run, tried on one machine.
//!
//! Every worker gets a stand-in on a loopback port. What passes goes through one uplink and one
//! downlink, which all workers share as they share the user's own, each with a rate and a delay.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::config::FleetConfig;
use super::link::Link;
use crate::error::{Error, Result};

/// Bytes that take their turn on the link at a time: about what a network's packets come in bursts of.
const PIECE: usize = 16 << 10;
/// How much earlier than it has left a piece is let go: clocks wake by whole milliseconds, and a lane that was idle until
/// then would be slower than it says. When a piece arrives does not depend on this.
const EARLY: Duration = Duration::from_millis(3);
/// Pieces that may be on their way in one direction of one connection.
const IN_FLIGHT: usize = 1024;

/// A link that is emulated for as long as this lives.
pub struct EmulatedLink {
    config: FleetConfig,
    tasks: Vec<JoinHandle<()>>,
}

impl EmulatedLink {
    /// Puts `link` between this process and the workers of `config`, which must be reached by plain
    /// HTTP.
    ///
    /// # Errors
    /// [`Error::LocalWorker`] when the system gives no port, or a worker's address is not plain.
    pub async fn start(config: &FleetConfig, link: Link) -> Result<Self> {
        let failed = |e: &dyn std::fmt::Display| Error::LocalWorker(e.to_string());
        let delay = Duration::from_secs_f64(link.rtt_ms / 2e3);
        let up = Lane::new(link.uplink_mbps, delay);
        let down = Lane::new(link.downlink_mbps, delay);
        let mut config = config.clone();
        let mut tasks = Vec::with_capacity(config.workers.len());
        for worker in &mut config.workers {
            let host = worker.url.host_str().unwrap_or_default().to_owned();
            let port = worker.url.port_or_known_default().unwrap_or(80);
            if worker.url.scheme() != "http" {
                return Err(failed(&format!("{} is not plain HTTP", worker.url)));
            }
            let listener = TcpListener::bind("127.0.0.1:0")
                .await
                .map_err(|e| failed(&e))?;
            let address = listener.local_addr().map_err(|e| failed(&e))?;
            worker.url = format!("http://{address}/")
                .parse()
                .map_err(|e| failed(&e))?;
            let (up, down) = (up.clone(), down.clone());
            tasks.push(tokio::spawn(async move {
                while let Ok((user, _)) = listener.accept().await {
                    match TcpStream::connect((host.as_str(), port)).await {
                        Ok(worker) => join(user, worker, &up, &down),
                        // The user's side sees a connection that ends at once, as it would.
                        Err(error) => tracing::warn!("{host}:{port}: {error}"),
                    }
                }
            }));
        }
        Ok(Self { config, tasks })
    }

    /// The workers as they are reached through the link.
    pub fn config(&self) -> &FleetConfig {
        &self.config
    }
}

impl Drop for EmulatedLink {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// One direction of the link.
struct Lane {
    bytes_per_second: f64,
    delay: Duration,
    /// When the last piece will have left.
    free: Mutex<Instant>,
}

impl Lane {
    fn new(mbps: f64, delay: Duration) -> Arc<Self> {
        Arc::new(Self {
            bytes_per_second: mbps * 1e6 / 8.0,
            delay,
            free: Mutex::new(Instant::now()),
        })
    }

    /// Waits until `bytes` have left, about; gives when they arrive.
    async fn pass(&self, bytes: usize) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        let left = {
            let mut free = self.free.lock().await;
            *free = (*free).max(Instant::now()) + takes;
            *free
        };
        if left > Instant::now() + EARLY {
            sleep_until(left - EARLY).await;
        }
        left + self.delay
    }
}

/// Passes everything between the two, both ways.
fn join(user: TcpStream, worker: TcpStream, up: &Arc<Lane>, down: &Arc<Lane>) {
    for stream in [&user, &worker] {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::warn!("cannot set TCP_NODELAY: {error}");
        }
    }
    let (from_user, to_user) = user.into_split();
    let (from_worker, to_worker) = worker.into_split();
    tokio::spawn(carry(from_user, to_worker, up.clone()));
    tokio::spawn(carry(from_worker, to_user, down.clone()));
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin + Send + 'static,
    lane: Arc<Lane>,
) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let arrivals = tokio::spawn(async move {
        while let Some((arrives, piece)) = pieces.recv().await {
            sleep_until(arrives).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        // The other side learns that nothing more comes; if it is gone already, so be it.
        let _ = to.shutdown().await;
    });
    let mut buffer = vec![0; PIECE];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let arrives = lane.pass(read).await;
        if sender
            .send((arrives, buffer[..read].to_vec()))
            .await
            .is_err()
        {
            break;
        }
    }
    drop(sender);
    // A panic there has been reported already.
    let _ = arrivals.await;
}

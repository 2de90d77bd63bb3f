//! Workers of one's own: services in this process that are really talked to over loopback.

use std::sync::Arc;
use std::time::Duration;

use lacuna_model::device::OpenDevice;
use lacuna_worker::tokens::Secret;
use lacuna_worker::{Model, Options, Service, serve};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::config::{FleetConfig, Trust, WorkerConfig};
use crate::error::{Error, Result};

/// Workers in this process; they end when this is dropped.
pub struct LocalWorkers {
    config: FleetConfig,
    _stop: Vec<oneshot::Sender<()>>,
}

impl LocalWorkers {
    /// Starts `n` workers that share `model`, for latents of `[batch, rows, columns]`. Each passes
    /// for a provider of its own.
    ///
    /// # Errors
    /// [`Error::LocalWorker`].
    pub async fn start(
        n: usize,
        model: &Arc<Model>,
        device: &OpenDevice,
        latents: [usize; 3],
    ) -> Result<Self> {
        let mut workers = Vec::with_capacity(n);
        let mut stop = Vec::with_capacity(n);
        for i in 0..n {
            let failed = |e: &dyn std::fmt::Display| Error::LocalWorker(e.to_string());
            // Nobody else on this machine shall compute on the user's workers.
            let token = uuid::Uuid::new_v4().to_string();
            let options = Options {
                token: Some(Secret(token.clone())),
                max_latents: latents,
                ..Options::default()
            };
            let service = Service::new(model.clone(), device, &options).map_err(|e| failed(&e))?;
            let listener = TcpListener::bind("127.0.0.1:0")
                .await
                .map_err(|e| failed(&e))?;
            let address = listener.local_addr().map_err(|e| failed(&e))?;
            let (sender, stopped) = oneshot::channel::<()>();
            let stopped = async move {
                // A dropped sender stops the worker just as a message does.
                let _ = stopped.await;
            };
            tokio::spawn(serve(listener, service, stopped, Duration::ZERO));
            let url = format!("http://{address}/");
            workers.push(WorkerConfig {
                url: url.parse().map_err(|e| failed(&e))?,
                provider: format!("loopback-{i}"),
                token: Some(token),
                trust: Trust::default(),
            });
            stop.push(sender);
        }
        Ok(Self {
            config: FleetConfig {
                workers,
                spares: Vec::new(),
            },
            _stop: stop,
        })
    }

    /// Where they listen.
    pub fn config(&self) -> &FleetConfig {
        &self.config
    }
}

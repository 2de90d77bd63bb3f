//! Adapters of the U-Net, for workers that hold the model without: they are sent once, and kept there.

use futures::future::try_join_all;
use lacuna_model::unet::UNet;
use lacuna_model::weights::Stored;
use lacuna_protocol::models::{ADAPTED, Adapted, StoredAdapter, adapter_file};

use super::config::{FleetConfig, WorkerConfig};
use super::line::Line;
use super::store::{Package, Pushed};
use crate::error::{Error, Result};

/// The adapters of the U-Net `stored`, ready to be sent to those who hold the rest. Nothing else of their files goes along: not what
/// is of text encoders, and no words.
///
/// # Errors
/// As [`Stored::digest`] and [`Stored::adapter_files`].
pub fn package(stored: &Stored<UNet>) -> Result<Package> {
    let (mut adapters, mut files) = (Vec::new(), Vec::new());
    for (content, strength) in stored.adapter_files()? {
        let file = adapter_file(&blake3::hash(&content));
        adapters.push(StoredAdapter {
            file: file.clone(),
            strength,
        });
        // The same one may come twice, and then its file once.
        if !files.iter().any(|(name, _)| *name == file) {
            files.push((file, content));
        }
    }
    let adapted = Adapted {
        model: stored.base_digest()?,
        adapters,
    };
    let told = serde_json::to_vec(&adapted).map_err(|e| Error::Request(e.to_string()))?;
    files.push((ADAPTED.to_owned(), told));
    Ok(Package::of_bytes(stored.digest()?.to_owned(), files))
}

/// Sends the adapters of `stored` to every worker of `config` that holds the model without them, and not with them.
///
/// # Errors
/// As [`package`] and [`Package::push`]; [`Error::WorkerAdapters`] for a worker that takes none.
pub async fn supply(stored: &Stored<UNet>, config: &FleetConfig) -> Result<()> {
    let (digest, base) = (stored.digest()?, stored.base_digest()?);
    let base = base.as_str();
    let asked = config.workers.iter().map(|worker| async move {
        let (info, _) = Line::new(worker)?.info().await?;
        let holds = |wanted: &str| info.models.iter().any(|model| model.digest == wanted);
        // What is of another model is said where the session is opened.
        Ok::<_, Error>((!holds(digest) && holds(base)).then_some(worker))
    });
    let lacking: Vec<&WorkerConfig> = try_join_all(asked).await?.into_iter().flatten().collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let package = package(stored)?;
    let supplies = lacking.into_iter().map(|worker| send(&package, worker));
    try_join_all(supplies).await.map(drop)
}

async fn send(package: &Package, worker: &WorkerConfig) -> Result<()> {
    let pushed = package.push(worker, |_| ()).await.map_err(|error| {
        // Who is older knows no model that is another one with adapters.
        let mut codes = ["store", "right", "invalid"].iter();
        let takes_none = codes.any(|code| error.is_of_code(code));
        match takes_none || matches!(error, Error::WorkerStore { .. }) {
            true => Error::WorkerAdapters {
                worker: worker.url.to_string(),
                reason: error.to_string(),
            },
            false => error,
        }
    })?;
    if let Pushed::Sent(bytes) = pushed {
        tracing::info!(worker = %worker.url, bytes, "sent the adapters of the U-Net");
    }
    Ok(())
}

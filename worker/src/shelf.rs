//! The models that sessions may have: the one that the worker was started with, and one of the store, which is loaded when a
//! session asks for it.
//!
//! A device's memory holds few models. So of those of the store one is loaded at a time, and stays until another is asked for
//! when no session uses it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use lacuna_model::device::{OpenDevice, Precision};
use lacuna_model::speed;
use lacuna_model::survey::PROMPT_TOKENS;
use lacuna_protocol::models::Kept;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Error, Result};
use crate::ground::{Ground, Loan};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::store::{Base, Lease, Store, adapter_files, read_adapted, source_of};

/// How often one who waits looks whether a model is free.
const LOOK: Duration = Duration::from_millis(50);

/// What models are loaded for.
#[derive(Clone)]
pub struct Bench {
    /// Where they go.
    pub device: OpenDevice,
    /// The number type of their weights.
    pub precision: Precision,
    /// Latents of the largest picture: batch, rows, columns.
    pub latents: [usize; 3],
    /// What counts their work.
    pub metrics: Arc<Metrics>,
}

/// The models of a worker.
pub struct Shelf {
    given: Option<Arc<Ground>>,
    store: Option<Arc<Store>>,
    bench: Bench,
    loaded: Mutex<Option<Arc<Ground>>>,
    /// Who has it may change what is loaded.
    turn: tokio::sync::Mutex<()>,
    /// What was measured of the device, 10^9 operations a second.
    gflops: Mutex<Option<f64>>,
}

impl Shelf {
    /// With the model that was `given`, and those of the `store`. The device's speed is `gflops`; where nobody measured it, that is
    /// done with the first model that is loaded.
    ///
    /// # Errors
    /// Those of [`Ground::new`].
    pub fn new(
        given: Option<Arc<Model>>,
        store: Option<Arc<Store>>,
        bench: Bench,
        gflops: Option<f64>,
    ) -> Result<Self> {
        let ground = |model| Ground::new(model, bench.latents, bench.metrics.clone());
        Ok(Self {
            given: given.map(ground).transpose()?.map(Arc::new),
            store,
            bench,
            loaded: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            gflops: Mutex::new(gflops),
        })
    }

    /// The model of `digest`, to be used. One that is not loaded is, for which `patience` is waited at most; loading then goes on,
    /// for whoever asks again.
    ///
    /// # Errors
    /// [`Error::UnknownModel`]; [`Error::Busy`] where sessions use another; [`Error::Loading`] where it takes longer; those of
    /// loading.
    pub async fn acquire(self: &Arc<Self>, digest: &str, patience: Duration) -> Result<Loan> {
        if let Some(given) = self.given.as_ref().filter(|g| g.model.digest() == digest) {
            return Ok(Loan::new(given.clone(), None));
        }
        let leased = self.store.as_ref().and_then(|store| store.lease(digest));
        let (path, lease) = leased.ok_or_else(|| Error::UnknownModel {
            wanted: digest.to_owned(),
            held: match self.digests() {
                none if none.is_empty() => "none".into(),
                digests => digests.join(", "),
            },
        })?;
        if let Some(ground) = self.loaded(digest) {
            return Ok(Loan::new(ground, Some(lease)));
        }
        let (done, loan) = oneshot::channel();
        let (shelf, digest) = (self.clone(), digest.to_owned());
        let until = Instant::now() + patience;
        tokio::spawn(async move { shelf.load(digest, (path, lease), until, done).await });
        // A moment more, in which it is said why.
        match timeout(patience + 4 * LOOK, loan).await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(_)) | Err(_) => Err(Error::Loading),
        }
    }

    /// Loads the model of `digest` in the place of another, for the one who waits for it, unless it waits no more.
    async fn load(
        self: Arc<Self>,
        digest: String,
        (path, lease): (PathBuf, Lease),
        until: Instant,
        mut done: oneshot::Sender<Result<Loan>>,
    ) {
        let _turn = tokio::select! {
            turn = self.turn.lock() => turn,
            // Else all who ever asked would have theirs loaded, one after the other.
            () = done.closed() => return,
        };
        let ground = match self.loaded(&digest) {
            Some(ground) => Ok(ground),
            None => self.replace(&digest, path, until).await,
        };
        let _ = done.send(ground.map(|ground| Loan::new(ground, Some(lease))));
    }

    /// The model of `digest` from the folder `path`, loaded in the place of another once nobody uses that.
    async fn replace(
        self: &Arc<Self>,
        digest: &str,
        path: PathBuf,
        until: Instant,
    ) -> Result<Arc<Ground>> {
        let busy = || Error::Busy("its sessions use another model");
        let mut before = Weak::new();
        while !self.vacate(&mut before) || before.strong_count() > 0 {
            if Instant::now() >= until {
                return Err(busy());
            }
            sleep(LOOK).await;
        }
        tracing::info!(digest = &digest[..12], "loading a model of the store");
        let (shelf, wanted) = (self.clone(), digest.to_owned());
        let loaded = tokio::task::spawn_blocking(move || shelf.read(&path, &wanted)).await;
        let ground = loaded.map_err(|e| Error::Compute(format!("loading the model: {e}")))??;
        *self.lock() = Some(ground.clone());
        Ok(ground)
    }

    /// Whether no model of the store is loaded any more: one that nobody uses is let go. `before` is then that, until its memory
    /// is free.
    fn vacate(&self, before: &mut Weak<Model>) -> bool {
        let mut loaded = self.lock();
        // Whoever begins to use it does so under this lock.
        if let Some(ground) = loaded.take_if(|ground| Arc::strong_count(ground) == 1) {
            *before = Arc::downgrade(&ground.model);
        }
        loaded.is_none()
    }

    /// Reads a model, to be called where it holds up nobody.
    fn read(&self, path: &std::path::Path, digest: &str) -> Result<Arc<Ground>> {
        let Bench {
            device,
            precision,
            latents,
            metrics,
        } = &self.bench;
        let target = (&device.device, *precision);
        let model = match read_adapted(path)? {
            None => Model::of_source(&source_of(path), &[], target)?,
            Some(adapted) => {
                let (source, _lease) = self.base(&adapted.model).ok_or_else(|| {
                    Error::Disk(format!(
                        "the model {digest} is another one with adapters, {}, which is not here any more; push that again",
                        adapted.model
                    ))
                })?;
                Model::of_source(&source, &adapter_files(path, &adapted), target)?
            }
        };
        if model.digest() != digest {
            return Err(Error::Disk(format!(
                "the files of the model {digest} are of another by now; remove it and push it again"
            )));
        }
        if let Err(reason) = model.check_shares(*precision) {
            tracing::warn!("no shares are multiplied here: {reason}");
        }
        let mut gflops = self.gflops.lock().unwrap_or_else(PoisonError::into_inner);
        if gflops.is_none() {
            match speed::gflops(model.unet(), *latents, PROMPT_TOKENS, target) {
                Ok(measured) => *gflops = Some(measured),
                Err(error) => tracing::warn!("the device's speed: {error}"),
            }
        }
        Ok(Arc::new(Ground::new(
            Arc::new(model),
            *latents,
            metrics.clone(),
        )?))
    }

    /// Lets go of a loaded model that is in the store no more.
    pub fn forget_removed(&self) {
        if let Some(store) = &self.store {
            let gone = |ground: &mut Arc<Ground>| !store.has(ground.model.digest());
            drop(self.lock().take_if(gone));
        }
    }

    /// The files of the model of `digest`, which another may be with adapters: as it is in its files.
    pub fn base(&self, digest: &str) -> Option<Base> {
        let given = self.given.as_ref().map(|given| &given.model);
        let given = given.filter(|model| model.digest() == digest);
        if let Some(source) = given.and_then(|model| model.source()) {
            return Some((source.clone(), None));
        }
        let (path, lease) = self.store.as_ref()?.lease(digest)?;
        let whole = read_adapted(&path).is_ok_and(|adapted| adapted.is_none());
        whole.then(|| (source_of(&path), Some(lease)))
    }

    /// Whether the worker was started with the model of `digest`.
    pub fn was_given(&self, digest: &str) -> bool {
        self.given
            .as_ref()
            .is_some_and(|given| given.model.digest() == digest)
    }

    /// Digests of all models that a session may ask for, the one that was given first.
    pub fn digests(&self) -> Vec<String> {
        let given = self
            .given
            .iter()
            .map(|given| given.model.digest().to_owned());
        let mut digests: Vec<String> = given.collect();
        let kept = self.store.as_ref().map(|store| store.list().models);
        let kept = kept.unwrap_or_default();
        let is_here =
            |digest: &str| self.was_given(digest) || kept.iter().any(|kept| kept.digest == digest);
        // One with adapters is none without what they adapt.
        let whole = |kept: &&Kept| kept.adapts.as_deref().is_none_or(is_here);
        let new = kept.iter().filter(whole).map(|kept| &kept.digest);
        digests.extend(new.filter(|digest| !self.was_given(digest)).cloned());
        digests
    }

    /// The models that are loaded, the one that was given first.
    pub fn grounds(&self) -> Vec<Arc<Ground>> {
        let loaded = self.lock().clone();
        self.given.iter().cloned().chain(loaded).collect()
    }

    /// What was measured of the device, 10^9 operations a second.
    pub fn gflops(&self) -> Option<f64> {
        // While it is measured nobody knows it.
        self.gflops.try_lock().ok().and_then(|gflops| *gflops)
    }

    fn loaded(&self, digest: &str) -> Option<Arc<Ground>> {
        let loaded = self.lock();
        loaded
            .as_ref()
            .filter(|ground| ground.model.digest() == digest)
            .cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Ground>>> {
        // It holds a whole entry or none.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

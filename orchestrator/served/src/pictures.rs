//! All pictures that are open.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::bounds::Inputs;
use crate::message::Opened;
use crate::picture::Picture;
use crate::place::Places;
use crate::refusal::{Refusal, Result};

/// Pictures that are open at a time: each takes a place on every worker.
pub const MOST: usize = 4;

/// The open pictures, by their names.
pub struct Pictures {
    places: Arc<Places>,
    idle: Duration,
    open: Arc<Mutex<Open>>,
    /// One is opened at a time.
    opening: tokio::sync::Mutex<()>,
}

type Open = BTreeMap<String, Arc<Picture>>;

impl Pictures {
    /// None yet. Each ends when nobody calls for `idle`.
    pub fn new(places: Arc<Places>, idle: Duration) -> Self {
        Self {
            places,
            idle,
            open: Arc::default(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    /// Opens a picture. Where there are as many as can be, the one that nobody has called for longest makes room.
    ///
    /// # Errors
    /// [`Refusal::Busy`] where calls of all of them are computed; as [`Picture::open`].
    pub async fn open(&self, inputs: Inputs) -> Result<Opened> {
        let _alone = self.opening.lock().await;
        while let Some(oldest) = self.in_the_way()? {
            self.close(&oldest).await;
        }
        let id = uuid::Uuid::new_v4().simple().to_string();
        let (open, own): (Weak<Mutex<Open>>, String) = (Arc::downgrade(&self.open), id.clone());
        let forget = move || {
            if let Some(open) = open.upgrade() {
                lock(&open).remove(&own);
            }
        };
        let picture = Picture::open(self.places.clone(), inputs, self.idle, forget).await?;
        let picture = Arc::new(picture);
        lock(&self.open).insert(id.clone(), picture.clone());
        if picture.has_ended() {
            // It was forgotten before it was known.
            lock(&self.open).remove(&id);
        }
        Ok(Opened {
            id,
            seen: picture.seen.clone(),
        })
    }

    /// The picture that has to make room for another one; none where there is room.
    fn in_the_way(&self) -> Result<Option<String>> {
        let open = lock(&self.open);
        if open.len() < MOST {
            return Ok(None);
        }
        let idle = open.iter().filter(|(_, picture)| !picture.is_busy());
        let oldest = idle.min_by_key(|(_, picture)| picture.last_used());
        match oldest {
            Some((id, _)) => Ok(Some(id.clone())),
            None => Err(Refusal::Busy { most: MOST }),
        }
    }

    /// The open picture of this name.
    ///
    /// # Errors
    /// [`Refusal::Gone`].
    pub fn get(&self, id: &str) -> Result<Arc<Picture>> {
        lock(&self.open).get(id).cloned().ok_or(Refusal::Gone)
    }

    /// Closes a picture, if it is open.
    pub async fn close(&self, id: &str) {
        let picture = lock(&self.open).remove(id);
        if let Some(picture) = picture {
            picture.close().await;
        }
    }

    /// Closes all.
    pub async fn close_all(&self) {
        let open = std::mem::take(&mut *lock(&self.open));
        for picture in open.values() {
            picture.close().await;
        }
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

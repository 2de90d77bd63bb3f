//! Who is connected: visitors, who are strangers until they show a token.
//!
//! Strangers cost little and get little: there are so many at most, none stays for long, and where one more comes the one
//! that has been there longest goes. So whoever holds connections open without a token keeps nobody else out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Strangers at a time.
const STRANGERS: usize = 128;
/// How long one may stay.
const PATIENCE: Duration = Duration::from_secs(10);

/// All who are connected.
pub struct Visitors {
    strangers: Mutex<VecDeque<Weak<Visitor>>>,
    guests: Arc<AtomicUsize>,
    most_guests: usize,
}

/// One who is connected.
pub struct Visitor {
    trusted: AtomicBool,
    asked_to_leave: Notify,
    since: Instant,
    guests: Arc<AtomicUsize>,
}

impl Visitors {
    /// Nobody yet; of those who showed a token there may be so many.
    pub fn new(most_guests: usize) -> Self {
        Self {
            strangers: Mutex::default(),
            guests: Arc::default(),
            most_guests,
        }
    }

    /// One more, a stranger.
    pub fn meet(&self) -> Arc<Visitor> {
        let visitor = Arc::new(Visitor {
            trusted: AtomicBool::new(false),
            asked_to_leave: Notify::new(),
            since: Instant::now(),
            guests: self.guests.clone(),
        });
        // It holds whole entries whatever happened to whom.
        let mut strangers = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        strangers.retain(|other| other.upgrade().is_some_and(|other| !other.is_trusted()));
        if strangers.len() >= STRANGERS
            && let Some(first) = strangers.pop_front().and_then(|first| first.upgrade())
        {
            first.asked_to_leave.notify_one();
        }
        strangers.push_back(Arc::downgrade(&visitor));
        visitor
    }

    /// Number of those who showed a token.
    pub fn guests(&self) -> usize {
        self.guests.load(Ordering::Relaxed)
    }

    /// Whether the `visitor`, who showed a token, may stay: there is room, or it was there already.
    pub fn trust(&self, visitor: &Visitor) -> bool {
        if visitor.is_trusted() {
            return true;
        }
        let taken = self
            .guests
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |guests| {
                (guests < self.most_guests).then_some(guests + 1)
            });
        let first = taken.is_ok() && !visitor.trusted.swap(true, Ordering::Relaxed);
        if taken.is_ok() && !first {
            self.guests.fetch_sub(1, Ordering::Relaxed);
        }
        taken.is_ok()
    }
}

impl Visitor {
    fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }

    /// Ends when this stranger has to go: it has shown no token for too long, or others wait. Never of one that has.
    pub async fn has_to_leave(&self) {
        let asked = self.asked_to_leave.notified();
        let _ = timeout_at(self.since + PATIENCE, asked).await;
        if self.is_trusted() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        if self.is_trusted() {
            self.guests.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// Whether it has been asked to leave.
    fn leaves(visitor: &Visitor) -> bool {
        visitor.has_to_leave().now_or_never().is_some()
    }

    #[tokio::test]
    async fn the_stranger_who_has_been_there_longest_makes_room() {
        let visitors = Visitors::new(2);
        let strangers: Vec<_> = (0..STRANGERS).map(|_| visitors.meet()).collect();
        assert!(visitors.trust(&strangers[0]));
        // One fewer is a stranger.
        let another = visitors.meet();
        assert!(!strangers.iter().any(|stranger| leaves(stranger)));
        let last = visitors.meet();
        assert!(leaves(&strangers[1]) && !leaves(&strangers[0]));
        assert!(!leaves(&strangers[2]) && !leaves(&another) && !leaves(&last));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_does_not_stay_and_a_guest_does() {
        let visitors = Visitors::new(2);
        let [stranger, guest] = [visitors.meet(), visitors.meet()];
        assert!(visitors.trust(&guest));
        tokio::time::timeout(2 * PATIENCE, stranger.has_to_leave())
            .await
            .unwrap();
        tokio::time::timeout(9 * PATIENCE, guest.has_to_leave())
            .await
            .unwrap_err();
    }

    #[tokio::test]
    async fn there_is_room_for_so_many_guests() {
        let visitors = Visitors::new(2);
        let three = [visitors.meet(), visitors.meet(), visitors.meet()];
        let trusted = three.each_ref().map(|visitor| visitors.trust(visitor));
        assert_eq!(trusted, [true, true, false]);
        // Whoever is one stays one.
        assert!(visitors.trust(&three[0]));
        let [first, _second, third] = three;
        drop(first);
        assert!(visitors.trust(&third));
        assert!(!visitors.trust(&visitors.meet()));
    }
}

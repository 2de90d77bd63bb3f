//! Who computes next: those who show one token have their turns one after the other with those who show another, however
//! many sessions each has.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::sessions::Guest;

/// How many may compute at a time: while one has its numbers fetched and packed, the device has another's work.
const AT_A_TIME: usize = 2;

/// The turns of one device.
#[derive(Clone)]
pub struct Turns(Arc<Mutex<State>>);

struct State {
    free: usize,
    /// Who waits, by guest; the guest whose turn is next comes first.
    guests: VecDeque<(Guest, VecDeque<oneshot::Sender<Turn>>)>,
}

/// Somebody's turn, until it is dropped.
pub struct Turn(Option<Turns>);

impl Turns {
    /// So many at a time.
    fn new(free: usize) -> Self {
        let guests = VecDeque::new();
        Self(Arc::new(Mutex::new(State { free, guests })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn of `guest`'s.
    pub async fn take(&self, guest: &Guest) -> Turn {
        let turn = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(self.clone()));
            }
            let (give, turn) = oneshot::channel();
            match state.guests.iter_mut().find(|(other, _)| other == guest) {
                Some((_, waiting)) => waiting.push_back(give),
                None => state.guests.push_back((*guest, [give].into())),
            }
            turn
        };
        // These turns are there for as long as somebody waits: nobody is forgotten.
        turn.await.unwrap_or(Turn(None))
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        let state = self.state();
        state.guests.iter().map(|(_, waiting)| waiting.len()).sum()
    }

    /// Who is next; a place is free where there is nobody.
    fn next(&self) -> Option<oneshot::Sender<Turn>> {
        let mut state = self.state();
        while let Some((guest, mut waiting)) = state.guests.pop_front() {
            let next = waiting.pop_front();
            if !waiting.is_empty() {
                state.guests.push_back((guest, waiting));
            }
            if next.is_some() {
                return next;
            }
        }
        state.free += 1;
        None
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self::new(AT_A_TIME)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else {
            return;
        };
        while let Some(next) = turns.next() {
            match next.send(Turn(Some(turns.clone()))) {
                Ok(()) => return,
                // Whoever waited has hung up.
                Err(mut back) => back.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: &str) -> Guest {
        blake3::hash(name.as_bytes())
    }

    #[tokio::test]
    async fn guests_take_turns_however_many_sessions_they_have() {
        let turns = Turns::new(1);
        let held = turns.take(&guest("greedy")).await;
        let order = Arc::new(Mutex::new(String::new()));
        let mut tasks = Vec::new();
        for name in ["greedy", "greedy", "greedy", "modest", "third"] {
            let (own, order) = (turns.clone(), order.clone());
            let before = turns.waiting();
            tasks.push(tokio::spawn(async move {
                let _turn = own.take(&guest(name)).await;
                order.lock().unwrap().push_str(&name[..1]);
            }));
            while turns.waiting() == before {
                tokio::task::yield_now().await;
            }
        }
        // One who hangs up takes nobody's turn.
        tasks.remove(1).abort();
        tokio::task::yield_now().await;
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), "gmtg");
        assert_eq!(turns.waiting(), 0);
        let _free = turns.take(&guest("anybody")).await;
    }

    #[tokio::test]
    async fn so_many_at_a_time() {
        let turns = Turns::new(2);
        let [first, second] = [turns.take(&guest("a")).await, turns.take(&guest("a")).await];
        let other = guest("b");
        let mut third = Box::pin(turns.take(&other));
        let waited = tokio::time::timeout(std::time::Duration::from_millis(20), &mut third).await;
        assert!(waited.is_err());
        drop(second);
        third.await;
        drop(first);
        assert_eq!(turns.state().free, 2);
    }
}

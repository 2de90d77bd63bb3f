//! Several pieces of work at once, on threads of the async runtime's that may block.

use std::sync::{Mutex, PoisonError};
use std::thread;

use tokio::runtime::Handle;

/// Does `work` for each of `items`, as many at once as `most` says, in their order. After an error nothing more is begun; what was begun
/// is done to its end. To be called on a thread of the async runtime.
///
/// # Errors
/// The first one that happened.
pub fn side_by_side<T, E>(
    most: usize,
    items: impl IntoIterator<Item = T, IntoIter: Send>,
    work: impl Fn(T) -> Result<(), E> + Sync,
) -> Result<(), E>
where
    T: Send,
    E: Send,
{
    let items = items.into_iter();
    if most <= 1 {
        // On this thread: nothing else is to be known of it.
        let mut items = items;
        return items.try_for_each(work);
    }
    let (items, failed) = (Mutex::new(items), Mutex::new(None));
    let runtime = Handle::current();
    let next = || {
        let mut items = items.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_none().then(|| items.next()).flatten()
    };
    thread::scope(|scope| {
        for _ in 0..most {
            scope.spawn(|| {
                let _on_runtime = runtime.enter();
                while let Some(item) = next() {
                    if let Err(error) = work(item) {
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        failed.get_or_insert(error);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn so_many_at_once_and_each_once() {
        let (meet, done) = (Barrier::new(3), AtomicUsize::new(0));
        // Three that wait for each other would never end on two threads.
        let work = |item: usize| {
            meet.wait();
            done.fetch_add(item, Ordering::SeqCst);
            Ok::<_, ()>(())
        };
        side_by_side(3, 1..=6, work).unwrap();
        assert_eq!(done.into_inner(), 21);
    }

    #[tokio::test]
    async fn nothing_is_begun_behind_an_error() {
        for most in [1, 4] {
            let begun = AtomicUsize::new(0);
            let work = |item: usize| {
                begun.fetch_add(1, Ordering::SeqCst);
                if item == 2 { Err(item) } else { Ok(()) }
            };
            assert_eq!(side_by_side(most, 0..1000, work), Err(2));
            assert!(begun.into_inner() < 1000, "{most}");
        }
    }
}

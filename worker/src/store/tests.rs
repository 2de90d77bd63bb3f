//! What is kept, over restarts and where there is no room.

use axum::body::Body;

use super::*;
use crate::intake::Incoming;

const LONG_AGO: Duration = Duration::from_secs(365 * 24 * 3600);

/// The digest of a model that is told by a letter.
fn digest(letter: char) -> String {
    letter.to_string().repeat(64)
}

fn announced(bytes: u64) -> Announcement {
    let file = |name: &str, bytes| FileSize {
        name: name.into(),
        bytes,
    };
    Announcement {
        files: vec![file("config.json", 10), file("x.safetensors", bytes - 10)],
    }
}

/// A model of so many bytes, that was used so many hours ago.
fn place(dir: &Path, letter: char, bytes: usize, hours: u32) {
    let model = dir.join("models").join(digest(letter));
    disk::make_folder(&model).unwrap();
    std::fs::write(model.join("config.json"), vec![0; bytes]).unwrap();
    disk::touch(
        &model,
        SystemTime::now() - hours * Duration::from_secs(3600),
    );
}

fn kept(store: &Store) -> String {
    let stored = store.list();
    let letters = stored.models.iter().map(|kept| &kept.digest);
    letters.chain(&stored.unfinished).map(|d| &d[..1]).collect()
}

#[test]
fn what_is_kept_is_found_again_and_the_oldest_goes_where_the_room_is_less() {
    let dir = tempfile::tempdir().unwrap();
    for (letter, hours) in [('a', 3), ('b', 1), ('c', 2)] {
        place(dir.path(), letter, 100, hours);
    }
    let store = Store::open(dir.path(), 1000, None).unwrap();
    assert_eq!((kept(&store).as_str(), store.list().bytes), ("bca", 300));
    assert_eq!(store.list().models[2].idle_seconds / 60, 180);
    let second = Store::open(dir.path(), 1000, None).err().unwrap();
    assert!(second.to_string().contains("another worker"), "{second}");
    // What was used is remembered.
    let lease = store.lease(&digest('a')).unwrap();
    assert!(store.lease(&digest('d')).is_none());
    drop((lease, store));
    let store = Store::open(dir.path(), 250, None).unwrap();
    assert_eq!(kept(&store), "ab");
    assert!(!dir.path().join("models").join(digest('c')).exists());
}

#[test]
fn nothing_goes_where_that_would_not_do() {
    let dir = tempfile::tempdir().unwrap();
    for (letter, hours) in [('a', 3), ('b', 2)] {
        place(dir.path(), letter, 100, hours);
    }
    let store = Store::open(dir.path(), 250, None).unwrap();
    let lease = store.lease(&digest('a')).unwrap();
    assert!(matches!(store.remove(&digest('a')), Err(Error::InUse)));
    let refused = store.begin(&digest('c'), &announced(200));
    assert!(matches!(
        refused,
        Err(Error::Full {
            needed: 200,
            most: 250
        })
    ));
    assert_eq!(kept(&store), "ab");
    assert!(
        store
            .begin(&digest('c'), &announced(150))
            .unwrap()
            .is_some()
    );
    assert_eq!((kept(&store).as_str(), store.list().bytes), ("ac", 250));
    drop(lease);
    // One that comes makes no room for another, unless nothing comes any more.
    let refused = store.begin(&digest('d'), &announced(200));
    assert!(matches!(refused, Err(Error::Full { .. })));
    store.rest(&digest('c'), RESTS);
    assert!(
        store
            .begin(&digest('d'), &announced(100))
            .unwrap()
            .is_some()
    );
    assert_eq!(kept(&store), "ad");
    store.remove(&digest('d')).unwrap();
    assert!(matches!(store.remove(&digest('d')), Err(Error::NotKept(_))));
}

#[test]
fn uploads_outlast_a_restart_and_not_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1000, None).unwrap();
    store.begin(&digest('a'), &announced(100)).unwrap();
    store.begin(&digest('b'), &announced(100)).unwrap();
    let upload = dir.path().join("uploads").join(digest('a'));
    std::fs::write(upload.join("x.safetensors"), "abc").unwrap();
    // More than was announced is of no use to anybody.
    let other = dir.path().join("uploads").join(digest('b'));
    std::fs::write(other.join("config.json"), [0; 11]).unwrap();
    drop(store);
    let store = Store::open(dir.path(), 1000, None).unwrap();
    assert_eq!(kept(&store), "a");
    let there = store.begin(&digest('a'), &announced(100)).unwrap().unwrap();
    assert_eq!(there[1].bytes, 3);
    // Other files are another upload.
    let there = store.begin(&digest('a'), &announced(90)).unwrap().unwrap();
    assert_eq!((there[1].bytes, store.list().bytes), (0, 90));
    assert_eq!(store.give_up_stale().unwrap(), 0);
    store.rest(&digest('a'), STALE);
    assert_eq!(store.give_up_stale().unwrap(), 1);
    assert_eq!((kept(&store).as_str(), upload.exists()), ("", false));
    assert!(matches!(
        store.seat(&digest('a'), "x.safetensors"),
        Err(Error::NoUpload(_))
    ));
}

#[tokio::test]
async fn who_still_writes_to_what_was_given_up_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1000, None).unwrap();
    store.begin(&digest('a'), &announced(100)).unwrap();
    let seat = store.seat(&digest('a'), "x.safetensors").unwrap();
    let body = |text: &'static str| Incoming::new(Body::from(text), 99);
    assert_eq!(seat.write(0, body("abc")).await.unwrap(), 3);
    store.remove(&digest('a')).unwrap();
    store.begin(&digest('a'), &announced(90)).unwrap();
    let late = seat.write(3, body("def")).await;
    assert!(matches!(late, Err(Error::Stopped(_))));
    let seat = store.seat(&digest('a'), "x.safetensors").unwrap();
    assert_eq!(seat.write(0, body("ghi")).await.unwrap(), 3);
    let file = dir.path().join("uploads").join(digest('a'));
    let text = std::fs::read(file.join("x.safetensors")).unwrap();
    assert_eq!(text, b"ghi");
}

#[tokio::test]
async fn what_comes_slowly_makes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 150, None).unwrap();
    store.begin(&digest('a'), &announced(100)).unwrap();
    let seat = store.seat(&digest('a'), "x.safetensors").unwrap();
    let (sender, waits) = tokio::sync::oneshot::channel::<()>();
    let body = futures::stream::once(async move {
        let _ = waits.await;
        Ok::<_, Error>(bytes::Bytes::from_static(b"abc"))
    });
    let incoming = Incoming::new(Body::from_stream(body), 99);
    let writing = tokio::spawn(async move { seat.write(0, incoming).await });
    while store.lock().uploads[&digest('a')].rests(Duration::ZERO) {
        tokio::task::yield_now().await;
    }
    store.rest(&digest('a'), LONG_AGO);
    let refused = store.begin(&digest('b'), &announced(100));
    assert!(matches!(refused, Err(Error::Full { .. })));
    sender.send(()).unwrap();
    assert_eq!(writing.await.unwrap().unwrap(), 3);
    store.begin(&digest('b'), &announced(100)).unwrap();
    assert_eq!(kept(&store), "b");
}

#[test]
fn there_are_so_many_uploads_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 40, None).unwrap();
    for i in 0..MOST_UPLOADS {
        store.begin(&format!("{i:064}"), &announced(100)).unwrap();
    }
    let refused = store.begin(&digest('a'), &announced(100));
    assert!(matches!(refused, Err(Error::Full { .. })));
    store.rest(&format!("{:064}", 3), LONG_AGO);
    store.begin(&digest('a'), &announced(100)).unwrap();
    assert_eq!(store.list().unfinished.len(), MOST_UPLOADS);
    assert!(!store.list().has(&format!("{:064}", 3)));
}

impl Store {
    /// Has nothing come of an upload for so long.
    fn rest(&self, digest: &str, long: Duration) {
        let mut state = self.lock();
        state.uploads.get_mut(digest).unwrap().rest(long);
    }
}

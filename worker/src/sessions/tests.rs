//! Who has a session, for how long, and in which turn.

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn room(pictures: usize) -> Sessions<()> {
    Sessions::new(Room {
        pictures,
        batch: 2,
        idle: 10 * MINUTE,
        unused: MINUTE,
        total: 60 * MINUTE,
        each: pictures,
    })
}

/// One batch entry of a picture, or of none.
fn lane(picture: &str) -> Lane {
    Lane {
        picture: (!picture.is_empty()).then(|| picture.to_owned()),
        batch: 1,
        guest: guest(),
    }
}

fn guest() -> Guest {
    blake3::hash(b"token")
}

/// Opens a session now or not at all.
fn open(sessions: &Sessions<()>, lane: Lane) -> Result<String> {
    sessions.open_now(&mut Some(|| Ok(())), &lane)
}

/// Lets time pass.
fn pass(sessions: &Sessions<()>, time: Duration) {
    for entry in sessions.lock().values_mut() {
        entry.used = entry.used.checked_sub(time).unwrap();
    }
}

#[test]
fn a_retry_gets_the_kept_reply_and_nothing_else_is_out_of_order() {
    let mut session = Session::new(());
    let [one, two] = [b"one", b"two"].map(|bytes| blake3::hash(bytes));
    assert!(matches!(
        session.replay(0, &one),
        Err(Error::Sequence { want: 1, got: 0 })
    ));
    assert_eq!(session.replay(1, &one).unwrap(), None);
    session.answered(1, one, Bytes::from_static(b"reply"));
    assert_eq!(
        session.replay(1, &one).unwrap(),
        Some(Bytes::from_static(b"reply"))
    );
    // Another request under the same number is no retry.
    assert!(matches!(session.replay(1, &two), Err(Error::Repeated(1))));
    assert_eq!(session.replay(2, &two).unwrap(), None);
    for got in [0, 3, u64::MAX] {
        assert!(matches!(
            session.replay(got, &one),
            Err(Error::Sequence { want: 2, .. })
        ));
    }
}

#[test]
fn there_is_room_for_so_many_and_a_closed_one_makes_room() {
    let sessions = room(2);
    let open = || open(&sessions, lane(""));
    let first = open().unwrap();
    let second = open().unwrap();
    assert_ne!(first, second);
    assert!(matches!(open(), Err(Error::Busy(_))));
    sessions.close(&first, &guest()).unwrap();
    assert!(matches!(
        sessions.close(&first, &guest()),
        Err(Error::UnknownSession(_))
    ));
    open().unwrap();
}

#[test]
fn the_lanes_of_a_picture_take_one_place() {
    let sessions = room(2);
    let open = |picture| open(&sessions, lane(picture));
    let lanes = [open("a").unwrap(), open("a").unwrap()];
    open("b").unwrap();
    open("b").unwrap();
    assert_eq!(sessions.count(), 4);
    // More batch entries than a picture may have are another's, and there is no room for another.
    for picture in ["a", "b", "c", ""] {
        assert!(matches!(open(picture), Err(Error::Busy(_))), "{picture:?}");
    }
    // A place is free when the last of its lanes is closed.
    sessions.close(&lanes[0], &guest()).unwrap();
    assert!(matches!(open("c"), Err(Error::Busy(_))));
    sessions.close(&lanes[1], &guest()).unwrap();
    open("c").unwrap();
}

#[test]
fn idle_sessions_expire_but_not_one_at_work() {
    let sessions = room(2);
    let busy = open(&sessions, lane("")).unwrap();
    let idle = open(&sessions, lane("")).unwrap();
    let session = sessions.get(&busy, &guest()).unwrap();
    sessions.get(&idle, &guest()).unwrap();
    let guard = session.try_lock().unwrap();
    assert_eq!(sessions.expire(), 0);
    pass(&sessions, 10 * MINUTE);
    assert_eq!(sessions.expire(), 1);
    assert!(sessions.get(&idle, &guest()).is_err());
    // The time starts with the end of the work, not with its beginning.
    drop(guard);
    assert_eq!(sessions.expire(), 0);
    pass(&sessions, 10 * MINUTE);
    assert_eq!(sessions.expire(), 1);
}

#[test]
fn a_session_that_nobody_used_expires_soon_and_makes_room_at_once() {
    let sessions = room(2);
    let used = open(&sessions, lane("")).unwrap();
    sessions.get(&used, &guest()).unwrap();
    let unused = open(&sessions, lane("")).unwrap();
    pass(&sessions, MINUTE);
    // Without waiting for the next round.
    open(&sessions, lane("")).unwrap();
    assert!(sessions.get(&unused, &guest()).is_err());
    assert!(sessions.get(&used, &guest()).is_ok());
}

#[test]
fn a_session_is_its_guest_s_alone() {
    let sessions = room(3);
    let own = open(&sessions, lane("a")).unwrap();
    let other = blake3::hash(b"another");
    assert!(matches!(
        sessions.get(&own, &other),
        Err(Error::UnknownSession(_))
    ));
    assert!(matches!(
        sessions.close(&own, &other),
        Err(Error::UnknownSession(_))
    ));
    sessions.get(&own, &guest()).unwrap();
    // A picture of the same name is another's, and takes a place of its own.
    let theirs = |picture| Lane {
        guest: other,
        ..lane(picture)
    };
    open(&sessions, theirs("a")).unwrap();
    open(&sessions, theirs("b")).unwrap();
    assert!(matches!(open(&sessions, lane("c")), Err(Error::Busy(_))));
}

#[test]
fn a_guest_has_so_many_places_of_all() {
    let mut sessions = room(3);
    sessions.room.each = 2;
    for _ in 0..2 {
        open(&sessions, lane("")).unwrap();
    }
    assert!(matches!(open(&sessions, lane("")), Err(Error::Busy(_))));
    let other = Lane {
        guest: blake3::hash(b"another"),
        ..lane("")
    };
    open(&sessions, other).unwrap();
}

#[test]
fn no_session_is_open_for_ever() {
    let sessions = room(1);
    let name = open(&sessions, lane("")).unwrap();
    for _ in 0..11 {
        sessions.get(&name, &guest()).unwrap();
        for entry in sessions.lock().values_mut() {
            entry.opened = entry.opened.checked_sub(6 * MINUTE).unwrap();
        }
    }
    assert_eq!((sessions.expire(), sessions.count()), (1, 0));
}

#[tokio::test]
async fn who_waits_has_the_next_place_in_turn() {
    let sessions = Arc::new(room(1));
    let first = open(&sessions, lane("a")).unwrap();
    let wait = |picture: &'static str| {
        let sessions = sessions.clone();
        tokio::spawn(async move { sessions.open(|| Ok(()), lane(picture), MINUTE).await })
    };
    let second = wait("b");
    while sessions.waiting.load(Ordering::Relaxed) < 1 {
        tokio::task::yield_now().await;
    }
    let third = wait("c");
    while sessions.waiting.load(Ordering::Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    // A lane of whoever has a place waits for nobody.
    let lane_of_first = sessions.open(|| Ok(()), lane("a"), Duration::ZERO).await;
    let patience = Duration::from_millis(20);
    let late = sessions.open(|| Ok(()), lane("d"), patience).await;
    assert!(matches!(late, Err(Error::Busy(_))));
    assert!(!second.is_finished() && !third.is_finished());
    sessions.close(&first, &guest()).unwrap();
    sessions.close(&lane_of_first.unwrap(), &guest()).unwrap();
    let second = second.await.unwrap().unwrap();
    assert!(!third.is_finished());
    sessions.close(&second, &guest()).unwrap();
    third.await.unwrap().unwrap();
    assert_eq!(sessions.waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn replies_are_kept_for_as_long_as_there_is_room() {
    let sessions = room(3);
    let digest = blake3::hash(b"request");
    let names: Vec<String> = (0..3).map(|_| open(&sessions, lane("")).unwrap()).collect();
    for (i, name) in names.iter().enumerate() {
        let session = sessions.get(name, &guest()).unwrap();
        session
            .try_lock()
            .unwrap()
            .answered(1, digest, Bytes::from_static(b"four"));
        sessions.lock().get_mut(name).unwrap().used += Duration::from_millis(i as u64);
        sessions.trim(10);
    }
    let replay = |name: &String| {
        let session = sessions.get(name, &guest()).unwrap();
        let replayed = session.try_lock().unwrap().replay(1, &digest);
        replayed.map(|reply| reply.unwrap().len())
    };
    assert!(matches!(replay(&names[0]), Err(Error::Dropped(1))));
    assert!(names[1..].iter().all(|name| replay(name).unwrap() == 4));
}

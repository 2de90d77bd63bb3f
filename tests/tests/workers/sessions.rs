//! The worker's sessions, by bare requests: how they open, who has room, and how they end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lacuna_model::device::OpenDevice;
use lacuna_protocol::exchange::Assignment;
use lacuna_protocol::placement::{Placement, Tile};
use lacuna_protocol::session::{AdvanceHeader, OpenSession, SessionKind};
use lacuna_protocol::version::{PROTOCOL, SPOKEN};
use lacuna_wire::Message;
use lacuna_worker::{Options, Service};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tests::caller::{Caller, PATIENCE, good, good_output, small};
use tests::workers::{RunningWorker, model};
use tokio::sync::Barrier;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_live_and_ready_until_it_stops() {
    let worker = RunningWorker::start("sd1", &small()).await;
    let caller = Caller::new(&worker);
    assert_eq!(caller.get("health/live").await.body, b"live");
    assert_eq!(caller.get("health/ready").await.body, b"ready");
    worker.service.stop();
    let refusal = caller.get("health/ready").await.refusal(503);
    assert!(refusal.contains("shutting down"), "{refusal}");
    assert_eq!(caller.get("health/live").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_for_another_model_or_protocol_is_refused_naming_both() {
    let worker = RunningWorker::start("sd1", &small()).await;
    let caller = Caller::new(&worker);
    let held = model("sd1").digest().to_owned();
    let wanted = model("sd2").digest().to_owned();
    let refusal = caller.try_open(PROTOCOL, &wanted).await.refusal(404);
    assert!(
        refusal.contains(&held) && refusal.contains(&wanted),
        "{refusal}"
    );
    let refusal = caller.try_open(PROTOCOL + 8, &held).await.refusal(409);
    assert!(
        refusal.contains(&format!("protocol {SPOKEN},"))
            && refusal.contains(&format!("{}", PROTOCOL + 8)),
        "{refusal}"
    );
    let request = caller.request(Method::POST, "v1/sessions");
    let answer = Caller::send(request.json(&json!({"model": held}))).await;
    assert!(answer.status.is_client_error());
    assert_eq!(worker.service.open_sessions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_are_not_open_are_refused() {
    let options = Options {
        max_sessions: 2,
        session_wait: Duration::ZERO,
        ..small()
    };
    let worker = RunningWorker::start("sd1", &options).await;
    let caller = Caller::new(&worker);
    let refusal = caller.run("none", good(1, 1)).await.refusal(404);
    assert!(refusal.contains("no session none"), "{refusal}");
    caller.close("none").await.refusal(404);

    let first = caller.open().await;
    let second = caller.open().await;
    assert_ne!(first, second);
    let digest = caller.info().await.models[0].digest.clone();
    let refusal = caller.try_open(PROTOCOL, &digest).await.refusal(503);
    assert!(refusal.contains("busy"), "{refusal}");

    assert_eq!(caller.close(&first).await.status, StatusCode::NO_CONTENT);
    let refusal = caller.run(&first, good(1, 1)).await.refusal(404);
    assert!(refusal.contains(&first), "{refusal}");
    caller.close(&first).await.refusal(404);
    // The place is free, and the other session goes on.
    let third = caller.open().await;
    assert!(third != first && third != second);
    let answer = caller.run(&second, good(1, 3)).await;
    assert_eq!(answer.output(1, "0.y"), good_output(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lanes_of_a_picture_take_one_place() {
    let options = Options {
        max_latents: [2, 8, 8],
        max_sessions: 2,
        session_wait: Duration::ZERO,
        ..Options::default()
    };
    let worker = RunningWorker::start("sd1", &options).await;
    let caller = Caller::new(&worker);
    let model = caller.info().await.models[0].digest.clone();
    let open = async |picture: Option<&str>| {
        let body = OpenSession {
            protocol: PROTOCOL,
            model: model.clone(),
            kind: SessionKind::Strip(Assignment {
                batch: 1,
                rows: 8,
                columns: 8,
                strip: 0..1,
                tokens: 77,
                placement: Placement::default(),
                tile: Tile::default(),
            }),
            picture: picture.map(str::to_owned),
        };
        Caller::send(caller.request(Method::POST, "v1/sessions").json(&body)).await
    };
    for picture in ["a", "a", "b", "b"] {
        assert_eq!(open(Some(picture)).await.status, StatusCode::CREATED);
    }
    assert_eq!(worker.service.open_sessions(), 4);
    for picture in [Some("a"), Some("c"), None] {
        let refusal = open(picture).await.refusal(503);
        assert!(refusal.contains("no room"), "{refusal}");
    }
    let refusal = open(Some(&"long".repeat(100))).await.refusal(422);
    assert!(refusal.contains("name"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_nobody_uses_is_closed_soon() {
    let options = Options {
        session_unused: Duration::from_millis(200),
        ..small()
    };
    let worker = RunningWorker::start("sd1", &options).await;
    let caller = Caller::new(&worker);
    let used = caller.open().await;
    let answer = caller.run(&used, good(1, 1)).await;
    assert_eq!(answer.output(1, "0.y"), good_output(1));
    let unused = caller.open().await;
    let gone = async {
        while worker.service.open_sessions() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    let refusal = caller.run(&unused, good(1, 1)).await.refusal(404);
    assert!(refusal.contains("expired"), "{refusal}");
    let answer = caller.run(&used, good(2, 2)).await;
    assert_eq!(answer.output(2, "0.y"), good_output(2));
}

#[test]
fn latents_that_no_memory_holds_are_refused_in_words() {
    for (latents, part) in [
        ([0, 8, 8], "0 batch entries"),
        ([1, 0, 8], "0 rows"),
        ([1, 8, 0], "0 columns"),
        ([1, 10_000_000_000, 8], "10000000000 rows"),
        ([1, 8, usize::MAX], "columns; it must be 1 to"),
        ([64, 8192, 8192], "GB of memory"),
    ] {
        let options = Options {
            max_latents: latents,
            ..Options::default()
        };
        let refused = Service::new(model("sd1"), &OpenDevice::cpu(), &options);
        let error = refused.err().expect("a refusal").to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_is_closed() {
    let options = Options {
        session_idle: Duration::from_millis(200),
        ..small()
    };
    let worker = RunningWorker::start("sd1", &options).await;
    let caller = Caller::new(&worker);
    let session = caller.open().await;
    let answer = caller.run(&session, good(1, 1)).await;
    assert_eq!(answer.output(1, "0.y"), good_output(1));
    worker.is_left().await;
    let refusal = caller.run(&session, good(2, 1)).await.refusal(404);
    assert!(refusal.contains("expired"), "{refusal}");
}

/// Asks until the worker has heard that it must stop.
async fn heard(caller: &Caller) {
    let refused = async {
        while caller.get("health/ready").await.status == StatusCode::OK {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_lets_open_sessions_finish() {
    let mut worker = RunningWorker::start_draining("sd1", &small(), PATIENCE).await;
    let caller = Caller::new(&worker);
    let session = caller.open().await;
    let digest = caller.info().await.models[0].digest.clone();
    worker.tell_to_stop();
    heard(&caller).await;
    let refusal = caller.try_open(PROTOCOL, &digest).await.refusal(503);
    assert!(refusal.contains("shutting down"), "{refusal}");
    for sequence in 1..=3 {
        let answer = caller.run(&session, good(sequence, sequence)).await;
        assert_eq!(answer.output(sequence, "0.y"), good_output(sequence));
    }
    let closed = caller.close(&session).await;
    assert_eq!(closed.status, StatusCode::NO_CONTENT);
    // Long before the time for draining is over.
    worker.ended(PATIENCE / 4).await;
    assert!(
        caller
            .request(Method::GET, "health/live")
            .send()
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_does_not_wait_for_ever() {
    let drain = Duration::from_millis(100);
    let mut worker = RunningWorker::start_draining("sd1", &small(), drain).await;
    let caller = Caller::new(&worker);
    // Left open, and the connection too.
    caller.open().await;
    worker.tell_to_stop();
    worker.ended(PATIENCE / 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_sessions_at_once_do_not_mix_and_one_more_is_refused() {
    const SESSIONS: usize = 64;
    let options = Options {
        max_sessions: SESSIONS,
        session_wait: Duration::ZERO,
        ..small()
    };
    let worker = RunningWorker::start("sd1", &options).await;
    let held = model("sd1");
    let digest = held.digest();
    let all_open = Arc::new(Barrier::new(SESSIONS + 1));
    let all_done = Arc::new(Barrier::new(SESSIONS + 1));
    let sessions = (0..SESSIONS as u64).map(|i| {
        let caller = Caller::new(&worker);
        let (all_open, all_done) = (all_open.clone(), all_done.clone());
        async move {
            let session = caller.open().await;
            all_open.wait().await;
            for sequence in 1..=5 {
                let seed = 1000 * i + sequence;
                let answer = caller.run(&session, good(sequence, seed)).await;
                assert_eq!(answer.output(sequence, "0.y"), good_output(seed));
            }
            all_done.wait().await;
            assert_eq!(caller.close(&session).await.status, StatusCode::NO_CONTENT);
        }
    });
    let running: Vec<_> = sessions.map(tokio::spawn).collect();
    all_open.wait().await;
    assert_eq!(worker.service.open_sessions(), SESSIONS);
    let refused = Caller::new(&worker).try_open(PROTOCOL, digest).await;
    let refusal = refused.refusal(503);
    assert!(refusal.contains("no room"), "{refusal}");
    timeout(PATIENCE, all_done.wait()).await.unwrap();
    for session in running {
        session.await.unwrap();
    }
    assert_eq!(worker.service.open_sessions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_does_what_its_kind_does() {
    let worker = RunningWorker::start("sd1", &small()).await;
    let caller = Caller::new(&worker);
    let layers = caller.open().await;
    let strip = OpenSession {
        protocol: PROTOCOL,
        model: model("sd1").digest().to_owned(),
        kind: SessionKind::Strip(Assignment {
            batch: 1,
            rows: 8,
            columns: 8,
            strip: 0..1,
            tokens: 77,
            placement: Placement::default(),
            tile: Tile::default(),
        }),
        picture: None,
    };
    let request = caller.request(Method::POST, "v1/sessions").json(&strip);
    let opened = Caller::send(request).await;
    let opened: Value = serde_json::from_slice(&opened.body).unwrap();
    let strip = opened["session"].as_str().unwrap();
    let refusal = caller.run(strip, good(1, 1)).await.refusal(422);
    assert!(refusal.contains("holds a strip"), "{refusal}");
    let begin = Message {
        header: AdvanceHeader {
            sequence: 1,
            at: "begin".into(),
        },
        tensors: HashMap::new(),
    };
    let path = format!("v1/sessions/{layers}/advance");
    let request = caller.request(Method::POST, &path);
    let answer = Caller::send(request.body(begin.encode().unwrap())).await;
    let refusal = answer.refusal(422);
    assert!(refusal.contains("layer by layer"), "{refusal}");
}

//! What a worker reads of whom: nothing of strangers, nothing of who has no session, and of nobody more than there is room
//! for. Each test fails where its gate is taken out.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use lacuna_worker::Options;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tests::caller::{AT_ONCE, Caller, answer_to, connect, good, small};
use tests::workers::RunningWorker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Strangers that are held on to, more than a worker has room for.
const STRANGERS: usize = 200;

fn guarded() -> Options {
    Options {
        token: Some("ours".into()),
        ..small()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_hold_connections_open_keep_nobody_out() {
    let worker = RunningWorker::start("sd1", &guarded()).await;
    let caller = Caller::new(&worker).with_token("ours");
    let session = caller.open().await;
    // Some say nothing, some half of a request, and none of them a token.
    let mut first = connect(&worker).await;
    let begun = Instant::now();
    let mut strangers = VecDeque::new();
    for i in 0..2000 {
        let mut stream = connect(&worker).await;
        if i % 2 == 0 {
            let _ = stream
                .write_all(b"POST /v1/sessions HTTP/1.1\r\nHost: a\r\n")
                .await;
        }
        strangers.push_back(stream);
        // What the worker has sent away is not held here: a process may have so many files alone.
        if strangers.len() > STRANGERS {
            strangers.pop_front();
        }
    }
    let alive = timeout(AT_ONCE, caller.get("health/live")).await.unwrap();
    assert_eq!(alive.status, StatusCode::OK);
    let run = format!("v1/sessions/{session}/run");
    let request = caller.request(Method::POST, &run).body(good(1, 1));
    let done = timeout(AT_ONCE, Caller::send(request)).await.unwrap();
    assert_eq!(done.status, StatusCode::OK);
    // The first one was sent away to make room, and not for its age; the last is still there.
    let mut byte = [0];
    let sent_away = timeout(Duration::from_secs(1), first.read(&mut byte)).await;
    assert!(matches!(sent_away, Ok(Ok(0) | Err(_))));
    if begun.elapsed() > Duration::from_secs(9) {
        println!(
            "skipped: whether strangers make room; this machine is too slow to tell that from their age"
        );
    }
    let last = strangers.back_mut().unwrap();
    let waits = timeout(Duration::from_millis(50), last.read(&mut byte)).await;
    assert!(waits.is_err());
    // And not for long.
    let gone = timeout(2 * AT_ONCE, last.read(&mut byte)).await.unwrap();
    assert!(matches!(gone, Ok(0) | Err(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_read_of_nobody_who_has_no_session() {
    let worker = RunningWorker::start("sd1", &guarded()).await;
    let own = Caller::new(&worker).with_token("ours").open().await;
    let most = worker.service.info().limits.max_body_bytes;
    let head = |path: &str, token: &str, len: usize| {
        format!(
            "POST /v1/{path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: {len}\r\n\r\n"
        )
    };
    let own = |what: &str| format!("sessions/{own}/{what}");
    for (head, status, code) in [
        (head(&own("run"), "theirs", most), 401, "token"),
        (head("sessions", "", 100), 401, "token"),
        (head("sessions/unknown/run", "ours", most), 404, "session"),
        (
            head("sessions/unknown/advance", "ours", most),
            404,
            "session",
        ),
        (
            head("sessions/unknown/multiply", "ours", most),
            404,
            "session",
        ),
        (head(&own("run"), "ours", most + 1), 413, "too_long"),
        (head(&own("multiply"), "ours", 1000 * most), 413, "too_long"),
        (head("models/unknown", "ours", 1000 * most), 404, "store"),
        (head("sessions/../sessions", "ours", 10), 404, ""),
        (head("sessions/%2e%2e/run", "ours", 10), 404, "session"),
    ] {
        let answer = answer_to(&worker, &head).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{head}\n{answer}"
        );
        let coded = format!("\"code\":\"{code}\"");
        assert!(code.is_empty() || answer.contains(&coded), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_is_of_so_many_fields_and_bytes() {
    let worker = RunningWorker::start("sd1", &small()).await;
    let ask = |headers: String| format!("GET /health/live HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
    let fields = |n: usize| (0..n).map(|i| format!("a{i}: b\r\n")).collect::<String>();
    assert!(
        answer_to(&worker, &ask(fields(40)))
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        answer_to(&worker, &ask(fields(80)))
            .await
            .starts_with("HTTP/1.1 431")
    );
    // It may be gone before it has said why.
    let long = answer_to(&worker, &ask(format!("a: {}\r\n", "b".repeat(1_000_000)))).await;
    assert!(
        long.is_empty() || long.starts_with("HTTP/1.1 431"),
        "{long}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_token_s_session_is_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    std::fs::write(&file, "one\nanother\n").unwrap();
    let options = Options {
        token_file: Some(file),
        ..small()
    };
    let worker = RunningWorker::start("sd1", &options).await;
    let [one, another] = ["one", "another"].map(|t| Caller::new(&worker).with_token(t));
    let session = one.open().await;
    let run = format!("v1/sessions/{session}/run");
    let theirs = another.request(Method::POST, &run).body(good(1, 1));
    let refused = Caller::send(theirs).await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    let value: Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!(value["code"], "session");
    let close = another.request(Method::DELETE, &format!("v1/sessions/{session}"));
    assert_eq!(Caller::send(close).await.status, StatusCode::NOT_FOUND);
    let own = one.request(Method::POST, &run).body(good(1, 1));
    assert_eq!(Caller::send(own).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_when_all_places_are_taken_waits_for_the_next() {
    let options = Options {
        max_sessions: 1,
        ..small()
    };
    let worker = RunningWorker::start("sd1", &options).await;
    let caller = Caller::new(&worker);
    let first = caller.open().await;
    let second = caller.open();
    let close = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let path = format!("v1/sessions/{first}");
        Caller::send(caller.request(Method::DELETE, &path))
            .await
            .status
    };
    let (second, closed) = tokio::join!(timeout(AT_ONCE, second), close);
    assert_eq!(closed, StatusCode::NO_CONTENT);
    assert_ne!(second.unwrap(), first);
    assert_eq!(worker.service.open_sessions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_is_told_at_a_door_of_its_own() {
    let worker = RunningWorker::start("sd1", &guarded()).await;
    let (listener, url) = tests::workers::listen().await;
    let known = std::sync::Arc::new(std::sync::OnceLock::new());
    tokio::spawn(lacuna_worker::watch(listener, known.clone()));
    let http = lacuna_orchestrator::fleet::line::http_client()
        .no_proxy()
        .build()
        .unwrap();
    let ask = async |path: &str| {
        let answer = http.get(format!("{url}{path}")).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    assert_eq!(ask("metrics").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ask("health/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
    known.set(worker.service.clone()).ok().unwrap();
    assert_eq!(ask("health/ready").await.0, StatusCode::OK);

    let caller = Caller::new(&worker).with_token("ours");
    let session = caller.open().await;
    let body = good(1, 1);
    let len = body.len();
    let run = caller.request(Method::POST, &format!("v1/sessions/{session}/run"));
    assert_eq!(Caller::send(run.body(body)).await.status, StatusCode::OK);
    assert_eq!(
        Caller::new(&worker).get("v1/info").await.status,
        StatusCode::UNAUTHORIZED
    );

    let (_, text) = ask("metrics").await;
    let values: HashMap<&str, f64> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect();
    let of = |name: &str| {
        *values
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in\n{text}"))
    };
    assert_eq!(of("lacuna_sessions"), 1.0);
    assert_eq!(of("lacuna_queue"), 0.0);
    assert_eq!(of("lacuna_ready"), 1.0);
    assert_eq!(of("lacuna_refusals_total{code=\"token\"}"), 1.0);
    assert!(of("lacuna_exchange_bytes_total{direction=\"in\"}") >= len as f64);
    assert!(of("lacuna_exchange_bytes_total{direction=\"out\"}") > 0.0);
    assert!(of("lacuna_compute_seconds_total{kind=\"layers\"}") > 0.0);
    assert!(of("lacuna_memory_bytes") > 1e6);
    assert!(of("lacuna_device_memory_bytes{device=\"cpu\"}") > 1e6);
    let route = "lacuna_request_seconds_count{route=\"/v1/sessions/{id}/run\"}";
    assert_eq!(of(route), 1.0);
    // Neither who it was nor what it was about.
    for secret in ["ours", &session] {
        assert!(!text.contains(secret), "{text}");
    }
    worker.service.stop();
    assert_eq!(ask("health/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert!(ask("metrics").await.1.contains("lacuna_ready 0"));
}

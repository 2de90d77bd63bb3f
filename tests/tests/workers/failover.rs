//! A worker is lost at the beginning or in the middle of a picture: who may step in, and who may not; and what
//! the next picture knows of it.

use axum::body::Bytes;
use axum::http::StatusCode;
use lacuna_worker::Options;
use serde_json::Value;
use tests::bad_workers::{MIDDLE, MODEL, assert_names};
use tests::golden::Golden;
use tests::journey::{Files, Journey, only_latents, two};
use tests::relay::Relay;
use tests::relay::fault::Fault;
use tests::workers::{RunningWorker, dead_url, tampering_worker, worker_tampering_at};

fn journey(scheme: &str) -> Journey {
    let journey = Journey::golden(&Golden::load(MODEL)).with("--steps", "3");
    // Who goes on is a worker, or nobody.
    let journey = journey.with("--on-loss", "fewer");
    journey.with("--scheme", scheme)
}

async fn worker() -> RunningWorker {
    RunningWorker::start(MODEL, &Options::default()).await
}

/// The answer of a worker that was started again: it knows of no session any more.
fn forgotten(_: Bytes) -> (StatusCode, &'static str) {
    let refusal = r#"{"error": "no session 0; it was closed, or expired"}"#;
    (StatusCode::NOT_FOUND, refusal)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_steps_in_and_the_picture_is_the_same() {
    for scheme in ["resident", "ppidm"] {
        let [first, second, spare] = [worker().await, worker().await, worker().await];
        let journey = journey(scheme);
        let well = journey.fleet(&two(&first.url, &second.url));
        let want = journey.clone().with("--workers", well).go().await.unwrap();

        let lost = Relay::failing(&second.url, MIDDLE, Fault::Gone);
        let workers = [
            (first.url.as_str(), "a", false),
            (spare.url.as_str(), "c", true),
            (lost.url.as_str(), "b", false),
        ];
        let config = journey.fleet(&workers);
        let files = journey
            .clone()
            .with("--workers", config)
            .go()
            .await
            .unwrap();
        assert_eq!(lost.faults(), 1);
        assert!(files.latents() == want.latents(), "{scheme}");
        let report = files.report();
        let number = |value: &Value| value.as_f64().unwrap();
        for provider in ["a", "b", "c"] {
            // Strips of uneven rows are about half of the picture.
            let rows = number(&report["ledger"][provider]["rows"]);
            assert!((rows - 0.5).abs() < 0.2, "{scheme}: {provider} {rows}");
        }
        let of = |url: &str| {
            let all = report["workers"].as_array().unwrap().iter();
            all.filter(|w| w["url"] == *url)
                .map(|w| number(&w["gflop"]))
                .sum::<f64>()
        };
        let [a, b, c] = [&first.url, &lost.url, &spare.url].map(|url| of(url));
        assert!(b > 0.0 && c > b && a > 0.0, "{scheme}: {a} {b} {c}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_more_than_at_the_beginning_unless_a_policy_says_so() {
    let [first, second] = [worker().await, worker().await];
    let journey = journey("resident");
    for (max_rows, refusal) in [
        (None, Some("a provider would see 100.0 % of the rows")),
        (Some(0.7), Some("max_rows = 0.7")),
        (Some(1.0), None),
    ] {
        let lost = Relay::failing(&second.url, MIDDLE, Fault::Gone);
        let config = journey.fleet(&two(&first.url, &lost.url));
        let mut run = journey.clone().with("--workers", config);
        if let Some(max_rows) = max_rows {
            run = run.with("--policy", journey.policy(max_rows));
        }
        match (run.go().await, refusal) {
            (Ok(files), None) => {
                let rows = &files.report()["ledger"]["a"]["rows"];
                assert_eq!(rows.as_f64(), Some(1.0));
            }
            (Err(error), Some(refusal)) => {
                assert_names(&error, &[&lost.url, "does not answer", "refused", refusal]);
            }
            (Ok(_), Some(refusal)) => panic!("not refused: {refusal}"),
            (Err(error), None) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_of_a_provider_that_has_seen_the_rest_is_refused() {
    let [first, second, spare] = [worker().await, worker().await, worker().await];
    let lost = Relay::failing(&second.url, MIDDLE, Fault::Gone);
    let journey = journey("resident");
    let workers = [
        (first.url.as_str(), "a", false),
        (lost.url.as_str(), "b", false),
        (spare.url.as_str(), "a", true),
    ];
    let run = journey.clone().with("--workers", journey.fleet(&workers));
    let run = run.with("--policy", journey.policy(0.7));
    let error = run.go().await.err().expect("a refusal");
    assert_names(&error, &["max_rows = 0.7", "provider a", "100.0 %"]);
}

/// Two pictures of two seeds.
fn two_pictures(scheme: &str) -> Journey {
    let journey = Journey::seeded(&Golden::load(MODEL)).with("--steps", "3");
    // One lane, so that the number of a request says which it is.
    let journey = journey
        .with("--scheme", scheme)
        .with("--on-loss", "fewer")
        .with("--lanes", "false");
    journey.with("--count", "2")
}

/// The latents of both pictures.
fn both_latents(files: &Files) -> [lacuna_wire::HostTensor; 2] {
    [0, 1].map(|i| only_latents(&files.path(&format!("latents-{i}.safetensors"))))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_picture_knows_who_was_lost() {
    for scheme in ["resident", "ppidm"] {
        let [first, second, spare] = [worker().await, worker().await, worker().await];
        let journey = two_pictures(scheme);
        let well = two(&first.url, &second.url);
        let run = journey.clone().with("--workers", journey.fleet(&well));
        let want = run.go().await.unwrap();

        let lost = Relay::failing(&second.url, MIDDLE, Fault::Gone);
        let workers = [
            (first.url.as_str(), "a", false),
            (lost.url.as_str(), "b", false),
            (spare.url.as_str(), "c", true),
        ];
        let run = journey.clone().with("--workers", journey.fleet(&workers));
        let files = run.go().await.unwrap();
        assert!(both_latents(&files) == both_latents(&want), "{scheme}");
        // Everybody who saw anything of any picture is in the ledger.
        let report = files.report();
        for (provider, pictures) in [("a", 2), ("b", 1), ("c", 2)] {
            let view = &report["ledger"][provider];
            assert_eq!(view["pictures"], pictures, "{scheme}: {provider}");
            let rows = view["rows"].as_f64().unwrap();
            assert!((rows - 0.5).abs() < 0.2, "{scheme}: {provider} {rows}");
        }
        assert_eq!(report["error"], Value::Null);
        first.is_left().await;
        spare.is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_steps_in_for_a_worker_that_is_dead_from_the_start() {
    let [first, spare] = [worker().await, worker().await];
    let dead = dead_url().await;
    let journey = two_pictures("resident");
    let workers = [
        (dead.as_str(), "b", false),
        (first.url.as_str(), "a", false),
        (spare.url.as_str(), "c", true),
    ];
    let run = journey.clone().with("--workers", journey.fleet(&workers));
    let files = run.go().await.unwrap();
    let report = files.report();
    assert_eq!(report["ledger"]["b"], Value::Null);
    assert_eq!(report["ledger"]["c"]["pictures"], 2);

    // A dead spare is no way out, and the one who is well is not kept waiting.
    let workers = [
        (dead.as_str(), "b", false),
        (first.url.as_str(), "a", false),
        (&dead_url().await, "c", true),
    ];
    let run = journey.clone().with("--workers", journey.fleet(&workers));
    let error = run.go().await.err().expect("a failure");
    assert_names(&error, &["does not answer", "a provider would see 100.0 %"]);
    first.is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_steps_in_for_a_worker_that_is_of_no_use() {
    let [first, spare] = [worker().await, worker().await];
    let locked = Options {
        token: Some("not ours".into()),
        ..Options::default()
    };
    let locked = RunningWorker::start(MODEL, &locked).await;
    let liar = tampering_worker(MODEL, MIDDLE, |_: Bytes| "no message of ours").await;
    let busy = tampering_worker(MODEL, MIDDLE, |_: Bytes| {
        let refusal = r#"{"error": "too much at once"}"#;
        (StatusCode::TOO_MANY_REQUESTS, refusal)
    });
    let busy = busy.await;
    let other = RunningWorker::start("sd2", &Options::default()).await;
    let journey = journey("resident");
    let well = two(&first.url, &spare.url);
    let run = journey.clone().with("--workers", journey.fleet(&well));
    let want = run.go().await.unwrap();
    for useless in [&locked.url, &other.url, &liar, &busy] {
        let workers = [
            (first.url.as_str(), "a", false),
            (useless.as_str(), "b", false),
            (spare.url.as_str(), "c", true),
        ];
        let run = journey.clone().with("--workers", journey.fleet(&workers));
        let files = run.go().await.unwrap();
        assert!(files.latents() == want.latents(), "{useless}");
        assert!(files.report()["ledger"]["c"].is_object());
    }
    // Without a spare it is what has to be looked at.
    let workers = two(&first.url, &locked.url);
    let run = journey.clone().with("--workers", journey.fleet(&workers));
    let run = run.with("--policy", journey.policy(1.0));
    let error = run.go().await.err().expect("a failure");
    assert_names(&error, &[&locked.url, "refuses the token"]);
    // Two that fail one after the other are both told.
    let dead = dead_url().await;
    let workers = [
        (first.url.as_str(), "a", false),
        (dead.as_str(), "b", false),
        (locked.url.as_str(), "c", true),
    ];
    let run = journey.clone().with("--workers", journey.fleet(&workers));
    let error = run.go().await.err().expect("a failure");
    assert_names(&error, &[&dead, &locked.url, "refuses the token"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_that_is_dead_leaves_no_session_behind() {
    let [first, second] = [worker().await, worker().await];
    let lost = Relay::failing(&second.url, MIDDLE, Fault::Gone);
    let journey = journey("resident");
    let workers = [
        (first.url.as_str(), "a", false),
        (lost.url.as_str(), "b", false),
        (&dead_url().await, "c", true),
    ];
    let run = journey.clone().with("--workers", journey.fleet(&workers));
    run.go().await.err().expect("a failure");
    assert_eq!(lost.faults(), 1);
    first.is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_started_again_is_opened_again() {
    for scheme in ["resident", "ppidm"] {
        let [first, second] = [worker().await, worker().await];
        let journey = two_pictures(scheme);
        let well = two(&first.url, &second.url);
        let run = journey.clone().with("--workers", journey.fleet(&well));
        let want = run.go().await.unwrap();
        // It knows of no session any more, and is well otherwise. There is nobody else.
        let forgetful = tampering_worker(MODEL, MIDDLE, forgotten).await;
        let workers = two(&first.url, &forgetful);
        let run = journey.clone().with("--workers", journey.fleet(&workers));
        let files = run.go().await.unwrap();
        assert!(both_latents(&files) == both_latents(&want), "{scheme}");
        first.is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_comes_back_again_and_again_gives_way_to_a_spare() {
    let [first, spare] = [worker().await, worker().await];
    let journey = journey("resident");
    let well = two(&first.url, &spare.url);
    let run = journey.clone().with("--workers", journey.fleet(&well));
    let want = run.go().await.unwrap();
    // It is well whenever it is asked, and loses every session soon.
    let forgetful = worker_tampering_at(MODEL, |run| run > MIDDLE, forgotten).await;
    let workers = [
        (first.url.as_str(), "a", false),
        (forgetful.as_str(), "b", false),
        (spare.url.as_str(), "c", true),
    ];
    let run = journey.clone().with("--workers", journey.fleet(&workers));
    let files = run.go().await.unwrap();
    assert!(files.latents() == want.latents());
    first.is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_back_takes_its_place_in_the_next_picture() {
    let [first, second] = [worker().await, worker().await];
    let journey = two_pictures("resident");
    // It refuses one request as if it stopped, and is well again when the next picture begins.
    let tired = tampering_worker(MODEL, MIDDLE, |_: Bytes| {
        let refusal = r#"{"error": "this worker is shutting down", "code": "stopping"}"#;
        (StatusCode::SERVICE_UNAVAILABLE, refusal)
    });
    let tired = tired.await;
    let workers = two(&first.url, &tired);
    let run = journey.clone().with("--workers", journey.fleet(&workers));
    let run = run.with("--policy", journey.policy(1.0));
    let files = run.go().await.unwrap();
    let report = files.report();
    assert_eq!(report["ledger"]["b"]["pictures"], 2);
    // It saw all of the first picture's rows, when it was alone.
    assert_eq!(report["ledger"]["a"]["rows"], 1.0);
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_run_says_what_was_done() {
    let [first, second] = [worker().await, worker().await];
    let journey = two_pictures("resident");
    let well = two(&first.url, &second.url);
    let run = journey.clone().with("--workers", journey.fleet(&well));
    let report = run.go().await.unwrap().report();
    let requests = report["workers"][1]["requests"].as_u64().unwrap() as usize;

    let lost = Relay::failing(&second.url, requests / 2 + MIDDLE, Fault::Gone);
    let workers = two(&first.url, &lost.url);
    let run = journey.clone().with("--workers", journey.fleet(&workers));
    let (result, files) = run.end().await;
    let error = result.unwrap_err();
    assert_names(&error, &[&lost.url, "does not answer"]);
    assert_eq!(
        files.names(),
        ["latents-0.safetensors", "pic-0.png", "report.json"]
    );
    let report = files.report();
    assert_eq!(report["error"], error.as_str());
    assert_eq!(report["pictures"].as_array().unwrap().len(), 1);
    for provider in ["a", "b"] {
        assert_eq!(report["ledger"][provider]["pictures"], 2, "{provider}");
    }
    first.is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_else_may_it_goes_on_at_home() {
    for scheme in ["resident", "ppidm", "blind"] {
        let [first, second] = [worker().await, worker().await];
        let journey = journey(scheme).with("--on-loss", "home");
        let well = two(&first.url, &second.url);
        let run = journey.clone().with("--workers", journey.fleet(&well));
        let want = run.go().await.unwrap();
        let lost = Relay::failing(&second.url, MIDDLE, Fault::Gone);
        let workers = two(&first.url, &lost.url);
        let run = journey.clone().with("--workers", journey.fleet(&workers));
        let files = run.go().await.unwrap();
        assert_eq!(lost.faults(), 1, "{scheme}");
        match scheme {
            // Shares round differently every time, and weights at random carry that far.
            "blind" => {
                let db = files.latents_psnr(&want);
                assert!(db > 40.0, "{db}");
            }
            _ => assert!(files.latents() == want.latents(), "{scheme}"),
        }
        // Nobody was shown more for it.
        let [report, before] = [files.report(), want.report()];
        for provider in ["a", "b"] {
            let rows = |report: &Value| report["ledger"][provider]["rows"].clone();
            assert_eq!(rows(&report), rows(&before), "{scheme}");
        }
        let gflop = |report: &Value| report["user"]["gflop"].as_f64().unwrap();
        assert!(gflop(&report) > gflop(&before), "{scheme}");
        first.is_left().await;
    }
}

/// It is asked whether it is there, and not waited for as one that computes, for which two minutes may be right.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_falls_silent_costs_seconds() {
    for scheme in ["resident", "ppidm", "blind"] {
        let [first, second, spare] = [worker().await, worker().await, worker().await];
        let journey = journey(scheme);
        let lost = Relay::failing(&second.url, MIDDLE, Fault::Silent);
        let workers = [
            (first.url.as_str(), "a", false),
            (lost.url.as_str(), "b", false),
            (spare.url.as_str(), "c", true),
        ];
        let run = journey.clone().with("--workers", journey.fleet(&workers));
        let limit = std::time::Duration::from_secs(60);
        let files = tokio::time::timeout(limit, run.go()).await;
        let report = files.expect("it is not waited for").unwrap().report();
        assert_eq!(lost.faults(), 1, "{scheme}");
        assert!(report["ledger"]["c"].is_object(), "{scheme}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_never_there_is_a_mistake_and_no_loss() {
    let first = worker().await;
    let journey = journey("resident").with("--on-loss", "home");
    let dead = dead_url().await;
    let run = journey
        .clone()
        .with("--workers", journey.fleet(&two(&first.url, &dead)));
    let error = run.go().await.err().expect("a failure");
    assert_names(&error, &[&dead, "does not answer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_side_by_side_are_those_one_after_the_other() {
    for scheme in ["resident", "ppidm"] {
        let [first, second] = [worker().await, worker().await];
        let journey = two_pictures(scheme);
        let workers = journey.fleet(&two(&first.url, &second.url));
        let journey = journey.with("--workers", workers);
        let want = journey.go().await.unwrap();
        let files = journey.clone().with("--parallel", "2").go().await.unwrap();
        assert!(both_latents(&files) == both_latents(&want), "{scheme}");
        let bytes = |files: &Files| files.report()["user"]["bytes_up"].clone();
        assert_eq!(bytes(&files), bytes(&want), "{scheme}");
        assert_eq!(files.report()["ledger"]["a"]["pictures"], 2);
        first.is_left().await;
    }
}

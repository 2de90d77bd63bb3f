//! An orchestrator whose workers are dead, full, or set up wrongly: one line that names the worker, and no
//! file left. A connection that fails for a moment costs nothing.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::Html;
use lacuna_worker::Options;
use tests::bad_workers::{
    MIDDLE, MODEL, OF_FEATURES, SCHEMES, assert_names, check_line, failure_with, journey,
};
use tests::golden::Golden;
use tests::journey::Journey;
use tests::model_copy::ModelCopy;
use tests::relay::Relay;
use tests::relay::fault::{Fault, Way};
use tests::workers::{RunningWorker, dead_url, fleet_file, listen, serve_routes, tampering_worker};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listens() {
    let dead = dead_url().await;
    let error = failure_with(&dead, None).await;
    assert_names(&error, &["does not answer", "refused"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_accepts_and_says_nothing_more() {
    let (listener, url) = listen().await;
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            drop(connection);
        }
    });
    let error = failure_with(&url, None).await;
    assert_names(&error, &["does not answer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_dies_in_the_middle() {
    for scheme in SCHEMES {
        let worker = RunningWorker::start(MODEL, &Options::default()).await;
        let good = RunningWorker::start(MODEL, &Options::default()).await;
        let relay = Relay::failing(&worker.url, MIDDLE, Fault::Gone);
        let journey = journey(scheme, &[(&good.url, None), (&relay.url, None)]);
        let error = journey.go().await.err().expect("a failure");
        check_line(&error, &relay.url, &good.url);
        assert_names(&error, &["does not answer"]);
        assert_eq!((relay.faults(), relay.works()), (1, MIDDLE));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_stops_in_the_middle() {
    // It stops well, but the user has not finished: what is left is refused, by name.
    let worker = RunningWorker::start(MODEL, &Options::default()).await;
    let service = worker.service.clone();
    let url = tampering_worker(MODEL, MIDDLE, move |_: Bytes| {
        service.stop();
        let refusal = r#"{"error": "this worker is shutting down", "code": "stopping"}"#;
        (StatusCode::SERVICE_UNAVAILABLE, refusal)
    })
    .await;
    let error = failure_with(&url, None).await;
    assert_names(&error, &["503", "shutting down"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_holds_another_model() {
    let other = RunningWorker::start("sd2", &Options::default()).await;
    let error = failure_with(&other.url, None).await;
    let held = other.service.info().models[0].digest[..12].to_owned();
    assert_names(&error, &["holds the model", &held]);
}

/// Of one set of weights two configs can make two networks.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reads_the_weights_by_another_config() {
    let copy = ModelCopy::of(MODEL);
    copy.set("unet/config.json", "norm_eps", serde_json::json!(0.01));
    let worker = RunningWorker::start(MODEL, &Options::default()).await;
    let journey = Journey::of(&Golden::load(MODEL), copy.path()).with("--steps", "3");
    let journey = journey.with("--scheme", "resident");
    let fleet = fleet_file(journey.file("").as_path(), &[(&worker.url, None)]);
    let error = journey.with("--workers", fleet).go().await.err();
    assert_names(
        &error.expect("a failure"),
        &["holds the model", &worker.url],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_wants_another_token() {
    let options = Options {
        token: Some("the right one".into()),
        ..Options::default()
    };
    let worker = RunningWorker::start(MODEL, &options).await;
    for token in [None, Some("a wrong one")] {
        let error = failure_with(&worker.url, token).await;
        assert_names(&error, &["token"]);
        // Neither token is for others to read.
        assert!(!error.contains("right one") && !error.contains("wrong one"));
    }
    let journey = journey("ppidm", &[(&worker.url, Some("the right one"))]);
    assert_eq!(journey.go().await.unwrap().names().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_full() {
    let options = Options {
        max_sessions: 0,
        session_wait: Duration::ZERO,
        ..Options::default()
    };
    let worker = RunningWorker::start(MODEL, &options).await;
    let error = failure_with(&worker.url, None).await;
    assert_names(&error, &["503", "no room for another session"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_is_that_of_something_else() {
    let page = || async { Html("<!doctype html>\n<html>\n<body>It works!</body></html>\n") };
    let url = serve_routes(Router::new().fallback(page)).await;
    let error = failure_with(&url, None).await;
    assert_names(&error, &["answers nonsense"]);
    let lost = || async {
        (
            StatusCode::NOT_FOUND,
            Html("<html>\n<h1>Lost</h1>\n</html>"),
        )
    };
    let url = serve_routes(Router::new().fallback(lost)).await;
    let error = failure_with(&url, None).await;
    assert_names(&error, &["404", "<html>"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_cost_nothing() {
    for scheme in SCHEMES {
        let [first, second] = [
            RunningWorker::start(MODEL, &Options::default()).await,
            RunningWorker::start(MODEL, &Options::default()).await,
        ];
        let steps = |journey: Journey| journey.with("--steps", "1");
        let well = steps(journey(scheme, &[(&first.url, None), (&second.url, None)]));
        let want = well.go().await.unwrap();
        // Now in a request and now in an answer, at every place by and by.
        let flipping = Relay::start(&second.url, [Duration::ZERO; 2], |request| {
            let work = request.work?;
            let bit = work as u64 * 7919;
            match work % 11 {
                3 => Some(Fault::Flip { way: Way::Up, bit }),
                7 => Some(Fault::Flip {
                    way: Way::Down,
                    bit,
                }),
                _ => None,
            }
        });
        let run = steps(journey(
            scheme,
            &[(&first.url, None), (&flipping.url, None)],
        ));
        let files = run.go().await.unwrap();
        let flips = flipping.faults();
        assert!(flips >= 4, "{scheme}: {flips}");
        match scheme {
            // Shares round differently every time.
            "blind" => assert!(files.latents_psnr(&want) > 40.0),
            _ => assert!(files.latents() == want.latents(), "{scheme}"),
        }
    }
}

/// The same picture with a connection that fails once as with one that does not.
async fn survives(failure: Fault) {
    for scheme in SCHEMES {
        let one = RunningWorker::start(MODEL, &Options::default()).await;
        let two = RunningWorker::start(MODEL, &Options::default()).await;
        let whole = journey(scheme, &[(&one.url, None), (&two.url, None)]);
        let whole = whole.go().await.unwrap();
        let relay = Relay::failing(&two.url, MIDDLE, failure);
        let shaken = journey(scheme, &[(&one.url, None), (&relay.url, None)]);
        let shaken = shaken.go().await.unwrap();
        assert_eq!(relay.faults(), 1, "{scheme}, {failure:?}");
        // Fresh masks round differently.
        if OF_FEATURES.contains(&scheme) {
            assert!(shaken.latents() == whole.latents(), "{scheme}, {failure:?}");
            assert!(shaken.png().rgb == whole.png().rgb, "{scheme}, {failure:?}");
        }
        // One piece of work went over the line twice, and was asked for once.
        let asked = whole.report()["workers"][1]["requests"].as_u64().unwrap();
        assert_eq!(relay.works() as u64, asked + 1, "{scheme}, {failure:?}");
        let retried = &shaken.report()["workers"][1];
        assert_eq!(retried["requests"], asked, "{scheme}, {failure:?}");
        assert_eq!(two.service.open_sessions(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_before_the_reply_costs_nothing() {
    survives(Fault::Close {
        way: Way::Down,
        after: 0,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_within_the_reply_costs_nothing() {
    survives(Fault::Close {
        way: Way::Down,
        after: 20,
    })
    .await;
    survives(Fault::Close {
        way: Way::Down,
        after: 300,
    })
    .await;
}

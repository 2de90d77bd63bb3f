//! An orchestrator whose workers are dead, wrong, or lie: one line that names the worker, and no
//! file left. A connection that fails for a moment costs nothing.

use std::ffi::OsString;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Response};
use lacuna_orchestrator::fleet::client::Client;
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_wire::HostTensor;
use lacuna_wire::{Dtype, Message, Payload};
use lacuna_worker::Options;
use serde_json::Value;
use tests::golden::{Golden, model_dir};
use tests::journey::{Journey, lacuna};
use tests::model_copy::ModelCopy;
use tests::proxy::{Failure, Proxy};
use tests::workers::{
    RunningWorker, dead_url, endless_body, fleet_file, listen, serve_routes, service,
    tampering_worker,
};

/// The model of most tests: the one whose pictures take least.
const MODEL: &str = "odd";
/// The request that goes wrong, of a hundred or hundreds.
const MIDDLE: usize = 40;
/// Every scheme that has workers.
const SCHEMES: [&str; 2] = ["ppidm", "resident"];

/// A short journey over `workers`, with their tokens.
fn journey(scheme: &str, workers: &[(&str, Option<&str>)]) -> Journey {
    let journey = Journey::golden(&Golden::load(MODEL)).with("--steps", "3");
    let fleet = fleet_file(journey.file("").as_path(), workers);
    // One lane, so that the number of the request that goes wrong says which it is.
    let journey = journey.with("--scheme", scheme).with("--lanes", "false");
    journey.with("--workers", fleet)
}

/// What a journey by the paper's scheme over a good worker and the one at `bad` ends with.
async fn failure_with(bad: &str, token: Option<&str>) -> String {
    failure_of(SCHEMES[0], bad, token).await
}

/// What a journey over a good worker and the one at `bad` ends with. That no file is left is seen
/// to by `go`.
async fn failure_of(scheme: &str, bad: &str, token: Option<&str>) -> String {
    let good = RunningWorker::start(MODEL, &Options::default()).await;
    let mut workers = [(good.url.as_str(), None), (bad, token)];
    let first = journey(scheme, &workers)
        .go()
        .await
        .err()
        .expect("a failure");
    check_line(&first, bad, &good.url);
    // Their order makes no difference to who is named.
    workers.reverse();
    let journey = journey(scheme, &workers);
    if let Err(second) = journey.go().await {
        check_line(&second, bad, &good.url);
    }
    // Whatever happened, nobody who was well is left with a session.
    good.is_left().await;
    first
}

#[track_caller]
fn check_line(error: &str, bad: &str, good: &str) {
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.chars().count() < 500, "{error}");
    assert!(!error.chars().any(char::is_control), "{error:?}");
    assert!(error.contains(bad), "{bad} is not in: {error}");
    assert!(!error.contains(good), "{good} is in: {error}");
}

#[track_caller]
fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

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
        let proxy = Proxy::start(&worker.url, MIDDLE, Failure::ForGood);
        let journey = journey(scheme, &[(&good.url, None), (&proxy.url, None)]);
        let error = journey.go().await.err().expect("a failure");
        check_line(&error, &proxy.url, &good.url);
        assert_names(&error, &["does not answer"]);
        assert_eq!((proxy.failures(), proxy.runs()), (1, MIDDLE));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_stops_in_the_middle() {
    // It stops well, but the user has not finished: what is left is refused, by name.
    let worker = RunningWorker::start(MODEL, &Options::default()).await;
    let service = worker.service.clone();
    let url = tampering_worker(MODEL, MIDDLE, move |_: Bytes| {
        service.stop();
        let refusal = r#"{"error": "this worker is shutting down"}"#;
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

/// The reply of [`tampering_worker`], taken apart.
fn taken_apart(reply: &Bytes) -> Message<Value> {
    Message::decode(reply).unwrap()
}

/// The reply with each of its tensors changed.
fn changed(reply: &Bytes, change: impl Fn(Payload) -> Payload) -> Vec<u8> {
    let mut message = taken_apart(reply);
    let tensors = message.tensors.into_iter();
    message.tensors = tensors.map(|(name, t)| (name, change(t))).collect();
    message.encode().unwrap()
}

/// Sizes and values of a tensor, changed.
fn refilled(payload: Payload, change: impl Fn(&mut Vec<usize>, &mut Vec<f64>)) -> Payload {
    let (dtype, mut shape) = (payload.dtype(), payload.shape().to_vec());
    match payload {
        Payload::F64 { mut data, .. } => {
            change(&mut shape, &mut data);
            Payload::F64 { shape, data }
        }
        other => {
            let tensor = other.into_tensor("a tensor").unwrap();
            let mut data = tensor.data.into_iter().map(f64::from).collect();
            change(&mut shape, &mut data);
            let data = data.into_iter().map(|x| x as f32).collect();
            let tensor = HostTensor::new(shape, data).unwrap();
            match dtype {
                Dtype::F32 => tensor.into(),
                half => Payload::write("a tensor", tensor, half).unwrap(),
            }
        }
    }
}

/// The tensor in the number type that it should not have.
fn retyped(payload: Payload) -> Payload {
    match payload {
        Payload::F64 { shape, data } => {
            let data = data.into_iter().map(|x| x as f32).collect();
            HostTensor::new(shape, data).unwrap().into()
        }
        other => {
            let tensor = other.into_tensor("a tensor").unwrap();
            Payload::F64 {
                shape: tensor.shape,
                data: tensor.data.into_iter().map(f64::from).collect(),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_that_are_not_what_was_asked_for() {
    for scheme in SCHEMES {
        wrong_replies(scheme).await;
    }
}

async fn wrong_replies(scheme: &str) {
    let garbage = |_: Bytes| vec![0xa5u8; 4096];
    let nothing = |_: Bytes| Vec::<u8>::new();
    let half = |reply: Bytes| reply[..reply.len() / 2].to_vec();
    let with = |change: fn(&mut Vec<usize>, &mut Vec<f64>)| {
        move |reply: Bytes| changed(&reply, |t| refilled(t, change))
    };
    let rows = with(|shape, _| shape.insert(0, 1));
    let short = with(|shape, data| {
        *shape = vec![1];
        data.truncate(1);
    });
    let poison = with(|_, data| data[0] = f64::NAN);
    let overflow = with(|_, data| data[0] = f64::INFINITY);
    let renamed = |reply: Bytes| {
        let mut message = taken_apart(&reply);
        let tensors = message.tensors.drain();
        message.tensors = tensors.map(|(name, t)| (format!("{name}\n"), t)).collect();
        message.encode().unwrap()
    };
    let number = |reply: Bytes| {
        let mut message = taken_apart(&reply);
        let sequence = message.header["sequence"].as_u64().unwrap();
        message.header["sequence"] = (sequence + 1).into();
        message.encode().unwrap()
    };
    let doubles = |reply: Bytes| changed(&reply, retyped);
    let page = |_: Bytes| Html("<html>\n<body>Log in to the hotel's network</body>\n</html>");
    let broken = |_: Bytes| (StatusCode::INTERNAL_SERVER_ERROR, "stack\ntrace\n");
    let rude = |_: Bytes| {
        let error = "line one\nline two \u{1b}[31mred\u{7}".to_owned() + &"long ".repeat(10_000);
        let body = serde_json::json!({"error": error}).to_string();
        (StatusCode::UNPROCESSABLE_ENTITY, body)
    };
    let endless = |_: Bytes| endless_body().into_response();
    let elsewhere = |_: Bytes| {
        let status = StatusCode::TEMPORARY_REDIRECT;
        (status, [(header::LOCATION, "http://127.0.0.1:1/")]).into_response()
    };
    type Tamper = Box<dyn Fn(Bytes) -> Response + Send + Sync>;
    fn boxed<R: IntoResponse>(f: impl Fn(Bytes) -> R + Send + Sync + 'static) -> Tamper {
        Box::new(move |reply| f(reply).into_response())
    }
    let cases: Vec<(&str, Tamper, &[&str])> = vec![
        ("garbage", boxed(garbage), &["nonsense"]),
        ("nothing", boxed(nothing), &["nonsense"]),
        ("half", boxed(half), &["nonsense"]),
        ("another shape", boxed(rows), &["nonsense", "shape"]),
        ("too few values", boxed(short), &["nonsense", "shape"]),
        ("not a number", boxed(poison), &["nonsense", "not finite"]),
        ("an infinity", boxed(overflow), &["nonsense", "not finite"]),
        ("another name", boxed(renamed), &["nonsense", "missing"]),
        (
            "another number",
            boxed(number),
            &["nonsense", "it answered"],
        ),
        ("another type", boxed(doubles), &["nonsense", "F64"]),
        ("a page", boxed(page), &["nonsense"]),
        ("broken", boxed(broken), &["500", "stack"]),
        ("rude", boxed(rude), &["422", "line one"]),
        ("endless", boxed(endless), &["nonsense", "more than"]),
        ("elsewhere", boxed(elsewhere), &["307"]),
    ];
    for (case, tamper, parts) in cases {
        let tamper = std::sync::Arc::new(tamper);
        let url = tampering_worker(MODEL, MIDDLE, move |reply| tamper(reply)).await;
        println!("{scheme}, {case}: {}", {
            let error = failure_of(scheme, &url, None).await;
            assert_names(&error, parts);
            error
        });
    }
}

/// The first thing that a worker is asked for is the statistics of a group normalisation.
#[tokio::test(flavor = "multi_thread")]
async fn statistics_that_cannot_be() {
    for scheme in SCHEMES {
        let negative = |reply: Bytes| {
            changed(&reply, |payload| match payload {
                Payload::F64 { shape, data } => {
                    let data = vec![-1.0; data.len()];
                    Payload::F64 { shape, data }
                }
                other => other,
            })
        };
        let url = tampering_worker(MODEL, 1, negative).await;
        let error = failure_of(scheme, &url, None).await;
        assert_names(&error, &["nonsense", "below zero"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walk_that_is_somewhere_else() {
    let lost = |reply: Bytes| {
        let mut message = taken_apart(&reply);
        message.header["at"] = "norm of another model\u{7}".into();
        message.encode().unwrap()
    };
    let url = tampering_worker(MODEL, MIDDLE, lost).await;
    let error = failure_of("resident", &url, None).await;
    assert_names(&error, &["nonsense", "norm of another model"]);
}

/// The same picture with a connection that fails once as with one that does not.
async fn survives(failure: Failure) {
    for scheme in SCHEMES {
        let one = RunningWorker::start(MODEL, &Options::default()).await;
        let two = RunningWorker::start(MODEL, &Options::default()).await;
        let whole = journey(scheme, &[(&one.url, None), (&two.url, None)]);
        let whole = whole.go().await.unwrap();
        let proxy = Proxy::start(&two.url, MIDDLE, failure);
        let shaken = journey(scheme, &[(&one.url, None), (&proxy.url, None)]);
        let shaken = shaken.go().await.unwrap();
        assert_eq!(proxy.failures(), 1, "{scheme}, {failure:?}");
        assert_eq!(shaken.latents(), whole.latents(), "{scheme}, {failure:?}");
        assert_eq!(shaken.png().rgb, whole.png().rgb, "{scheme}, {failure:?}");
        // One piece of work went over the line twice, and was asked for once.
        let asked = whole.report()["workers"][1]["requests"].as_u64().unwrap();
        assert_eq!(proxy.runs() as u64, asked + 1, "{scheme}, {failure:?}");
        let retried = &shaken.report()["workers"][1];
        assert_eq!(retried["requests"], asked, "{scheme}, {failure:?}");
        assert_eq!(two.service.open_sessions(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_before_the_reply_costs_nothing() {
    survives(Failure::BeforeReply).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_within_the_reply_costs_nothing() {
    survives(Failure::WithinReply(20)).await;
    survives(Failure::WithinReply(300)).await;
}

/// What [`tampering_worker`] answers with, the first numbers of each tensor set to `value` where they can hold it.
fn first_set(value: f64) -> impl Fn(Bytes) -> Vec<u8> + Clone {
    move |reply| {
        changed(&reply, |payload| {
            let fits = matches!(payload, Payload::F64 { .. }) || value < f64::from(f32::MAX);
            let set = |data: &mut Vec<f64>| data.iter_mut().take(2).for_each(|x| *x = value);
            match fits {
                true => refilled(payload, |_, data| set(data)),
                false => payload,
            }
        })
    }
}

/// Numbers that are finite, and so large that what others make of them is not: neither those others are
/// named, nor the prompt.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_too_large_to_compute_with() {
    for scheme in SCHEMES {
        for (k, value) in [(1, 1e300), (1, 1e30), (MIDDLE, 1e30), (MIDDLE, 3e38)] {
            let url = tampering_worker(MODEL, k, first_set(value)).await;
            let error = failure_of(scheme, &url, None).await;
            println!("{scheme}, {k}, {value:e}: {error}");
            assert_names(&error, &["nonsense", "cannot be beyond"]);
        }
    }
}

/// In an evaluation they are not the prompt's fault: the run stops, and names the worker.
#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_names_the_worker_and_not_the_prompt() {
    let good = RunningWorker::start(MODEL, &Options::default()).await;
    let url = tampering_worker(MODEL, 1, first_set(1e300)).await;
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts.txt");
    std::fs::write(&prompts, "a red circle\n").unwrap();
    let fleet = fleet_file(folder.path(), &[(&good.url, None), (&url, None)]);
    let mut arguments = vec![OsString::from("eval")];
    for (flag, value) in [
        ("--model", model_dir(MODEL).into_os_string()),
        ("--device", "cpu".into()),
        ("--prompts", prompts.into()),
        ("--schemes", "resident".into()),
        ("--steps", "2".into()),
        ("--workers", fleet.into()),
        ("--out", folder.path().join("eval").into()),
    ] {
        arguments.extend([flag.into(), value]);
    }
    let error = lacuna(arguments).await.unwrap_err();
    assert_names(&error, &["the run stopped", "nonsense", &url]);
    assert!(!error.contains(&good.url), "{error}");
    good.is_left().await;
}

/// The same at every exchange of a step, by every wire and with every way to attend.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_too_large_at_any_exchange_are_the_workers_who_hands_them_in() {
    let good = RunningWorker::start(MODEL, &Options::default()).await;
    for (attention, wire) in [("tiled", "f32"), ("qkv", "bf16"), ("paired", "bf16")] {
        for k in [2, 3, 5, 8, 13, 21, 30] {
            let url = tampering_worker(MODEL, k, first_set(1e37)).await;
            // The upper one has something to hand in at every exchange.
            let workers = [(url.as_str(), None), (good.url.as_str(), None)];
            let journey = journey("resident", &workers)
                .with("--self-attention", attention)
                .with("--wire", wire);
            let Err(error) = journey.go().await else {
                panic!("{attention}, {wire}, {k}: a picture");
            };
            check_line(&error, &url, &good.url);
            assert_names(&error, &["nonsense", "cannot be beyond"]);
        }
    }
    good.is_left().await;
}

/// Codes stand for other numbers than their scales: finite ones for an infinity.
#[tokio::test(flavor = "multi_thread")]
async fn codes_of_numbers_that_are_not() {
    let good = RunningWorker::start(MODEL, &Options::default()).await;
    for wire in ["int8", "delta4"] {
        let huge = |reply: Bytes| {
            changed(&reply, |payload| match payload {
                Payload::Codes { shape, mut data } => {
                    // The first scale is the largest bf16, the codes are anything.
                    data[..2].copy_from_slice(&0x7f7fu16.to_le_bytes());
                    Payload::Codes { shape, data }
                }
                other => other,
            })
        };
        let url = tampering_worker(MODEL, 2, huge).await;
        let workers = [(good.url.as_str(), None), (url.as_str(), None)];
        let journey = journey("resident", &workers).with("--wire", wire);
        let error = journey.go().await.err().expect("a failure");
        check_line(&error, &url, &good.url);
        assert_names(&error, &["nonsense"]);
    }
}

/// A worker that is asked for a session and answers with the name `session`; and what it is asked for then.
async fn naming_worker(session: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = asked.clone();
    let layer = from_fn(move |request: Request, next: Next| {
        let heard = heard.clone();
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            let opens = line.starts_with("POST") && line.ends_with("/v1/sessions");
            heard.lock().unwrap().push(line);
            match opens {
                true => {
                    let body = serde_json::json!({"session": session}).to_string();
                    (StatusCode::CREATED, body).into_response()
                }
                false => next.run(request).await,
            }
        }
    });
    let routes = service(MODEL, &Options::default()).router();
    let url = serve_routes(Router::new().fallback_service(routes).layer(layer)).await;
    (url, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_a_name_and_leads_nowhere_else() {
    for name in ["../../admin/x", "..", "", "a/b", "a?b", "a b", "\u{1b}[2J"] {
        let (url, asked) = naming_worker(name).await;
        let error = failure_with(&url, None).await;
        assert_names(&error, &["nonsense", "the session's name"]);
        for line in asked.lock().unwrap().iter() {
            let known = ["GET /health/ready", "GET /v1/info", "POST /v1/sessions"];
            assert!(known.contains(&line.as_str()), "{name:?}: {line}");
        }
    }
}

/// A worker whose description of itself is changed.
async fn boasting_worker(change: impl Fn(&mut Value) + Clone + Send + Sync + 'static) -> String {
    let layer = from_fn(move |request: Request, next: Next| {
        let change = change.clone();
        async move {
            let is_info = request.uri().path() == "/v1/info";
            let response: Response = next.run(request).await;
            if !is_info {
                return response;
            }
            let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
            let mut info = serde_json::from_slice(&body).unwrap();
            change(&mut info);
            info.to_string().into_response()
        }
    });
    let routes = service(MODEL, &Options::default()).router();
    serve_routes(Router::new().fallback_service(routes).layer(layer)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_says_of_itself_is_harmless() {
    let rude = |info: &mut Value| {
        for key in ["adapter", "device", "version"] {
            info[key] = "\u{1b}[2Jgone\nready\u{9b}1m\u{202e}".into();
        }
        info["models"][0]["kind"] = "\u{7}".into();
    };
    let url = boasting_worker(rude).await;
    let folder = tempfile::tempdir().unwrap();
    let file = fleet_file(folder.path(), &[(&url, None)]);
    let fleet = FleetConfig::from_file(&file).unwrap();
    let (info, _) = Client::new(&fleet.workers[0])
        .unwrap()
        .info()
        .await
        .unwrap();
    assert_eq!(info.adapter, "\u{fffd}[2Jgone");
    let texts = [
        info.adapter,
        info.device,
        info.version,
        info.models[0].kind.clone(),
    ];
    for text in texts {
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
    for (key, value) in [
        ("gflops", Value::from(-1.0)),
        (
            "limits",
            serde_json::json!({
                "max_body_bytes": 0, "max_sessions": 1, "session_idle_seconds": 1,
            }),
        ),
    ] {
        let url = boasting_worker(move |info| info[key] = value.clone()).await;
        let file = fleet_file(folder.path(), &[(&url, None)]);
        let fleet = FleetConfig::from_file(&file).unwrap();
        let error = Client::new(&fleet.workers[0])
            .unwrap()
            .info()
            .await
            .unwrap_err();
        assert_names(&error.to_string(), &["nonsense", &url]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_command_shows_who_is_well_and_fails_if_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let one = RunningWorker::start(MODEL, &Options::default()).await;
    let two = RunningWorker::start(MODEL, &Options::default()).await;
    let show_for = async |model: Option<&str>, workers: &[(&str, Option<&str>)]| {
        let file = fleet_file(folder.path(), workers);
        let mut arguments = vec![OsString::from("workers"), "--workers".into(), file.into()];
        if let Some(model) = model {
            arguments.extend(["--model".into(), model_dir(model).into()]);
        }
        lacuna(arguments).await
    };
    let show = async |workers: &[(&str, Option<&str>)]| show_for(None, workers).await;
    let well = [(one.url.as_str(), None), (two.url.as_str(), None)];
    show(&well).await.unwrap();
    show_for(Some(MODEL), &well).await.unwrap();
    // Of another model than mine they are all of no use.
    let error = show_for(Some("sd1"), &well).await.unwrap_err();
    assert_names(&error, &["2 of 2 workers"]);
    let dead = dead_url().await;
    let other = RunningWorker::start("sd1", &Options::default()).await;
    let newer = boasting_worker(|info| info["protocol"] = 1000.into()).await;
    for bad in [&dead, &other.url, &newer] {
        let error = show(&[(&one.url, None), (bad, None)]).await.unwrap_err();
        assert_names(&error, &["1 of 2 workers"]);
    }
    two.service.stop();
    let error = show(&well).await.unwrap_err();
    assert_names(&error, &["1 of 2 workers"]);
    // A spare is looked at, too.
    let spare = format!(
        "[[worker]]\nurl = \"{}\"\nprovider = \"a\"\n[[worker]]\nurl = \"{dead}\"\nprovider = \"b\"\nspare = true\n",
        one.url
    );
    let file = folder.path().join("spare.toml");
    std::fs::write(&file, spare).unwrap();
    let error = lacuna([OsString::from("workers"), "--workers".into(), file.into()]).await;
    assert_names(&error.unwrap_err(), &["1 of 2 workers"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_another_protocol_is_named_before_a_session_is_opened() {
    let newer = boasting_worker(|info| {
        info["protocol"] = 1000.into();
        info["protocol_highest"] = 1001.into();
    });
    let error = failure_with(&newer.await, None).await;
    assert_names(
        &error,
        &["speaks protocol 1000 to 1001", "upgrade this side"],
    );
}

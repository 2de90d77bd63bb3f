//! An orchestrator whose worker answers with something else than was asked for, or with numbers that cannot be: one line
//! that names the worker, and no file left.

use std::ffi::OsString;

use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use lacuna_wire::HostTensor;
use lacuna_wire::{Dtype, Message, Payload};
use lacuna_worker::Options;
use serde_json::Value;
use tests::bad_workers::{
    MIDDLE, MODEL, OF_FEATURES, assert_names, check_line, failure_of, journey,
};
use tests::golden::model_dir;
use tests::journey::lacuna;
use tests::workers::{RunningWorker, endless_body, fleet_file, tampering_worker};

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
    for scheme in OF_FEATURES {
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
    for scheme in OF_FEATURES {
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
    for scheme in OF_FEATURES {
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

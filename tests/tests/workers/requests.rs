//! The worker's HTTP service, by bare requests: what it refuses, and what it repeats.

use std::collections::HashMap;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use futures::FutureExt;
use lacuna_protocol::session::{Info, OpenSession, ReplyHeader, RunHeader, SessionKind, Work};
use lacuna_protocol::version::{PROTOCOL, SPOKEN};
use lacuna_wire::{HostTensor, Message, Payload};
use lacuna_worker::Options;
use reqwest::{Method, StatusCode};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tests::caller::{Answer, Caller, conv, good, good_output, message, small, tensor};
use tests::workers::{RunningWorker, model, service};
use tower::ServiceExt;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_what_it_is() {
    let worker = RunningWorker::start("sd1", &small()).await;
    let info = Caller::new(&worker).info().await;
    // What it does is counted when the answer is on its way.
    let but_load = |info: &Info| Info {
        load: None,
        ..info.clone()
    };
    assert_eq!(but_load(&info), but_load(&worker.service.info()));
    assert!(info.load.is_some());
    assert_eq!(info.versions(), SPOKEN);
    assert_eq!(info.device, "cpu");
    assert_eq!(info.models.len(), 1);
    assert_eq!(info.models[0].kind, "unet");
    assert_eq!(info.models[0].digest, model("sd1").digest());
    assert_eq!(info.limits.max_sessions, 16);
    assert_eq!(info.limits.session_idle_seconds, 600);
    let bytes = model("sd1").largest_request([1, 8, 8]).unwrap();
    assert_eq!(info.limits.max_body_bytes, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaks_without_the_token() {
    let options = Options {
        token: Some("open sesame".into()),
        ..small()
    };
    let worker = RunningWorker::start("sd1", &options).await;
    let right = Caller::new(&worker).with_token("open sesame");
    let session = right.open().await;
    let digest = right.info().await.models[0].digest.clone();

    for wrong in [None, Some(""), Some("open sesam"), Some("open sesame2")] {
        let mut caller = Caller::new(&worker);
        caller.token = wrong.map(str::to_owned);
        let run = format!("v1/sessions/{session}/run");
        let mut requests = vec![
            caller.request(Method::GET, "v1/info"),
            caller.request(Method::POST, "v1/sessions"),
            caller.request(Method::POST, &run).body(good(1, 1)),
            caller.request(Method::DELETE, &format!("v1/sessions/{session}")),
            caller.request(Method::DELETE, "v1/sessions/none"),
        ];
        if wrong.is_none() {
            // The right word in the wrong place.
            let info = || caller.request(Method::GET, "v1/info");
            requests.push(info().header("authorization", "open sesame"));
            requests.push(info().header("authorization", "Basic open sesame"));
            requests.push(caller.request(Method::GET, "v1/info?token=open%20sesame"));
        }
        for request in requests {
            let refusal = Caller::send(request).await.refusal(401);
            assert_eq!(refusal, "the token is missing or wrong");
            assert!(!refusal.contains(&digest));
        }
        // What a load balancer asks needs no token, and tells nothing.
        assert_eq!(caller.get("health/live").await.body, b"live");
        assert_eq!(caller.get("health/ready").await.body, b"ready");
    }
    // The session of the one who has the token is untouched.
    let answer = right.run(&session, good(1, 1)).await;
    assert_eq!(answer.output(1, "0.y"), good_output(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_model_does_not_have_is_refused_by_name() {
    let worker = RunningWorker::start("sd1", &small()).await;
    let caller = Caller::new(&worker);
    let session = caller.open().await;
    let x = || tensor(&[1, 4, 5, 3], 1);
    let norm = || Work::Moments {
        layer: "conv_norm_out".into(),
    };
    let attention = || Work::Attention {
        layer: "mid_block.attentions.0.transformer_blocks.0.attn2".into(),
    };
    let tokens = |t: usize, c: usize| tensor(&[1, t, c], 2);
    let poisoned = |poison: f32| {
        let mut x = x();
        x.data[7] = poison;
        x
    };
    let mut missing = message(
        1,
        attention(),
        &[("q", tokens(1, 32)), ("k", tokens(2, 32))],
    );
    let mut none = message(1, conv("conv_in"), &[("x", x())]);
    none.tensors.clear();
    missing.header.sequence = 1;
    let unknown = |work: Work| message(1, work, &[("x", x())]);
    let with = |work: Work, x: HostTensor| message(1, work, &[("x", x)]);
    let cases = [
        (unknown(conv("conv_on")), &["conv_on"][..]),
        // The layer is there, but is no such thing.
        (unknown(conv("conv_norm_out")), &["conv_norm_out"]),
        (
            unknown(Work::Moments {
                layer: "conv_in".into(),
            }),
            &["conv_in"],
        ),
        (
            with(conv("conv_in"), tensor(&[1, 5, 5, 3], 1)),
            &["conv_in", "[1, 5, 5, 3]", "[1, 4, 5, 3]"],
        ),
        // Fewer rows than the kernel has.
        (
            with(conv("conv_in"), tensor(&[1, 4, 2, 3], 1)),
            &["conv_in", "[1, 4, 2, 3]"],
        ),
        (with(conv("conv_in"), tensor(&[4, 5, 3], 1)), &["4 axes"]),
        (
            with(conv("conv_in"), tensor(&[0, 4, 5, 3], 1)),
            &["conv_in"],
        ),
        (
            with(conv("conv_in"), tensor(&[1, 4, 5, 0], 1)),
            &["conv_in"],
        ),
        (with(norm(), tensor(&[1, 8, 4, 4], 1)), &["conv_norm_out"]),
        (with(norm(), tensor(&[1, 16, 0, 4], 1)), &["conv_norm_out"]),
        (none, &["0.x", "missing"]),
        (missing, &["0.v", "missing"]),
        (
            message(
                1,
                attention(),
                &[
                    ("q", tokens(1, 32)),
                    ("k", tokens(2, 16)),
                    ("v", tokens(2, 32)),
                ],
            ),
            &["attn2", "[1, 2, 16]"],
        ),
        (
            message(
                1,
                attention(),
                &[
                    ("q", tokens(1, 32)),
                    ("k", tokens(2, 32)),
                    ("v", tokens(4, 32)),
                ],
            ),
            &["attn2", "[1, 4, 32]"],
        ),
        (
            message(1, conv("conv_in"), &[("x", x()), ("y", x())]),
            &["0.y", "belongs to no work"],
        ),
        (
            with(conv("conv_in"), poisoned(f32::NAN)),
            &["0.x", "not finite"],
        ),
        (
            with(conv("conv_in"), poisoned(f32::NEG_INFINITY)),
            &["0.x", "not finite"],
        ),
        // The input is finite, the result is not.
        (
            with(conv("conv_in"), poisoned(3e38)),
            &["conv_in", "finite"],
        ),
    ];
    for (request, parts) in cases {
        let mut request = request;
        if parts == ["conv_in", "finite"] {
            let Some(Payload::F32(x)) = request.tensors.get_mut("0.x") else {
                panic!("the request has no features");
            };
            x.data.fill(3e38);
        }
        let refusal = caller
            .run(&session, request.encode().unwrap())
            .await
            .refusal(422);
        for part in parts {
            assert!(refusal.contains(part), "{part:?} is not in: {refusal}");
        }
    }
    // A refusal is no answer: the number is still due, and the session as good as before.
    let answer = caller.run(&session, good(1, 5)).await;
    assert_eq!(answer.output(1, "0.y"), good_output(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_bodies_are_refused() {
    let worker = RunningWorker::start("sd1", &small()).await;
    let caller = Caller::new(&worker);
    let session = caller.open().await;
    let whole = good(1, 1);
    for len in [0, 7, 8, 40, whole.len() / 2, whole.len() - 1] {
        let refusal = caller.run(&session, whole[..len].to_vec()).await;
        let refusal = refusal.refusal(422);
        assert!(refusal.contains("malformed message"), "{len}: {refusal}");
    }
    let mut longer = whole.clone();
    longer.push(0);
    caller.run(&session, longer).await.refusal(422);
    // A length of the header that would take all memory.
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    caller.run(&session, huge).await.refusal(422);

    let header = |work: Value| {
        let header = json!({"sequence": 1, "work": work}).to_string();
        Some(HashMap::from([("lacuna".to_owned(), header)]))
    };
    let no_tensors = Vec::<(&str, TensorView<'_>)>::new;
    for metadata in [
        None,
        header(json!([{"op": "format_disk", "layer": "conv_in"}])),
        header(json!([{"op": "conv"}])),
        header(json!("conv_in")),
    ] {
        let body = safetensors::serialize(no_tensors(), metadata).unwrap();
        let refusal = caller.run(&session, body).await.refusal(422);
        assert!(refusal.contains("malformed message"), "{refusal}");
    }
    for (dtype, width) in [(Dtype::F64, 8), (Dtype::I16, 2), (Dtype::I32, 4)] {
        let data = vec![0; 60 * width];
        let view = TensorView::new(dtype, vec![1, 4, 5, 3], &data).unwrap();
        let work = json!([{"op": "conv", "layer": "conv_in", "odd": false}]);
        let body = safetensors::serialize([("0.x", view)], header(work)).unwrap();
        let refusal = caller.run(&session, body).await.refusal(422);
        let name = format!("{dtype:?}");
        assert!(
            refusal.contains("0.x") && refusal.contains(&name),
            "{refusal}"
        );
    }
    let answer = caller.run(&session, whole).await;
    assert_eq!(answer.output(1, "0.y"), good_output(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_above_the_limit_is_refused_and_one_below_is_not() {
    let worker = RunningWorker::start("sd1", &small()).await;
    let caller = Caller::new(&worker);
    let session = caller.open().await;
    let limit = caller.info().await.limits.max_body_bytes;
    let answer = caller.run(&session, vec![0; limit + 1]).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    // As large as may be, and nonsense.
    let refusal = caller.run(&session, vec![0; limit]).await.refusal(422);
    assert!(refusal.contains("malformed message"), "{refusal}");
    let answer = caller.run(&session, good(1, 1)).await;
    assert_eq!(answer.output(1, "0.y"), good_output(1));
}

/// A body may be as long as the largest layer's input; the first convolution would make far more of it.
#[tokio::test(flavor = "multi_thread")]
async fn work_on_more_than_the_largest_picture_is_refused_before_it_is_done() {
    let worker = RunningWorker::start("sd1", &small()).await;
    let caller = Caller::new(&worker);
    let session = caller.open().await;
    let zeros = |shape: &[usize]| HostTensor::zeros(shape);
    let attention = |name: &str, q: [usize; 3], k: [usize; 3]| {
        let layer = format!("down_blocks.0.attentions.0.transformer_blocks.0.{name}");
        let inputs = [("q", zeros(&q)), ("k", zeros(&k)), ("v", zeros(&k))];
        message(1, Work::Attention { layer }, &inputs)
    };
    let norm = Work::Moments {
        layer: "conv_norm_out".into(),
    };
    let x = |shape: &[usize]| [("x", zeros(shape))];
    let too_large = [
        (
            message(1, conv("conv_in"), &x(&[1, 4, 100, 8])),
            "[1, 4, 11, 8]",
        ),
        (
            message(1, conv("conv_in"), &x(&[1, 4, 3, 60])),
            "[1, 4, 11, 8]",
        ),
        (
            message(1, conv("conv_in"), &x(&[2, 4, 3, 8])),
            "[1, 4, 11, 8]",
        ),
        (message(1, norm, &x(&[1, 16, 8, 9])), "[1, 16, 11, 8]"),
        (attention("attn1", [1, 65, 16], [1, 64, 16]), "[1, 64, 16]"),
        (attention("attn1", [1, 3, 16], [1, 65, 16]), "[1, 64, 16]"),
    ];
    for (request, largest) in too_large {
        let body = request.encode().unwrap();
        let limit = worker.service.info().limits.max_body_bytes;
        assert!(body.len() <= limit, "{} of {limit} bytes", body.len());
        let refusal = caller.run(&session, body).await.refusal(422);
        assert!(
            refusal.contains(largest) && refusal.contains("--max-rows"),
            "{largest} is not in: {refusal}"
        );
    }
    // Nor is it done in many pieces.
    let pieces = 40;
    let request = Message {
        header: RunHeader {
            sequence: 1,
            work: vec![conv("conv_in"); pieces],
        },
        tensors: (0..pieces)
            .map(|i| (format!("{i}.x"), zeros(&[1, 4, 10, 8]).into()))
            .collect(),
    };
    let refusal = caller.run(&session, request.encode().unwrap()).await;
    let refusal = refusal.refusal(422);
    assert!(refusal.contains("outputs of one request"), "{refusal}");
    // The largest that there can be is.
    let largest = message(1, conv("conv_in"), &x(&[1, 4, 10, 8]));
    let answer = caller.run(&session, largest.encode().unwrap()).await;
    assert_eq!(answer.output(1, "0.y").shape[2..], [8, 8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_out_of_order_are_refused_and_repeated_ones_answered_alike() {
    let worker = RunningWorker::start("sd1", &small()).await;
    let caller = Caller::new(&worker);
    let session = caller.open().await;
    for sequence in [0, 2, u64::MAX] {
        let refusal = caller.run(&session, good(sequence, 1)).await.refusal(409);
        assert!(
            refusal.contains(&format!("request {sequence} came when 1 was due")),
            "{refusal}"
        );
    }
    let first = caller.run(&session, good(1, 1)).await;
    assert_eq!(first.output(1, "0.y"), good_output(1));
    let again = caller.run(&session, good(1, 1)).await;
    assert_eq!(again.status, StatusCode::OK);
    assert!(again.body == first.body, "a retry was answered otherwise");
    // Under the same number nothing else is answered, and nothing done.
    let unknown = message(1, conv("no_such_layer"), &[]).encode().unwrap();
    for other in [good(1, 2), unknown] {
        let refusal = caller.run(&session, other).await.refusal(409);
        assert!(refusal.contains("other content"), "{refusal}");
    }
    let second = caller.run(&session, good(2, 2)).await;
    assert_eq!(second.output(2, "0.y"), good_output(2));
    let refusal = caller.run(&session, good(1, 1)).await.refusal(409);
    assert!(
        refusal.contains("request 1 came when 3 was due"),
        "{refusal}"
    );
    let again = caller.run(&session, good(2, 2)).await;
    assert!(again.body == second.body, "a retry was answered otherwise");
}

/// The client hangs up while its work waits or is done; the same request then gets that work's
/// result.
#[tokio::test]
async fn work_whose_asker_hung_up_is_not_done_twice() {
    let service = service("sd1", &small());
    let call = |method: Method, path: String, body: Vec<u8>| {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("content-type", "application/json");
        let request = request.body(Body::from(body)).unwrap();
        service.router().oneshot(request)
    };
    let open = OpenSession {
        protocol: PROTOCOL,
        model: model("sd1").digest().to_owned(),
        kind: SessionKind::Layers,
        picture: None,
    };
    let open = serde_json::to_vec(&open).unwrap();
    let opened = call(Method::POST, "/v1/sessions".into(), open)
        .await
        .unwrap();
    let opened = to_bytes(opened.into_body(), 1 << 20).await.unwrap();
    let opened: Value = serde_json::from_slice(&opened).unwrap();
    let path = format!("/v1/sessions/{}/run", opened["session"].as_str().unwrap());

    let mut hung_up = Box::pin(call(Method::POST, path.clone(), good(1, 1)));
    assert!((&mut hung_up).now_or_never().is_none(), "it is at work");
    drop(hung_up);
    let retry = call(Method::POST, path, good(1, 1)).await.unwrap();
    let retry = Answer {
        status: retry.status(),
        body: to_bytes(retry.into_body(), 1 << 20).await.unwrap().to_vec(),
    };
    assert_eq!(retry.output(1, "0.y"), good_output(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_hold_several_pieces_of_work() {
    let worker = RunningWorker::start("sd1", &small()).await;
    let caller = Caller::new(&worker);
    let session = caller.open().await;
    let norm = Work::Moments {
        layer: "conv_norm_out".into(),
    };
    let (x, map) = (tensor(&[1, 4, 5, 3], 1), tensor(&[1, 16, 2, 3], 2));
    let request = Message {
        header: RunHeader {
            sequence: 1,
            work: vec![conv("conv_in"), norm.clone()],
        },
        tensors: HashMap::from([("0.x".into(), x.into()), ("1.x".into(), map.clone().into())]),
    };
    let answer = caller.run(&session, request.encode().unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK);
    let mut reply = Message::<ReplyHeader>::decode(&answer.body).unwrap();
    assert_eq!(reply.take("0.y").unwrap(), good_output(1).into());
    let moments = model("sd1").run(&norm, vec![map]).unwrap();
    assert_eq!(reply.take("1.moments").unwrap(), moments);
    // Nothing to do is done.
    let empty = Message {
        header: RunHeader {
            sequence: 2,
            work: vec![],
        },
        tensors: HashMap::new(),
    };
    let answer = caller.run(&session, empty.encode().unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK);
}

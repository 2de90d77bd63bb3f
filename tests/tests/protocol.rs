//! The worker's HTTP service, by bare requests: what it says, what it refuses, what it repeats.

use std::collections::HashMap;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use futures::FutureExt;
use reqwest::{Method, RequestBuilder, StatusCode};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use shared::device::OpenDevice;
use shared::exchange::Assignment;
use shared::host::HostTensor;
use shared::placement::{Placement, Tile};
use shared::wire::{
    AdvanceHeader, Info, Message, OpenSession, PROTOCOL, Payload, ReplyHeader, RunHeader, SPOKEN,
    SessionKind, Work,
};
use tests::workers::{RunningWorker, model, service};
use tower::ServiceExt;
use worker::{Options, Service};

/// What a test waits for at most; nothing takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client that says what it likes.
struct Caller {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
}

/// An answer that was read.
struct Answer {
    status: StatusCode,
    body: Vec<u8>,
}

impl Answer {
    /// What the refusal says.
    #[track_caller]
    fn refusal(&self, status: u16) -> String {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status.as_u16(), status, "{text}");
        let value: Value = serde_json::from_slice(&self.body).unwrap();
        let error = value["error"].as_str().unwrap();
        assert!(!error.contains('\n'), "{error}");
        error.to_owned()
    }

    /// The one output of a piece of work that went well.
    #[track_caller]
    fn output(&self, sequence: u64, name: &str) -> HostTensor {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, StatusCode::OK, "{text}");
        let mut reply = Message::<ReplyHeader>::decode(&self.body).unwrap();
        assert_eq!(reply.header.sequence, sequence);
        assert_eq!(reply.tensors.len(), 1);
        reply.take(name).unwrap().into_tensor(name).unwrap()
    }
}

impl Caller {
    fn new(worker: &RunningWorker) -> Self {
        Self {
            http: lacuna_orchestrator::fleet::line::http_client()
                .no_proxy()
                .build()
                .unwrap(),
            url: worker.url.clone(),
            token: None,
        }
    }

    fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn send(request: RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        Answer {
            status: response.status(),
            body: response.bytes().await.unwrap().to_vec(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        Self::send(self.request(Method::GET, path)).await
    }

    async fn info(&self) -> Info {
        serde_json::from_slice(&self.get("v1/info").await.body).unwrap()
    }

    async fn try_open(&self, protocol: u32, model: &str) -> Answer {
        let model = model.to_owned();
        let body = OpenSession {
            protocol,
            model,
            kind: SessionKind::Layers,
            picture: None,
        };
        Self::send(self.request(Method::POST, "v1/sessions").json(&body)).await
    }

    /// Opens a session for the model that the worker holds.
    async fn open(&self) -> String {
        let digest = &self.info().await.models[0].digest;
        let answer = self.try_open(PROTOCOL, digest).await;
        assert_eq!(answer.status, StatusCode::CREATED);
        let opened: Value = serde_json::from_slice(&answer.body).unwrap();
        opened["session"].as_str().unwrap().to_owned()
    }

    async fn close(&self, session: &str) -> Answer {
        let path = format!("v1/sessions/{session}");
        Self::send(self.request(Method::DELETE, &path)).await
    }

    async fn run(&self, session: &str, body: Vec<u8>) -> Answer {
        let path = format!("v1/sessions/{session}/run");
        Self::send(self.request(Method::POST, &path).body(body)).await
    }
}

fn conv(layer: &str) -> Work {
    Work::Conv {
        layer: layer.to_owned(),
        odd: false,
    }
}

fn tensor(shape: &[usize], seed: u64) -> HostTensor {
    let mut rng = lacuna_orchestrator::noise::TorchRng::new(seed);
    HostTensor::new(shape, rng.randn(shape.iter().product())).unwrap()
}

/// A request with one piece of work.
fn message(sequence: u64, work: Work, inputs: &[(&str, HostTensor)]) -> Message<RunHeader> {
    let named = |(name, tensor): &(&str, HostTensor)| (format!("0.{name}"), tensor.clone().into());
    Message {
        header: RunHeader {
            sequence,
            work: vec![work],
        },
        tensors: inputs.iter().map(named).collect(),
    }
}

/// A request that any sd1 worker can do: five rows of the first convolution.
fn good(sequence: u64, seed: u64) -> Vec<u8> {
    let x = tensor(&[1, 4, 5, 3], seed);
    message(sequence, conv("conv_in"), &[("x", x)])
        .encode()
        .unwrap()
}

/// What [`good`] must give.
fn good_output(seed: u64) -> HostTensor {
    let x = tensor(&[1, 4, 5, 3], seed);
    let y = model("sd1").run(&conv("conv_in"), vec![x]).unwrap();
    y.into_tensor("y").unwrap()
}

/// Small limits, so that what is too large is small too.
fn small() -> Options {
    Options {
        max_latents: [1, 8, 8],
        ..Options::default()
    }
}

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
async fn a_worker_says_what_it_is() {
    let worker = RunningWorker::start("sd1", &small()).await;
    let info = Caller::new(&worker).info().await;
    assert_eq!(&info, worker.service.info());
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

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_are_not_open_are_refused() {
    let options = Options {
        max_sessions: 2,
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
    let gone = async {
        while worker.service.open_sessions() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
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
async fn many_sessions_at_once_do_not_mix() {
    let worker = RunningWorker::start("sd1", &small()).await;
    let sessions = (0..8u64).map(|i| {
        let caller = Caller::new(&worker);
        async move {
            let session = caller.open().await;
            for sequence in 1..=20 {
                let seed = 1000 * i + sequence;
                let answer = caller.run(&session, good(sequence, seed)).await;
                assert_eq!(answer.output(sequence, "0.y"), good_output(seed));
            }
            assert_eq!(caller.close(&session).await.status, StatusCode::NO_CONTENT);
        }
    });
    let running: Vec<_> = sessions.map(tokio::spawn).collect();
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

//! Fleets that are upgraded a worker at a time: each two sides speak the newest version that both know.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use lacuna_protocol::session::Info;
use lacuna_protocol::version::{PROTOCOL, SPOKEN};
use lacuna_worker::Options;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tests::golden::Golden;
use tests::journey::{Files, Journey};
use tests::workers::{RunningWorker, fleet_file, model, serve_routes, service};

/// The version before kinds of sessions were named.
const OLD: u32 = 3;

/// A worker that claims to speak other versions, and how sessions are opened at it.
struct Claiming {
    url: String,
    opened: Arc<Mutex<Vec<Value>>>,
}

impl Claiming {
    /// What it is may be anything: `claim` changes what it says of itself.
    async fn start(claim: impl Fn(&mut Value) + Clone + Send + Sync + 'static) -> Self {
        let opened = Arc::new(Mutex::new(Vec::new()));
        let ear = opened.clone();
        let layer = from_fn(move |request: Request, next: Next| {
            let (claim, ear) = (claim.clone(), ear.clone());
            async move {
                let path = request.uri().path().to_owned();
                let (head, body) = request.into_parts();
                let body = to_bytes(body, usize::MAX).await.unwrap();
                if path == "/v1/sessions" {
                    ear.lock()
                        .unwrap()
                        .push(serde_json::from_slice(&body).unwrap());
                }
                let request = Request::from_parts(head, Body::from(body));
                let response: Response = next.run(request).await;
                if path != "/v1/info" {
                    return response;
                }
                let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
                let mut info = serde_json::from_slice(&body).unwrap();
                claim(&mut info);
                axum::Json(info).into_response()
            }
        });
        let routes = service("sd1", &Options::default()).router();
        let url = serve_routes(Router::new().fallback_service(routes).layer(layer)).await;
        Self { url, opened }
    }

    /// As this program is.
    async fn as_it_is() -> Self {
        Self::start(|_| ()).await
    }

    /// One of the version before, which gave one number.
    async fn old() -> Self {
        Self::start(|info| {
            let info = info.as_object_mut().unwrap();
            info.insert("protocol".into(), OLD.into());
            info.remove("protocol_highest");
        })
        .await
    }

    /// One that speaks versions from `lowest` to `highest`.
    async fn of([lowest, highest]: [u32; 2]) -> Self {
        Self::start(move |info| {
            info["protocol"] = lowest.into();
            info["protocol_highest"] = highest.into();
        })
        .await
    }

    fn opened(&self) -> Vec<Value> {
        self.opened.lock().unwrap().clone()
    }
}

/// A picture through workers at `urls`.
async fn picture(urls: &[&str], scheme: &str) -> Result<Files, String> {
    let folder = tempfile::tempdir().unwrap();
    let workers: Vec<_> = urls.iter().map(|url| (*url, None)).collect();
    let file = fleet_file(folder.path(), &workers);
    let journey = Journey::golden(&Golden::load("sd1")).with("--steps", "2");
    let journey = journey.with("--scheme", scheme).with("--workers", file);
    journey.go().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_of_mixed_versions_makes_the_same_picture() {
    let new = [Claiming::as_it_is().await, Claiming::as_it_is().await];
    let mixed = [
        Claiming::old().await,
        // Newer than this side, but it has not forgotten.
        Claiming::of([PROTOCOL, PROTOCOL + 5]).await,
    ];
    for scheme in ["resident", "ppidm"] {
        let want = picture(&[&new[0].url, &new[1].url], scheme).await.unwrap();
        let got = picture(&[&mixed[0].url, &mixed[1].url], scheme)
            .await
            .unwrap();
        assert_eq!(got.latents().data, want.latents().data, "{scheme}");
        assert_eq!(got.png().difference(&want.png()), (0, 0), "{scheme}");
    }
    for worker in [&new[0], &mixed[1]] {
        let opened = worker.opened();
        assert!(opened.iter().all(|open| open["protocol"] == PROTOCOL));
        let kinds = ["strip", "layers"].map(|kind| {
            let of_kind = |open: &&Value| open["session"]["kind"] == kind;
            opened.iter().filter(of_kind).count()
        });
        assert!(kinds.iter().all(|count| *count > 0), "{kinds:?}");
        assert!(opened.iter().all(|open| open.get("resident").is_none()));
    }
    // To the older worker sessions are as they always were.
    let opened = mixed[0].opened();
    assert!(opened.iter().all(|open| open["protocol"] == OLD));
    assert!(opened.iter().all(|open| open.get("session").is_none()));
    let strips = opened.iter().filter(|open| open["resident"].is_object());
    assert!((1..opened.len()).contains(&strips.count()));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sides_without_a_common_version_say_which_one_to_upgrade() {
    let newer = [PROTOCOL + 1, PROTOCOL + 2];
    for (versions, advice) in [([1, 2], "upgrade the worker"), (newer, "upgrade this side")] {
        let speaks = format!("speaks protocol {} to {}", versions[0], versions[1]);
        let parts = [&*speaks, advice];
        let worker = Claiming::of(versions).await;
        let error = picture(&[&worker.url], "resident").await.err().unwrap();
        for part in parts.into_iter().chain([&*worker.url]) {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
        assert!(worker.opened().is_empty());
    }
}

/// What a laptop of the version before says and looks at.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_laptop_is_served_by_this_worker() {
    let worker = RunningWorker::start("sd1", &Options::default()).await;
    let http = lacuna_orchestrator::fleet::line::http_client()
        .no_proxy()
        .build()
        .unwrap();
    let info = http.get(format!("{}v1/info", worker.url));
    let info: Value = info.send().await.unwrap().json().await.unwrap();
    // It compared this one number with its own.
    assert_eq!(info["protocol"], OLD);
    let placement = json!({
        "self_attention": ["paired"],
        "prompt": "hidden",
        "latents": "shared",
        "wires": {"halo": "f32", "attention": "f32"},
    });
    let resident = json!({
        "batch": 2, "rows": 8, "columns": 8, "strip": {"start": 0, "end": 1}, "tokens": 77,
        "placement": placement,
        "tile": {"queries": {"index": 0, "of": 1}, "keys": {"index": 0, "of": 1}},
    });
    let open = async |body: Value| {
        let request = http.post(format!("{}v1/sessions", worker.url)).json(&body);
        let response = request.send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    };
    let digest = model("sd1").digest().to_owned();
    for body in [
        json!({"protocol": OLD, "model": digest, "resident": resident}),
        json!({"protocol": OLD, "model": digest}),
    ] {
        let (status, text) = open(body).await;
        assert_eq!(status, StatusCode::CREATED, "{text}");
    }
    let ours = serde_json::from_value::<Info>(info).unwrap().versions();
    assert_eq!(ours, SPOKEN);
    for (protocol, side) in [(OLD - 1, "orchestrator"), (PROTOCOL + 1, "worker")] {
        let body = json!({"protocol": protocol, "model": digest, "session": {"kind": "unheard"}});
        let (status, text) = open(body).await;
        assert_eq!(status, StatusCode::CONFLICT, "{text}");
        assert!(text.contains(&format!("upgrade the {side}")), "{text}");
        assert!(text.contains(&SPOKEN.to_string()), "{text}");
    }
    // A kind that this version does not have is refused by its name.
    let body = json!({"protocol": PROTOCOL, "model": digest, "session": {"kind": "unheard"}});
    let (status, text) = open(body).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{text}");
    assert!(text.contains("unheard"), "{text}");
}

//! What a worker says of itself, and what it calls a session: neither does harm, and who cannot be worked with is named
//! before anything is computed.

use std::ffi::OsString;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use lacuna_orchestrator::fleet::client::Client;
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_worker::Options;
use serde_json::Value;
use tests::bad_workers::{MODEL, assert_names, failure_with};
use tests::golden::model_dir;
use tests::journey::lacuna;
use tests::workers::{RunningWorker, dead_url, fleet_file, serve_routes, service};

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

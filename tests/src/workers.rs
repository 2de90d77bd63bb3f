//! Workers in this process, good and bad, on ports that the system chooses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use lacuna_model::device::OpenDevice;
use lacuna_protocol::session::DIGEST;
use lacuna_worker::{Model, Options, Service};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::golden::model_dir;

/// The U-Net of the tiny model `name`, as a worker holds it; read once.
pub fn model(name: &str) -> Arc<Model> {
    static MODELS: Mutex<BTreeMap<String, Arc<Model>>> = Mutex::new(BTreeMap::new());
    let load = || {
        let dir = model_dir(name).join("unet");
        Arc::new(Model::load(&dir, None, &[], &OpenDevice::cpu().device).unwrap())
    };
    let mut models = MODELS.lock().unwrap();
    models.entry(name.to_owned()).or_insert_with(load).clone()
}

/// A service over the tiny model `name`.
pub fn service(name: &str, options: &Options) -> Service {
    Service::new(model(name), &OpenDevice::cpu(), options).unwrap()
}

/// A worker as it should be, on a port of this machine; it ends when dropped.
pub struct RunningWorker {
    /// Where it listens.
    pub url: String,
    /// Its state.
    pub service: Service,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

impl RunningWorker {
    /// Starts a worker that holds the tiny model `name`.
    pub async fn start(name: &str, options: &Options) -> Self {
        Self::start_draining(name, options, Duration::ZERO).await
    }

    /// Starts a worker that holds `model`.
    pub async fn of(model: Arc<Model>, options: &Options) -> Self {
        let service = Service::new(model, &OpenDevice::cpu(), options).unwrap();
        Self::serving(service, Duration::ZERO).await
    }

    /// Starts a worker that holds no model but those of its store.
    pub async fn of_store(options: &Options) -> Self {
        let service = Service::new(None, &OpenDevice::cpu(), options).unwrap();
        Self::serving(service, Duration::ZERO).await
    }

    /// Starts one that waits for open sessions for `drain` when it is told to stop.
    pub async fn start_draining(name: &str, options: &Options, drain: Duration) -> Self {
        Self::serving(service(name, options), drain).await
    }

    async fn serving(service: Service, drain: Duration) -> Self {
        let (listener, url) = listen().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move {
            // A dropped sender stops the worker just as a message does.
            let _ = stopped.await;
        };
        let served = tokio::spawn(lacuna_worker::serve(
            listener,
            service.clone(),
            stopped,
            drain,
        ));
        Self {
            url,
            service,
            stop: Some(stop),
            served,
        }
    }

    /// Tells it to stop, as SIGTERM does.
    pub fn tell_to_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until nobody has a session open, which must come soon: those that were given up are closed in
    /// tasks of their own.
    pub async fn is_left(&self) {
        let left = async {
            while self.service.open_sessions() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let left = tokio::time::timeout(Duration::from_secs(10), left).await;
        left.expect("its sessions are closed");
    }

    /// Ends it, whoever has a session open, and waits until nothing of it is left.
    pub async fn ended_now(mut self) {
        self.tell_to_stop();
        let Self {
            served, service, ..
        } = self;
        drop(service);
        let ended = tokio::time::timeout(Duration::from_secs(10), served).await;
        ended.expect("the worker ends").unwrap();
    }

    /// Waits for its end, which must come within `limit`.
    pub async fn ended(self, limit: Duration) {
        let ended = tokio::time::timeout(limit, self.served).await;
        ended.expect("the worker ends").unwrap();
    }
}

/// A listener on a port that the system chooses, and its address as a URL.
pub async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    (listener, url)
}

/// The address of a port on which nobody listens.
pub async fn dead_url() -> String {
    listen().await.1
}

/// The addresses of as many ports on which nobody listens.
pub async fn dead_urls<const N: usize>() -> [String; N] {
    // All at a time, so that none is given twice.
    let mut open = Vec::with_capacity(N);
    for _ in 0..N {
        open.push(listen().await);
    }
    std::array::from_fn(|i| open[i].1.clone())
}

/// Serves any routes; gives the address. Ends with the test's runtime.
pub async fn serve_routes(routes: Router) -> String {
    let (listener, url) = listen().await;
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

/// A worker that holds the tiny model `name` and answers every request well, but for its `k`-th
/// piece of work (counted from 1): that reply is what `tamper` makes of the true one.
pub async fn tampering_worker<R: IntoResponse>(
    name: &str,
    k: usize,
    tamper: impl Fn(Bytes) -> R + Clone + Send + Sync + 'static,
) -> String {
    worker_tampering_at(name, move |run| run == k, tamper).await
}

/// The same, where `at` says of the number of a piece of work whether its reply is tampered with.
pub async fn worker_tampering_at<R: IntoResponse>(
    name: &str,
    at: impl Fn(usize) -> bool + Clone + Send + Sync + 'static,
    tamper: impl Fn(Bytes) -> R + Clone + Send + Sync + 'static,
) -> String {
    let runs = Arc::new(AtomicUsize::new(0));
    let layer = from_fn(move |request: Request, next: Next| {
        let (runs, at, tamper) = (runs.clone(), at.clone(), tamper.clone());
        async move {
            let path = request.uri().path();
            let is_run = is_work(path);
            let digested = request.headers().contains_key(DIGEST);
            let response: Response = next.run(request).await;
            if is_run && at(runs.fetch_add(1, Ordering::Relaxed) + 1) {
                let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
                let digest = if digested { blake3::OUT_LEN } else { 0 };
                let response = tamper(body.slice(..body.len() - digest)).into_response();
                return if digested {
                    right(response).await
                } else {
                    response
                };
            }
            response
        }
    });
    let routes = service(name, &Options::default()).router();
    serve_routes(Router::new().fallback_service(routes).layer(layer)).await
}

/// An answer with the digest that it has, as whoever means harm gives it.
async fn right(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    if !head.status.is_success() || body.size_hint().exact().is_none() {
        return (head, body).into_response();
    }
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let digest = blake3::hash(&body);
    head.headers.remove(CONTENT_LENGTH);
    (head, [&body[..], digest.as_slice()].concat()).into_response()
}

/// Whether a request to `path` is a piece of work.
pub fn is_work(path: &str) -> bool {
    let kinds = ["/run", "/advance", "/multiply"];
    kinds.iter().any(|kind| path.ends_with(kind))
}

/// What a worker is sent: each request's path and body, in order.
pub type Overheard = Arc<Mutex<Vec<(String, Bytes)>>>;

/// A worker that holds the tiny model `name`, and everything that it is sent.
pub async fn overheard_worker(name: &str) -> (String, Overheard) {
    overheard(&service(name, &Options::default())).await
}

/// A worker of this `service`, and everything that it is sent.
pub async fn overheard(service: &Service) -> (String, Overheard) {
    let heard = Overheard::default();
    let ear = heard.clone();
    let layer = from_fn(move |request: Request, next: Next| {
        let ear = ear.clone();
        async move {
            let path = request.uri().path().to_owned();
            let (head, body) = request.into_parts();
            let body = to_bytes(body, usize::MAX).await.unwrap();
            ear.lock().unwrap().push((path, body.clone()));
            next.run(Request::from_parts(head, body.into())).await
        }
    });
    let routes = Router::new().fallback_service(service.router());
    let url = serve_routes(routes.layer(layer)).await;
    (url, heard)
}

/// A body that never ends.
pub fn endless_body() -> Body {
    let chunk = Bytes::from(vec![0u8; 1 << 16]);
    Body::from_stream(futures::stream::repeat_with(move || {
        Ok::<_, std::io::Error>(chunk.clone())
    }))
}

/// Writes a workers file that lists `urls` with their tokens, each a provider of its own.
pub fn fleet_file(folder: &Path, workers: &[(&str, Option<&str>)]) -> PathBuf {
    let of_each = |i| format!("p{i}");
    fleet_file_of(folder, workers, of_each)
}

/// The same with the `i`-th worker at `provider(i)`.
pub fn fleet_file_of(
    folder: &Path,
    workers: &[(&str, Option<&str>)],
    provider: impl Fn(usize) -> String,
) -> PathBuf {
    let entries = workers.iter().enumerate().map(|(i, (url, token))| {
        let token = token.map_or(String::new(), |t| format!("token = \"{t}\"\n"));
        format!(
            "[[worker]]\nurl = \"{url}\"\nprovider = \"{}\"\n{token}",
            provider(i)
        )
    });
    let path = folder.join("workers.toml");
    std::fs::write(&path, entries.collect::<String>()).unwrap();
    path
}

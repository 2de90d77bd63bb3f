//! What a worker counts, for Prometheus: sizes and times, and nothing of what is computed.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use lacuna_model::memory;
use lacuna_protocol::session::Load;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Upper ends of the buckets of a request's time: from a small layer on a GPU to a large one on a slow CPU.
const SECONDS: [f64; 12] = [
    0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0,
];

/// Kinds of sessions that compute.
const KINDS: [&str; 3] = ["layers", "strip", "shares"];

/// A count of seconds.
type Seconds = Counter<f64, AtomicU64>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Device {
    device: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: String,
}

/// Why a request was refused, as its answer carries it.
#[derive(Clone, Copy)]
pub(crate) struct Refused(pub &'static str);

/// What is counted.
pub struct Metrics {
    registry: Registry,
    requests: Family<Route, Histogram, fn() -> Histogram>,
    bytes: Family<Direction, Counter>,
    refusals: Family<Code, Counter>,
    compute: Family<Kind, Seconds>,
    waiting: Seconds,
    computed: Counter,
    sessions: Gauge,
    queue: Gauge,
    connections: Gauge,
    ready: Gauge,
    models: Gauge,
    memory: Gauge,
    store: Gauge,
    device_memory: Family<Device, Gauge>,
}

/// How a worker is when somebody asks.
pub(crate) struct Now {
    /// Open sessions.
    pub sessions: usize,
    /// Who waits for a place or for the device.
    pub queue: usize,
    /// Connections of those who showed a token.
    pub connections: usize,
    /// Whether it takes sessions.
    pub ready: bool,
    /// Models in the store.
    pub models: usize,
    /// Bytes that are taken there.
    pub stored: u64,
    /// The kind of device, and bytes of its memory that the process holds; none where nobody says it.
    pub device: Option<(&'static str, u64)>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("lacuna");
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        let requests = Family::new_with_constructor(histogram);
        let (bytes, refusals, compute) = (Family::default(), Family::default(), Family::default());
        let (waiting, computed) = (Seconds::default(), Counter::default());
        let [sessions, queue, connections, ready, models, memory, store] =
            [(); 7].map(|()| Gauge::default());
        registry.register_with_unit(
            "request",
            "Time of a request, from its header to the beginning of its answer",
            Unit::Seconds,
            requests.clone(),
        );
        registry.register_with_unit(
            "exchange",
            "Bytes of requests' and answers' bodies",
            Unit::Bytes,
            bytes.clone(),
        );
        registry.register("refusals", "Requests that were refused", refusals.clone());
        registry.register_with_unit(
            "compute",
            "Time that sessions of a kind computed",
            Unit::Seconds,
            compute.clone(),
        );
        registry.register_with_unit(
            "waiting",
            "Time that work waited for the device",
            Unit::Seconds,
            waiting.clone(),
        );
        registry.register(
            "work",
            "Pieces of work that were computed",
            computed.clone(),
        );
        for (name, help, gauge) in [
            ("sessions", "Open sessions", &sessions),
            (
                "queue",
                "Pictures that wait for a place, and work that waits for the device",
                &queue,
            ),
            (
                "connections",
                "Connections of those who showed a token",
                &connections,
            ),
            ("ready", "Whether new sessions are taken", &ready),
            ("models", "Models in the store", &models),
        ] {
            registry.register(name, help, gauge.clone());
        }
        for (name, help, gauge) in [
            ("memory", "Memory of the process", &memory),
            (
                "store",
                "Bytes of the store that models take, and what was announced of others",
                &store,
            ),
        ] {
            registry.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        }
        let device_memory = Family::default();
        registry.register_with_unit(
            "device_memory",
            "Memory of the device that the process holds: of a CPU the resident set",
            Unit::Bytes,
            device_memory.clone(),
        );
        Self {
            registry,
            requests,
            bytes,
            refusals,
            compute,
            waiting,
            computed,
            sessions,
            queue,
            connections,
            ready,
            models,
            memory,
            store,
            device_memory,
        }
    }
}

impl Metrics {
    /// Counts so much computing of a session of a kind.
    pub(crate) fn computed(&self, kind: &'static str, time: Duration) {
        self.compute
            .get_or_create(&Kind { kind })
            .inc_by(time.as_secs_f64());
    }

    /// Counts a piece of work that waited for so long for the device.
    pub(crate) fn waited(&self, time: Duration) {
        self.computed.inc();
        self.waiting.inc_by(time.as_secs_f64());
    }

    /// What was done, in short; `sessions` are open, and so many wait in the `queue`.
    pub(crate) fn load(&self, sessions: usize, queue: usize) -> Load {
        let compute = |kind| self.compute.get_or_create(&Kind { kind }).get();
        let bytes = |direction| self.bytes.get_or_create(&Direction { direction }).get();
        Load {
            sessions,
            queue,
            computed: self.computed.get(),
            waiting_seconds: self.waiting.get(),
            compute_seconds: KINDS.map(compute).iter().sum(),
            bytes_in: bytes("in"),
            bytes_out: bytes("out"),
        }
    }

    /// All of it as OpenMetrics text.
    pub(crate) fn text(&self, now: &Now) -> String {
        let set = |gauge: &Gauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.sessions, now.sessions);
        set(&self.queue, now.queue);
        set(&self.connections, now.connections);
        set(&self.ready, now.ready.into());
        set(&self.models, now.models);
        set(
            &self.store,
            usize::try_from(now.stored).unwrap_or(usize::MAX),
        );
        set(&self.memory, memory::resident().unwrap_or(0) as usize);
        if let Some((device, bytes)) = now.device {
            let gauge = self.device_memory.get_or_create(&Device { device });
            set(&gauge, usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        let mut out = String::new();
        if text::encode(&mut out, &self.registry).is_err() {
            // It writes into memory alone.
            let _ = writeln!(out, "# incomplete");
        }
        out
    }
}

/// Counts the request, and what became of it.
pub(crate) async fn count(
    State(metrics): State<Arc<Metrics>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let bytes = |direction, headers: &HeaderMap, body: &Body| {
        let said = headers.get(header::CONTENT_LENGTH);
        let said = said.and_then(|len| len.to_str().ok()?.parse().ok());
        let len = said.or(body.size_hint().exact());
        let counter = metrics.bytes.get_or_create(&Direction { direction });
        counter.inc_by(len.unwrap_or(0));
    };
    bytes("in", request.headers(), request.body());
    let response = next.run(request).await;
    bytes("out", response.headers(), response.body());
    // What nobody serves has no name of its own: whoever asks could make as many as he likes.
    let route = path.map_or("none".to_owned(), |path| path.as_str().to_owned());
    let time = metrics.requests.get_or_create(&Route { route });
    time.observe(start.elapsed().as_secs_f64());
    if let Some(Refused(code)) = response.extensions().get() {
        metrics.refusals.get_or_create(&Code { code }).inc();
    }
    response
}

/// `GET /metrics`.
pub(crate) fn answer(text: String) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

//! Runs the service on a socket until told to stop.

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lacuna_channel::server::Server;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch as signal;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::error::Error;
use crate::metrics;
use crate::service::{Service, live};
use crate::visitors::{Visitor, Visitors};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may be idle, or the header of a request take: a laptop may decode a picture meanwhile.
const IDLE: Duration = Duration::from_secs(180);
/// Headers of a request at most, and bytes of all of them.
const HEADERS: usize = 64;
const HEADER_BYTES: usize = 64 << 10;
/// What is looked at again so often: certificates and tokens, which may have changed.
const LOOK: Duration = Duration::from_secs(5);
/// How long open connections may take to end.
const END: Duration = Duration::from_secs(1);

/// Where visitors come in: a socket, and the channel that they are met with, if it is a private one.
pub struct Door {
    listener: TcpListener,
    channel: Option<Arc<Server>>,
}

impl From<TcpListener> for Door {
    /// In plain.
    fn from(listener: TcpListener) -> Self {
        Self {
            listener,
            channel: None,
        }
    }
}

impl Door {
    /// By TLS where there is a `channel`.
    pub fn new(listener: TcpListener, channel: Option<Arc<Server>>) -> Self {
        Self { listener, channel }
    }

    /// Answers by `router` until `closing` says so; those who are connected then may finish what they are at, for a moment.
    async fn open(&self, router: Router, visitors: &Visitors, mut closing: signal::Receiver<bool>) {
        let mut talks = JoinSet::new();
        loop {
            let met = tokio::select! {
                met = self.listener.accept() => met,
                // Whoever has left.
                Some(_) = talks.join_next() => continue,
                _ = closing.wait_for(|closing| *closing) => break,
            };
            match met {
                Ok((stream, _)) => {
                    let (channel, router) = (self.channel.clone(), router.clone());
                    talks.spawn(meet(
                        stream,
                        channel,
                        router,
                        visitors.meet(),
                        closing.clone(),
                    ));
                }
                Err(error) => {
                    // Too many files are open, say: that passes.
                    tracing::warn!("a connection failed: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        let all = async { while talks.join_next().await.is_some() {} };
        let _ = timeout(END, all).await;
    }

    /// Looks after certificates that change, for as long as it is polled.
    async fn refresh(&self, service: &Service) {
        loop {
            sleep(LOOK).await;
            if let Some(channel) = self.channel.clone() {
                // A certificate that is half written is met again.
                match tokio::task::spawn_blocking(move || channel.refresh()).await {
                    Ok(Ok(true)) => tracing::info!("the certificate is another now"),
                    Ok(Err(error)) => tracing::warn!("the certificate stays as it was: {error}"),
                    _ => {}
                }
            }
            let service = service.clone();
            match tokio::task::spawn_blocking(move || service.tokens().refresh()).await {
                Ok(Ok(true)) => tracing::info!("the tokens are others now"),
                Ok(Err(error)) => tracing::warn!("the tokens stay as they were: {error}"),
                _ => {}
            }
        }
    }
}

/// Talks with one `visitor`.
async fn meet(
    stream: TcpStream,
    channel: Option<Arc<Server>>,
    router: Router,
    visitor: Arc<Visitor>,
    closing: signal::Receiver<bool>,
) {
    // Requests and replies alternate: Nagle's algorithm would hold each back for an acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::warn!("cannot set TCP_NODELAY: {error}");
    }
    let Some(channel) = channel else {
        return talk(stream, router, visitor, closing).await;
    };
    let acceptor = TlsAcceptor::from(channel.config());
    let leaving = visitor.clone();
    let met = tokio::select! {
        met = timeout(HANDSHAKE, acceptor.accept(stream)) => met,
        () = leaving.has_to_leave() => return,
    };
    match met {
        Ok(Ok(stream)) => talk(stream, router, visitor, closing).await,
        Ok(Err(error)) => tracing::debug!("a handshake failed: {error}"),
        Err(_) => tracing::debug!("a handshake was not finished"),
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    visitor: Arc<Visitor>,
    mut closing: signal::Receiver<bool>,
) {
    let leaving = visitor.clone();
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(visitor.clone());
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|e| match e {})) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_headers(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!("a connection ended: {error}");
            }
            return;
        }
        () = leaving.has_to_leave() => return,
        _ = closing.wait_for(|closing| *closing) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// Answers at the `door` while the model loads: live, but for all else not ready. Ends with
/// `loaded`, whose output it gives; what connects later waits in the socket for [`serve`].
pub async fn serve_while_loading<T>(door: impl Into<Door>, loaded: impl Future<Output = T>) -> T {
    let router = Router::new()
        .route("/health/live", get(live))
        .fallback(async || Error::Loading);
    let (door, visitors) = (door.into(), Visitors::new(0));
    let (close, closing) = signal::channel(false);
    let loaded = async {
        let loaded = loaded.await;
        let _ = close.send(true);
        loaded
    };
    let (loaded, ()) = tokio::join!(loaded, door.open(router, &visitors, closing));
    loaded
}

/// Serves `service` at the `door` until `shutdown` completes, then drains: no new sessions, those
/// open may finish, for at most `drain`. The caller owns the socket and the signal.
pub async fn serve(
    door: impl Into<Door>,
    service: Service,
    shutdown: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) {
    let door = door.into();
    let (close, closing) = signal::channel(false);
    let stop = async {
        shutdown.await;
        service.stop();
        let started = tokio::time::Instant::now();
        while service.open_sessions() > 0 && started.elapsed() < drain {
            sleep(Duration::from_millis(50)).await;
        }
        let _ = close.send(true);
        // What serves is waited for.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = door.open(service.router(), service.visitors(), closing) => {}
        () = service.expire() => {}
        () = door.refresh(&service) => {}
        () = stop => {}
    }
}

/// Tells at a `door` of its own what was counted, and how the worker does: of `service` once it is there. For as long as it is
/// polled.
pub async fn watch(door: impl Into<Door>, service: Arc<OnceLock<Service>>) {
    let told = move |tell: fn(&Service) -> Response| {
        let service = service.clone();
        // A GPU may be waited for.
        let told = tokio::task::spawn_blocking(move || match service.get() {
            Some(service) => tell(service),
            None => Error::Loading.into_response(),
        });
        async move {
            told.await
                .unwrap_or_else(|_| Error::Stopping.into_response())
        }
    };
    let (counted, ready) = (told.clone(), told);
    let router = Router::new()
        .route("/health/live", get(live))
        .route(
            "/health/ready",
            get(move || {
                ready(|service| match service.is_ready() {
                    true => "ready".into_response(),
                    false => Error::Stopping.into_response(),
                })
            }),
        )
        .route(
            "/metrics",
            get(move || counted(|service| metrics::answer(service.counted()))),
        );
    let (_close, closing) = signal::channel(false);
    door.into().open(router, &Visitors::new(0), closing).await;
}

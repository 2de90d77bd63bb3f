//! Runs the service on a socket until told to stop.

use std::future::{Future, IntoFuture};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;

use crate::error::Error;
use crate::service::{Service, live};

/// Answers on `listener` while the model loads: live, but for all else not ready. Ends with
/// `loaded`, whose output it gives; what connects later waits in the socket for [`serve`].
///
/// # Errors
/// Those of the socket.
pub async fn serve_while_loading<T>(
    listener: TcpListener,
    loaded: impl Future<Output = T>,
) -> std::io::Result<T> {
    let router = Router::new()
        .route("/health/live", get(live))
        .fallback(async || Error::Loading);
    tokio::select! {
        output = loaded => Ok(output),
        result = axum::serve(listener, router).into_future() => {
            result?;
            Err(std::io::Error::other("the socket closed while the model was loading"))
        }
    }
}

/// Serves `service` on `listener` until `shutdown` completes, then drains: no new sessions, those
/// open may finish, for at most `drain`. The caller owns the socket and the signal.
///
/// # Errors
/// Those of the socket.
pub async fn serve(
    listener: TcpListener,
    service: Service,
    shutdown: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) -> std::io::Result<()> {
    // Requests and replies alternate: Nagle's algorithm would hold each back for an acknowledgement.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::warn!("cannot set TCP_NODELAY: {error}");
        }
    });
    let draining = service.clone();
    let (drained, deadline) = tokio::sync::oneshot::channel();
    let stop = async move {
        shutdown.await;
        draining.stop();
        let started = tokio::time::Instant::now();
        while draining.open_sessions() > 0 && started.elapsed() < drain {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Connections that stay open without a request must not hold the process.
        let _ = drained.send(());
    };
    let server = axum::serve(listener, service.router()).with_graceful_shutdown(stop);
    tokio::select! {
        result = server.into_future() => result,
        () = service.expire_sessions() => Ok(()),
        () = async { let _ = deadline.await; tokio::time::sleep(Duration::from_secs(1)).await } => Ok(()),
    }
}

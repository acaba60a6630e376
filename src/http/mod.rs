//! The daemon over HTTP: `/healthz`, `/readyz`, `/status`, `/metrics`. Reads only; nothing can be changed over it.
//!
//! Loopback by default. Off loopback every path but `/healthz` needs the bearer token ([`Guard`]). A request has limits in
//! size, time and number, so that a stuck or hostile client costs the daemon nothing.
//!
//! The data path does not depend on it: an address that cannot be had is tried again and said.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::HttpConfig;
use crate::control::Control;
use crate::error::Result;
use crate::metrics;
use crate::telemetry::{Repeating, Say};

mod guard;

pub use guard::Guard;

/// Connections at once; further ones wait in the kernel.
const MAX_CONNECTIONS: usize = 64;
/// A request's head must have come within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection ends after this time, busy or not.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest head of a request.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Pause before an address that could not be had is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// The paths and who may ask.
pub fn router(control: Arc<Control>, guard: Guard) -> Router {
    let guard = Arc::new(guard);
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/metrics", get(scrape))
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(guard, guard::check))
        .with_state(control)
}

/// Serves until cancelled.
///
/// # Errors
/// None; the type is that of a task.
pub async fn serve(config: HttpConfig, control: Arc<Control>, cancel: CancellationToken) -> Result<()> {
    let router = router(control, Guard::new(&config));
    let Some(listener) = bind(&config, &cancel).await else { return Ok(()) };
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "listening for HTTP");
    }
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            permit = Arc::clone(&permits).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (router, cancel) = (router.clone(), cancel.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = cancel.cancelled() => {}
                        () = connection(stream, router) => {}
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, or the peer went away in between: neither is helped by spinning.
                tracing::debug!(%error, "an HTTP connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn bind(config: &HttpConfig, cancel: &CancellationToken) -> Option<TcpListener> {
    let warnings = Repeating::default();
    loop {
        match TcpListener::bind(config.listen).await {
            Ok(listener) => return Some(listener),
            Err(error) => {
                if warnings.failed("bind", &error.to_string()) != Say::Nothing {
                    tracing::warn!(address = %config.listen, %error, "cannot listen for HTTP (http.listen); trying again");
                }
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return None,
            () = tokio::time::sleep(BIND_AGAIN) => {}
        }
    }
}

async fn connection(stream: TcpStream, router: Router) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP connection ended early"),
        Err(_) => tracing::debug!("an HTTP connection took too long"),
    }
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(control): State<Arc<Control>>) -> Response {
    let status = control.status();
    if status.ready {
        return "ready\n".into_response();
    }
    let reasons: String = status.not_ready.iter().map(|reason| format!("{reason}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, reasons).into_response()
}

async fn status(State(control): State<Arc<Control>>) -> Response {
    axum::Json(control.status()).into_response()
}

/// Prometheus' text format, version 0.0.4.
async fn scrape(State(control): State<Arc<Control>>) -> Response {
    let text = metrics::render(&control.status());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "there are /healthz, /readyz, /status and /metrics\n").into_response()
}

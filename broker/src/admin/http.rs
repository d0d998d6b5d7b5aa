//! `/metrics` over HTTP/1.1, for Prometheus.

use super::AdminError;
use crate::metrics::Metrics;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

/// Connections that are served at once; further ones wait in the kernel's backlog. Worst case:
/// 32 × (8 KB of request + an answer of about 50 KB).
const CONNECTIONS_MAX: usize = 32;
/// Time for a request's header.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
/// Time that a connection may last, requests and all: Prometheus opens a new one then.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a request that are held.
const REQUEST_BYTES_MAX: usize = 8192;

/// Prometheus' text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn bind(address: SocketAddr) -> Result<std::net::TcpListener, AdminError> {
    let failed = |source| AdminError::Http { address, source };
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "admin.http is not on loopback: whoever reaches it can read /metrics");
    }
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Answers until the listener can't be used.
pub(super) async fn serve(listener: std::net::TcpListener, metrics: Arc<Metrics>) -> io::Error {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return io::Error::other("the semaphore was closed");
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "admin.http can't accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = respond(&request, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_PATIENCE)
                .max_buf_size(REQUEST_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            // Errors are the peer's: it broke off or sent no HTTP.
            let _ = timeout(CONNECTION_PATIENCE, connection).await;
            drop(place);
        });
    }
}

fn respond(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, text) = match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET | &Method::HEAD) => (StatusCode::OK, metrics.render()),
        ("/metrics", _) => (
            StatusCode::METHOD_NOT_ALLOWED,
            "/metrics takes GET\n".to_owned(),
        ),
        _ => (
            StatusCode::NOT_FOUND,
            "headgate: there is /metrics here\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! `/health`, `/ready` and `/metrics`.
//!
//! Health says that the process serves at all and stays good while it recovers or drains; readiness
//! says that the node takes requests. So an orchestrator restarts what hangs, and routes only to what
//! is ready.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::metrics::HTTP_REQUESTS;

/// Where a server is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Making or finding the pool.
    Starting,
    /// Reading the records of an existing pool.
    Recovering,
    /// Taking requests.
    Ready,
    /// Told to stop; running requests end.
    Draining,
}

/// What the pages are made from.
pub struct Pages {
    /// Where the server is in its life.
    pub phase: watch::Receiver<Phase>,
    /// What callers must present as `authorization: Bearer ...`, if anything.
    pub token: Option<String>,
    /// Gives the text of `/metrics`, up to date.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
}

/// Serves the pages until `stop` says so.
///
/// # Errors
/// Those of accepting connections.
pub async fn serve(
    listener: TcpListener,
    pages: Pages,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(pages))
        .with_graceful_shutdown(stop)
        .await
}

fn router(pages: Pages) -> Router {
    let pages = Arc::new(pages);
    Router::new()
        .route("/", get(index))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(pages.clone(), guard))
        .with_state(pages)
}

/// Refuses callers without the token, and counts.
async fn guard(State(pages): State<Arc<Pages>>, request: Request, next: Next) -> Response {
    let path = match request.uri().path() {
        path @ ("/health" | "/ready" | "/metrics") => path.to_owned(),
        _ => "other".to_owned(),
    };
    let allowed = pages
        .token
        .as_ref()
        .is_none_or(|token| presents(request.headers(), token));
    let response = match allowed {
        true => next.run(request).await,
        false => (
            StatusCode::UNAUTHORIZED,
            "a token is needed: authorization: Bearer ...\n",
        )
            .into_response(),
    };
    HTTP_REQUESTS
        .counter(&[&path, response.status().as_str()])
        .increment(1);
    response
}

fn presents(headers: &HeaderMap, token: &str) -> bool {
    let value = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok());
    value
        .and_then(|v| v.strip_prefix("Bearer "))
        .is_some_and(|given| same(given, token))
}

/// Compares without telling by its time where the first difference is.
pub(crate) fn same(a: &str, b: &str) -> bool {
    let differences = a
        .bytes()
        .zip(b.bytes())
        .fold(0, |all, (x, y)| all | (x ^ y));
    a.len() == b.len() && std::hint::black_box(differences) == 0
}

async fn index() -> &'static str {
    "pegaflow-server: /health /ready /metrics\n"
}

async fn health(State(pages): State<Arc<Pages>>) -> Response {
    let phase = *pages.phase.borrow();
    axum::Json(serde_json::json!({
        "status": "ok",
        "phase": phase,
        "version": env!("CARGO_PKG_VERSION"),
    }))
    .into_response()
}

async fn ready(State(pages): State<Arc<Pages>>) -> Response {
    let phase = *pages.phase.borrow();
    let ready = phase == Phase::Ready;
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        axum::Json(serde_json::json!({ "ready": ready, "phase": phase })),
    )
        .into_response()
}

async fn metrics(State(pages): State<Arc<Pages>>) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, (pages.metrics)()).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A server on a free port, the sender of its phase, and its address.
    async fn start(token: Option<&str>) -> (watch::Sender<Phase>, std::net::SocketAddr) {
        let (sender, phase) = watch::channel(Phase::Recovering);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let token = token.map(str::to_owned);
        let pages = Pages {
            phase,
            token,
            metrics: Box::new(|| "x 1\n".to_owned()),
        };
        tokio::spawn(serve(listener, pages, std::future::pending()));
        (sender, address)
    }

    async fn get(address: std::net::SocketAddr, path: &str, headers: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("connect");
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        let status = answer
            .split(' ')
            .nth(1)
            .expect("a status")
            .parse()
            .expect("a number");
        let body = answer
            .split_once("\r\n\r\n")
            .map(|(_, b)| b.to_owned())
            .unwrap_or_default();
        (status, body)
    }

    #[tokio::test]
    async fn ready_follows_the_phase_and_health_does_not() {
        let (sender, address) = start(None).await;
        for (phase, status) in [
            (Phase::Recovering, 503),
            (Phase::Ready, 200),
            (Phase::Draining, 503),
        ] {
            sender.send(phase).expect("the server listens");
            assert_eq!(get(address, "/ready", "").await.0, status, "{phase:?}");
            assert_eq!(get(address, "/health", "").await.0, 200, "{phase:?}");
        }
        assert_eq!(
            get(address, "/metrics", "").await,
            (200, "x 1\n".to_owned())
        );
        assert_eq!(get(address, "/nothing", "").await.0, 404);
    }

    #[tokio::test]
    async fn a_token_guards_every_page() {
        let (_sender, address) = start(Some("0123456789abcdef")).await;
        for path in ["/health", "/ready", "/metrics", "/nothing"] {
            assert_eq!(get(address, path, "").await.0, 401, "{path}");
            let wrong = "authorization: Bearer 0123456789abcdeF\r\n";
            assert_eq!(get(address, path, wrong).await.0, 401, "{path}");
        }
        let right = "authorization: Bearer 0123456789abcdef\r\n";
        assert_eq!(get(address, "/health", right).await.0, 200);
    }
}

//! The operator's metrics and health, for Prometheus and the kubelet.

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::net::TcpListener;

use crate::controller::actors::Actors;

/// Serves `/metrics`, `/healthz` and `/readyz`.
///
/// `/healthz` says that the process is alive and that due work makes progress. `/readyz` says that the policies are
/// listed and that the CRD's version is usable.
///
/// # Errors
/// Returns an error if the listener fails.
pub async fn health(listener: TcpListener, actors: impl Into<Actors>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(actors.into());
    super::listen::listen(listener, router).await
}

async fn metrics(State(actors): State<Actors>) -> Result<([(&'static str, &'static str); 1], String), StatusCode> {
    let text = actors.metrics().text().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(([("content-type", "text/plain; version=0.0.4; charset=utf-8")], text))
}

async fn healthz(State(actors): State<Actors>) -> (StatusCode, String) {
    match actors.any().scheduler.stalled() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(since) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("Work has been due for {}s and none has completed\n", since.as_secs()))
        }
    }
}

async fn readyz(State(actors): State<Actors>) -> (StatusCode, String) {
    let actors = actors.all();
    let waits = actors[0].served().obstacle().or_else(|| {
        (!actors.iter().any(|actor| actor.is_ready()))
            .then(|| "Policies are not listed yet; check that the operator has the right to list them".to_owned())
    });
    match waits {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(waits) => (StatusCode::SERVICE_UNAVAILABLE, waits + "\n"),
    }
}

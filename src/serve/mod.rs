//! The operator's HTTP servers: metrics and health, the API over connections and policies, and the live page.
//!
//! This module has the routes, their types, authorization, and the page. It only reads, except that it can close the
//! operator's own idle connections. It decides nothing.

pub mod answer;
pub mod connections;
mod gate;
mod health;
mod listen;
mod openapi;
mod page;
pub mod policies;
mod stream;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use answer::Error;
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use gate::Authorizer;
pub use health::health;
use kube::Client;
pub use listen::bind;
pub use openapi::document;
use tokio::{net::TcpListener, sync::Semaphore};

use crate::controller::actors::Actors;

/// Longest time until the response of a request begins.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The state of all routes.
pub struct Api {
    actors: Actors,
    gate: Authorizer,
    /// Permits for the streams that may still be opened.
    streams: Arc<Semaphore>,
    since: Instant,
    /// A random number of this process: it tells its snapshots from those of an earlier process.
    life: u64,
}

/// Serves the page, `/api/connections` and `/api/policies`. `client` authenticates and authorizes callers. Without it
/// every caller sees everything, which is only for a demonstration on loopback.
///
/// # Errors
/// Returns an error if the listener fails.
pub async fn api(listener: TcpListener, actors: impl Into<Actors>, client: Option<Client>) -> std::io::Result<()> {
    listen::listen(listener, router(actors, client)).await
}

/// All routes, for callers that bring their own listener.
pub fn router(actors: impl Into<Actors>, client: Option<Client>) -> Router {
    let api = Arc::new(Api {
        actors: actors.into(),
        gate: Authorizer::new(client),
        streams: Arc::new(Semaphore::new(gate::MAX_STREAMS)),
        since: Instant::now(),
        life: fastrand::u64(..),
    });
    openapi::router()
        .merge(page::router())
        .layer(middleware::from_fn(in_time))
        .layer(middleware::map_response(shaped))
        .layer(middleware::from_fn_with_state(api.clone(), own))
        .with_state(api)
}

/// Limits the time until a response begins. A stream has begun by then and continues.
async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Error::Unavailable("The request took too long").into_response(),
    }
}

/// Without tokens, a page of another origin must not act for its reader. It could do so with a form, or with a host
/// name that it makes resolve to this server.
async fn own(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    if api.gate.is_open() && !is_own(request.method(), request.headers()) {
        return Error::Foreign.into_response();
    }
    next.run(request).await
}

fn is_own(method: &Method, headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let Some(host) = text(header::HOST) else { return false };
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let here = name.eq_ignore_ascii_case("localhost")
        || name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let same = text(header::ORIGIN).is_none_or(|origin| origin.strip_prefix("http://") == Some(host));
    here && (same || method.is_safe())
}

/// Gives errors of libraries the shape of all other errors, and forbids caches to store a response.
async fn shaped(response: Response<Body>) -> Response {
    let status = response.status();
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    let mut response = if (status.is_client_error() || status.is_server_error()) && !is_json {
        let error = match status {
            StatusCode::PAYLOAD_TOO_LARGE => Error::TooLarge,
            StatusCode::NOT_FOUND => Error::NotFound("This path does not exist; see /api/openapi.json".to_owned()),
            StatusCode::METHOD_NOT_ALLOWED => Error::MethodNotAllowed,
            _ => Error::Invalid("The path or the query is not valid; see /api/openapi.json".to_owned()),
        };
        error.into_response()
    } else {
        response
    };
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demonstration_answers_its_own_page_and_nobody_elses() {
        for (method, host, origin, own) in [
            (Method::GET, Some("localhost:8081"), None, true),
            (Method::GET, Some("127.0.0.1:8081"), Some("http://evil.example"), true),
            (Method::POST, Some("127.0.0.1:8081"), Some("http://127.0.0.1:8081"), true),
            (Method::POST, Some("[::1]:8081"), Some("http://[::1]:8081"), true),
            (Method::POST, Some("localhost:8081"), None, true),
            (Method::POST, Some("localhost:8081"), Some("http://localhost:9999"), false),
            (Method::POST, Some("localhost:8081"), Some("null"), false),
            (Method::GET, Some("rebound.example:8081"), None, false),
            (Method::GET, Some("127.0.0.1.nip.example"), None, false),
            (Method::GET, None, None, false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
                value.map(|value| headers.insert(name, HeaderValue::from_static(value)));
            }
            assert_eq!(is_own(&method, &headers), own, "{method} {host:?} {origin:?}");
        }
    }
}

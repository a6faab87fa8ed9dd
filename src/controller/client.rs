//! The way to the API server: asked once, its clock listened to, and nothing written without the lease.

use http::{Method, Request, header::DATE};
use kube::{Client, Config, client::Body};
use tower::{BoxError, service_fn};

use crate::{clock, leader::Leadership};

/// A client that asks once. kube's own would ask again up to 15 times, for a quarter of an hour each, and hold a worker while it does:
/// whoever asks here has a back-off of its own, and a 429 from the Eviction API is an answer. Every answer says what time it is.
///
/// # Errors
/// Where the configuration cannot be used.
pub fn client(mut config: Config) -> kube::Result<Client> {
    config.default_retry = false;
    let client = Client::try_from(config)?;
    let namespace = client.default_namespace().to_owned();
    let listening = service_fn(move |request: Request<Body>| {
        let client = client.clone();
        async move {
            let response = client.send(request).await.map_err(plain)?;
            if let Some(date) = response.headers().get(DATE).and_then(|date| date.to_str().ok()) {
                clock::heard(date);
            }
            Ok::<_, BoxError>(response)
        }
    });
    Ok(Client::new(listening, namespace))
}

/// The same, but it writes only while this process may act: the last look is right before a request leaves.
#[must_use]
pub fn led(client: &Client, leadership: Leadership) -> Client {
    let (namespace, client) = (client.default_namespace().to_owned(), client.clone());
    let guarded = service_fn(move |request: Request<Body>| {
        let may = matches!(*request.method(), Method::GET | Method::HEAD) || leadership.holds();
        let client = client.clone();
        async move {
            if !may {
                return Err("not written: this replica does not hold the lease".into());
            }
            client.send(request).await.map_err(plain)
        }
    });
    Client::new(guarded, namespace)
}

/// What the layer below said, without that layer's wrapping: it is wrapped again above.
fn plain(error: kube::Error) -> BoxError {
    match error {
        kube::Error::Service(error) => error,
        error => error.into(),
    }
}

//! Server-Sent Events: a snapshot every 2 s, made when its reader can take it.
//!
//! A slow reader misses snapshots and gets their number. It delays no other reader, because snapshots are not queued.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::{Query, State},
    http::HeaderMap,
    response::sse::{Event, KeepAlive, Sse},
};
use futures::{Stream, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Api,
    answer::Error,
    connections::{self, Details, Health},
    policies::{Policy, Summary},
};
use crate::clock;

/// Time between two snapshots.
const EVERY: Duration = Duration::from_secs(2);
/// Interval of keep-alive comments, by which a reader tells a quiet connection from a broken one.
const SSE_KEEPALIVE: Duration = Duration::from_secs(1);

/// Snapshot of the operator's connections.
#[derive(Serialize, JsonSchema, Debug)]
#[schemars(rename = "ConnectionsSnapshot")]
pub struct Connections {
    /// Time of the snapshot.
    pub time: Time,
    /// All figures of the connections.
    #[serde(flatten)]
    pub details: Details,
    /// Whether the connections have issues.
    pub health: Health,
}

/// Snapshot of the policies.
#[derive(Serialize, JsonSchema, Debug)]
#[schemars(rename = "PoliciesSnapshot")]
pub struct Policies {
    /// Time of the snapshot.
    pub time: Time,
    /// Whether the responding replica is the leader, with shards that of any: standby replicas have no live figures.
    pub acting: bool,
    /// The short view of each policy.
    #[serde(rename = "policies")]
    pub all: Vec<Summary>,
    /// The full view of the requested policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

/// Selects the policy that is sent in full.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub struct Wanted {
    /// The policy as `namespace/name`.
    pub policy: Option<String>,
}

/// GET /api/connections/stream
pub async fn get_connections(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Sse<impl Stream<Item = Sent>>, Error> {
    start(api, headers, Watched::Connections).await
}

/// GET /api/policies/stream
pub async fn get_policies(
    State(api): State<Arc<Api>>,
    Query(Wanted { policy }): Query<Wanted>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Sent>>, Error> {
    let unusable = || Error::Invalid("The parameter policy must be namespace/name".to_owned());
    let wanted = policy.as_deref().map(|policy| policy.split_once('/').ok_or_else(unusable)).transpose()?;
    let wanted = wanted.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    start(api, headers, Watched::Policies(wanted)).await
}

/// The subject of a stream.
enum Watched {
    Connections,
    /// The policies, with the full view of one by namespace and name.
    Policies(Option<(String, String)>),
}

impl Watched {
    async fn snapshot(&self, api: &Api, headers: &HeaderMap) -> Result<String, Error> {
        let time = || Time(clock::now());
        let Self::Policies(wanted) = self else {
            let all = api.visible(headers).await?;
            let health = connections::health(&all, api.since.elapsed());
            return Ok(json(&Connections { time: time(), details: connections::details(&all), health }));
        };
        let all = api.summaries(headers).await?;
        let policy = match wanted {
            Some((namespace, name)) => match api.in_full(namespace, name, headers).await {
                Ok(policy) => Some(policy),
                // The policy may be deleted, or not created yet.
                Err(Error::NotFound(_)) => None,
                Err(error) => return Err(error),
            },
            None => None,
        };
        let acting = api.actors.all().iter().any(|actor| actor.leadership.holds());
        Ok(json(&Policies { time: time(), acting, all, policy }))
    }
}

type Sent = Result<Event, Infallible>;

fn json(snapshot: &impl Serialize) -> String {
    // Serializing plain data cannot fail.
    serde_json::to_string(snapshot).unwrap_or_default()
}

struct Reader {
    api: Arc<Api>,
    headers: HeaderMap,
    watched: Watched,
    /// Tick of the last snapshot that was sent.
    last: Option<u64>,
    /// A snapshot that is sent after the event about missed ones.
    held: Option<Event>,
    over: bool,
    /// Permits of all streams and of the caller's streams.
    _places: [OwnedSemaphorePermit; 2],
}

async fn start(api: Arc<Api>, headers: HeaderMap, watched: Watched) -> Result<Sse<impl Stream<Item = Sent>>, Error> {
    let busy = Error::Busy("All streams of this server are in use");
    let caller = api.gate.caller(&headers).await?;
    let own = api.gate.stream(caller.as_ref()).ok_or(Error::Busy("This caller has the maximum number of open streams"))?;
    let slot = api.streams.clone().try_acquire_owned().map_err(|_| busy)?;
    // Take one snapshot first, so that a caller without the right gets an error and not a stream that ends at once.
    watched.snapshot(&api, &headers).await?;
    let last = headers.get("last-event-id").and_then(|id| api.tick_of(id.to_str().ok()?));
    let reader = Reader { api, headers, watched, last, held: None, over: false, _places: [slot, own] };
    let events = stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(SSE_KEEPALIVE).text("alive")))
}

impl Reader {
    async fn next(&mut self) -> Option<Event> {
        if let Some(held) = self.held.take() {
            return Some(held);
        }
        if self.over {
            return None;
        }
        if let Some(last) = self.last {
            tokio::time::sleep_until((self.api.since + EVERY * u32::try_from(last + 1).unwrap_or(u32::MAX)).into()).await;
        }
        let event = match self.watched.snapshot(&self.api, &self.headers).await {
            Ok(data) => Event::default().event("snapshot").data(data),
            Err(error) => {
                // The right was revoked, or the API server does not answer. The reader's next connection gets the
                // reason.
                self.over = true;
                return Some(Event::default().event("refused").data(json(&error.refusal())));
            }
        };
        let tick = self.api.tick();
        let event = event.id(self.api.id_of(tick));
        let missed = self.last.map_or(0, |last| tick.saturating_sub(last + 1));
        self.last = Some(tick);
        if missed == 0 {
            return Some(event);
        }
        self.held = Some(event);
        Some(Event::default().event("missed").data(format!("{{\"snapshots\":{missed}}}")))
    }
}

impl Api {
    /// The number of the current snapshot, the same for all readers.
    fn tick(&self) -> u64 {
        self.since.elapsed().as_secs() / EVERY.as_secs()
    }

    fn id_of(&self, tick: u64) -> String {
        format!("{:x}-{tick}", self.life)
    }

    /// The tick of a snapshot of this process; ids of other processes give `None`.
    fn tick_of(&self, id: &str) -> Option<u64> {
        let (life, tick) = id.split_once('-')?;
        let tick = tick.parse().ok().filter(|tick| *tick <= self.tick())?;
        (u64::from_str_radix(life, 16).ok()? == self.life).then_some(tick)
    }
}

//! Server-Sent Events: a snapshot every 2 s, created when the client can receive it. A slow client skips snapshots and learns how
//! many. It delays no other client, because nothing is buffered for it.

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

/// Interval between two snapshots.
const EVERY: Duration = Duration::from_secs(2);
/// Interval of keep-alive comments, with which a client distinguishes a silent connection from a lost one.
const BEAT: Duration = Duration::from_secs(1);
/// Maximum number of open streams.
pub const MOST: usize = 64;

/// Snapshot of the operator's connections.
#[derive(Serialize, JsonSchema, Debug)]
#[schemars(rename = "ConnectionsSnapshot")]
pub struct Connections {
    /// Time of the snapshot.
    pub time: Time,
    /// Details of the connections of all providers.
    #[serde(flatten)]
    pub details: Details,
    /// Health of the connections.
    pub health: Health,
}

/// Snapshot of the policies.
#[derive(Serialize, JsonSchema, Debug)]
#[schemars(rename = "PoliciesSnapshot")]
pub struct Policies {
    /// Time of the snapshot.
    pub time: Time,
    /// Whether the replica is the leader. A standby has no live figures.
    pub acting: bool,
    /// Summaries of all policies that the caller may see.
    #[serde(rename = "policies")]
    pub all: Vec<Summary>,
    /// Requested policy with all details. Absent if none was requested or it does not exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

/// Query for a policy with all details.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub struct Wanted {
    /// Policy as `namespace/name`.
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
    let wanted = match policy.as_deref().map(|policy| policy.split_once('/')) {
        None => None,
        Some(Some((namespace, name))) => Some((namespace.to_owned(), name.to_owned())),
        Some(None) => return Err(Error::Invalid("The parameter policy must be namespace/name".to_owned())),
    };
    start(api, headers, Watched::Policies(wanted)).await
}

/// Content of a stream.
enum Watched {
    Connections,
    /// Policies, with the namespace and name of the one that is requested with all details.
    Policies(Option<(String, String)>),
}

impl Watched {
    async fn snapshot(&self, api: &Api, headers: &HeaderMap) -> Result<String, Error> {
        let time = || Time(clock::now());
        let wanted = match self {
            Self::Connections => {
                let all = api.visible(headers).await?;
                let health = connections::health(&all, api.since.elapsed());
                return Ok(json(&Connections { time: time(), details: connections::details(&all), health }));
            }
            Self::Policies(wanted) => wanted,
        };
        let all = api.summaries(headers).await?;
        let policy = match wanted {
            Some((namespace, name)) => match api.in_full(namespace, name, headers).await {
                Ok(policy) => Some(policy),
                // The policy may be deleted, or not exist yet.
                Err(Error::NotFound(_)) => None,
                Err(error) => return Err(error),
            },
            None => None,
        };
        Ok(json(&Policies { time: time(), acting: api.context.leadership.holds(), all, policy }))
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
    /// Snapshot that is sent after the event `missed`.
    held: Option<Event>,
    over: bool,
    /// Permits: one of all streams, and one of the caller's streams.
    _places: [OwnedSemaphorePermit; 2],
}

async fn start(api: Arc<Api>, headers: HeaderMap, watched: Watched) -> Result<Sse<impl Stream<Item = Sent>>, Error> {
    let busy = Error::Busy("All streams of this server are in use");
    let caller = api.gate.caller(&headers).await?;
    let own = api.gate.stream(caller.as_ref()).ok_or(Error::Busy("This caller has the maximum number of open streams"))?;
    let slot = api.streams.clone().try_acquire_owned().map_err(|_| busy)?;
    // A caller without the right gets an error response, and not a stream that ends at once.
    watched.snapshot(&api, &headers).await?;
    let last = headers.get("last-event-id").and_then(|id| api.tick_of(id.to_str().ok()?));
    let reader = Reader { api, headers, watched, last, held: None, over: false, _places: [slot, own] };
    let events = stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(BEAT).text("alive")))
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
                // The right was revoked, or the API server does not answer. The client reconnects and gets the reason.
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
    /// Returns the number of the current snapshot, which is the same for all clients.
    fn tick(&self) -> u64 {
        self.since.elapsed().as_secs() / EVERY.as_secs()
    }

    fn id_of(&self, tick: u64) -> String {
        format!("{:x}-{tick}", self.life)
    }

    /// Returns the tick of an event id of this process; `None` for an id of another process.
    fn tick_of(&self, id: &str) -> Option<u64> {
        let (life, tick) = id.split_once('-')?;
        let tick = tick.parse().ok().filter(|tick| *tick <= self.tick())?;
        (u64::from_str_radix(life, 16).ok()? == self.life).then_some(tick)
    }
}

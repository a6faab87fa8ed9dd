//! Server-Sent Events: a snapshot every 2 s, made when its reader can take it. A reader that is slow misses some and is told how many;
//! it holds up nobody, for nothing is kept for it.

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

/// Between two snapshots.
const EVERY: Duration = Duration::from_secs(2);
/// A sign of life in between, so that a reader knows a silent line from a dead one.
const BEAT: Duration = Duration::from_secs(1);
/// Streams at once.
pub const MOST: usize = 64;

/// One snapshot of the connections.
#[derive(Serialize, JsonSchema, Debug)]
pub struct Connections {
    /// When.
    pub time: Time,
    /// Everything there is to know of them.
    #[serde(flatten)]
    pub details: Details,
    /// Whether they are used as they should be.
    pub health: Health,
}

/// One snapshot of the policies.
#[derive(Serialize, JsonSchema, Debug)]
pub struct Policies {
    /// When.
    pub time: Time,
    /// Whether the replica that answers is the one that acts: the others have no live figures.
    pub acting: bool,
    /// Each in one line.
    #[serde(rename = "policies")]
    pub all: Vec<Summary>,
    /// The one that was asked for, in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

/// Which policy is wanted in full.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub struct Wanted {
    /// As `namespace/name`.
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
        Some(None) => return Err(Error::Invalid("policy is written namespace/name".to_owned())),
    };
    start(api, headers, Watched::Policies(wanted)).await
}

/// What a stream is about.
enum Watched {
    Connections,
    /// With the one that is wanted in full, by namespace and name.
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
                // It may be gone, or not there yet.
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
    // Of plain data: it cannot fail.
    serde_json::to_string(snapshot).unwrap_or_default()
}

struct Reader {
    api: Arc<Api>,
    headers: HeaderMap,
    watched: Watched,
    /// The tick of the last snapshot that was sent.
    last: Option<u64>,
    /// A snapshot that waits until its reader has been told what it missed.
    held: Option<Event>,
    over: bool,
    /// One of all streams, and one of the caller's.
    _places: [OwnedSemaphorePermit; 2],
}

async fn start(api: Arc<Api>, headers: HeaderMap, watched: Watched) -> Result<Sse<impl Stream<Item = Sent>>, Error> {
    let busy = Error::Busy("as many streams are open as this server has");
    let caller = api.gate.caller(&headers).await?;
    let own = api.gate.stream(caller.as_ref()).ok_or(Error::Busy("this caller has as many streams open as one may have"))?;
    let slot = api.streams.clone().try_acquire_owned().map_err(|_| busy)?;
    // Whoever may not look is told so, and not by a stream that ends at once.
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
                // A right that was taken away, or an API server that does not answer: the reader comes again, and is told why not.
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
    /// The number of this moment's snapshot, the same for all readers.
    fn tick(&self) -> u64 {
        self.since.elapsed().as_secs() / EVERY.as_secs()
    }

    fn id_of(&self, tick: u64) -> String {
        format!("{:x}-{tick}", self.life)
    }

    /// Of a snapshot of this process; another's say nothing.
    fn tick_of(&self, id: &str) -> Option<u64> {
        let (life, tick) = id.split_once('-')?;
        let tick = tick.parse().ok().filter(|tick| *tick <= self.tick())?;
        (u64::from_str_radix(life, 16).ok()? == self.life).then_some(tick)
    }
}

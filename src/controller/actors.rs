//! The actors of a process: one for each shard.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::watch;

use super::Context;
use crate::{leader::group::View, metrics::Metrics};

/// Maximum time for which a request waits until it is known which replica acts. Replicas with the default times of the
/// Leases list them every second, and hand a shard over within two of these lists.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);

/// The actors of a process. Each is the leader of its shard, or a standby.
#[derive(Clone)]
pub struct Actors(Arc<Inner>);

struct Inner {
    actors: RwLock<Vec<Arc<Context>>>,
    /// The Leases of the shards, as last seen; `None` without shards.
    view: watch::Sender<Option<View>>,
}

/// The replica that acts for a namespace.
pub enum Acting {
    /// This one.
    Here(Arc<Context>),
    /// Another one, whose API has this URL.
    At(String),
    /// Another one. The URL of its API is not known.
    Elsewhere,
}

impl From<Arc<Context>> for Actors {
    /// A process without shards.
    fn from(context: Arc<Context>) -> Self {
        Self::new(vec![context])
    }
}

impl Actors {
    /// One actor for each shard, in the order of the shards. There is at least one.
    #[must_use]
    pub fn new(actors: Vec<Arc<Context>>) -> Self {
        Self(Arc::new(Inner { actors: RwLock::new(actors), view: watch::Sender::default() }))
    }

    /// Replaces the actor of a shard by its successor.
    pub fn set(&self, context: &Arc<Context>) {
        let mut actors = self.0.actors.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(actor) = actors.iter_mut().find(|actor| actor.shard == context.shard) {
            *actor = context.clone();
        }
    }

    /// All actors.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Context>> {
        self.0.actors.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The actor of a namespace.
    #[must_use]
    pub fn of(&self, namespace: &str) -> Arc<Context> {
        let actors = self.0.actors.read().unwrap_or_else(PoisonError::into_inner);
        actors.iter().find(|actor| actor.shard.has(namespace)).unwrap_or(&actors[0]).clone()
    }

    /// Any of the actors, for what they share.
    #[must_use]
    pub fn any(&self) -> Arc<Context> {
        self.of("")
    }

    /// The metrics of the process, with the present terms of all shards.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let all = self.all();
        let metrics = all[0].metrics.clone();
        metrics.leads(all.iter().map(|actor| {
            let shard = actor.shard.has_others().then(|| actor.shard.index());
            (shard, actor.leadership.left())
        }));
        metrics
    }

    /// Records the Leases of the shards.
    pub fn seen(&self, view: View) {
        self.0.view.send_replace(Some(view));
    }

    /// Returns the replica that acts for a namespace. While a shard changes hands, this waits for the next holder, at most
    /// ten seconds.
    pub async fn acting(&self, namespace: &str) -> Acting {
        let mut views = self.0.view.subscribe();
        let known = async {
            loop {
                let actor = self.of(namespace);
                if actor.leadership.holds() {
                    return Acting::Here(actor);
                }
                // Without shards there are no views: only the Lease says who the leader is.
                if !actor.shard.has_others() {
                    return Acting::Elsewhere;
                }
                let index = usize::try_from(actor.shard.index()).unwrap_or(usize::MAX);
                match views.borrow_and_update().as_ref().and_then(|view| view.other_holder(index)) {
                    Some(Some(url)) => return Acting::At(url.to_owned()),
                    Some(None) => return Acting::Elsewhere,
                    None => {}
                }
                if views.changed().await.is_err() {
                    return Acting::Elsewhere;
                }
            }
        };
        tokio::time::timeout(KNOWN_WITHIN, known).await.unwrap_or(Acting::Elsewhere)
    }
}

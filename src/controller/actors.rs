//! The actors of a process: one for each shard.

use std::sync::{Arc, PoisonError, RwLock};

use super::Context;
use crate::{leader::group::View, metrics::Metrics};

/// The actors of a process. Each is the leader of its shard, or a standby.
#[derive(Clone)]
pub struct Actors(Arc<Inner>);

struct Inner {
    actors: RwLock<Vec<Arc<Context>>>,
    /// The Leases of the shards, as last seen; `None` without shards.
    view: RwLock<Option<View>>,
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
        Self(Arc::new(Inner { actors: RwLock::new(actors), view: RwLock::default() }))
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
        *self.0.view.write().unwrap_or_else(PoisonError::into_inner) = Some(view);
    }

    /// Returns the URL of the API of the replica that acts for a namespace; `None` if it is not known.
    #[must_use]
    pub fn url(&self, namespace: &str) -> Option<String> {
        let index = usize::try_from(self.of(namespace).shard.index()).ok()?;
        let view = self.0.view.read().unwrap_or_else(PoisonError::into_inner);
        view.as_ref()?.url(index).map(str::to_owned)
    }
}

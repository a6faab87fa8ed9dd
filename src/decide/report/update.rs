//! What the status says of an update that writes the nodes in batches.

use std::collections::BTreeSet;

use super::condition::shortened_to_bytes;
use crate::api::{
    status::{NAME_LENGTH, Update},
    update::RollingUpdate,
    wording::with_noun,
};

/// An update that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateProgress {
    /// Names of the nodes that wait for a later batch; there is at least one.
    pub waiting: BTreeSet<String>,
    /// The batches; `None` if the maximum of the cluster holds the nodes back.
    pub batches: Option<RollingUpdate>,
    /// Maximum number of nodes of a batch.
    pub most: usize,
    /// Name of a node that has not answered since it was written, so that the others are not written.
    pub stopped_by: Option<String>,
}

impl UpdateProgress {
    /// What a node waits for, as the end of the sentence about it.
    #[must_use]
    pub fn cause(&self) -> String {
        match (&self.stopped_by, &self.batches) {
            (Some(node), _) => format!("not written, because {node} has not answered since it was written"),
            (None, Some(_)) => "waits for its batch (see spec.updateStrategy)".into(),
            (None, None) => {
                "waits, because the operator has written as many nodes in a minute as --max-flushes-per-minute allows".into()
            }
        }
    }

    /// The message while the update is under way: `held` is the number of nodes that hold the limits, with what they hold.
    #[must_use]
    pub fn message(&self, held: &str) -> String {
        match (&self.stopped_by, &self.batches) {
            (Some(node), _) => format!(
                "{held}; {node} has not answered since it was written, so {} not written. Check {node} or remove it from the target; \
                 the update continues when {node} answers, or with a new version of the policy",
                with_noun(self.waiting.len(), "other node is", "other nodes are")
            ),
            (None, Some(batches)) => format!(
                "{held}; the next batch has at most {} and begins {} after the last one (see spec.updateStrategy)",
                with_noun(self.most, "node", "nodes"),
                batches.pause
            ),
            (None, None) => format!(
                "{held}; {} until the operator may write more nodes (see --max-flushes-per-minute)",
                with_noun(self.waiting.len(), "node waits", "nodes wait")
            ),
        }
    }

    /// The field of the status.
    #[must_use]
    pub fn status(&self, generation: Option<i64>, updated: u32, total: u32) -> Update {
        Update {
            generation,
            updated_nodes: updated,
            total_nodes: total,
            blocked_by: self.stopped_by.as_deref().map(|name| shortened_to_bytes(name, NAME_LENGTH)),
        }
    }
}

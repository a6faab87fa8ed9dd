//! The saved original settings: appended to before anything is overwritten, and dropped after they were restored.

use std::collections::BTreeMap;

use super::{Error, PolicyHandle, cache::PolicyCache, world::World};
use crate::decide::originals::{Saved, split};

/// By unit: the original settings from now on; `None` if they were restored.
pub type Change = BTreeMap<String, Option<Saved>>;

/// Appends to the log, and deletes superseded records. After a failure the log is read again, because another writer may have
/// changed it.
pub async fn append(world: &dyn World, policy: &PolicyHandle, memory: &mut PolicyCache, change: Change) -> Result<(), Error> {
    if change.is_empty() {
        return Ok(());
    }
    let Some(mut log) = memory.originals.take() else { return Err(Error::Unread) };
    for record in split(change) {
        let revision = log.next();
        world.save_original(revision, &record).await?;
        world.registry().changed(&policy.claimant, &record);
        log.append(revision, record);
    }
    for revision in log.superseded() {
        world.delete_original(revision).await?;
        log.remove(revision);
    }
    memory.originals = Some(log);
    Ok(())
}

//! The saved original settings: appended to before anything is overwritten, and dropped after they were restored.

use std::collections::BTreeMap;

use super::{Error, PolicyHandle, cache::PolicyCache, world::World};
use crate::decide::originals::{Log, Saved, split};

/// By unit: the original settings from now on; `None` if they were restored.
pub type Change = BTreeMap<String, Option<Saved>>;

/// Number of records from which the next ones contain all units, so that the others are superseded.
const MAX_RECORDS: usize = 8;

/// Appends to the log, and deletes superseded records. After a failure the log is read again, because another writer may have
/// changed it.
pub async fn append(world: &dyn World, policy: &PolicyHandle, memory: &mut PolicyCache, change: Change) -> Result<(), Error> {
    if change.is_empty() {
        return Ok(());
    }
    let Some(mut log) = memory.originals.take() else { return Err(Error::Unread) };
    let change = folded(&log, change);
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

/// Adds all units to a change if there are many records: a fleet that is written in hundreds of batches must not leave as many
/// objects. There are at least twice as many as all units need, so that they are seldom written again.
fn folded(log: &Log, mut change: Change) -> Change {
    let records = log.revisions().count();
    if records < MAX_RECORDS {
        return change;
    }
    let all: Change = log.units().iter().map(|(id, saved)| (id.clone(), Some(saved.clone()))).collect();
    if records >= 2 * split(all.clone()).len() {
        for (id, saved) in all {
            change.entry(id).or_insert(saved);
        }
    }
    change
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn unit(n: usize) -> (String, Option<Saved>) {
        let saved = Saved { name: format!("gw-{n}"), address: String::new(), target: Arc::default(), sites: Arc::default() };
        (format!("id-{n}"), Some(saved))
    }

    #[test]
    fn hundreds_of_batches_leave_few_records() {
        let mut log = Log::default();
        let mut most = 0;
        for n in 0..500 {
            for record in split(folded(&log, [unit(n)].into())) {
                log.append(log.next(), record);
            }
            for revision in log.superseded() {
                log.remove(revision);
            }
            most = most.max(log.revisions().count());
        }
        assert_eq!((most, log.units().len()), (MAX_RECORDS, 500));
    }
}

//! Original settings in `ControllerRevisions`. They are found by label and name, never by owner, so that they are also found
//! after a backup was restored.

use std::collections::BTreeMap;

use k8s_openapi::{api::apps::v1::ControllerRevision, apimachinery::pkg::runtime::RawExtension};
use kube::{
    Api,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};

use super::{Error, in_time};
use crate::{
    api::{MANAGER, POLICY_LABEL},
    decide::originals::{Log, Record, Saved, split},
};

/// Returns the name of the object of a revision.
#[must_use]
pub fn name(policy: &str, revision: i64) -> String {
    if revision == 1 { format!("{policy}-original") } else { format!("{policy}-original-{revision}") }
}

/// Reads the log of original settings.
pub async fn load(api: &Api<ControllerRevision>, policy: &str) -> Result<Log, Error> {
    let list = in_time(api.list(&ListParams::default().labels(&format!("{POLICY_LABEL}={policy}")))).await?;
    let mut log = Log::default();
    for revision in list {
        let object = revision.metadata.name.unwrap_or_default();
        let data = revision.data.map(|RawExtension(data)| data).unwrap_or_default();
        // An unreadable revision is an error: without it, the operator would save its own values as the original ones.
        let record: Record = serde_json::from_value(data).map_err(|_| Error::Original(object))?;
        log.records.insert(revision.revision, record);
    }
    Ok(log)
}

/// Appends to the log, and deletes superseded revisions. If another writer has created an object of the same name, this fails,
/// and the log must be read again.
pub async fn append(
    api: &Api<ControllerRevision>,
    policy: &str,
    log: &mut Log,
    change: BTreeMap<String, Option<Saved>>,
) -> Result<(), Error> {
    for record in split(change) {
        let revision = log.next();
        let data = serde_json::to_value(&record).map_err(|_| Error::Original(name(policy, revision)))?;
        let object = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name(policy, revision)),
                labels: Some(
                    [(POLICY_LABEL.into(), policy.to_owned()), ("app.kubernetes.io/managed-by".into(), MANAGER.into())].into(),
                ),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data)),
            revision,
        };
        in_time(api.create(&PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }, &object)).await?;
        log.records.insert(revision, record);
    }
    for revision in log.superseded() {
        delete(api, policy, revision).await?;
        log.records.remove(&revision);
    }
    Ok(())
}

/// Deletes the log, the newest revision last: if this stops half-way, the revision that counts remains.
pub async fn clear(api: &Api<ControllerRevision>, policy: &str, log: &mut Log) -> Result<(), Error> {
    while let Some(revision) = log.records.keys().next().copied() {
        delete(api, policy, revision).await?;
        log.records.remove(&revision);
    }
    Ok(())
}

async fn delete(api: &Api<ControllerRevision>, policy: &str, revision: i64) -> Result<(), Error> {
    match in_time(api.delete(&name(policy, revision), &DeleteParams::default())).await {
        Ok(_) => Ok(()),
        Err(Error::Kube(kube::Error::Api(status))) if status.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

//! The saved original settings as `ControllerRevisions`.

use std::collections::BTreeMap;

use k8s_openapi::{api::apps::v1::ControllerRevision, apimachinery::pkg::runtime::RawExtension};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};

use super::in_time;
use crate::{
    api::{MANAGER, POLICY_LABEL},
    decide::originals::{Log, Record, name},
    pass::Error,
};

/// Reads the log of original settings of a policy.
pub async fn load(api: &Api<ControllerRevision>, policy: &str) -> Result<Log, Error> {
    log(in_time(api.list(&ListParams::default().labels(&format!("{POLICY_LABEL}={policy}")))).await?)
}

/// Reads the logs of all policies of a namespace, by policy; `None` if a record cannot be read. One request, because a namespace
/// may have many policies.
pub async fn load_all(api: &Api<ControllerRevision>) -> Result<BTreeMap<String, Option<Log>>, Error> {
    let mut by_policy = BTreeMap::<_, Vec<_>>::new();
    for revision in in_time(api.list(&ListParams::default().labels(POLICY_LABEL))).await? {
        let policy = revision.labels().get(POLICY_LABEL).cloned().unwrap_or_default();
        by_policy.entry(policy).or_default().push(revision);
    }
    Ok(by_policy.into_iter().map(|(policy, revisions)| (policy, log(revisions).ok())).collect())
}

fn log(list: impl IntoIterator<Item = ControllerRevision>) -> Result<Log, Error> {
    let mut records = BTreeMap::new();
    for revision in list {
        let object = revision.metadata.name.unwrap_or_default();
        let data = revision.data.map(|RawExtension(data)| data).unwrap_or_default();
        // An unreadable revision is an error: without it, the operator would save its own values as the original ones.
        let record: Record = serde_json::from_value(data).map_err(|_| Error::Original(object))?;
        records.insert(revision.revision, record);
    }
    Ok(Log::of(records))
}

/// Creates a record. If another writer has created an object of the same name, this fails, and the log must be read again.
pub async fn create(api: &Api<ControllerRevision>, policy: &str, revision: i64, record: &Record) -> Result<(), Error> {
    let data = serde_json::to_value(record).map_err(|_| Error::Original(name(policy, revision)))?;
    let labels = [(POLICY_LABEL.into(), policy.to_owned()), ("app.kubernetes.io/managed-by".into(), MANAGER.into())];
    let metadata = ObjectMeta { name: Some(name(policy, revision)), labels: Some(labels.into()), ..ObjectMeta::default() };
    let object = ControllerRevision { metadata, data: Some(RawExtension(data)), revision };
    in_time(api.create(&PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }, &object)).await.map(drop)
}

/// Deletes a record. It is no error if it does not exist.
pub async fn delete(api: &Api<ControllerRevision>, policy: &str, revision: i64) -> Result<(), Error> {
    match in_time(api.delete(&name(policy, revision), &DeleteParams::default())).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

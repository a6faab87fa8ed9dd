//! Ownership of a key: from the API server's managed fields, and from the marks of tools that own whole objects. Pure.

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry};
use serde_json::Value as Json;

use crate::decide::report::condition::shortened;

/// Labels and annotations by which tools mark their objects, with the required value, if any.
const MARKS: [(&str, Option<&str>, &str); 6] = [
    ("app.kubernetes.io/managed-by", Some("Helm"), "Helm"),
    ("meta.helm.sh/release-name", None, "Helm"),
    ("argocd.argoproj.io/tracking-id", None, "Argo CD"),
    ("argocd.argoproj.io/instance", None, "Argo CD"),
    ("kustomize.toolkit.fluxcd.io/name", None, "Flux"),
    ("helm.toolkit.fluxcd.io/name", None, "Flux"),
];

/// Why the keys may not be written, as the end of a sentence that begins with the object's name.
#[must_use]
pub fn obstacle(object: &ConfigMap, keys: &[String], manager: &str) -> Option<String> {
    if object.metadata.deletion_timestamp.is_some() {
        return Some("is being deleted and cannot be written".into());
    }
    if object.immutable == Some(true) {
        return Some("is immutable; use another ConfigMap".into());
    }
    let mut ours = false;
    for key in keys {
        if object.binary_data.as_ref().is_some_and(|data| data.contains_key(key)) {
            return Some(format!("has binary data in key {key}; choose another key"));
        }
        if object.data.as_ref().is_none_or(|data| !data.contains_key(key)) {
            continue;
        }
        let owners: Vec<_> = managed(object).filter(|entry| owns(entry, key)).collect();
        let other = owners.iter().filter_map(|entry| entry.manager.as_deref()).find(|owner| *owner != manager);
        if let Some(other) = other {
            let other = shortened(other, 40);
            return Some(format!(
                "has a key {key} owned by the field manager {other}; choose another key or remove it from that manager"
            ));
        }
        if owners.is_empty() {
            return Some(format!("already has a key {key} without a field manager; choose another key or remove it"));
        }
        ours = true;
    }
    let marks = [&object.metadata.labels, &object.metadata.annotations];
    let marked = |(name, value, _): &&(&str, Option<&str>, &str)| {
        let found = marks.iter().find_map(|all| all.as_ref()?.get(*name));
        found.is_some_and(|found| value.is_none_or(|value| found == value))
    };
    match MARKS.iter().find(marked) {
        Some((.., tool)) if !ours => {
            Some(format!("belongs to {tool}, which may remove other keys; use a separate ConfigMap for the policy"))
        }
        _ => None,
    }
}

/// When the manager last changed its fields, by the API server's clock.
#[must_use]
pub fn written_at(object: &ConfigMap, manager: &str) -> Option<Timestamp> {
    let times = managed(object).filter(|entry| entry.manager.as_deref() == Some(manager));
    times.filter_map(|entry| entry.time.as_ref()).map(|time| time.0).max()
}

fn managed(object: &ConfigMap) -> impl Iterator<Item = &ManagedFieldsEntry> {
    object.metadata.managed_fields.iter().flatten()
}

fn owns(entry: &ManagedFieldsEntry, key: &str) -> bool {
    let data = entry.fields_v1.as_ref().and_then(|fields| fields.0.get("f:data"));
    data.and_then(|data| data.get(format!("f:{key}"))).is_some_and(Json::is_object)
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    const MANAGER: &str = "idleconn-operator/http.yaml";

    fn object(owners: &[(&str, &str)], keys: &[&str], metadata: &Json) -> ConfigMap {
        let managed: Vec<_> = owners
            .iter()
            .map(|(manager, key)| {
                json!({
                    "manager": manager, "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
                    "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:data": {(format!("f:{key}")): {}}},
                })
            })
            .collect();
        let mut object = json!({"metadata": {"name": "gw", "managedFields": managed}, "data": {}});
        for key in keys {
            object["data"][*key] = "text".into();
        }
        for (field, value) in metadata.as_object().into_iter().flatten() {
            object["metadata"][field] = value.clone();
        }
        from_value(object).expect("a ConfigMap")
    }

    fn said(object: &ConfigMap) -> String {
        obstacle(object, &["http.yaml".into()], MANAGER).unwrap_or_default()
    }

    #[test]
    fn a_key_of_ones_own_or_none_yet_may_be_written() {
        let none = json!({});
        for object in [
            object(&[], &[], &none),
            object(&[("kubectl", "other.yaml")], &["other.yaml"], &none),
            object(&[(MANAGER, "http.yaml"), ("kubectl", "other.yaml")], &["http.yaml", "other.yaml"], &none),
            object(&[], &[], &json!({"labels": {"app.kubernetes.io/managed-by": "kustomize"}})),
            object(&[(MANAGER, "http.yaml")], &["http.yaml"], &json!({"labels": {"app.kubernetes.io/managed-by": "Helm"}})),
        ] {
            assert_eq!(said(&object), "", "{object:?}");
        }
    }

    #[test]
    fn what_is_somebody_elses_is_named_with_its_owner() {
        let none = json!({});
        for (object, words) in [
            (object(&[("helm", "http.yaml")], &["http.yaml"], &none), "owned by the field manager helm"),
            (
                object(&[(MANAGER, "http.yaml"), ("argocd", "http.yaml")], &["http.yaml"], &none),
                "owned by the field manager argocd",
            ),
            (object(&[], &["http.yaml"], &none), "without a field manager"),
            (object(&[], &[], &json!({"annotations": {"meta.helm.sh/release-name": "gw"}})), "belongs to Helm"),
            (object(&[], &[], &json!({"annotations": {"argocd.argoproj.io/tracking-id": "x"}})), "belongs to Argo CD"),
            (object(&[], &[], &json!({"labels": {"kustomize.toolkit.fluxcd.io/name": "x"}})), "belongs to Flux"),
            (object(&[], &[], &json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})), "being deleted"),
        ] {
            assert!(said(&object).contains(words), "{words}: {}", said(&object));
        }
        let immutable = ConfigMap { immutable: Some(true), ..object(&[], &[], &none) };
        assert!(said(&immutable).contains("immutable"));
        let mut binary = object(&[], &[], &none);
        binary.binary_data = Some([("http.yaml".to_owned(), k8s_openapi::ByteString(vec![0]))].into());
        assert!(said(&binary).contains("binary"));
    }

    #[test]
    fn the_time_is_that_of_ones_own_writes() {
        let object = object(&[("kubectl", "http.yaml")], &["http.yaml"], &json!({}));
        assert_eq!(written_at(&object, MANAGER), None);
        assert_eq!(written_at(&object, "kubectl"), "2026-01-01T00:00:00Z".parse().ok());
    }
}

//! `CustomResourceDefinition` that the API server gets: the output of kube, with corrections.

use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use super::IdleConnectionPolicy;

/// Returns the CRD. `crds/` contains it as YAML.
///
/// The output of kube is changed in three ways. `nullable` is removed, so that an empty Helm value does not become a null that is
/// accepted here and fails elsewhere. Unsigned values of `format` are removed, because the API server does not know them. A
/// default status is added, so that kstatus does not report a policy as healthy before the operator has observed it.
#[must_use]
pub fn crd() -> Value {
    let mut crd = serde_json::to_value(IdleConnectionPolicy::crd()).unwrap_or_default();
    clean(&mut crd);
    if let Some(status) = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/status") {
        status["default"] = json!({
            "observedGeneration": -1,
            "conditions": [{
                "type": "Ready",
                "status": "Unknown",
                "reason": "Pending",
                "message": "Waiting for the operator",
                "lastTransitionTime": "1970-01-01T00:00:00Z",
            }],
        });
    }
    crd
}

/// Returns the CRD as YAML.
///
/// # Errors
/// The CRD cannot be written as YAML; a test excludes this.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(&crd())
}

fn clean(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("nullable");
            if map.get("format").and_then(Value::as_str).is_some_and(|f| f.starts_with("uint")) {
                map.remove("format");
            }
            if let Some(Value::Array(members)) = map.get_mut("enum") {
                members.retain(|member| !member.is_null());
            }
            map.values_mut().for_each(clean);
        }
        Value::Array(items) => items.iter_mut().for_each(clean),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crd_is_small_and_has_nothing_nullable() {
        let text = crd().to_string();
        assert!(text.len() < 200_000, "{} bytes", text.len());
        assert!(!text.contains("nullable"));
        assert!(!text.contains("null,") && !text.contains(",null"));
        assert!(!text.contains("\"uint"));
    }

    #[test]
    fn it_can_be_written_as_yaml() {
        assert!(yaml().is_ok_and(|text| text.contains("idleconnectionpolicies.idleconn.io")));
    }
}

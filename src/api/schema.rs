//! Comparison of the CRD in the cluster with the CRD of this program: the CRD in the cluster may be older or newer than the
//! operator.

use std::sync::LazyLock;

use serde_json::Value as Json;

use super::crd;

/// Differences between the CRD in the cluster and that of this program: paths of fields, and enum values as `path=value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Fields and values that the CRD lacks. The CRD is older, and the API server would drop data in these fields.
    pub missing: Vec<String>,
    /// Fields and values that this program does not know. The CRD is newer.
    pub unknown: Vec<String>,
}

/// Compares the schema that the API server publishes with the schema of this program.
#[must_use]
pub fn difference(served: &Json) -> Difference {
    let own = own();
    let mut difference = Difference::default();
    for part in ["spec", "status"] {
        compare(part, &own["properties"][part], &served["properties"][part], &mut difference);
    }
    difference
}

/// Removes from the spec of an object the fields and enum values that this program does not know. Returns their paths, with
/// values as `path=value`.
#[must_use]
pub fn take_unknown(object: &mut Json) -> Vec<String> {
    let mut unknown = Vec::new();
    if let Some(spec) = object.get_mut("spec") {
        take("spec", &own()["properties"]["spec"], spec, &mut unknown);
    }
    unknown
}

/// Returns the schema of the kind in this program's CRD. It is cached, because every call of `crd` builds the CRD from the types.
#[must_use]
pub fn own() -> &'static Json {
    static OWN: LazyLock<Json> = LazyLock::new(|| crd::crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take());
    &OWN
}

fn compare(path: &str, own: &Json, served: &Json, difference: &mut Difference) {
    let fields = |schema: &Json| schema["properties"].as_object().cloned().unwrap_or_default();
    let (ours, theirs) = (fields(own), fields(served));
    for (name, field) in &ours {
        let path = format!("{path}.{name}");
        match theirs.get(name) {
            Some(other) => compare(&path, field, other, difference),
            None => difference.missing.push(path),
        }
    }
    difference.unknown.extend(theirs.keys().filter(|name| !ours.contains_key(*name)).map(|name| format!("{path}.{name}")));
    let choices = |schema: &Json| schema["enum"].as_array().cloned().unwrap_or_default();
    let (ours, theirs) = (choices(own), choices(served));
    let said = |choice: &Json| format!("{path}={}", choice.as_str().unwrap_or_default());
    difference.missing.extend(ours.iter().filter(|choice| !theirs.contains(choice)).map(said));
    difference.unknown.extend(theirs.iter().filter(|choice| !ours.contains(choice)).map(said));
    for inner in ["items", "additionalProperties"] {
        if own[inner].is_object() {
            compare(path, &own[inner], &served[inner], difference);
        }
    }
}

/// Reports whether the value is known, and removes unknown parts of it.
fn take(path: &str, own: &Json, value: &mut Json, unknown: &mut Vec<String>) -> bool {
    match value {
        Json::Object(fields) => fields.retain(|name, value| {
            let path = format!("{path}.{name}");
            match (&own["properties"][name], &own["additionalProperties"]) {
                (field @ Json::Object(_), _) => take(&path, field, value, unknown),
                (_, any @ Json::Object(_)) => take(&path, any, value, unknown),
                _ => {
                    unknown.push(path);
                    false
                }
            }
        }),
        Json::Array(items) => items.retain_mut(|item| take(path, &own["items"], item, unknown)),
        Json::String(choice) if own["enum"].as_array().is_some_and(|known| !known.iter().any(|known| known == choice)) => {
            unknown.push(format!("{path}={choice}"));
            return false;
        }
        _ => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn its_own_crd_is_neither_older_nor_newer() {
        assert_eq!(difference(own()), Difference::default());
    }

    #[test]
    fn what_is_not_there_makes_it_older_and_what_is_more_makes_it_newer() {
        let mut served = own().clone();
        let spec = &mut served["properties"]["spec"]["properties"];
        spec.as_object_mut().expect("fields").remove("restart");
        spec["limits"]["properties"]["server"]["properties"]["patience"] = json!({"type": "string"});
        spec["target"]["properties"]["type"]["enum"] = json!(["AIStore", "Caddy", "Envoy"]);
        served["properties"]["status"]["properties"]["history"]["items"]["properties"]
            .as_object_mut()
            .expect("fields")
            .remove("verdict");
        let seen = difference(&served);
        assert_eq!(seen.missing, ["spec.restart", "spec.target.type=ConfigMap", "status.history.verdict"]);
        assert_eq!(seen.unknown, ["spec.limits.server.patience", "spec.target.type=Envoy"]);
    }

    #[test]
    fn a_field_of_another_version_is_named_and_a_users_own_keys_are_not() {
        let mut policy = json!({"spec": {
            "target": {"type": "Caddy", "caddy": {"selector": {"matchLabels": {"app": "gateway", "anything": "goes"}}}},
            "limits": {"server": {"idleTimeout": "30s", "patience": "1s"}},
            "overrides": [{"name": "a", "nodes": ["b"], "limits": {"backend": {"colour": 1}}}],
            "mood": "good",
        }});
        assert_eq!(
            take_unknown(&mut policy),
            ["spec.limits.server.patience", "spec.mood", "spec.overrides.limits.backend.colour"]
        );
        assert_eq!(take_unknown(&mut policy), [""; 0], "it is taken out");
        assert_eq!(policy["spec"]["limits"], json!({"server": {"idleTimeout": "30s"}}), "and nothing else is");
    }

    #[test]
    fn every_example_is_known() {
        for example in ["adaptive", "aistore", "caddy", "configmap"] {
            let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|path| path.join("examples").is_dir());
            let text =
                std::fs::read_to_string(root.expect("the tree").join(format!("examples/{example}.yaml"))).expect("an example");
            let policy = text.split("\n---").find(|part| part.contains("IdleConnectionPolicy")).expect("a policy");
            let mut object: Json = serde_saphyr::from_str(policy).expect("YAML");
            assert_eq!(take_unknown(&mut object), [""; 0], "{example}");
        }
    }
}

//! Policy as the API server stores it: under a newer CRD it may contain fields that this program does not know.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value as Json;

use super::{IdleConnectionPolicy, IdleConnectionPolicyStatus, schema, wording::listed};

/// The readable part of a policy, and the names of the unknown fields and values. They are found in the policy itself, because
/// the CRD may have been upgraded a moment ago and the API server publishes its schemas with a delay.
#[derive(Clone, Debug)]
pub struct StoredPolicy {
    /// Policy without the unknown fields and values; an error if it cannot be read without them.
    pub policy: Result<Box<IdleConnectionPolicy>, Unreadable>,
    /// Paths of the unknown fields in the spec, and unknown enum values as `path=value`.
    pub unknown: Vec<String>,
    /// Reports whether the status, or a member of it, cannot be read and is left out of the policy.
    pub lost: bool,
}

/// Policy that cannot be read without its unknown fields and values.
#[derive(Clone, Debug)]
pub struct Unreadable {
    /// Reason why the policy cannot be read.
    pub error: String,
    /// Metadata of the policy.
    pub metadata: ObjectMeta,
}

impl StoredPolicy {
    /// Returns the policy, and the beginning of a sentence that names the unknown parts; the caller completes it with the fix.
    /// `None` if everything is known.
    ///
    /// # Errors
    /// The beginning of that sentence, if the policy cannot be read without its unknown parts.
    pub fn read(self) -> Result<(Box<IdleConnectionPolicy>, Option<String>), String> {
        let foreign = (!self.unknown.is_empty()).then(|| format!("{} is of a newer version", listed(&self.unknown)));
        match self.policy {
            Ok(policy) => Ok((policy, foreign)),
            Err(unreadable) => Err(foreign.unwrap_or_else(|| format!("it cannot be read ({})", unreadable.error))),
        }
    }
}

impl<'de> Deserialize<'de> for StoredPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Json::deserialize(deserializer)?;
        let unknown = schema::take_unknown(&mut object);
        let mut lost = false;
        let read = IdleConnectionPolicy::deserialize(&object).or_else(|error| {
            lost = true;
            without_status(&mut object).ok_or(error)
        });
        let policy = match read {
            Ok(policy) => Ok(Box::new(policy)),
            Err(error) => {
                let metadata = ObjectMeta::deserialize(&object["metadata"]).map_err(D::Error::custom)?;
                Err(Unreadable { error: error.to_string(), metadata })
            }
        };
        Ok(Self { policy, unknown, lost })
    }
}

/// Returns the policy without the unreadable members of its status, which count as lost. Another version of the operator, or
/// another client with the right to, wrote them. An unreadable status must not block the spec or a deletion.
fn without_status(object: &mut Json) -> Option<IdleConnectionPolicy> {
    let status = object.get_mut("status")?;
    if let Some(members) = status.as_object_mut() {
        members.retain(|name, member| {
            let alone = Json::Object([(name.clone(), member.clone())].into_iter().collect());
            IdleConnectionPolicyStatus::deserialize(&alone).is_ok()
        });
    } else {
        *status = Json::Null;
    }
    IdleConnectionPolicy::deserialize(&*object).ok()
}

impl Resource for StoredPolicy {
    type DynamicType = ();
    type Scope = <IdleConnectionPolicy as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        IdleConnectionPolicy::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        IdleConnectionPolicy::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        IdleConnectionPolicy::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        IdleConnectionPolicy::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.policy.as_ref().map_or_else(|unreadable| &unreadable.metadata, |policy| policy.meta())
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.policy.as_mut().map_or_else(|unreadable| &mut unreadable.metadata, |policy| policy.meta_mut())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::restart::RestartPolicy, *};

    fn stored(spec: &Json) -> StoredPolicy {
        let object = json!({"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": {"name": "gw"}, "spec": spec});
        serde_json::from_value(object).expect("anything with metadata can be read")
    }

    fn caddy() -> Json {
        json!({"type": "Caddy", "caddy": {"selector": {"matchLabels": {"app": "gateway"}}}})
    }

    #[test]
    fn a_policy_of_this_version_is_understood() {
        let stored = stored(&json!({"target": caddy(), "limits": {"server": {"idleTimeout": "30s"}}}));
        assert_eq!(stored.read().expect("it is read").1, None);
    }

    #[test]
    fn what_is_understood_is_read_beside_what_is_not() {
        let stored = stored(&json!({"target": caddy(), "mood": "good", "restart": {"policy": "Canary", "maxPerDay": 2}}));
        let (policy, foreign) = stored.read().expect("it is read");
        let restart = policy.spec.restart.expect("a restart");
        assert_eq!((restart.policy, restart.max_per_day), (RestartPolicy::default(), 2));
        assert_eq!(foreign.as_deref(), Some("spec.mood, spec.restart.policy=Canary is of a newer version"));
    }

    #[test]
    fn a_kind_of_target_that_is_not_understood_leaves_only_the_name() {
        let stored = stored(&json!({"target": {"type": "Envoy"}, "limits": {}}));
        assert_eq!(stored.meta().name.as_deref(), Some("gw"));
        assert_eq!(stored.read().expect_err("it is not read"), "spec.target.type=Envoy is of a newer version");
    }

    #[test]
    fn a_status_that_cannot_be_read_is_one_that_was_lost() {
        let spec = json!({"target": caddy(), "limits": {"server": {"idleTimeout": "30s"}}});
        for (status, kept) in [
            (json!({"control": {"contended": {"server.idleTimeout": [1]}}, "observedGeneration": 3}), Some(3)),
            (json!({"control": {"changed": {"server.mood": 1}}, "observedGeneration": 3}), Some(3)),
            (json!({"observedGeneration": "three"}), None),
            (json!(["a list"]), None),
        ] {
            let object = json!({"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy",
                "metadata": {"name": "gw"}, "spec": spec, "status": status});
            let stored: StoredPolicy = serde_json::from_value(object).expect("anything with metadata can be read");
            let (policy, foreign) = stored.read().expect("it is read");
            assert_eq!((policy.status.and_then(|status| status.observed_generation), foreign), (kept, None), "{status}");
        }
    }

    #[test]
    fn what_no_version_can_have_written_is_said_too() {
        let stored = stored(&json!({"target": caddy(), "limits": {}, "suspend": "perhaps"}));
        assert!(stored.read().expect_err("it is not read").starts_with("it cannot be read (invalid type: string"));
    }
}

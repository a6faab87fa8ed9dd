//! `spec.overrides`: limits that differ for some of the nodes, or towards one provider.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::Limits;

/// Limits that replace those of the policy for some of its nodes, or towards one provider. Exactly one of `role`, `nodes` and
/// `provider` is set. An override by `nodes` takes precedence over one by `role`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.role) ? 1 : 0) + (has(self.nodes) ? 1 : 0) + (has(self.provider) ? 1 : 0) == 1")
        .message("overrides: set exactly one of role, nodes, provider"),
)]
pub struct Override {
    /// Name of the override, unique in the list, 1 to 63 characters. The order of overrides has no meaning.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Value of the label `app.kubernetes.io/component` of the pods to which the override applies. Only for Caddy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub role: Option<String>,
    /// Names of the nodes to which the override applies, 1 to 32: the name of a pod, or `host:port` of an endpoint. Only for
    /// Caddy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub nodes: Option<Vec<String>>,
    /// Name of the provider to which the override applies, as the service calls it. Only for a ConfigMap in the format
    /// http-connection-pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub provider: Option<String>,
    /// Limits of the override. A limit that is absent here has the value of the policy.
    pub limits: Limits,
}

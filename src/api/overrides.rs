//! `spec.overrides`: other limits for some of the nodes, or for one provider.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::Limits;

/// Limits that hold instead of the policy's for some of its nodes, or towards one provider. An override of nodes beats one of a role.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.role) ? 1 : 0) + (has(self.nodes) ? 1 : 0) + (has(self.provider) ? 1 : 0) == 1")
        .message("overrides: set exactly one of role, nodes, provider"),
)]
pub struct Override {
    /// Names it; the order of overrides means nothing.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The nodes whose pods have this label `app.kubernetes.io/component`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub role: Option<String>,
    /// The nodes by name: a pod's, or `host:port` of an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub nodes: Option<Vec<String>>,
    /// The provider, by the name that the service has for it (format http-connection-pool).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub provider: Option<String>,
    /// The limits, field by field; what is not set here is the policy's.
    pub limits: Limits,
}

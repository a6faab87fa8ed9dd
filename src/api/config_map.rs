//! The target `configMap`: one key of a ConfigMap, and the pods that mount it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{
    formats::Format,
    lookup::{Lookup, Member},
    refs::Scheme,
};

/// Servers that read a file. The operator writes the limits into one key of a ConfigMap that the pods mount.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.selector.matchLabels) && size(self.selector.matchLabels) > 0) || (has(self.selector.matchExpressions) && size(self.selector.matchExpressions) > 0)")
        .message("target.configMap.selector must not be empty: it would match every pod of the namespace"),
)]
pub struct ConfigMap {
    /// Name of the ConfigMap, in the namespace of the policy. The operator creates the ConfigMap if it does not exist.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the data of the ConfigMap, at most 54 characters. The operator owns the whole value of this key and never changes
    /// other keys.
    #[schemars(length(min = 1, max = 54), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
    /// Format of the file. docs/targets/configmap.md lists the limits that each format has.
    pub format: Format,
    /// Label selector of the pods that mount the ConfigMap, in the namespace of the policy. All pods must belong to one workload.
    /// It must not be empty.
    pub selector: LabelSelector,
    /// Metrics page of the pods. A gauge `idleconn_config_info{hash="..."}` on the page reports which settings a process uses.
    /// `spec.adaptive` with source Nodes needs this page for the task count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Page>,
    /// Page on which a pod reports the hash of the settings that its process uses, as plain text. Absent: the operator reads the
    /// hash from `metrics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<Page>,
}

impl Member for ConfigMap {
    fn lookup(&self) -> Option<Lookup<'_>> {
        Some(Lookup::Mounting(&self.selector))
    }

    fn metrics_path(&self) -> Option<&str> {
        self.metrics.as_ref().map(|page| page.path.as_str())
    }
}

/// HTTP page of a pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    /// Port of the page, 1 to 65535.
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: u16,
    /// Path of the page, with a query if the page needs one, such as `/v1/metrics?format=prometheus`. At most 256 characters.
    #[serde(default = "metrics")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^/[^#[:space:]]*$')")
        .message("target.configMap: the path of metrics or hash must start with / and must not have blanks or a fragment (#)"))]
    pub path: String,
    /// Scheme of the page: http or https.
    #[serde(default)]
    pub scheme: Scheme,
}

fn metrics() -> String {
    "/metrics".into()
}

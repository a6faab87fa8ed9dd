//! The target `configMap`: one key of a ConfigMap that servers mount, and the pods that do.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{
    formats::Format,
    lookup::{Lookup, Member},
    policy::Scheme,
};

/// Any server that reads a file: the limits are written into one key of a ConfigMap that its pods mount.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.selector.matchLabels) && size(self.selector.matchLabels) > 0) || (has(self.selector.matchExpressions) && size(self.selector.matchExpressions) > 0)")
        .message("target.configMap.selector must not be empty: it would match every pod of the namespace"),
)]
pub struct ConfigMap {
    /// The ConfigMap's name, in the policy's namespace. It is created where it does not exist.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in its data. All of it is the operator's; other keys are never touched.
    #[schemars(length(min = 1, max = 54), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
    /// How the key is written.
    pub format: Format,
    /// Selects the pods that mount it, in the policy's namespace: those of one workload.
    pub selector: LabelSelector,
    /// Where the pods have their metrics; a gauge `idleconn_config_info{hash="..."}` there tells which settings a process uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Page>,
    /// Where a pod tells the hash of the settings that its process uses, as bare text. Without it, its metrics are asked.
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

/// A page of a pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    /// The port.
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: u16,
    /// The path, and a query where the page needs one, such as `/v1/metrics?format=prometheus`.
    #[serde(default = "metrics")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^/[^#[:space:]]*$')")
        .message("target.configMap: a page's path must start with / and must not have blanks or a fragment (#)"))]
    pub path: String,
    /// What it speaks.
    #[serde(default)]
    pub scheme: Scheme,
}

fn metrics() -> String {
    "/metrics".into()
}

//! References from a policy to a Service, or to a key of a Secret or ConfigMap.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Service in the namespace of the policy.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Name of the Service.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Port number of the Service, 1 to 65535.
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: u16,
    /// Scheme of requests to the Service: http or https.
    #[serde(default)]
    pub scheme: Scheme,
}

/// Scheme of requests: http or https.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, strum::IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[allow(missing_docs)]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

impl Scheme {
    /// Name of the scheme in a URL.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Key of a Secret or ConfigMap in the namespace of the policy.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct KeyRef {
    /// Name of the Secret or ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the data of the Secret or ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

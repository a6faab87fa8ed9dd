//! `spec.verify`: measurement of the nodes' servers from outside.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{GoDuration, refs::Scheme};

/// Measurement of how long the servers of the nodes really keep idle connections. Absent: nothing is measured.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct Verify {
    /// Measurement of how long the server of each node keeps an idle connection. It costs one connection and one request for each
    /// node and interval.
    pub server: VerifyServer,
}

/// Settings of the measurement.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VerifyServer {
    /// Interval between two measurements of one node, 5m to 24h. The measurements of the nodes are spread over the interval.
    #[serde(default = "GoDuration::seconds::<3600>")]
    #[x_kube(validation = Rule::new("self >= duration('5m') && self <= duration('24h')").message("verify.server.interval must be between 5m and 24h"))]
    pub interval: GoDuration,
    /// Request that the measurement sends.
    #[serde(default)]
    pub http_get: HttpGet,
}

/// HTTP/1.1 request to a node. The operator does not verify the certificate and does not follow redirects.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    /// Port of the server, 1 to 65535. Absent: the first port on which the node listens by its configuration (Caddy), or its port
    /// in the cluster map (AIStore).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: Option<u16>,
    /// Path of the request, with a query if needed, at most 256 characters. The response must be shorter than 1 MiB.
    #[serde(default = "root")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^/[^#[:space:]]*$')")
        .message("verify.server.httpGet.path must start with / and must not have blanks or a fragment (#)"))]
    pub path: String,
    /// Scheme of the request: http or https. Absent: the scheme of the port in the configuration of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// Value of the Host header, and server name for TLS. Absent: the address of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-.a-zA-Z0-9]+$"))]
    pub host: Option<String>,
}

impl Default for HttpGet {
    fn default() -> Self {
        Self { port: None, path: root(), scheme: None, host: None }
    }
}

fn root() -> String {
    "/".into()
}

//! `spec.verify`: what the nodes' servers really do is measured from outside.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{GoDuration, policy::Scheme};

/// Measures what the nodes' servers do with idle connections. Absent: nothing is measured.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct Verify {
    /// How long the server of each node keeps an idle connection: one connection and one request for each node and interval.
    pub server: VerifyServer,
}

/// How servers are measured.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VerifyServer {
    /// How often each node is measured; the nodes are spread over it.
    #[serde(default = "hour")]
    #[x_kube(validation = Rule::new("self >= duration('5m') && self <= duration('24h')").message("verify.server.interval must be between 5m and 24h"))]
    pub interval: GoDuration,
    /// The request.
    #[serde(default)]
    pub http_get: HttpGet,
}

/// One HTTP/1.1 request to a node. The certificate is not checked, and redirects are not followed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    /// The port; by default the first port that the node's configuration says that it listens on (Caddy), or that its cluster says (AIStore).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: Option<u16>,
    /// The path, and a query where one is needed. The answer must be shorter than 1 MiB.
    #[serde(default = "root")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^/[^#[:space:]]*$')")
        .message("verify.server.httpGet.path must start with / and must not have blanks or a fragment (#)"))]
    pub path: String,
    /// http or https; by default what the node's configuration says of the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// The Host field, and the name for TLS; by default the node's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-.a-zA-Z0-9]+$"))]
    pub host: Option<String>,
}

impl Default for HttpGet {
    fn default() -> Self {
        Self { port: None, path: root(), scheme: None, host: None }
    }
}

fn hour() -> GoDuration {
    std::time::Duration::from_secs(3600).into()
}

fn root() -> String {
    "/".into()
}

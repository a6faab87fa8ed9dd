//! `IdleConnectionPolicy`: what Git declares for one target.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    GoDuration, Limits, Preset,
    adaptive::Adaptive,
    config_map::ConfigMap,
    lookup::{Lookup, Member, References},
    overrides::Override,
    restart::Restart,
    status::IdleConnectionPolicyStatus,
    verify::Verify,
};

/// Declares how HTTP connections may idle on the nodes of one target.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "idleconn.io",
    version = "v1alpha1",
    kind = "IdleConnectionPolicy",
    plural = "idleconnectionpolicies",
    shortname = "icp",
    category = "idleconn",
    namespaced,
    status = "IdleConnectionPolicyStatus",
    derive = "PartialEq",
    doc = "Declares how HTTP connections may idle on the nodes of one target.",
    selectable = ".spec.target.type",
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.target.type"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.adaptive.mode"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Tasks", type_ = "integer", json_path = ".status.tasks.percentile"),
    printcolumn(name = "Threshold", type_ = "integer", json_path = ".status.tasks.threshold"),
    printcolumn(name = "Tightened", type_ = "string", json_path = ".status.conditions[?(@.type==\"Tightened\")].status"),
    printcolumn(name = "Openness", type_ = "integer", json_path = ".status.opennessPercent"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes.summary"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    printcolumn(name = "Programmed", type_ = "string", json_path = ".status.conditions[?(@.type==\"Programmed\")].status", priority = 1),
    printcolumn(name = "InEffect", type_ = "string", json_path = ".status.conditions[?(@.type==\"InEffect\")].status", priority = 1),
    printcolumn(name = "Measured", type_ = "string", json_path = ".status.limits.measured.server.idleTimeout", priority = 1),
    printcolumn(name = "Worst-Node", type_ = "string", json_path = ".status.tasks.node", priority = 1),
    printcolumn(name = "Last-Change", type_ = "date", json_path = ".status.history[0].time", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must be at most 63 characters: it becomes a label value; choose a shorter one"),
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = super::rules::spec)]
pub struct IdleConnectionPolicySpec {
    /// What the policy governs: one kind of server, whose `type` cannot be changed later.
    pub target: Target,
    /// Starting values by name; `limits` overrides them field by field. See the table of presets in the documentation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// What Git declares. A field that neither `limits` nor `preset` sets is left as found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Other limits for some of the nodes, or for one provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_string()]))]
    pub overrides: Option<Vec<Override>>,
    /// Tightens the limits by itself while nodes run too many tasks. Absent is the same as mode: Disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
    /// Whether nodes are restarted for limits that they read only when they start. Absent is the same as policy: Never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// Measures what the nodes' servers do with idle connections. Absent: nothing is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// What to do when a node was changed by somebody else: Correct puts the declared value back, Report only says so.
    #[serde(default)]
    pub drift_policy: DriftPolicy,
    /// What happens to the nodes when the policy is deleted: Restore puts back what was there before the first write, Retain leaves them.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// How long a deletion waits for nodes that cannot be restored; then the finalizer goes, with Event `RestoreAbandoned`.
    #[serde(default = "five_minutes")]
    #[x_kube(validation = Rule::new("self >= duration('1s') && self <= duration('24h')").message("restoreTimeout must be between 1s and 24h"))]
    pub restore_timeout: GoDuration,
    /// Writes nothing at all to the nodes while true, drift included. Deletion still restores.
    #[serde(default)]
    pub suspend: bool,
}

fn five_minutes() -> GoDuration {
    std::time::Duration::from_secs(300).into()
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $Kind:ident $field:ident $name:tt;)*) => {
        /// The kinds of target.
        #[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs)] // Described by the members of Target.
        pub enum TargetType {
            $($Kind,)*
        }

        impl TargetType {
            /// Every kind, with the member of `spec.target` that it has.
            pub(super) const MEMBERS: &[(Self, &str)] = &[$((Self::$Kind, $name),)*];

            /// The name a user writes.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Kind => stringify!($Kind),)*
                }
            }
        }

        /// What the policy governs.
        #[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
        #[schemars(transform = super::rules::target)]
        pub struct Target {
            /// The kind of server; names the member that is set. Immutable.
            #[serde(rename = "type")]
            pub type_: TargetType,
            $(
                $(#[$doc])*
                #[serde(rename = $name, default, skip_serializing_if = "Option::is_none")]
                pub $field: Option<$Kind>,
            )*
        }

        impl Target {
            /// The member that is set.
            #[must_use]
            pub fn member(&self) -> Option<&dyn Member> {
                let members: [Option<&dyn Member>; TargetType::MEMBERS.len()] =
                    [$(self.$field.as_ref().map(|member| member as &dyn Member),)*];
                members.into_iter().flatten().next()
            }
        }
    };
}

// A kind is: its type, which is also the name of its spec, its field, and the name of the field in YAML.
kinds! {
    /// An AIStore cluster, through its REST API.
    AIStore aistore "aistore";
    /// Caddy servers, through their admin API.
    Caddy caddy "caddy";
    /// Any server that reads a file, through a ConfigMap that it mounts.
    ConfigMap config_map "configMap";
}

impl Target {
    /// Where its nodes are looked for; `None` where the spec does not say, which the API server refuses.
    #[must_use]
    pub fn lookup(&self) -> Option<Lookup<'_>> {
        self.member()?.lookup()
    }

    /// The pods that it is, where it is pods.
    #[must_use]
    pub fn selector(&self) -> Option<&LabelSelector> {
        match self.lookup()? {
            Lookup::Pods { selector, .. } | Lookup::Mounting(selector) => Some(selector),
            Lookup::Endpoints(_) | Lookup::Behind(_) | Lookup::EachBehind(_) => None,
        }
    }

    /// The Service that it is behind, where it is behind one.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceRef> {
        match self.lookup()? {
            Lookup::Behind(service) | Lookup::EachBehind(service) => Some(service),
            Lookup::Endpoints(_) | Lookup::Pods { .. } | Lookup::Mounting(_) => None,
        }
    }

    /// How its pods are asked.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        let selected = self.member().map(Member::pod_scheme).unwrap_or_default();
        self.service().map_or(selected, |service| service.scheme)
    }
}

impl IdleConnectionPolicySpec {
    /// Whether an object in the cluster or a node names addresses for it, beyond the pods that it selects.
    #[must_use]
    pub fn names_addresses(&self) -> bool {
        let prometheus = self.adaptive.as_ref().and_then(|adaptive| adaptive.signal.as_ref()?.prometheus.as_ref());
        self.target.service().is_some()
            || (self.target.member().is_some_and(Member::names_its_nodes) && (self.adaptive.is_some() || self.verify.is_some()))
            || prometheus.is_some_and(|prometheus| prometheus.service.is_some())
    }
}

/// An AIStore cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.service) != has(self.endpoint)")
        .message("target.aistore: set exactly one of service, endpoint"),
    validation = Rule::new("!(has(self.caConfigMapRef) && has(self.caSecretRef))")
        .message("target.aistore: set at most one of caConfigMapRef, caSecretRef"),
)]
pub struct AIStore {
    /// The Service of its proxies, in the policy's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// The URL of a proxy, where there is no Service; the operator's `--allow-endpoints` must list its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[^/?#@]+$')")
        .message("target.aistore.endpoint must be http://host:port or https://host:port, without path, query or credentials"))]
    pub endpoint: Option<String>,
    /// A Secret's key with a bearer token that may read and change the cluster's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<KeyRef>,
    /// A ConfigMap's key with the certificates, in PEM, that sign the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<KeyRef>,
    /// A Secret's key with the certificates, in PEM, that sign the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<KeyRef>,
}

impl Member for AIStore {
    fn lookup(&self) -> Option<Lookup<'_>> {
        match &self.endpoint {
            Some(endpoint) => Some(Lookup::Endpoints(vec![endpoint])),
            None => self.service.as_ref().map(Lookup::Behind),
        }
    }

    fn references(&self) -> References<'_> {
        References {
            token: self.token_secret_ref.as_ref(),
            ca_config_map: self.ca_config_map_ref.as_ref(),
            ca_secret: self.ca_secret_ref.as_ref(),
        }
    }

    fn names_its_nodes(&self) -> bool {
        true
    }
}

/// Caddy servers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.selector) ? 1 : 0) + (has(self.service) ? 1 : 0) + (has(self.endpoints) ? 1 : 0) == 1")
        .message("target.caddy: set exactly one of selector, service, endpoints"),
    validation = Rule::new("!(has(self.caConfigMapRef) && has(self.caSecretRef))")
        .message("target.caddy: set at most one of caConfigMapRef, caSecretRef"),
    validation = Rule::new("!has(self.selector) || (has(self.selector.matchLabels) && size(self.selector.matchLabels) > 0) || (has(self.selector.matchExpressions) && size(self.selector.matchExpressions) > 0)")
        .message("target.caddy.selector must not be empty: it would match every pod of the namespace"),
)]
pub struct Caddy {
    /// Selects the pods, in the policy's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// The Service in front of them, in the policy's namespace; each of its endpoints is a node. Its port is the admin port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// The URLs of the admin APIs; the operator's `--allow-endpoints` must list their hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub endpoints: Option<Vec<Endpoint>>,
    /// The port of the admin API on the selected pods.
    #[serde(default = "admin_port")]
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub admin_port: u16,
    /// The scheme of the admin API on the selected pods.
    #[serde(default)]
    pub scheme: Scheme,
    /// A ConfigMap's key with the certificates, in PEM, that sign the admin API's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<KeyRef>,
    /// A Secret's key with the certificates, in PEM, that sign the admin API's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<KeyRef>,
}

impl Member for Caddy {
    fn lookup(&self) -> Option<Lookup<'_>> {
        if let Some(endpoints) = &self.endpoints {
            return Some(Lookup::Endpoints(endpoints.iter().map(|endpoint| endpoint.0.as_str()).collect()));
        }
        if let Some(service) = &self.service {
            return Some(Lookup::EachBehind(service));
        }
        Some(Lookup::Pods { selector: self.selector.as_ref()?, scheme: self.scheme, port: self.admin_port })
    }

    fn pod_scheme(&self) -> Scheme {
        self.scheme
    }

    fn references(&self) -> References<'_> {
        References {
            ca_config_map: self.ca_config_map_ref.as_ref(),
            ca_secret: self.ca_secret_ref.as_ref(),
            ..References::default()
        }
    }
}

const fn admin_port() -> u16 {
    2019
}

/// `http://host:port` or `https://host:port`, without path, query or credentials.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(transparent)]
pub struct Endpoint(
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[^/?#@]+$"))]
    pub String,
);

/// A Service in the policy's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// One of its ports, by number.
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: u16,
    /// What it speaks.
    #[serde(default)]
    pub scheme: Scheme,
}

/// http or https.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

impl Scheme {
    /// As in a URL.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// One key of a Secret or ConfigMap in the policy's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct KeyRef {
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// What to do when a node was changed by somebody else.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DriftPolicy {
    #[default]
    Correct,
    Report,
}

/// What happens to the nodes when the policy is deleted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DeletionPolicy {
    #[default]
    Restore,
    Retain,
}

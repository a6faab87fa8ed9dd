//! `IdleConnectionPolicy`: the limits of idle connections that a user declares for one target.

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
    refs::{KeyRef, Scheme, ServiceRef},
    restart::Restart,
    status::IdleConnectionPolicyStatus,
    update::{RollingUpdate, UpdateStrategy},
    verify::Verify,
};

/// Limits of idle HTTP connections for the nodes of one target.
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
    doc = "Limits of idle HTTP connections for the nodes of one target.",
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
    printcolumn(name = "Most-Tasks", type_ = "string", json_path = ".status.tasks.node", priority = 1),
    printcolumn(name = "Last-Change", type_ = "date", json_path = ".status.history[0].time", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must be at most 63 characters: it becomes a label value; choose a shorter one"),
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = super::rules::spec)]
pub struct IdleConnectionPolicySpec {
    /// Servers that this policy governs. Exactly one member is set, and `type` names it. `type` cannot be changed later.
    pub target: Target,
    /// Named set of starting values. A limit that is set in `limits` overrides the value of the preset. Absent: no starting
    /// values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Declared limits. 0 means no limit. A limit that neither `limits` nor `preset` sets is not managed, and the nodes keep
    /// their own value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Limits that differ for some of the nodes, or towards one provider. At most 32 entries. Absent: all nodes have the same
    /// limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_string()]))]
    pub overrides: Option<Vec<Override>>,
    /// Adaptive control: tightens the limits towards a floor while nodes run too many tasks, and relaxes them again afterwards.
    /// Absent: the same as `mode: Disabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
    /// Restarts of nodes whose processes read a limit only when they start. Absent: the same as `policy: Never`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// Measurement of how long the servers of the nodes really keep idle connections. Absent: nothing is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// How many nodes are written at the same time. Only for targets where one write reaches one node (Caddy): there each change
    /// closes all idle connections of the node. It governs edits, steps of adaptive control and corrections. Deletions use the
    /// same batches without a pause. Absent: `RollingUpdate` for Caddy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_strategy: Option<UpdateStrategy>,
    /// Reaction to a value that another client changed on a node. Correct writes the desired value again. Report leaves the value
    /// and shows the difference in the status.
    #[serde(default)]
    pub drift_policy: DriftPolicy,
    /// Handling of the nodes when the policy is deleted. Restore writes the values from before the first write. Retain leaves the
    /// current values.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Time that a deletion waits for nodes that cannot be restored, 1s to 24h. After that the operator removes the finalizer and
    /// records the Event `RestoreAbandoned`.
    #[serde(default = "GoDuration::seconds::<300>")]
    #[x_kube(validation = Rule::new("self >= duration('1s') && self <= duration('24h')").message("restoreTimeout must be between 1s and 24h"))]
    pub restore_timeout: GoDuration,
    /// Suspends the policy: while true, the operator writes nothing to the nodes and does not correct drift. A deletion still
    /// restores the nodes.
    #[serde(default)]
    pub suspend: bool,
}

impl IdleConnectionPolicySpec {
    /// Returns the batches in which the nodes are written, where each write closes the idle connections of one node; `None` if all
    /// are written at the same time.
    #[must_use]
    pub fn batches(&self) -> Option<RollingUpdate> {
        self.update_strategy.as_ref().map_or_else(|| Some(RollingUpdate::default()), UpdateStrategy::batches)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $Kind:ident $field:ident $name:tt;)*) => {
        /// Kinds of target.
        #[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs)] // The members of Target describe them.
        pub enum TargetType {
            $($Kind,)*
        }

        impl TargetType {
            /// Names of the kinds, in their order, each with the name of its member of `spec.target`.
            const MEMBERS: &[(&str, &str)] = &[$((stringify!($Kind), $name),)*];

            /// Name of the kind in a policy.
            #[must_use]
            pub const fn name(self) -> &'static str {
                Self::MEMBERS[self as usize].0
            }
        }

        /// Servers that a policy governs.
        #[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
        #[schemars(transform = |schema: &mut _| super::rules::target(schema, TargetType::MEMBERS))]
        pub struct Target {
            /// Kind of the target. It must name the member that is set, and cannot be changed.
            #[serde(rename = "type")]
            pub type_: TargetType,
            $(
                $(#[$doc])*
                #[serde(rename = $name, default, skip_serializing_if = "Option::is_none")]
                pub $field: Option<$Kind>,
            )*
        }

        impl Target {
            /// Returns the member that is set.
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
    /// AIStore cluster, which the operator configures through its REST API.
    AIStore aistore "aistore";
    /// Caddy servers, which the operator configures through their admin API.
    Caddy caddy "caddy";
    /// Servers that read a file. The operator writes the file into a ConfigMap that the pods mount.
    ConfigMap config_map "configMap";
}

impl Target {
    /// Returns where the operator looks for nodes; `None` if the spec does not say, which the API server refuses.
    #[must_use]
    pub fn lookup(&self) -> Option<Lookup<'_>> {
        self.member()?.lookup()
    }

    /// Returns the selector of the target's pods; `None` if the target is not found by a selector.
    #[must_use]
    pub fn selector(&self) -> Option<&LabelSelector> {
        match self.lookup()? {
            Lookup::Pods { selector, .. } | Lookup::Mounting(selector) => Some(selector),
            Lookup::Endpoints(_) | Lookup::Behind(_) | Lookup::EachBehind(_) => None,
        }
    }

    /// Returns the Service in front of the target, if there is one.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceRef> {
        match self.lookup()? {
            Lookup::Behind(service) | Lookup::EachBehind(service) => Some(service),
            Lookup::Endpoints(_) | Lookup::Pods { .. } | Lookup::Mounting(_) => None,
        }
    }

    /// Returns the scheme of requests to the target's pods.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        let selected = self.member().map(Member::pod_scheme).unwrap_or_default();
        self.service().map_or(selected, |service| service.scheme)
    }
}

impl IdleConnectionPolicySpec {
    /// Reports whether a cluster object or a node supplies addresses, in addition to the selected pods.
    #[must_use]
    pub fn names_addresses(&self) -> bool {
        let prometheus = self.adaptive.as_ref().and_then(|adaptive| adaptive.signal.as_ref()?.prometheus.as_ref());
        self.target.service().is_some()
            || (self.target.member().is_some_and(Member::names_its_nodes) && (self.adaptive.is_some() || self.verify.is_some()))
            || prometheus.is_some_and(|prometheus| prometheus.service.is_some())
    }
}

/// AIStore cluster. Exactly one of `service` and `endpoint` is set.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.service) != has(self.endpoint)")
        .message("target.aistore: set exactly one of service, endpoint"),
    validation = Rule::new("!(has(self.caConfigMapRef) && has(self.caSecretRef))")
        .message("target.aistore: set at most one of caConfigMapRef, caSecretRef"),
)]
pub struct AIStore {
    /// Service of the AIStore proxies, in the namespace of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// URL of one AIStore proxy, for a cluster without a Service: `http://host:port` or `https://host:port`. The operator's flag
    /// `--allow-endpoints` must list the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[^/?#@]+$')")
        .message("target.aistore.endpoint must be http://host:port or https://host:port, without path, query or credentials"))]
    pub endpoint: Option<String>,
    /// Secret key with a bearer token that may read and change the configuration of the AIStore cluster. Absent: requests carry
    /// no token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<KeyRef>,
    /// ConfigMap key with the CA certificates of the AIStore cluster, in PEM. At most one of `caConfigMapRef` and `caSecretRef`
    /// is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<KeyRef>,
    /// Secret key with the CA certificates of the AIStore cluster, in PEM. At most one of `caConfigMapRef` and `caSecretRef` is
    /// set.
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

/// Caddy servers. Exactly one of `selector`, `service` and `endpoints` is set.
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
    /// Label selector of the Caddy pods, in the namespace of the policy. Each selected pod is a node. It must not be empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Service in front of the Caddy servers, in the namespace of the policy. Each endpoint of the Service is a node. The port
    /// must be the port of the admin API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// URLs of the admin APIs, 1 to 64. Each URL is a node. The operator's flag `--allow-endpoints` must list the hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub endpoints: Option<Vec<Endpoint>>,
    /// Port of the admin API on the pods that `selector` selects, 1 to 65535.
    #[serde(default = "admin_port")]
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub admin_port: u16,
    /// Scheme of the admin API on the pods that `selector` selects: http or https.
    #[serde(default)]
    pub scheme: Scheme,
    /// ConfigMap key with the CA certificates of the admin APIs, in PEM. At most one of `caConfigMapRef` and `caSecretRef` is
    /// set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<KeyRef>,
    /// Secret key with the CA certificates of the admin APIs, in PEM. At most one of `caConfigMapRef` and `caSecretRef` is set.
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

/// URL of an admin API: `http://host:port` or `https://host:port`, without path, query or credentials.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(transparent)]
pub struct Endpoint(
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[^/?#@]+$"))]
    pub String,
);

/// Reaction to a value that another client changed on a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DriftPolicy {
    #[default]
    Correct,
    Report,
}

/// Handling of the nodes when the policy is deleted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DeletionPolicy {
    #[default]
    Restore,
    Retain,
}

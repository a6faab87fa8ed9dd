//! `spec.adaptive`: adaptive control, which tightens and relaxes the limits automatically.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    GoDuration, Limits,
    refs::{KeyRef, ServiceRef},
};

/// Adaptive control: tightens the limits towards a floor while nodes run too many tasks, and relaxes them again afterwards.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode == 'Disabled' || has(self.floor)")
        .message("adaptive: set adaptive.floor, because only a limit with a floor is tightened (or set mode: Disabled)"),
)]
pub struct Adaptive {
    /// Mode of adaptive control. Enforce writes its decisions to the nodes. Recommend only shows them in `status.recommendation`.
    /// Disabled does neither.
    #[serde(default)]
    pub mode: Mode,
    /// Lowest value of each limit. Tightening never goes below it, and never changes a limit without a floor. A floor must be
    /// more than 0 and must not exceed its limit. Required unless `mode` is Disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Limits>,
    /// Source of the task count and its threshold. Absent: the defaults of its fields apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
    /// Behavior while the task count is not available. Absent: the limits stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Speed of adaptive control. A field that is set overrides the value of the profile. Absent: the profile Balanced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<Behavior>,
}

/// Mode of adaptive control.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Mode {
    Enforce,
    #[default]
    Recommend,
    Disabled,
}

/// Source of the task count and its threshold.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.prometheus) == (has(self.source) && self.source == 'Prometheus')")
        .message("adaptive.signal.prometheus must be set if and only if signal.source is Prometheus"),
    validation = Rule::new("!has(self.source) || self.source != 'Prometheus' || (has(self.threshold) && has(self.threshold.value))")
        .message("adaptive.signal: source Prometheus needs threshold.value; a query has no CPU count"),
    validation = Rule::new("!has(self.source) || self.source != 'StateFlags' || !has(self.threshold)")
        .message("adaptive.signal: StateFlags has no threshold, because the nodes use their own of 512 tasks per CPU; remove threshold"),
    validation = Rule::new("!has(self.idleConnections) || !has(self.source) || self.source == 'Nodes'")
        .message("adaptive.signal.idleConnections needs source Nodes: the gauge is read from the metrics page of each node"),
    validation = Rule::new("!has(self.newConnections) || !has(self.source) || self.source == 'Nodes'")
        .message("adaptive.signal.newConnections needs source Nodes: the counter is read from the metrics page of each node"),
    validation = Rule::new("(!has(self.matchLabels) && (!has(self.aggregation) || self.aggregation == 'ExactlyOne')) || !has(self.source) || self.source == 'Nodes'")
        .message("adaptive.signal: matchLabels and aggregation need source Nodes; with source Prometheus, select and aggregate in the query"),
)]
pub struct Signal {
    /// Source of the task count. Nodes scrapes the metrics page of each node. Prometheus runs a query. `StateFlags` reads the
    /// alerts of AIStore. Absent: `StateFlags` for AIStore, Nodes for every other target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Name of the gauge that counts tasks (goroutines, tokio tasks, threads). Only used with source Nodes.
    #[serde(default = "goroutines")]
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^[a-zA-Z_:][a-zA-Z0-9_:]*$"))]
    pub metric: String,
    /// Labels that select series of the gauge: a series counts only if it has every label with exactly this value. At most 8.
    /// Absent: every series counts. Only used with source Nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    #[x_kube(validation = Rule::new("self.all(name, size(name) >= 1 && size(name) <= 128 && size(self[name]) <= 256)")
        .message("adaptive.signal.matchLabels: a label name has 1 to 128 characters, and a value at most 256"))]
    pub match_labels: BTreeMap<String, String>,
    /// Aggregation of several series of the gauge on one node. `ExactlyOne` treats more than one series as an error, Sum adds
    /// them, Max takes the highest. Absent: `ExactlyOne`. Only used with source Nodes.
    // The schema has no default: the API server would write it into every policy. During an upgrade of the CRD the previous
    // version of the operator is still running, and it would refuse a field that it does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Aggregation>,
    /// Gauge in which a node reports its number of idle connections. With it the operator knows which part of the tasks
    /// tightening can remove: it chooses steps of the right size, and does not tighten if connections are not the cause. Absent:
    /// that part is not known. Only used with source Nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_connections: Option<IdleConnections>,
    /// Counter in which a node reports its new connections. With it a tightening is taken back if it makes new connections more
    /// than twice as frequent. Absent: this is not observed. Only used with source Nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_connections: Option<NewConnections>,
    /// Task count at which a node runs too many tasks. Source Prometheus requires `value`, and `StateFlags` allows no threshold.
    /// Absent: 512 tasks per CPU, the value at which AIStore begins to warn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<Threshold>,
    /// Percentile of the nodes' utilization that decides, 1 to 100, by nearest rank. With three nodes or fewer, the node with the
    /// highest utilization decides.
    #[serde(default = "ninety_five")]
    #[schemars(range(min = 1, max = 100), extend("format" = "int32"))]
    pub percentile: u32,
    /// Interval between two readings of the task count, 1s to 10m.
    #[serde(default = "GoDuration::seconds::<10>")]
    #[x_kube(validation = Rule::new("self >= duration('1s') && self <= duration('10m')").message("adaptive.signal.interval must be between 1s and 10m"))]
    pub interval: GoDuration,
    /// Prometheus server and query. Set exactly when `source` is Prometheus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<Prometheus>,
}

impl Signal {
    /// Returns a signal with the default of every field.
    #[must_use]
    pub fn unset() -> Self {
        Self { metric: goroutines(), percentile: ninety_five(), interval: GoDuration::seconds::<10>(), ..Self::default() }
    }
}

fn goroutines() -> String {
    "go_goroutines".into()
}

const fn ninety_five() -> u32 {
    95
}

/// Gauge in which a node reports its number of idle connections.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct IdleConnections {
    /// Name of the gauge, such as `idleconn_server_connections`.
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^[a-zA-Z_:][a-zA-Z0-9_:]*$"))]
    pub metric: String,
    /// Labels that select series of the gauge, such as `state: idle`: a series counts only if it has every label with exactly
    /// this value. At most 8. Absent: every series counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    #[x_kube(validation = Rule::new("self.all(name, size(name) >= 1 && size(name) <= 128 && size(self[name]) <= 256)")
        .message("adaptive.signal.idleConnections.matchLabels: a label name has 1 to 128 characters, and a value at most 256"))]
    pub match_labels: BTreeMap<String, String>,
    /// Aggregation of several series of the gauge on one node, with the same values as `signal.aggregation`. Absent:
    /// `ExactlyOne`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Aggregation>,
    /// Number of tasks that one idle connection costs, 1 to 8: 2 in the pool of a Go client (one reads, one writes), 1 in a Go
    /// server. Absent: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 8), extend("format" = "int32"))]
    pub tasks_per_connection: Option<u32>,
}

impl IdleConnections {
    /// Tasks of one idle connection if the policy does not set them: the goroutines of a connection in the pool of a Go client.
    pub const TASKS_PER_CONNECTION: u32 = 2;
}

/// Counter in which a node reports its new connections. Series with different labels are added.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NewConnections {
    /// Name of the counter, such as `idleconn_client_connections_got_total`.
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^[a-zA-Z_:][a-zA-Z0-9_:]*$"))]
    pub metric: String,
    /// Labels that select series of the counter, such as `reused: "false"`: a series counts only if it has every label with
    /// exactly this value. At most 8. Absent: every series counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    #[x_kube(validation = Rule::new("self.all(name, size(name) >= 1 && size(name) <= 128 && size(self[name]) <= 256)")
        .message("adaptive.signal.newConnections.matchLabels: a label name has 1 to 128 characters, and a value at most 256"))]
    pub match_labels: BTreeMap<String, String>,
    /// New connections per second, of all nodes together, up to which no tightening counts as harmful, 1 to 1000000000.
    #[schemars(range(min = 1, max = 1_000_000_000), extend("format" = "int32"))]
    pub max_per_second: u32,
    /// Counter in which a node reports its requests. With it new connections are compared per request, so that a change of the
    /// load does not count. Absent: they are compared per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<RequestCounter>,
}

/// Counter in which a node reports its requests. Series with different labels are added.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RequestCounter {
    /// Name of the counter, such as `idleconn_server_requests_total`.
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^[a-zA-Z_:][a-zA-Z0-9_:]*$"))]
    pub metric: String,
    /// Labels that select series of the counter: a series counts only if it has every label with exactly this value. At most 8.
    /// Absent: every series counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    #[x_kube(validation = Rule::new("self.all(name, size(name) >= 1 && size(name) <= 128 && size(self[name]) <= 256)")
        .message("adaptive.signal.newConnections.requests.matchLabels: a label name has 1 to 128 characters, and a value at most 256"))]
    pub match_labels: BTreeMap<String, String>,
}

/// Aggregation of several series of one node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Aggregation {
    #[default]
    ExactlyOne,
    Sum,
    Max,
}

/// Source of the task count.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Source {
    Nodes,
    Prometheus,
    StateFlags,
}

/// Task count at which a node runs too many tasks. Exactly one of `value` and `perCPU` is set.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.value) != has(self.perCPU)").message("adaptive.signal.threshold: set exactly one of value, perCPU"))]
pub struct Threshold {
    /// Number of tasks of one node, 1 to 1000000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000), extend("format" = "int32"))]
    pub value: Option<u32>,
    /// Number of tasks for each CPU that the process of the node may use (`go_sched_gomaxprocs_threads`), 1 to 1000000.
    #[serde(default, rename = "perCPU", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000), extend("format" = "int32"))]
    pub per_cpu: Option<u32>,
}

/// Prometheus server and query. Exactly one of `service` and `endpoint` is set.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.service) != has(self.endpoint)")
        .message("adaptive.signal.prometheus: set exactly one of service, endpoint"),
    validation = Rule::new("!(has(self.caConfigMapRef) && has(self.caSecretRef))")
        .message("adaptive.signal.prometheus: set at most one of caConfigMapRef, caSecretRef"),
)]
pub struct Prometheus {
    /// Service of the Prometheus server, in the namespace of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// URL of a Prometheus server without a Service: `http://host:port` or `https://host:port`. The operator's flag
    /// `--allow-endpoints` must list the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[^/?#@]+$')")
        .message("adaptive.signal.prometheus.endpoint must be http://host:port or https://host:port, without path, query or credentials"))]
    pub endpoint: Option<String>,
    /// Path in front of `/api/v1/query`, such as `/prometheus`. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^(/[A-Za-z0-9._~!$&()*+,;=:@%-]+)+/?$')")
        .message("adaptive.signal.prometheus.pathPrefix must be a path such as /prometheus, without query or fragment"))]
    pub path_prefix: Option<String>,
    /// HTTP headers of each query, with values from Secrets; for example the header that names a tenant. 1 to 8 entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".to_string()]),
        validation = Rule::new("self.all(h, self.exists_one(o, o.name.matches('(?i)^' + h.name + '$')))")
            .message("adaptive.signal.prometheus.headers: a header may occur only once, regardless of upper and lower case"),
    )]
    pub headers: Option<Vec<Header>>,
    /// Secret key with a bearer token. Absent: queries carry no token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<KeyRef>,
    /// ConfigMap key with the CA certificates of the Prometheus server, in PEM. At most one of `caConfigMapRef` and `caSecretRef`
    /// is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<KeyRef>,
    /// Secret key with the CA certificates of the Prometheus server, in PEM. At most one of `caConfigMapRef` and `caSecretRef` is
    /// set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<KeyRef>,
    /// Query that returns one number: the task count of the node with the most tasks, or whether an alert fires, such as
    /// `max(ALERTS{alertname="AISNumGoroutinesHigh",alertstate="firing"}) or vector(0)` with a threshold of 1.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
}

/// HTTP header with a value from a Secret.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!self.name.matches('(?i)^(accept-encoding|authorization|connection|content-length|content-type|expect|host|keep-alive|proxy-authorization|proxy-connection|te|trailer|transfer-encoding|upgrade)$')")
    .message("adaptive.signal.prometheus.headers: Host, Authorization and headers of the connection cannot be set; a bearer token goes into tokenSecretRef"))]
pub struct Header {
    /// Name of the header, such as `X-Scope-OrgID`.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"))]
    pub name: String,
    /// Secret key with the value of the header.
    pub secret_ref: KeyRef,
}

/// Behavior while the task count is not available. Absent: the limits stay as they are.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Fallback {
    /// Time without a quorum (a fresh task count from at least half of the nodes) after which the fallback begins, 3m to 24h.
    #[serde(default = "GoDuration::seconds::<300>")]
    #[x_kube(validation = Rule::new("self >= duration('3m') && self <= duration('24h')").message("adaptive.fallback.after must be between 3m and 24h"))]
    pub after: GoDuration,
    /// Behavior of the fallback. Hold keeps the limits as they are. Declared relaxes them step by step to the declared values.
    #[serde(default)]
    pub behavior: FallbackBehavior,
}

impl Default for Fallback {
    fn default() -> Self {
        Self { after: GoDuration::seconds::<300>(), behavior: FallbackBehavior::Hold }
    }
}

/// Behavior of the fallback.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FallbackBehavior {
    #[default]
    Hold,
    Declared,
}

/// Speed of adaptive control.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.maxChangesPerHour) || !has(self.maxChangesPerDay) || self.maxChangesPerHour <= self.maxChangesPerDay")
    .message("adaptive.behavior.maxChangesPerHour must not exceed maxChangesPerDay"))]
pub struct Behavior {
    /// Profile that supplies the value of each field that is absent here.
    #[serde(default)]
    pub profile: Profile,
    /// Time that the task count must be at or above the threshold, without a break, before the limits are tightened, 1s to 24h.
    /// Absent: the value of the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= duration('1s') && self <= duration('24h')").message("adaptive.behavior.tightenAfter must be between 1s and 24h"))]
    pub tighten_after: Option<GoDuration>,
    /// Time that the task count must be at or below 75% of the threshold, without a break, before the limits are relaxed by one
    /// step, 1s to 24h. Absent: the value of the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= duration('1s') && self <= duration('24h')").message("adaptive.behavior.relaxAfter must be between 1s and 24h"))]
    pub relax_after: Option<GoDuration>,
    /// Maximum number of changes in any hour, 1 to 60. It must not exceed `maxChangesPerDay`. Absent: the value of the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 60), extend("format" = "int32"))]
    pub max_changes_per_hour: Option<u32>,
    /// Maximum number of changes in any 24 hours, 1 to 60. Absent: the value of the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 60), extend("format" = "int32"))]
    pub max_changes_per_day: Option<u32>,
    /// Size of one relaxing step, in percentage points of openness (100% = as declared, 0% = at the floor), 1 to 100. Absent: the
    /// value of the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100), extend("format" = "int32"))]
    pub relax_step_percent: Option<u32>,
}

/// Named set of values for `behavior`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, strum::Display)]
#[allow(missing_docs)]
pub enum Profile {
    Conservative,
    #[default]
    Balanced,
    Aggressive,
}

/// Row of the table of profiles: the values for absent fields of `behavior`.
#[derive(Clone, Copy, Debug)]
pub struct ProfileRow {
    /// The profile.
    pub profile: Profile,
    /// As in `behavior`, in seconds.
    pub tighten_after: u32,
    /// As in `behavior`, in seconds.
    pub relax_after: u32,
    /// As in `behavior`.
    pub max_changes_per_hour: u32,
    /// As in `behavior`.
    pub max_changes_per_day: u32,
    /// As in `behavior`.
    pub relax_step_percent: u32,
    /// Largest part of the current openness that one tightening step removes, in percent.
    pub most_cut_percent: u32,
    /// Purpose of the profile.
    pub purpose: &'static str,
}

/// Profiles, in the order of [`Profile`]. The code and the descriptions of the CRD use this table.
pub const PROFILES: &[ProfileRow] = &[
    ProfileRow {
        profile: Profile::Conservative,
        tighten_after: 300,
        relax_after: 1800,
        max_changes_per_hour: 2,
        max_changes_per_day: 12,
        relax_step_percent: 5,
        most_cut_percent: 30,
        purpose: "for nodes where a change costs more than a delay",
    },
    ProfileRow {
        profile: Profile::Balanced,
        tighten_after: 120,
        relax_after: 900,
        max_changes_per_hour: 4,
        max_changes_per_day: 24,
        relax_step_percent: 10,
        most_cut_percent: 50,
        purpose: "the default",
    },
    ProfileRow {
        profile: Profile::Aggressive,
        tighten_after: 30,
        relax_after: 300,
        max_changes_per_hour: 12,
        max_changes_per_day: 48,
        relax_step_percent: 20,
        most_cut_percent: 50,
        purpose: "for nodes that fail quickly under too many tasks",
    },
];

impl Profile {
    /// Returns the row of the profile.
    #[must_use]
    pub const fn row(self) -> &'static ProfileRow {
        &PROFILES[self as usize]
    }
}

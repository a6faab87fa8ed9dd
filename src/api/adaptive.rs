//! `spec.adaptive`: how the operator tightens and relaxes by itself.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    GoDuration, Limits,
    policy::{KeyRef, ServiceRef},
};

/// Tightens the limits towards a floor while nodes run too many tasks, and relaxes them again.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode == 'Disabled' || has(self.floor)")
        .message("adaptive: set floor; only a limit with a floor is ever tightened (or set mode: Disabled)"),
)]
pub struct Adaptive {
    /// Enforce writes, Recommend only says in the status what it would do, Disabled does neither.
    #[serde(default)]
    pub mode: Mode,
    /// How far tightening may go, never below. Only a limit that has a floor moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Limits>,
    /// Where the task count comes from and how high it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
    /// What happens when the task count cannot be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// How fast it moves. Each number overrides the profile's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<Behavior>,
}

/// What the operator does with what it decides.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Mode {
    Enforce,
    #[default]
    Recommend,
    Disabled,
}

/// Where the task count comes from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.prometheus) == (has(self.source) && self.source == 'Prometheus')")
        .message("adaptive.signal.prometheus must be set if and only if signal.source is Prometheus"),
    validation = Rule::new("!has(self.source) || self.source != 'Prometheus' || (has(self.threshold) && has(self.threshold.value))")
        .message("adaptive.signal: source Prometheus needs threshold.value; a query has no CPU count"),
    validation = Rule::new("!has(self.source) || self.source != 'StateFlags' || !has(self.threshold)")
        .message("adaptive.signal: StateFlags has no threshold; the nodes' own is 512 tasks a CPU"),
    validation = Rule::new("!has(self.idleConnections) || !has(self.source) || self.source == 'Nodes'")
        .message("adaptive.signal.idleConnections needs source Nodes: it is read from each node's page"),
    validation = Rule::new("(!has(self.matchLabels) && (!has(self.aggregation) || self.aggregation == 'ExactlyOne')) || !has(self.source) || self.source == 'Nodes'")
        .message("adaptive.signal: matchLabels and aggregation need source Nodes; with source Prometheus, select and aggregate in the query"),
)]
pub struct Signal {
    /// Nodes scrapes each node, Prometheus asks a query, `StateFlags` reads AIStore's own alerts. AIStore's default is `StateFlags`,
    /// every other target's Nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The gauge that counts tasks, for source Nodes: goroutines, tokio tasks, threads.
    #[serde(default = "goroutines")]
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^[a-zA-Z_:][a-zA-Z0-9_:]*$"))]
    pub metric: String,
    /// The labels that a series of the gauge must have to count, for source Nodes: at most 8, each with exactly this value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    #[x_kube(validation = Rule::new("self.all(name, size(name) >= 1 && size(name) <= 128 && size(self[name]) <= 256)")
        .message("adaptive.signal.matchLabels: a label name has 1 to 128 characters, and a value at most 256"))]
    pub match_labels: BTreeMap<String, String>,
    /// What to do with several series of the gauge on one node, for source Nodes. `ExactlyOne` takes more than one for an error, Sum adds
    /// them, Max takes the highest. Default: `ExactlyOne`.
    // No default in the schema: the API server would write it into every policy, and the operator of the version before, which is
    // still at work when the CRD is upgraded, would refuse a field that it does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Aggregation>,
    /// The gauge in which a node says how many idle connections it holds, for source Nodes. With it the operator knows what part of the
    /// tasks tightening can take away: it takes steps of the right size, and does not tighten where connections are not the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_connections: Option<IdleConnections>,
    /// How many tasks are too many on one node. Without it, 512 a CPU, which is where AIStore begins to warn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<Threshold>,
    /// Which of the nodes is looked at, nearest rank; the highest when there are three or fewer.
    #[serde(default = "ninety_five")]
    #[schemars(range(min = 1, max = 100), extend("format" = "int32"))]
    pub percentile: u32,
    /// How often each node is asked.
    #[serde(default = "ten_seconds")]
    #[x_kube(validation = Rule::new("self >= duration('1s') && self <= duration('10m')").message("adaptive.signal.interval must be between 1s and 10m"))]
    pub interval: GoDuration,
    /// The server to ask, for source Prometheus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<Prometheus>,
}

impl Signal {
    /// As if nothing had been written.
    #[must_use]
    pub fn unset() -> Self {
        Self { metric: goroutines(), percentile: ninety_five(), interval: ten_seconds(), ..Self::default() }
    }
}

fn goroutines() -> String {
    "go_goroutines".into()
}

const fn ninety_five() -> u32 {
    95
}

fn ten_seconds() -> GoDuration {
    std::time::Duration::from_secs(10).into()
}

/// The gauge in which a node says how many idle connections it holds.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct IdleConnections {
    /// The gauge's name, such as `idleconn_server_connections`.
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^[a-zA-Z_:][a-zA-Z0-9_:]*$"))]
    pub metric: String,
    /// The labels that a series of the gauge must have to count, such as `state: idle`: at most 8, each with exactly this value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    #[x_kube(validation = Rule::new("self.all(name, size(name) >= 1 && size(name) <= 128 && size(self[name]) <= 256)")
        .message("adaptive.signal.idleConnections.matchLabels: a label name has 1 to 128 characters, and a value at most 256"))]
    pub match_labels: BTreeMap<String, String>,
    /// What to do with several series of the gauge on one node: as `signal.aggregation`. Default: `ExactlyOne`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Aggregation>,
    /// How many tasks one idle connection costs: 2 in a Go client's pool (one reads, one writes), 1 in a Go server. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 8), extend("format" = "int32"))]
    pub tasks_per_connection: Option<u32>,
}

impl IdleConnections {
    /// Tasks of one idle connection where the policy does not say: the goroutines of one in a Go client's pool.
    pub const TASKS_PER_CONNECTION: u32 = 2;
}

/// How several series of one node become one number.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Aggregation {
    #[default]
    ExactlyOne,
    Sum,
    Max,
}

/// The sources of a task count.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Source {
    Nodes,
    Prometheus,
    StateFlags,
}

/// How many tasks are too many on one node: set exactly one.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.value) != has(self.perCPU)").message("adaptive.signal.threshold: set exactly one of value, perCPU"))]
pub struct Threshold {
    /// A number of tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000), extend("format" = "int32"))]
    pub value: Option<u32>,
    /// A number of tasks for each CPU that the node's process may use (`go_sched_gomaxprocs_threads`).
    #[serde(default, rename = "perCPU", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000), extend("format" = "int32"))]
    pub per_cpu: Option<u32>,
}

/// A Prometheus server and what to ask it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.service) != has(self.endpoint)")
        .message("adaptive.signal.prometheus: set exactly one of service, endpoint"),
    validation = Rule::new("!(has(self.caConfigMapRef) && has(self.caSecretRef))")
        .message("adaptive.signal.prometheus: set at most one of caConfigMapRef, caSecretRef"),
)]
pub struct Prometheus {
    /// Its Service, in the policy's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// Its URL, where there is no Service; the operator's `--allow-endpoints` must list its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[^/?#@]+$')")
        .message("adaptive.signal.prometheus.endpoint must be http://host:port or https://host:port, without path, query or credentials"))]
    pub endpoint: Option<String>,
    /// The path before `/api/v1/query`, such as `/prometheus`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^(/[A-Za-z0-9._~!$&()*+,;=:@%-]+)+/?$')")
        .message("adaptive.signal.prometheus.pathPrefix must be a path such as /prometheus, without query or fragment"))]
    pub path_prefix: Option<String>,
    /// HTTP headers that each query carries, with values from Secrets: a tenant, for example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".to_string()]),
        validation = Rule::new("self.all(h, self.exists_one(o, o.name.matches('(?i)^' + h.name + '$')))")
            .message("adaptive.signal.prometheus.headers: a header may be named once only, in upper or lower case"),
    )]
    pub headers: Option<Vec<Header>>,
    /// A Secret's key with a bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<KeyRef>,
    /// A ConfigMap's key with the certificates, in PEM, that sign the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<KeyRef>,
    /// A Secret's key with the certificates, in PEM, that sign the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<KeyRef>,
    /// A query whose answer is one number: the tasks of the fullest node, or whether an alert fires, such as
    /// `max(ALERTS{alertname="AISNumGoroutinesHigh",alertstate="firing"}) or vector(0)` with a threshold of 1.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
}

/// An HTTP header whose value is in a Secret.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!self.name.matches('(?i)^(accept-encoding|authorization|connection|content-length|content-type|expect|host|keep-alive|proxy-authorization|proxy-connection|te|trailer|transfer-encoding|upgrade)$')")
    .message("adaptive.signal.prometheus.headers: Host, Authorization and headers of the connection cannot be set; a bearer token goes into tokenSecretRef"))]
pub struct Header {
    /// The header's name, such as `X-Scope-OrgID`.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"))]
    pub name: String,
    /// The Secret's key with the header's value.
    pub secret_ref: KeyRef,
}

/// What happens when the task count cannot be had.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Fallback {
    /// After how long without a quorum of nodes.
    #[serde(default = "five_minutes")]
    #[x_kube(validation = Rule::new("self >= duration('3m') && self <= duration('24h')").message("adaptive.fallback.after must be between 3m and 24h"))]
    pub after: GoDuration,
    /// Hold keeps the limits where they are, Declared relaxes them step by step.
    #[serde(default)]
    pub behavior: FallbackBehavior,
}

fn five_minutes() -> GoDuration {
    std::time::Duration::from_secs(300).into()
}

impl Default for Fallback {
    fn default() -> Self {
        Self { after: five_minutes(), behavior: FallbackBehavior::Hold }
    }
}

/// Where the limits go when the task count is gone.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FallbackBehavior {
    #[default]
    Hold,
    Declared,
}

/// How fast the limits move.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.maxChangesPerHour) || !has(self.maxChangesPerDay) || self.maxChangesPerHour <= self.maxChangesPerDay")
    .message("adaptive.behavior.maxChangesPerHour must not exceed maxChangesPerDay"))]
pub struct Behavior {
    /// Where the numbers come from that are not given here. See the table in the documentation.
    #[serde(default)]
    pub profile: Profile,
    /// How long there must be too many tasks, without a break, before the limits are tightened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= duration('1s') && self <= duration('24h')").message("adaptive.behavior.tightenAfter must be between 1s and 24h"))]
    pub tighten_after: Option<GoDuration>,
    /// How long there must be room, without a break, before the limits are relaxed by one step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= duration('1s') && self <= duration('24h')").message("adaptive.behavior.relaxAfter must be between 1s and 24h"))]
    pub relax_after: Option<GoDuration>,
    /// How many changes there may be in any hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 60), extend("format" = "int32"))]
    pub max_changes_per_hour: Option<u32>,
    /// How many changes there may be in any 24 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 60), extend("format" = "int32"))]
    pub max_changes_per_day: Option<u32>,
    /// How many percentage points of openness one relaxing step gives back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100), extend("format" = "int32"))]
    pub relax_step_percent: Option<u32>,
}

/// Sets of numbers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Profile {
    Conservative,
    #[default]
    Balanced,
    Aggressive,
}

/// One line of the table of profiles: what `behavior` means where it says nothing.
#[derive(Clone, Copy, Debug)]
pub struct ProfileRow {
    /// Its name.
    pub profile: Profile,
    /// As in `behavior`, seconds.
    pub tighten_after: u32,
    /// As in `behavior`, seconds.
    pub relax_after: u32,
    /// As in `behavior`.
    pub max_changes_per_hour: u32,
    /// As in `behavior`.
    pub max_changes_per_day: u32,
    /// As in `behavior`.
    pub relax_step_percent: u32,
    /// The most of the openness that one tightening step takes away, in percent of it.
    pub most_cut_percent: u32,
    /// What it is for.
    pub purpose: &'static str,
}

/// The profiles: one table for the code, the documentation and `kubectl explain`.
pub const PROFILES: [ProfileRow; 3] = [
    ProfileRow {
        profile: Profile::Conservative,
        tighten_after: 300,
        relax_after: 1800,
        max_changes_per_hour: 2,
        max_changes_per_day: 12,
        relax_step_percent: 5,
        most_cut_percent: 30,
        purpose: "a change costs more than a late one",
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
        purpose: "nodes that fall over quickly",
    },
];

impl Profile {
    /// Its line.
    #[must_use]
    pub const fn row(self) -> &'static ProfileRow {
        match self {
            Self::Conservative => &PROFILES[0],
            Self::Balanced => &PROFILES[1],
            Self::Aggressive => &PROFILES[2],
        }
    }

    /// The name a user writes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Conservative => "Conservative",
            Self::Balanced => "Balanced",
            Self::Aggressive => "Aggressive",
        }
    }
}

//! What was observed: units that can be written, the config paths in them that hold a limit, and their nodes.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::api::{Limit, Value};

/// What is written as a whole: one Caddy server, one AIStore cluster with all its nodes, or one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// A stable identity: a pod's UID and port, an endpoint, a cluster's UUID.
    pub id: String,
    /// The name for display.
    pub name: String,
    /// The address, `scheme://host:port`.
    pub address: String,
    /// The label `app.kubernetes.io/component` of the unit's pod, if it is a pod and has this label.
    pub role: Option<String>,
}

/// A config path: one place in a unit's configuration that holds a limit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigPath {
    /// The limit it holds.
    pub limit: Limit,
    /// The place, in a notation that only its target reads.
    pub place: String,
}

impl fmt::Display for ConfigPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.limit, self.place)
    }
}

impl Serialize for ConfigPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ConfigPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.split_once('@')
            .and_then(|(limit, place)| Some(Self { limit: Limit::at(limit)?, place: place.to_owned() }))
            .ok_or_else(|| serde::de::Error::custom("a config path is written as limit@place"))
    }
}

/// What config paths held, as the server wrote it; `None` where nothing was set.
pub type Sites = BTreeMap<ConfigPath, Option<Json>>;

/// The saved values of a unit whose config paths have new names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moved {
    /// The saved values, under the current names.
    pub sites: Sites,
    /// Config paths whose current name is not known. Their saved values are dropped, and the status reports that.
    pub lost: std::collections::BTreeSet<ConfigPath>,
}

/// What a config path holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// The value as a limit; `None` where nothing is set, or the value is not valid for a limit.
    pub value: Option<Value>,
    /// The value as the server wrote it; `None` where nothing is set.
    pub raw: Option<Json>,
}

/// What one unit reported.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnitState {
    /// The config paths that hold a limit. A limit without one cannot be set on this unit.
    pub sites: BTreeMap<ConfigPath, Stored>,
    /// The unit's nodes, each as it reports itself.
    pub nodes: Vec<NodeState>,
    /// When the unit reports that its configuration last changed, corrected to the local clock.
    pub changed: Option<Timestamp>,
    /// The hash of a file's text, if the unit is a file and something is written.
    pub hash: Option<String>,
    /// Config paths that an earlier version of the operator named differently, where the present name does not show it:
    /// earlier name to present name.
    pub former: BTreeMap<String, String>,
    /// Whether a change of the configuration closes streams through the unit, such as those of `WebSocket`, at once.
    pub cuts_streams: bool,
    /// The configuration as read, with its version; only the target uses it.
    pub native: Arc<Json>,
}

/// What one node reported.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// What the node stores, or why it did not report that. A limit that it does not have is absent; one whose setting
    /// is empty or not valid for a limit is `None`.
    pub stored: Result<BTreeMap<Limit, Option<Value>>, Fault>,
    /// How long its process has run at least. A server that refreshes this figure at intervals reports too little, never
    /// too much.
    pub uptime: Option<Duration>,
    /// The address of its metrics page, `scheme://host:port`, if it is not the unit's own address.
    pub metrics: Option<String>,
    /// Whether its process uses what is stored, if it reports that ([`super::Capability::Reported`]).
    pub uses: Option<bool>,
    /// Where its process runs, as its cluster reports; `None` where a restart is never needed.
    pub process: Option<Process>,
    /// Where the node serves its clients; `None` if that is not known.
    pub serves: Option<Serves>,
}

impl NodeState {
    /// A node with nothing known but what it stores, or why it did not report that.
    #[must_use]
    pub fn new(name: impl Into<String>, stored: Result<BTreeMap<Limit, Option<Value>>, Fault>) -> Self {
        Self { name: name.into(), stored, uptime: None, metrics: None, uses: None, process: None, serves: None }
    }
}

/// Where a node serves its clients. The node reports this itself, so an address is used only if the operator may reach
/// it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serves {
    /// A host name or an IP address, an IPv6 address in brackets.
    pub host: String,
    /// The port; `None` if the node does not report it.
    pub port: Option<u16>,
    /// Whether the node uses TLS there.
    pub tls: bool,
}

impl Serves {
    /// Parses an address such as `https://host:port`.
    #[must_use]
    pub fn parse(address: &str) -> Option<Self> {
        let (scheme, rest) = address.split_once("://")?;
        let tls = scheme == "https";
        let rest = rest.split('/').next()?;
        let (host, port) = match rest.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (rest, if tls { 443 } else { 80 }),
        };
        (!host.is_empty()).then(|| Self { host: host.to_owned(), port: Some(port), tls })
    }
}

/// Where a node's process runs. The cluster reports this itself, so the operator does nothing to a pod that only one
/// part of it matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// The name of its pod; empty if it is not reported.
    pub pod: String,
    /// The hosts of its addresses.
    pub hosts: Vec<String>,
    /// Whether the node is out of service (AIStore: in maintenance).
    pub drained: bool,
    /// Whether the node has to be taken out of service before it is restarted.
    pub drains: bool,
    /// Nodes of a lower rank are restarted first.
    pub rank: u8,
}

impl UnitState {
    /// Approximate size in memory (bytes).
    #[must_use]
    pub fn size(&self) -> usize {
        let text = |raw: &Json| raw.as_str().map_or(0, str::len);
        let site = |(site, stored): (&ConfigPath, &Stored)| {
            let held = site.place.len() + stored.raw.as_ref().map_or(0, text);
            size_of::<(ConfigPath, Stored)>() * 3 / 2 + held
        };
        let node = |node: &NodeState| {
            let hosts = node.process.iter().flat_map(|process| &process.hosts).map(|host| host.len() + 48).sum::<usize>();
            size_of::<NodeState>() + 512 + node.name.len() + node.metrics.as_ref().map_or(0, String::len) + hosts
        };
        let former = |(former, place): (&String, &String)| 2 * size_of::<String>() + former.len() + place.len();
        256 + self.former.iter().map(former).sum::<usize>()
            + self.sites.iter().map(site).sum::<usize>()
            + self.nodes.iter().map(node).sum::<usize>()
    }

    /// Whether the unit has a config path for a limit.
    #[must_use]
    pub fn has_place(&self, limit: Limit) -> bool {
        self.sites.keys().any(|site| site.limit == limit)
    }
}

/// One unit after the work.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitResult {
    /// The unit.
    pub unit: Unit,
    /// What it reports now.
    pub state: Result<UnitState, Fault>,
    /// Why a write to it failed, if it did.
    pub write: Option<Fault>,
}

/// Why a read or a write failed, as the user sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// The kind of fault.
    pub cause: Cause,
    /// One sentence: what happened, and at which address. It contains no response of another server, except AIStore's
    /// own message.
    pub message: String,
}

/// Kinds of fault that are handled differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No answer, a broken one, or one of another kind of server: retried with back-off.
    Unreachable,
    /// The target is starting up or electing: retried soon.
    NotReady,
    /// Other clients wrote first, several times in a row: retried.
    Busy,
    /// HTTP status 401.
    Unauthorized,
    /// HTTP status 403.
    Forbidden,
    /// The certificate is not signed by the given CA, or is for another name.
    Certificate,
    /// The target understood the request and refused it: final until something changes.
    Rejected,
    /// The operator may not reach the address.
    NotPermitted,
    /// What the target points at does not exist.
    NotFound,
    /// What exists there belongs to another client.
    Conflict,
}

impl Fault {
    /// A fault with its message.
    #[must_use]
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_written_as_it_is_read() {
        let site = ConfigPath { limit: Limit::ServerIdleTimeout, place: "web/@id".into() };
        assert_eq!(site.to_string(), "server.idleTimeout@web/@id");
        let text = serde_json::to_string(&site).unwrap_or_default();
        assert_eq!(serde_json::from_str::<ConfigPath>(&text).ok(), Some(site));
        for bad in [r#""server.idleTimeout""#, r#""server.idle@web""#, "7"] {
            assert!(serde_json::from_str::<ConfigPath>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_fault_is_said_by_its_sentence() {
        assert_eq!(Fault::new(Cause::Busy, "the object changed meanwhile").to_string(), "the object changed meanwhile");
    }

    #[test]
    fn where_a_node_serves_is_read_from_its_address() {
        let of = |text| Serves::parse(text).map(|serves| (serves.host, serves.port, serves.tls));
        for (text, found) in [
            ("http://10.0.0.1:51081", Some(("10.0.0.1", 51081, false))),
            ("https://[fd00::7]:8443/v1", Some(("[fd00::7]", 8443, true))),
            ("https://gateway", Some(("gateway", 443, true))),
            ("http://[fd00::7]", Some(("[fd00::7]", 80, false))),
            ("http://:80", None),
            ("http://a:b", None),
            ("", None),
        ] {
            assert_eq!(of(text), found.map(|(host, port, tls)| (host.to_owned(), Some(port), tls)), "{text}");
        }
    }
}

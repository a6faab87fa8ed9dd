//! What was seen: units that can be written, the places in them that hold a limit, and the nodes behind them.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::api::{Knob, Value};

/// Something that is written as a whole: one Caddy server, or one AIStore cluster with all its nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Stable as long as it is the same thing: a pod's UID and port, an endpoint, a cluster's uuid.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Where it is reached, `scheme://host:port`.
    pub address: String,
    /// What its pod calls its part (`app.kubernetes.io/component`), where it is one and does.
    pub role: Option<String>,
}

/// One place in a unit's configuration that holds a limit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// The limit it holds.
    pub knob: Knob,
    /// Where; only the target that wrote it reads it.
    pub place: String,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.knob, self.place)
    }
}

impl Serialize for Site {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Site {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.split_once('@')
            .and_then(|(knob, place)| Some(Self { knob: Knob::at(knob)?, place: place.to_owned() }))
            .ok_or_else(|| serde::de::Error::custom("a site is written as limit@place"))
    }
}

/// What sites held, as the server wrote it; `None` where nothing was set.
pub type Sites = BTreeMap<Site, Option<Json>>;

/// What was saved of a unit whose places have changed their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moved {
    /// What was saved, under the names that the places have now.
    pub sites: Sites,
    /// What was saved of places of which it is not known any more which they are: no longer kept, and told.
    pub lost: std::collections::BTreeSet<Site>,
}

/// What a site holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// As a limit; `None` where nothing is set, or something that no limit can be.
    pub value: Option<Value>,
    /// As the server wrote it; `None` where nothing is set.
    pub raw: Option<Json>,
}

/// What one unit said of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnitState {
    /// The places that hold a limit. A limit without one cannot be set on this unit.
    pub sites: BTreeMap<Site, Stored>,
    /// The nodes behind it, each by its own word.
    pub nodes: Vec<NodeState>,
    /// When the unit's configuration last changed, by its own word and corrected to the local clock.
    pub changed: Option<Timestamp>,
    /// The hash of a file's text, where it is a file and something is written.
    pub hash: Option<String>,
    /// What a former version of the operator called places whose present name does not tell: former name to present one.
    pub former: BTreeMap<String, String>,
    /// Whether a change of its configuration ends streams through it, such as those of `WebSocket`, at once.
    pub cuts_streams: bool,
    /// The configuration as read and its version, for the target alone.
    pub native: Arc<Json>,
}

/// What one node said of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// What it stores, or why it did not say. A limit it has no place for is absent; one set to nothing a limit can be is `None`.
    pub stored: Result<BTreeMap<Knob, Option<Value>>, Fault>,
    /// How long its process has run at least, and how much longer at most.
    pub uptime: Option<Uptime>,
    /// Where its metrics page is, `scheme://host:port`, if it is not the unit's own address.
    pub metrics: Option<String>,
    /// Whether its process uses what is stored, where it tells ([`super::Capability::Reported`]).
    pub uses: Option<bool>,
    /// Where its process runs, by its cluster's word; `None` where a restart is never needed.
    pub process: Option<Process>,
    /// Where it serves its clients; `None` where that is not known.
    pub serves: Option<Serves>,
}

impl NodeState {
    /// A node of which nothing is known but what it stores, or why it did not say.
    #[must_use]
    pub fn new(name: impl Into<String>, stored: Result<BTreeMap<Knob, Option<Value>>, Fault>) -> Self {
        Self { name: name.into(), stored, uptime: None, metrics: None, uses: None, process: None, serves: None }
    }
}

/// Where a node serves its clients. It is a foreign word: an address is used only where it may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serves {
    /// A host name or an IP address, an IPv6 address in brackets.
    pub host: String,
    /// The port; `None` where the node does not say.
    pub port: Option<u16>,
    /// Whether it speaks TLS there.
    pub tls: bool,
}

impl Serves {
    /// Of an address such as `https://host:port`.
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

/// Where a node's process runs. It is a foreign word: nothing is done to a pod that only one part of it points at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// The name of its pod; empty where it did not say.
    pub pod: String,
    /// The hosts of its addresses.
    pub hosts: Vec<String>,
    /// Whether it is out of service (AIStore: in maintenance).
    pub drained: bool,
    /// Whether it has to be taken out of service before it is restarted.
    pub drains: bool,
    /// Nodes of a lower rank are restarted first.
    pub rank: u8,
}

/// How long a process has run. Servers that report it now and then report too little, never too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uptime {
    /// At least this long.
    pub at_least: Duration,
    /// At most this much longer: the interval at which the server refreshes the figure.
    pub slack: Duration,
}

impl UnitState {
    /// About how many bytes it takes in memory.
    #[must_use]
    pub fn size(&self) -> usize {
        let text = |raw: &Json| raw.as_str().map_or(0, str::len);
        let site = |(site, stored): (&Site, &Stored)| {
            let held = site.place.len() + stored.raw.as_ref().map_or(0, text);
            size_of::<(Site, Stored)>() * 3 / 2 + held
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

    /// Whether any site or node has a place for a limit.
    #[must_use]
    pub fn has_place(&self, knob: Knob) -> bool {
        self.sites.keys().any(|site| site.knob == knob)
    }
}

/// Why something could not be read or written, as the user is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind.
    pub cause: Cause,
    /// One sentence: what happened, and to which address. Holds no foreign body but AIStore's own message.
    pub message: String,
}

/// Kinds of fault that are treated differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No answer, a broken one, or one that is not its kind's: tried again with back-off.
    Unreachable,
    /// Starting up or electing: tried again soon.
    NotReady,
    /// Somebody else was faster, again and again: tried again.
    Busy,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// The certificate is not signed by the given CA, or for another name.
    Certificate,
    /// The target understood and refused: final until something changes.
    Rejected,
    /// The address is outside what the operator may reach.
    NotPermitted,
    /// What the target points at is not there.
    NotFound,
    /// What is there belongs to somebody else.
    Conflict,
}

impl Fault {
    /// A fault with its sentence.
    #[must_use]
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_written_as_it_is_read() {
        let site = Site { knob: Knob::ServerIdleTimeout, place: "web/@id".into() };
        assert_eq!(site.to_string(), "server.idleTimeout@web/@id");
        let text = serde_json::to_string(&site).unwrap_or_default();
        assert_eq!(serde_json::from_str::<Site>(&text).ok(), Some(site));
        for bad in [r#""server.idleTimeout""#, r#""server.idle@web""#, "7"] {
            assert!(serde_json::from_str::<Site>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_fault_is_said_by_its_sentence() {
        assert_eq!(Fault::new(Cause::Busy, "it was changed meanwhile").to_string(), "it was changed meanwhile");
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

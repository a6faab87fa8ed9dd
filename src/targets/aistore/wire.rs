//! AIStore's JSON, only the used parts. Pure.

use std::{collections::BTreeMap, time::Duration};

use jiff::{
    Timestamp,
    fmt::{rfc2822, strtime},
};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value as Json, value::RawValue};

use crate::{
    api::{Limit, Value},
    decide::report::condition::shortened,
    targets::go_duration,
};

/// Most characters of the server's message that are repeated.
const MESSAGE_LENGTH: usize = 200;

/// Most members of a cluster map. Its size is only the cluster's own claim, and each member costs two requests.
pub const MAX_MEMBERS: usize = 2000;
/// Most bytes of a node's id, as for a pod's name.
const MAX_ID: usize = 253;
/// Most bytes of a field's value: a duration or a number.
const MAX_VALUE: usize = 256;

/// Response of `what=smap`.
#[derive(Deserialize)]
pub struct ClusterMap {
    /// The cluster's identity.
    pub uuid: String,
    /// Proxies.
    pub pmap: Members,
    /// Targets.
    pub tmap: Members,
    /// The primary proxy.
    #[serde(default)]
    pub proxy_si: Member,
}

impl ClusterMap {
    /// Whether the map has too many members, or an id that is too long.
    #[must_use]
    pub fn exceeds(&self) -> bool {
        let members = self.pmap.by_id.len() + self.tmap.by_id.len();
        self.pmap.exceeds || self.tmap.exceeds || members > MAX_MEMBERS || self.uuid.len() > MAX_ID
    }
}

/// Members of a cluster map. Only the first [`MAX_MEMBERS`] are kept.
#[derive(Default)]
pub struct Members {
    /// Members by id.
    pub by_id: BTreeMap<String, Member>,
    exceeds: bool,
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reading;

        impl<'de> Visitor<'de> for Reading {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("members by id")
            }

            fn visit_unit<E>(self) -> Result<Members, E> {
                Ok(Members::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Members::default();
                while let Some(id) = map.next_key::<String>()? {
                    if members.by_id.len() >= MAX_MEMBERS || id.len() > MAX_ID {
                        members.exceeds = true;
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        members.by_id.insert(id, map.next_value()?);
                    }
                }
                Ok(members)
            }
        }

        deserializer.deserialize_any(Reading)
    }
}

/// A node in the cluster map.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Member {
    /// Public address. It is not trusted, see [`crate::decide::NodeState::metrics`].
    pub public_net: Net4,
    /// Address for the cluster's internal traffic.
    pub intra_control_net: Net4,
    /// The node's id.
    pub daemon_id: String,
    /// Flag bits; see [`Member::in_maintenance`].
    pub flags: u64,
}

impl Member {
    /// Whether the node is in maintenance.
    #[must_use]
    pub const fn in_maintenance(&self) -> bool {
        self.flags & 4 != 0
    }

    /// The hosts of the node's addresses.
    #[must_use]
    pub fn hosts(&self) -> Vec<String> {
        let mut hosts = Vec::new();
        for net in [&self.public_net, &self.intra_control_net] {
            let url = url::Url::parse(&net.direct_url).ok().and_then(|url| url.host_str().map(str::to_owned));
            hosts.extend(url);
            hosts.push(net.node_ip_addr.clone());
        }
        hosts.retain(|host| !host.is_empty());
        hosts.sort();
        hosts.dedup();
        hosts
    }
}

/// An address of a node.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Net4 {
    /// `scheme://host:port`.
    pub direct_url: String,
    /// An IP address or a host name.
    pub node_ip_addr: String,
}

/// Response of `what=cluster_config`, and of `what=config` for a node.
#[derive(Deserialize)]
pub struct Config {
    /// Network settings.
    pub net: Net,
    /// Time of the last change, by the server's clock.
    #[serde(default)]
    pub lastupdate_time: String,
}

/// The `net` section.
#[derive(Deserialize)]
pub struct Net {
    /// Settings of HTTP clients and servers.
    pub http: Http,
}

/// The limits in `net.http`.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Http {
    idle_conn_time: Option<Box<RawValue>>,
    idle_conns: Option<Box<RawValue>>,
    idle_conns_per_host: Option<Box<RawValue>>,
    backend_idle_conn_time: Option<Box<RawValue>>,
}

impl Http {
    /// The value of a field; `None` if it is absent, or longer than a duration or a number can be.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Json> {
        let raw = match key {
            "idle_conn_time" => &self.idle_conn_time,
            "idle_conns" => &self.idle_conns,
            "idle_conns_per_host" => &self.idle_conns_per_host,
            "backend_idle_conn_time" => &self.backend_idle_conn_time,
            _ => return None,
        };
        let raw = raw.as_ref().filter(|raw| raw.get().len() <= MAX_VALUE)?;
        serde_json::from_str(raw.get()).ok()
    }
}

/// Response of `what=node_status`.
#[derive(Deserialize)]
pub struct NodeStatus {
    /// Null for a node in maintenance, because the proxy answers for it.
    tracker: Option<Tracker>,
    /// Empty outside Kubernetes and in maintenance.
    #[serde(default)]
    k8s_pod_name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Tracker {
    #[serde(rename = "up.ns.time")]
    uptime: Option<Box<RawValue>>,
}

impl NodeStatus {
    /// The name of the node's pod; empty if it has none, or if the text cannot be a pod's name.
    #[must_use]
    pub fn pod(&self) -> String {
        let name = &self.k8s_pod_name;
        let is_name =
            name.len() <= 253 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
        if is_name { name.clone() } else { String::new() }
    }

    /// The uptime of the process in its last report.
    #[must_use]
    pub fn uptime(&self) -> Option<Duration> {
        let nanos: u64 = self.tracker.as_ref()?.uptime.as_ref()?.get().parse().ok()?;
        Some(Duration::from_nanos(nanos))
    }
}

/// A field of `net.http` as a limit; `None` for a value that no limit can have, such as -1.
pub fn value(limit: Limit, raw: &Json) -> Option<Value> {
    if limit.is_count() {
        return raw.as_u64().and_then(|n| u32::try_from(n).ok()).map(Value::Count);
    }
    raw.as_str().and_then(go_duration::parse).map(Value::Duration)
}

/// The server's error message, without line breaks and shortened.
#[must_use]
pub fn message(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Error {
        message: String,
    }
    let text = String::from_utf8_lossy(body);
    let error: Error = serde_json::from_str(&text).ok()?;
    let plain: String = error.message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Some(shortened(plain.trim(), MESSAGE_LENGTH)).filter(|m| !m.is_empty())
}

/// Whether a Go server (net/http) reports, in plain text, that it needs TLS.
#[must_use]
pub fn wants_https(body: &[u8]) -> bool {
    body.starts_with(b"Client sent an HTTP request to an HTTPS server")
}

/// `lastupdate_time` converted to the local clock. `Date` shows the offset of the server's clock.
#[must_use]
pub fn local_time(lastupdate_time: &str, date: Option<&str>, now: Timestamp) -> Option<Timestamp> {
    // `2026-11-21 02:10:10.106209284 +0000 UTC m=+15.038229268`
    let plain: Vec<_> = lastupdate_time.split(' ').take(3).collect();
    let updated = strtime::parse("%Y-%m-%d %H:%M:%S%.f %z", plain.join(" ")).ok()?.to_timestamp().ok()?;
    let date = rfc2822::parse(date?).ok()?.timestamp();
    // `Date` has whole seconds; adding one makes the change later rather than earlier.
    now.checked_sub(date.duration_since(updated)).ok()?.checked_add(Duration::from_secs(1)).ok()
}

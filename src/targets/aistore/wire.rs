//! AIStore's JSON: only the parts that are read. Pure.

use std::{collections::BTreeMap, time::Duration};

use jiff::{
    Timestamp,
    fmt::{rfc2822, strtime},
};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::{
    api::{Knob, Value},
    decide::conditions::shortened,
    targets::go_duration,
};

/// Most characters of the server's own message that are repeated.
const MESSAGE_LENGTH: usize = 200;

/// `what=smap`.
#[derive(Deserialize)]
pub struct ClusterMap {
    /// The cluster's identity.
    pub uuid: String,
    /// Proxies by id.
    pub pmap: BTreeMap<String, Member>,
    /// Targets by id.
    pub tmap: BTreeMap<String, Member>,
    /// The primary proxy.
    #[serde(default)]
    pub proxy_si: Member,
}

/// A node in the cluster map.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Member {
    /// Its public address: not trusted, see [`crate::decide::NodeState::metrics`].
    pub public_net: Net4,
    /// Where it speaks with the others.
    pub intra_control_net: Net4,
    /// Its id.
    pub daemon_id: String,
    /// Bits; see [`Member::in_maintenance`].
    pub flags: u64,
}

impl Member {
    /// Whether it is in maintenance.
    pub const fn in_maintenance(&self) -> bool {
        self.flags & 4 != 0
    }

    /// The hosts of its addresses.
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
    /// An IP address, or a name.
    pub node_ip_addr: String,
}

/// `what=cluster_config`, and `what=config` of a node.
#[derive(Deserialize)]
pub struct Config {
    pub net: Net,
    #[serde(default)]
    pub periodic: Periodic,
    #[serde(default)]
    pub lastupdate_time: String,
}

/// `net`.
#[derive(Deserialize)]
pub struct Net {
    pub http: Map<String, Json>,
}

/// `periodic`.
#[derive(Deserialize, Default)]
pub struct Periodic {
    #[serde(default)]
    stats_time: String,
}

impl Periodic {
    /// How old the figures of a node's status may be: the server's default is 10 s and its maximum a minute.
    pub fn slack(&self) -> Duration {
        go_duration::parse(&self.stats_time).filter(|d| !d.is_zero()).unwrap_or(Duration::from_secs(60))
    }
}

/// `what=node_status`.
#[derive(Deserialize)]
pub struct NodeStatus {
    /// Null for a node in maintenance, for which the proxy answers.
    tracker: Option<Map<String, Json>>,
    /// Empty outside of Kubernetes, and in maintenance.
    #[serde(default)]
    k8s_pod_name: String,
}

impl NodeStatus {
    /// The name of its pod; empty where it has none, or says something that no pod is called.
    pub fn pod(&self) -> String {
        let name = &self.k8s_pod_name;
        let is_name =
            name.len() <= 253 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
        if is_name { name.clone() } else { String::new() }
    }

    /// How long the process had run when it last said so.
    pub fn uptime(&self) -> Option<Duration> {
        self.tracker.as_ref()?.get("up.ns.time")?.as_u64().map(Duration::from_nanos)
    }
}

/// A field of `net.http` as a limit; `None` for what no limit can be, such as -1.
pub fn value(knob: Knob, raw: &Json) -> Option<Value> {
    match knob {
        Knob::IntraClusterMaxIdleConns | Knob::IntraClusterMaxIdleConnsPerHost => {
            raw.as_u64().and_then(|n| u32::try_from(n).ok()).map(Value::Count)
        }
        _ => raw.as_str().and_then(go_duration::parse).map(Value::Duration),
    }
}

/// The server's own message in an error, without line breaks and cut.
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

/// `lastupdate_time` by the local clock: the server's own clock may differ, and says by how much in `Date`.
pub fn local_time(lastupdate_time: &str, date: Option<&str>, now: Timestamp) -> Option<Timestamp> {
    // `2026-11-21 02:10:10.106209284 +0000 UTC m=+15.038229268`
    let plain: Vec<_> = lastupdate_time.split(' ').take(3).collect();
    let updated = strtime::parse("%Y-%m-%d %H:%M:%S%.f %z", plain.join(" ")).ok()?.to_timestamp().ok()?;
    let date = rfc2822::parse(date?).ok()?.timestamp();
    // `Date` has whole seconds; one more errs on the side of a later change.
    now.checked_sub(date.duration_since(updated)).ok()?.checked_add(Duration::from_secs(1)).ok()
}

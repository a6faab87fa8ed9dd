//! Presets: named sets of starting values. The code, the CEL rules, the documentation and `kubectl explain` all use this table.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Knob, Settings, Value};

/// Named set of starting values.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // TABLE describes them, and the description in the schema repeats it.
pub enum Preset {
    Production,
    Constrained,
    GoDefault,
    LowTraffic,
    MediumTraffic,
    HighTraffic,
    HighThroughput,
    CostOptimized,
    Batch,
}

/// Row of the table of presets.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Preset.
    pub preset: Preset,
    /// Name of the preset in a policy.
    pub name: &'static str,
    /// `server.idleTimeout`, in seconds.
    pub server_idle: u32,
    /// `idleConnTimeout` of both client pools, in seconds.
    pub client_idle: u32,
    /// `maxIdleConns` of both client pools.
    pub total_idle: u32,
    /// `maxIdleConnsPerHost` of both client pools.
    pub idle_per_host: u32,
    /// `backend.maxConnsPerHost`, if the preset sets it.
    pub conns_per_host: Option<u32>,
    /// Purpose of the preset.
    pub purpose: &'static str,
}

/// Presets. Production is AIStore's advice for production. GoDefault is the default of `net/http` (`http.DefaultTransport`: 90 s,
/// 100, and `DefaultMaxIdleConnsPerHost` 2).
pub const TABLE: [Row; 9] = [
    Row {
        preset: Preset::Production,
        name: "Production",
        server_idle: 30,
        client_idle: 20,
        total_idle: 2000,
        idle_per_host: 100,
        conns_per_host: None,
        purpose: "AIStore's production advice",
    },
    Row {
        preset: Preset::Constrained,
        name: "Constrained",
        server_idle: 16,
        client_idle: 6,
        total_idle: 256,
        idle_per_host: 32,
        conns_per_host: None,
        purpose: "small or development machines",
    },
    Row {
        preset: Preset::GoDefault,
        name: "GoDefault",
        server_idle: 100,
        client_idle: 90,
        total_idle: 100,
        idle_per_host: 2,
        conns_per_host: None,
        purpose: "defaults of net/http",
    },
    Row {
        preset: Preset::LowTraffic,
        name: "LowTraffic",
        server_idle: 40,
        client_idle: 30,
        total_idle: 100,
        idle_per_host: 4,
        conns_per_host: Some(20),
        purpose: "few requests; one fifth of the connections may be idle",
    },
    Row {
        preset: Preset::MediumTraffic,
        name: "MediumTraffic",
        server_idle: 40,
        client_idle: 30,
        total_idle: 250,
        idle_per_host: 10,
        conns_per_host: Some(50),
        purpose: "some requests; one fifth of the connections may be idle",
    },
    Row {
        preset: Preset::HighTraffic,
        name: "HighTraffic",
        server_idle: 40,
        client_idle: 30,
        total_idle: 500,
        idle_per_host: 20,
        conns_per_host: Some(100),
        purpose: "many requests; one fifth of the connections may be idle",
    },
    Row {
        preset: Preset::HighThroughput,
        name: "HighThroughput",
        server_idle: 130,
        client_idle: 120,
        total_idle: 500,
        idle_per_host: 20,
        conns_per_host: Some(100),
        purpose: "steady streams between the same hosts",
    },
    Row {
        preset: Preset::CostOptimized,
        name: "CostOptimized",
        server_idle: 70,
        client_idle: 60,
        total_idle: 100,
        idle_per_host: 3,
        conns_per_host: Some(10),
        purpose: "few connections that stay open",
    },
    Row {
        preset: Preset::Batch,
        name: "Batch",
        server_idle: 190,
        client_idle: 180,
        total_idle: 100,
        idle_per_host: 2,
        conns_per_host: Some(5),
        purpose: "jobs that repeat within minutes",
    },
];

impl Row {
    /// Returns the value of a limit in the preset; `None` if the preset does not set it.
    #[must_use]
    pub const fn value(&self, knob: Knob) -> Option<Value> {
        match knob {
            Knob::ServerIdleTimeout => Some(Value::Duration(Duration::from_secs(self.server_idle as u64))),
            Knob::IntraClusterIdleConnTimeout | Knob::BackendIdleConnTimeout => {
                Some(Value::Duration(Duration::from_secs(self.client_idle as u64)))
            }
            Knob::IntraClusterMaxIdleConns | Knob::BackendMaxIdleConns => Some(Value::Count(self.total_idle)),
            Knob::IntraClusterMaxIdleConnsPerHost | Knob::BackendMaxIdleConnsPerHost => Some(Value::Count(self.idle_per_host)),
            Knob::BackendMaxConnsPerHost => match self.conns_per_host {
                Some(n) => Some(Value::Count(n)),
                None => None,
            },
            _ => None,
        }
    }
}

impl Preset {
    /// Returns all limits that the preset sets.
    #[must_use]
    pub fn settings(self) -> Settings {
        TABLE
            .iter()
            .filter(|row| row.preset == self)
            .flat_map(|row| Knob::ALL.into_iter().filter_map(|knob| Some((knob, row.value(knob)?))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_let_go_before_servers_and_a_part_is_no_more_than_the_whole() {
        for row in TABLE {
            assert!(row.client_idle < row.server_idle, "{}", row.name);
            assert!(row.idle_per_host <= row.total_idle, "{}", row.name);
            assert!(row.conns_per_host.is_none_or(|most| row.idle_per_host <= most), "{}", row.name);
        }
    }

    #[test]
    fn each_preset_has_a_row_with_its_own_name() {
        for row in TABLE {
            assert_eq!(serde_json::to_value(row.preset).ok(), Some(serde_json::json!(row.name)));
            assert_eq!(row.preset.settings().len(), 7 + usize::from(row.conns_per_host.is_some()));
        }
    }
}

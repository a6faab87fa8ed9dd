//! Presets: named sets of starting values. The code, the CEL rules, the documentation and `kubectl explain` all use this table.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Limit, LimitValues, Value};

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
    row(Preset::Production, "Production", [30, 20], [2000, 100], None, "AIStore's production advice"),
    row(Preset::Constrained, "Constrained", [16, 6], [256, 32], None, "small or development machines"),
    row(Preset::GoDefault, "GoDefault", [100, 90], [100, 2], None, "defaults of net/http"),
    row(Preset::LowTraffic, "LowTraffic", [40, 30], [100, 4], Some(20), "few requests; one fifth of the connections may be idle"),
    row(
        Preset::MediumTraffic,
        "MediumTraffic",
        [40, 30],
        [250, 10],
        Some(50),
        "some requests; one fifth of the connections may be idle",
    ),
    row(
        Preset::HighTraffic,
        "HighTraffic",
        [40, 30],
        [500, 20],
        Some(100),
        "many requests; one fifth of the connections may be idle",
    ),
    row(Preset::HighThroughput, "HighThroughput", [130, 120], [500, 20], Some(100), "steady streams between the same hosts"),
    row(Preset::CostOptimized, "CostOptimized", [70, 60], [100, 3], Some(10), "few connections that stay open"),
    row(Preset::Batch, "Batch", [190, 180], [100, 2], Some(5), "jobs that repeat within minutes"),
];

/// A row from the seconds of servers and clients, the idle connections in total and per host, and the connections per host.
const fn row(
    preset: Preset,
    name: &'static str,
    [server_idle, client_idle]: [u32; 2],
    [total_idle, idle_per_host]: [u32; 2],
    conns_per_host: Option<u32>,
    purpose: &'static str,
) -> Row {
    Row { preset, name, server_idle, client_idle, total_idle, idle_per_host, conns_per_host, purpose }
}

impl Row {
    /// Returns the value of a limit in the preset; `None` if the preset does not set it.
    #[must_use]
    pub fn value(&self, limit: Limit) -> Option<Value> {
        match limit {
            Limit::ServerIdleTimeout => Some(Value::Duration(Duration::from_secs(self.server_idle.into()))),
            Limit::IntraClusterIdleConnTimeout | Limit::BackendIdleConnTimeout => {
                Some(Value::Duration(Duration::from_secs(self.client_idle.into())))
            }
            Limit::IntraClusterMaxIdleConns | Limit::BackendMaxIdleConns => Some(Value::Count(self.total_idle)),
            Limit::IntraClusterMaxIdleConnsPerHost | Limit::BackendMaxIdleConnsPerHost => Some(Value::Count(self.idle_per_host)),
            Limit::BackendMaxConnsPerHost => self.conns_per_host.map(Value::Count),
            _ => None,
        }
    }
}

impl Preset {
    /// Returns all limits that the preset sets.
    #[must_use]
    pub fn settings(self) -> LimitValues {
        TABLE
            .iter()
            .filter(|row| row.preset == self)
            .flat_map(|row| Limit::ALL.into_iter().filter_map(|limit| Some((limit, row.value(limit)?))))
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

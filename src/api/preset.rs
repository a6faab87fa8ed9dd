//! Presets: starting values by name. This one table serves the code, the CEL rules, the docs and `kubectl explain`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Knob, Settings, Value};

/// Starting values by name.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Described by TABLE, which the schema's description repeats.
pub enum Preset {
    Production,
    GoDefault,
}

/// One row of the preset table. Times are in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The preset.
    pub preset: Preset,
    /// `server.idleTimeout`, seconds.
    pub server_idle: u32,
    /// `idleConnTimeout` of both client pools, seconds.
    pub client_idle: u32,
    /// `maxIdleConns` of both client pools.
    pub total_idle: u32,
    /// `maxIdleConnsPerHost` of both client pools.
    pub idle_per_host: u32,
    /// What it is for.
    pub purpose: &'static str,
}

/// The presets. Production is AIStore's production advice; GoDefault is what `net/http` does by itself
/// (`http.DefaultTransport`: 90 s, 100, and `DefaultMaxIdleConnsPerHost` 2).
pub const TABLE: [Row; 2] = [
    Row {
        preset: Preset::Production,
        server_idle: 30,
        client_idle: 20,
        total_idle: 2000,
        idle_per_host: 100,
        purpose: "AIStore's production advice",
    },
    Row {
        preset: Preset::GoDefault,
        server_idle: 100,
        client_idle: 90,
        total_idle: 100,
        idle_per_host: 2,
        purpose: "what net/http does by itself",
    },
];

impl Row {
    /// The name a user writes.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.preset {
            Preset::Production => "Production",
            Preset::GoDefault => "GoDefault",
        }
    }

    /// What the preset sets a knob to.
    #[must_use]
    pub const fn value(&self, knob: Knob) -> Option<Value> {
        match knob {
            Knob::ServerIdleTimeout => Some(Value::Duration(Duration::from_secs(self.server_idle as u64))),
            Knob::IntraClusterIdleConnTimeout | Knob::BackendIdleConnTimeout => {
                Some(Value::Duration(Duration::from_secs(self.client_idle as u64)))
            }
            Knob::IntraClusterMaxIdleConns | Knob::BackendMaxIdleConns => Some(Value::Count(self.total_idle)),
            Knob::IntraClusterMaxIdleConnsPerHost | Knob::BackendMaxIdleConnsPerHost => Some(Value::Count(self.idle_per_host)),
            Knob::ServerReadHeaderTimeout
            | Knob::BackendMaxConnsPerHost
            | Knob::BackendTcpKeepAlive
            | Knob::BackendTlsHandshakeTimeout
            | Knob::BackendExpectContinueTimeout
            | Knob::BackendResponseHeaderTimeout => None,
        }
    }
}

impl Preset {
    /// Every knob the preset sets.
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
    fn each_preset_has_a_row_with_its_own_name() {
        for row in TABLE {
            assert_eq!(serde_json::to_value(row.preset).ok(), Some(serde_json::json!(row.name())));
            assert_eq!(row.preset.settings().len(), 7);
        }
    }
}

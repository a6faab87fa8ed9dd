//! `spec.updateStrategy`: how many nodes are written at the same time, where each write closes the node's idle connections.

use std::{borrow::Cow, fmt, time::Duration};

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::GoDuration;

/// Order in which the nodes are written.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type == 'RollingUpdate' || !has(self.rollingUpdate)")
        .message("updateStrategy.rollingUpdate needs type: RollingUpdate"),
)]
pub struct UpdateStrategy {
    /// Strategy. `RollingUpdate` writes the nodes in batches. `AllAtOnce` writes all nodes at the same time.
    #[serde(default, rename = "type")]
    pub type_: UpdateType,
    /// Batches of the rolling update. Absent: the default of each field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolling_update: Option<RollingUpdate>,
}

impl UpdateStrategy {
    /// Returns the batches; `None` if all nodes are written at the same time.
    #[must_use]
    pub fn batches(&self) -> Option<RollingUpdate> {
        (self.type_ == UpdateType::RollingUpdate).then(|| self.rolling_update.clone().unwrap_or_default())
    }
}

/// Strategy of updates.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum UpdateType {
    #[default]
    RollingUpdate,
    AllAtOnce,
}

/// Batches of a rolling update.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RollingUpdate {
    /// Maximum number of nodes that one batch writes: a number from 1 to 5000, or a percentage of the nodes from 1% to 100%. A
    /// percentage is rounded down, to at least one node. Nodes that have just started have no connections to lose, and are
    /// written at once in addition.
    #[serde(default)]
    pub max_nodes: MaxNodes,
    /// Time between the end of one batch and the begin of the next, 0s to 1h. The next batch begins only if each node of the last
    /// one answers.
    #[serde(default = "GoDuration::seconds::<10>")]
    #[x_kube(validation = Rule::new("self >= duration('0s') && self <= duration('1h')")
        .message("updateStrategy.rollingUpdate.pause must be between 0s and 1h"))]
    pub pause: GoDuration,
}

impl Default for RollingUpdate {
    fn default() -> Self {
        Self { max_nodes: MaxNodes::default(), pause: Duration::from_secs(10).into() }
    }
}

impl RollingUpdate {
    /// Returns the number of batches that so many nodes take, and the time between the first and the last batch. The time of the
    /// writes comes on top.
    #[must_use]
    pub fn takes(&self, nodes: usize) -> (usize, Duration) {
        let batches = nodes.div_ceil(self.max_nodes.of(nodes));
        let pauses = u32::try_from(batches.saturating_sub(1)).unwrap_or(u32::MAX);
        (batches, self.pause.get().unwrap_or_default().saturating_mul(pauses))
    }
}

/// Maximum number of nodes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxNodes {
    /// So many nodes, 1 to 5000.
    Count(u16),
    /// So many percent of the nodes, 1 to 100.
    Percent(u8),
}

impl MaxNodes {
    const MAX_COUNT: u16 = 5000;

    /// Returns how many of so many nodes these are, at least one.
    #[must_use]
    pub fn of(self, nodes: usize) -> usize {
        match self {
            Self::Count(count) => usize::from(count),
            Self::Percent(percent) => nodes.saturating_mul(usize::from(percent)) / 100,
        }
        .max(1)
    }

    fn parse(text: &str) -> Option<Self> {
        let percent = text.strip_suffix('%')?;
        let is_plain = percent.bytes().all(|byte| byte.is_ascii_digit()) && !percent.starts_with('0');
        percent.parse().ok().filter(|percent| is_plain && (1..=100).contains(percent)).map(Self::Percent)
    }
}

/// 25%.
impl Default for MaxNodes {
    fn default() -> Self {
        Self::Percent(25)
    }
}

impl fmt::Display for MaxNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for MaxNodes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(count) => serializer.serialize_u16(*count),
            Self::Percent(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for MaxNodes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Count(u16),
            Percent(String),
        }
        let max_nodes = match Written::deserialize(deserializer)? {
            Written::Count(count) => Some(Self::Count(count)).filter(|_| (1..=Self::MAX_COUNT).contains(&count)),
            Written::Percent(text) => Self::parse(&text),
        };
        max_nodes.ok_or_else(|| serde::de::Error::custom("maxNodes is a number from 1 to 5000 or a percentage from 1% to 100%"))
    }
}

impl JsonSchema for MaxNodes {
    fn schema_name() -> Cow<'static, str> {
        "MaxNodes".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 4,
            "x-kubernetes-validations": [{
                "rule": "type(self) == int ? self >= 1 && self <= 5000 : self.matches('^([1-9][0-9]?|100)%$')",
                "message": "updateStrategy.rollingUpdate.maxNodes must be a number from 1 to 5000 or a percentage from 1% to 100%",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_rounded_down_to_at_least_one_node() {
        let nodes = [0, 1, 3, 4, 7, 8, 20, 5_000];
        assert_eq!(nodes.map(|nodes| MaxNodes::default().of(nodes)), [1, 1, 1, 1, 1, 2, 5, 1_250]);
        assert_eq!(nodes.map(|nodes| MaxNodes::Count(5).of(nodes)), [5; 8]);
    }

    #[test]
    fn a_number_or_a_percentage_is_read_as_it_is_written_and_nothing_else() {
        for text in ["1", "5000", r#""1%""#, r#""25%""#, r#""100%""#] {
            let read: MaxNodes = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        for text in ["0", "5001", "-1", "1.5", r#""0%""#, r#""101%""#, r#""+5%""#, r#""05%""#, r#""5""#, r#""%""#, "null"] {
            assert!(serde_json::from_str::<MaxNodes>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn five_thousand_nodes_in_batches_of_ten_take_eighty_three_minutes() {
        let slow = RollingUpdate { max_nodes: MaxNodes::Count(10), ..RollingUpdate::default() };
        assert_eq!(slow.takes(5_000), (500, Duration::from_secs(4_990)));
        assert_eq!(RollingUpdate::default().takes(5_000), (4, Duration::from_secs(30)));
        assert_eq!(RollingUpdate::default().takes(3), (3, Duration::from_secs(20)));
        assert_eq!(RollingUpdate::default().takes(0), (0, Duration::ZERO));
    }
}

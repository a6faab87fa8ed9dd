//! `status.control.adaptive`: what adaptive control remembers, so that another process can continue from it.
//!
//! It changes only with a decision, a verdict, or the beginning or end of a window. What changes with every sample
//! ([`Watched`]) is not stored: a few samples restore it. In memory all times are Unix milliseconds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::guarded::{Guarded, RateWindow};

/// Openness in percent: 100 is as declared, 0 is the floor.
pub type Percent = u8;

/// The number of changes that are remembered: the largest budget for a day.
pub const MAX_CHANGES: usize = 60;
/// Uptimes (milliseconds) at which the utilization of a process is recorded, so that processes can be compared.
pub const MARKS: [i64; 9] = [60_000, 120_000, 300_000, 600_000, 1_200_000, 2_400_000, 4_800_000, 10_800_000, 21_600_000];

/// Utilization (thousandths) at [`MARKS`].
pub type Curve = [Option<u32>; MARKS.len()];

/// State of adaptive control.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AdaptiveState {
    /// Desired openness, in percent: 100 = as declared, 0 = at the floor.
    #[serde(rename = "opennessPercent", deserialize_with = "read::percent")]
    #[schemars(extend("format" = "int32", "maximum" = 100))]
    pub openness: Percent,
    /// Present period with too many tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub episode: Option<Episode>,
    /// Step that has not been judged yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// Tightening whose effect on new connections has not been judged yet; only with `signal.newConnections`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarded: Option<Guarded>,
    /// No change before this time, so that the last one can take effect.
    #[serde(default, skip_serializing_if = "is_default", with = "time")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub settle_until: i64,
    /// Changes of the last 24 hours, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "changes")]
    #[schemars(with = "Vec<changes::Change>", length(max = 60))]
    pub changes: Vec<(i64, Way)>,
    /// Last openness that was known to be enough, in percent; absent if there was none.
    #[serde(default = "usual::<100>", rename = "lastSufficientPercent", skip_serializing_if = "is_usual::<100>")]
    #[serde(deserialize_with = "read::percent")]
    #[schemars(extend("format" = "int32", "maximum" = 100))]
    pub last_sufficient: Percent,
    /// Openness to return to after a step that did not help, in percent.
    #[serde(default, rename = "rollbackPercent", skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "read::optional_percent")]
    #[schemars(extend("format" = "int32", "maximum" = 100))]
    pub rollback: Option<Percent>,
    /// Lock-out of tightening, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lockout: Option<Lockout>,
    /// Factor by which the window for relaxing is longer, 1 to 8; absent for 1.
    #[serde(default = "usual::<1>", skip_serializing_if = "is_usual::<1>")]
    #[serde(deserialize_with = "read::factor")]
    #[schemars(extend("format" = "int32", "minimum" = 1, "maximum" = 8))]
    pub relax_backoff: u8,
    /// Effect of the last tightening.
    #[serde(default, skip_serializing_if = "is_default")]
    pub efficacy: Efficacy,
    /// Since when there has been room (only below full openness).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::optional")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub relaxable_since: Option<i64>,
    /// Whether the fallback is active.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fallback: bool,
    /// Whether the tasks could not be counted when they were last looked for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lost: bool,
    /// What is derived again from the samples.
    #[serde(skip)]
    #[schemars(skip)]
    pub watched: Watched,
}

impl Default for AdaptiveState {
    fn default() -> Self {
        Self {
            openness: 100,
            episode: None,
            pending: None,
            guarded: None,
            settle_until: 0,
            changes: Vec::new(),
            last_sufficient: 100,
            rollback: None,
            lockout: None,
            relax_backoff: 1,
            efficacy: Efficacy::NotTightened,
            relaxable_since: None,
            fallback: false,
            lost: false,
            watched: Watched::default(),
        }
    }
}

impl AdaptiveState {
    /// The part that is stored. Two states with the same stored part decide alike once they have the same samples.
    #[must_use]
    pub fn stored(&self) -> Self {
        Self { watched: Watched::default(), ..self.clone() }
    }
}

/// Direction of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Towards the floor.
    Tighten,
    /// Towards the declared limits.
    Relax,
}

/// Effect of the last tightening.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, strum::EnumIter)]
#[allow(missing_docs)] // The reasons of TighteningEffective.
pub enum Efficacy {
    #[default]
    NotTightened,
    Measuring,
    AwaitingUptimeMatch,
    Effective,
    Ineffective,
    NotAttributable,
    PoolsTooSmall,
    Harmful,
}

/// Period with too many tasks.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Episode {
    /// Begin.
    #[serde(with = "time")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub since: i64,
    /// Openness at the begin, in percent.
    #[serde(rename = "fromPercent", deserialize_with = "read::percent")]
    #[schemars(extend("format" = "int32", "maximum" = 100))]
    pub from: Percent,
    /// Utilization at the first step.
    #[serde(default, rename = "utilizationAtFirstStep", skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "read::optional_amount")]
    pub base: Option<f64>,
    /// Number of steps so far.
    #[schemars(extend("format" = "int32"))]
    pub steps: u8,
    /// Openness after the last step that helped, in percent.
    #[serde(default, rename = "helpedPercent", skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "read::optional_percent")]
    #[schemars(extend("format" = "int32", "maximum" = 100))]
    pub helped: Option<Percent>,
    /// Number of steps in a row that did not help.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("format" = "int32"))]
    pub failed: u8,
    /// Share of pooled connections in the tasks, as the last step showed it, 0 to 1.
    #[serde(default, rename = "learnedShare", skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "read::optional_amount")]
    pub learned: Option<f64>,
}

impl Episode {
    /// An episode without steps.
    #[must_use]
    pub const fn begin(since: i64, from: Percent) -> Self {
        Self { since, from, base: None, steps: 0, helped: None, failed: 0, learned: None }
    }
}

/// Step that has not been judged yet.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// Time of the decision.
    #[serde(with = "time")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub decided: i64,
    /// Since when the nodes use it; absent while they do not.
    #[serde(default, rename = "inEffectSince", skip_serializing_if = "Option::is_none", with = "time::optional")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub since: Option<i64>,
    /// How long after `inEffectSince` it is judged, in milliseconds.
    #[serde(rename = "waitMilliseconds", deserialize_with = "read::wait")]
    pub wait: i64,
    /// Utilization before.
    #[serde(rename = "utilizationBefore", deserialize_with = "read::amount")]
    pub before: f64,
    /// Rise of the utilization before, per second.
    #[serde(default, rename = "utilizationSlope", skip_serializing_if = "is_default", deserialize_with = "read::amount")]
    pub slope: f64,
    /// Openness before, in percent.
    #[serde(rename = "fromPercent", deserialize_with = "read::percent")]
    #[schemars(extend("format" = "int32", "maximum" = 100))]
    pub from: Percent,
    /// Openness after, in percent.
    #[serde(rename = "toPercent", deserialize_with = "read::percent")]
    #[schemars(extend("format" = "int32", "maximum" = 100))]
    pub to: Percent,
    /// Expected fall of the task count, 0 to 1, if the share of pooled connections is known.
    #[serde(default, rename = "expectedFall", skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "read::optional_amount")]
    pub expected: Option<f64>,
    /// If the step needs a restart: the process before it.
    #[serde(default, rename = "process", skip_serializing_if = "Option::is_none", with = "life")]
    #[schemars(with = "Option<life::Process>")]
    pub life: Option<UptimeCurve>,
}

/// Utilization of a process by uptime, for comparison at equal uptime.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UptimeCurve {
    /// Utilization at [`MARKS`].
    pub curve: Curve,
    /// Uptime (milliseconds) and utilization (thousandths) when it was last observed.
    pub last: Option<(i64, u32)>,
}

/// No tightening until a time.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lockout {
    /// End.
    #[serde(with = "time")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub until: i64,
    /// Number of earlier lock-outs in a row; each doubles the next.
    #[schemars(extend("format" = "int32"))]
    pub times: u8,
}

/// What is derived again from the samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Watched {
    /// When the signal was last evaluated; `None` before the first evaluation.
    pub at: Option<i64>,
    /// Utilization for tightening: the fast average.
    pub fast: f64,
    /// Utilization for relaxing: the slow average.
    pub slow: f64,
    /// Since when the utilization has been level, and at what value.
    pub plateau: Option<(i64, f64)>,
    /// Whether the averages have had a sample since this process started.
    pub primed: bool,
    /// How long there have been too many tasks (milliseconds).
    pub high_for: i64,
    /// How long there has been room (milliseconds).
    pub low_for: i64,
    /// How long the limits have been at their floor with too many tasks (milliseconds).
    pub floor_for: i64,
    /// How long there has been a quorum (milliseconds).
    pub fresh_for: i64,
    /// How long there has been no quorum (milliseconds).
    pub missing_for: i64,
    /// How long a node has reported itself as critical (milliseconds).
    pub red_for: i64,
    /// Whether a pause or the mode blocked tightening at the last evaluation.
    pub tightening_blocked: bool,
    /// The same for relaxing.
    pub relaxing_blocked: bool,
    /// The youngest process.
    pub life: UptimeCurve,
    /// New connections, except while a change takes effect.
    pub connections: RateWindow,
}

/// A utilization or a share as it is stored, so that a process that continues from memory and one that continues from the
/// status decide alike.
#[must_use]
pub fn rounded(value: f64) -> f64 {
    (bounded(value) * 1000.0).round() / 1000.0
}

/// The same for slopes.
#[must_use]
pub fn rounded_slope(value: f64) -> f64 {
    (bounded(value) * 1_000_000.0).round() / 1_000_000.0
}

/// A number that JSON can express.
const fn bounded(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(-1e9, 1e9) }
}

/// Whether a field is not written, because its value is that of an absent field.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The value of a field that is not written.
const fn usual<const VALUE: u8>() -> u8 {
    VALUE
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde calls it.
const fn is_usual<const VALUE: u8>(value: &u8) -> bool {
    *value == VALUE
}

/// Bounds of what is read: anyone who may write the status can forge it.
pub(super) mod read {
    use serde::{Deserialize as _, Deserializer, de::Error};

    /// No step waits for longer: a week in milliseconds.
    pub const MAX_WAIT: i64 = 604_800_000;

    pub fn wait<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        Ok(i64::deserialize(from)?.clamp(0, MAX_WAIT))
    }

    /// A number that is written as it was read: six decimals at most.
    pub fn amount<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        f64::deserialize(from).map(super::rounded_slope)
    }

    pub fn optional_amount<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
        Ok(Option::<f64>::deserialize(from)?.map(super::rounded_slope))
    }

    pub fn percent<'de, D: Deserializer<'de>>(from: D) -> Result<u8, D::Error> {
        let percent = u8::deserialize(from)?;
        if percent <= 100 { Ok(percent) } else { Err(D::Error::custom("more than 100 percent")) }
    }

    pub fn optional_percent<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u8>, D::Error> {
        Ok(Option::<u8>::deserialize(from)?.filter(|percent| *percent <= 100))
    }

    pub fn factor<'de, D: Deserializer<'de>>(from: D) -> Result<u8, D::Error> {
        Ok(u8::deserialize(from)?.clamp(1, 8))
    }
}

/// Unix milliseconds as RFC 3339.
pub(super) mod time {
    use jiff::Timestamp;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    fn stamp(time: i64) -> Timestamp {
        Timestamp::from_millisecond(time).unwrap_or(if time < 0 { Timestamp::MIN } else { Timestamp::MAX })
    }

    #[allow(clippy::trivially_copy_pass_by_ref)] // As serde calls it.
    pub fn serialize<S: Serializer>(time: &i64, to: S) -> Result<S::Ok, S::Error> {
        stamp(*time).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        Ok(Timestamp::deserialize(from)?.as_millisecond())
    }

    pub mod optional {
        use serde::{Deserialize as _, Serialize as _};

        use super::{Deserializer, Serializer, Timestamp, stamp};

        #[allow(clippy::ref_option)] // As serde calls it.
        pub fn serialize<S: Serializer>(time: &Option<i64>, to: S) -> Result<S::Ok, S::Error> {
            time.map(stamp).serialize(to)
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
            Ok(Option::<Timestamp>::deserialize(from)?.map(Timestamp::as_millisecond))
        }
    }
}

/// Changes with their direction as the name of their field.
mod changes {
    use schemars::JsonSchema;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{MAX_CHANGES, Way, time};

    /// Change of the openness. One of the two times is set.
    #[derive(Serialize, Deserialize, JsonSchema, Default)]
    pub struct Change {
        /// Time of a step towards the floor.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "time::optional")]
        #[schemars(with = "Option<String>", extend("format" = "date-time"))]
        tightened: Option<i64>,
        /// Time of a step towards the declared limits.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "time::optional")]
        #[schemars(with = "Option<String>", extend("format" = "date-time"))]
        relaxed: Option<i64>,
    }

    pub fn serialize<S: Serializer>(changes: &[(i64, Way)], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(changes.iter().map(|(time, way)| match way {
            Way::Tighten => Change { tightened: Some(*time), relaxed: None },
            Way::Relax => Change { tightened: None, relaxed: Some(*time) },
        }))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(i64, Way)>, D::Error> {
        let changes = Vec::<Change>::deserialize(from)?.into_iter().filter_map(|change| match change {
            Change { tightened: Some(time), .. } => Some((time, Way::Tighten)),
            Change { relaxed: Some(time), .. } => Some((time, Way::Relax)),
            Change { .. } => None,
        });
        Ok(changes.take(MAX_CHANGES).collect())
    }
}

/// The utilization of a process by its uptime.
mod life {
    use schemars::JsonSchema;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{MARKS, UptimeCurve};

    /// Utilization of a process by its uptime, in thousandths of the threshold.
    #[derive(Serialize, Deserialize, JsonSchema)]
    pub struct Process {
        /// Utilization at certain uptimes.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schemars(length(max = 9))]
        marks: Vec<Point>,
        /// Last observation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last: Option<Point>,
    }

    /// Utilization at an uptime.
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Point {
        /// Uptime in milliseconds.
        uptime: i64,
        /// Utilization in thousandths of the threshold.
        #[schemars(extend("format" = "int64"))]
        utilization: u32,
    }

    #[allow(clippy::ref_option)] // As serde calls it.
    pub fn serialize<S: Serializer>(life: &Option<UptimeCurve>, to: S) -> Result<S::Ok, S::Error> {
        let point = |(uptime, utilization)| Point { uptime, utilization };
        let process = life.as_ref().map(|life| Process {
            marks: MARKS.iter().zip(life.curve).filter_map(|(mark, seen)| Some(point((*mark, seen?)))).collect(),
            last: life.last.map(point),
        });
        process.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<UptimeCurve>, D::Error> {
        Ok(Option::<Process>::deserialize(from)?.map(|Process { marks, last }| {
            let at = |mark: i64| marks.iter().find(|point| point.uptime == mark).map(|point| point.utilization);
            UptimeCurve { curve: MARKS.map(at), last: last.map(|point| (point.uptime, point.utilization)) }
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use strum::IntoEnumIterator as _;

    use super::{super::guarded::ConnectionRate, *};

    fn thousandths(value: i64) -> f64 {
        #[allow(clippy::cast_precision_loss)] // Small.
        let value = value as f64;
        value / 1000.0
    }

    fn life() -> impl Strategy<Value = UptimeCurve> {
        let curve = proptest::array::uniform9(proptest::option::of(0u32..5000));
        let last = proptest::option::of((0i64..1_000_000_000, 0u32..5000));
        (curve, last).prop_map(|(curve, last)| UptimeCurve { curve, last })
    }

    fn guarded() -> impl Strategy<Value = Guarded> {
        let amount = || 0i64..1_000_000;
        (1_700_000_000_000i64..1_800_000_000_000, 0u8..=100, 0i64..600_000, amount(), proptest::option::of(amount()), amount())
            .prop_map(|(decided, from, window, connections, requests, nodes)| Guarded {
                decided,
                from,
                window,
                before: ConnectionRate {
                    connections: thousandths(connections),
                    requests: requests.map(thousandths),
                    nodes: thousandths(nodes),
                },
            })
    }

    fn state() -> impl Strategy<Value = AdaptiveState> {
        let time = || 1_700_000_000_000i64..1_800_000_000_000;
        let pending = (
            (time(), proptest::option::of(time()), 0i64..600_000, 0i64..9000, -9000i64..9000),
            (0u8..=100, 0u8..=100, proptest::option::of(0i64..1000), proptest::option::of(life())),
        )
            .prop_map(|((decided, since, wait, before, slope), (from, to, expected, life))| Pending {
                decided,
                since,
                wait,
                before: thousandths(before),
                #[allow(clippy::cast_precision_loss)] // Small.
                slope: slope as f64 / 1_000_000.0,
                from,
                to,
                expected: expected.map(thousandths),
                life,
            });
        let share = || proptest::option::of(0i64..1000);
        let episode =
            (time(), 0u8..=100, proptest::option::of(0i64..9000), 0u8..50, proptest::option::of(0u8..=100), 0u8..5, share())
                .prop_map(|(since, from, base, steps, helped, failed, learned)| Episode {
                    since,
                    from,
                    base: base.map(thousandths),
                    steps,
                    helped,
                    failed,
                    learned: learned.map(thousandths),
                });
        let way = any::<bool>().prop_map(|tighten| if tighten { Way::Tighten } else { Way::Relax });
        let changes = proptest::collection::vec((time(), way), 0..=MAX_CHANGES);
        (
            (0u8..=100, proptest::option::of(episode), proptest::option::of(pending), prop_oneof![Just(0i64), time()], changes),
            (0u8..=100, proptest::option::of(0u8..=100), proptest::option::of((time(), 0u8..4)), 1u8..=8, 0usize..8),
            (proptest::option::of(time()), any::<bool>(), any::<bool>(), proptest::option::of(guarded())),
        )
            .prop_map(
                |(
                    (openness, episode, pending, dead_until, changes),
                    (proved, rollback, lockout, patience, efficacy),
                    (low_since, fallback, lost, guarded),
                )| AdaptiveState {
                    openness,
                    episode,
                    pending,
                    guarded,
                    settle_until: dead_until,
                    changes,
                    last_sufficient: proved,
                    rollback,
                    lockout: lockout.map(|(until, times)| Lockout { until, times }),
                    relax_backoff: patience,
                    efficacy: Efficacy::iter().nth(efficacy).unwrap_or_default(),
                    relaxable_since: low_since,
                    fallback,
                    lost,
                    watched: Watched::default(),
                },
            )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(state in state()) {
            let text = serde_json::to_string(&state).expect("a state");
            let read: AdaptiveState = serde_json::from_str(&text).expect("what was written");
            prop_assert_eq!(&read, &state);
            prop_assert!(text.len() <= 4096, "{} bytes: {text}", text.len());
        }
    }

    #[test]
    fn it_is_readable() {
        let state = AdaptiveState {
            openness: 55,
            changes: vec![(1_700_000_000_000, Way::Tighten)],
            lockout: Some(Lockout { until: 1_700_014_400_500, times: 1 }),
            ..AdaptiveState::default()
        };
        assert_eq!(
            serde_json::to_value(&state).expect("a state"),
            json!({
                "opennessPercent": 55,
                "changes": [{"tightened": "2023-11-14T22:13:20Z"}],
                "lockout": {"until": "2023-11-15T02:13:20.5Z", "times": 1},
            })
        );
        let at_rest = serde_json::to_value(AdaptiveState::default()).expect("a state");
        assert_eq!(at_rest, json!({"opennessPercent": 100}), "what is as usual is left out");
    }

    #[test]
    fn what_is_forged_is_bounded_or_refused() {
        let read = |extra: serde_json::Value| {
            let mut state = json!({"opennessPercent": 50});
            state.as_object_mut().expect("an object").extend(extra.as_object().cloned().expect("an object"));
            serde_json::from_value::<AdaptiveState>(state)
        };
        assert_eq!(read(json!({"relaxBackoff": 200})).expect("a state").relax_backoff, 8);
        assert_eq!(read(json!({"rollbackPercent": 101})).expect("a state").rollback, None);
        assert!(read(json!({"opennessPercent": 101})).is_err());
        let many: Vec<_> = (0..100).map(|_| json!({"tightened": "2023-11-14T22:13:20Z"})).collect();
        assert_eq!(read(json!({"changes": many})).expect("a state").changes.len(), MAX_CHANGES);
        let far = json!({"decided": "-009999-01-02T01:59:59Z", "waitMilliseconds": i64::MAX, "utilizationBefore": 1.0, "fromPercent": 1, "toPercent": 1});
        assert_eq!(read(json!({"pending": far})).expect("a state").pending.map(|pending| pending.wait), Some(read::MAX_WAIT));
    }
}

//! What the harm guard remembers: how many new connections there were before a step, and how many there have been lately.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::adaptive_state::{Percent, read, time};

/// Frequency of new connections, over all nodes whose counters are known.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionRate {
    /// New connections per second.
    #[serde(rename = "newConnectionsPerSecond", deserialize_with = "read::amount")]
    pub connections: f64,
    /// Requests per second; absent if the policy names no counter of requests.
    #[serde(default, rename = "requestsPerSecond", skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "read::optional_amount")]
    pub requests: Option<f64>,
    /// Number of these nodes, averaged like the rates.
    #[serde(deserialize_with = "read::amount")]
    pub nodes: f64,
}

/// Tightening that is guarded: it is taken back if it makes new connections too frequent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Guarded {
    /// Time of the decision.
    #[serde(with = "time")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub decided: i64,
    /// Openness before, in percent.
    #[serde(rename = "fromPercent", deserialize_with = "read::percent")]
    #[schemars(extend("format" = "int32", "maximum" = 100))]
    pub from: Percent,
    /// Time over which new connections are averaged, in milliseconds.
    #[serde(rename = "windowMilliseconds", deserialize_with = "read::wait")]
    pub window: i64,
    /// New connections before.
    pub before: ConnectionRate,
}

/// A rate times the time for which it held.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    /// Milliseconds.
    time: i64,
    connections: f64,
    requests: f64,
    nodes: f64,
}

/// New connections of the last one to two windows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RateWindow {
    /// The last complete window.
    complete: Sum,
    /// The present one.
    current: Sum,
    /// Whether requests are counted, too.
    has_requests: bool,
    /// How long the rate has not been known (milliseconds).
    unknown_for: i64,
}

impl RateWindow {
    /// Adds a rate that held for a time. `length` is the length of a window. Times are in milliseconds.
    pub fn add(&mut self, rate: &ConnectionRate, held: i64, length: i64) {
        if self.has_requests != rate.requests.is_some() {
            *self = Self { has_requests: rate.requests.is_some(), ..Self::default() };
        }
        self.unknown_for = 0;
        #[allow(clippy::cast_precision_loss)] // At most minutes.
        let weight = held as f64;
        self.current.time += held;
        self.current.connections += rate.connections * weight;
        self.current.requests += rate.requests.unwrap_or(0.0) * weight;
        self.current.nodes += rate.nodes * weight;
        if self.current.time >= length {
            self.complete = std::mem::take(&mut self.current);
        }
    }

    /// Records that the rate was not known for a time. After `longest` milliseconds, what was known before is too old.
    pub fn skip(&mut self, passed: i64, longest: i64) {
        self.unknown_for += passed;
        if self.unknown_for > longest {
            *self = Self::default();
        }
    }

    /// The mean; `None` unless the rate is known for at least this many milliseconds.
    #[must_use]
    pub fn mean(&self, least: i64) -> Option<ConnectionRate> {
        let time = self.complete.time + self.current.time;
        if time < least.max(1) {
            return None;
        }
        #[allow(clippy::cast_precision_loss)] // At most minutes.
        let mean = |of: fn(&Sum) -> f64| (of(&self.complete) + of(&self.current)) / time as f64;
        Some(ConnectionRate {
            connections: mean(|sum| sum.connections),
            requests: self.has_requests.then(|| mean(|sum| sum.requests)),
            nodes: mean(|sum| sum.nodes),
        })
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // Whole numbers.
mod tests {
    use super::*;

    fn rate(connections: f64, requests: Option<f64>) -> ConnectionRate {
        ConnectionRate { connections, requests, nodes: 2.0 }
    }

    #[test]
    fn a_mean_is_of_one_to_two_windows_and_weighs_each_rate_by_its_time() {
        let mut window = RateWindow::default();
        assert_eq!(window.mean(0), None, "nothing is known");
        window.add(&rate(10.0, Some(100.0)), 10, 40);
        window.add(&rate(40.0, Some(200.0)), 20, 40);
        assert_eq!(window.mean(30), Some(ConnectionRate { connections: 30.0, requests: Some(500.0 / 3.0), nodes: 2.0 }));
        assert_eq!(window.mean(31), None, "too little is known");
        for _ in 0..10 {
            window.add(&rate(5.0, Some(100.0)), 10, 40);
        }
        assert_eq!(window.mean(40), Some(rate(5.0, Some(100.0))), "what is older than two windows is forgotten");
    }

    #[test]
    fn what_is_too_old_or_of_another_kind_is_forgotten() {
        let mut window = RateWindow::default();
        window.add(&rate(10.0, None), 10, 40);
        window.skip(20, 30);
        window.skip(10, 30);
        assert_eq!(window.mean(10), Some(rate(10.0, None)), "a short gap does not matter");
        window.skip(1, 30);
        assert_eq!(window.mean(1), None);
        window.add(&rate(10.0, None), 10, 40);
        window.add(&rate(20.0, Some(1.0)), 10, 40);
        assert_eq!(window.mean(10), Some(rate(20.0, Some(1.0))), "requests are counted from now on");
    }
}

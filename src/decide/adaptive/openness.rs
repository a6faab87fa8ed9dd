//! One number, the openness, drives every limit that has a floor. What holds between the limits and between the floors
//! therefore also holds in between.
//!
//! The law is that of Envoy's scaled timers: `floor + (limit - floor) * openness`. It is geometric where limit and
//! floor differ by more than a factor of 20
//! (<https://www.envoyproxy.io/docs/envoy/latest/configuration/operations/overload_manager/overload_manager>).

use std::time::Duration;

pub use crate::api::adaptive_state::Percent;
use crate::api::{Limit, LimitValues, Value, limits::WITHIN};

/// How much sooner than its server a client has to close an idle connection.
pub const MARGIN: Duration = Duration::from_secs(1);
/// Above this ratio of limit to floor the interpolation is geometric.
const GEOMETRIC: f64 = 20.0;

/// The declared limits at an openness. A limit without a floor stays.
#[must_use]
pub fn at(declared: &LimitValues, floor: &LimitValues, openness: Percent) -> LimitValues {
    let mut settings = declared.clone();
    if openness >= 100 {
        return settings;
    }
    for (key, value) in &mut settings {
        if let Some(floor) = floor.get(key) {
            *value = between(*value, *floor, openness);
        }
    }
    for (part, whole) in WITHIN {
        let (Some(Value::Count(p)), Some(&Value::Count(w))) = (settings.get(&part), settings.get(&whole)) else { continue };
        if w > 0 && *p > w && floor.contains_key(&part) {
            settings.insert(part, Value::Count(w));
        }
    }
    let (client, server) = (Limit::IntraClusterIdleConnTimeout, Limit::ServerIdleTimeout);
    if let (Some(Value::Duration(c)), Some(Value::Duration(s))) = (settings.get(&client), settings.get(&server)) {
        let most = s.saturating_sub(MARGIN);
        if !s.is_zero() && *c > most && floor.contains_key(&client) {
            settings.insert(client, Value::Duration(most));
        }
    }
    settings
}

/// Why a floor is invalid, as a message for the user. The API server refuses most of these, but it does not know the
/// target's own maximum, which may lower a preset.
#[must_use]
pub fn invalid(declared: &LimitValues, floor: &LimitValues) -> Option<String> {
    floor.iter().find_map(|(key, floor)| {
        let zero = |value: &Value| matches!(value, Value::Count(0) | Value::Duration(Duration::ZERO));
        match declared.get(key) {
            None => Some(format!("spec.adaptive.floor.{key} has no limit above it; set spec.limits.{key} or remove the floor")),
            Some(limit) if zero(limit) || zero(floor) => Some(format!(
                "spec.adaptive.floor.{key}: 0 means no limit, which cannot be tightened; set spec.limits.{key} and a floor above 0"
            )),
            Some(limit) if floor > limit => Some(format!(
                "spec.adaptive.floor.{key} {floor} exceeds the limit {limit}, which an override or the target's own maximum may have \
                 lowered; lower the floor"
            )),
            Some(_) => None,
        }
    })
}

/// Why limits contradict each other, as a message for the user.
#[must_use]
pub fn apart(limits: &LimitValues) -> Option<String> {
    WITHIN.iter().find_map(|(part, whole)| match (limits.get(part), limits.get(whole)) {
        (Some(Value::Count(p)), Some(Value::Count(w))) if *w > 0 && p > w => {
            Some(format!("{part} {p} exceeds {whole} {w}; lower the first or raise the second"))
        }
        _ => None,
    })
}

fn between(limit: Value, floor: Value, openness: Percent) -> Value {
    match (limit, floor) {
        (Value::Duration(limit), Value::Duration(floor)) => {
            let ms = way(millis(floor), millis(limit), openness);
            let value = Duration::from_millis(round(ms));
            Value::Duration(value.clamp(floor.min(limit), limit))
        }
        (Value::Count(limit), Value::Count(floor)) => {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Between two u32.
            let value = way(f64::from(floor), f64::from(limit), openness).floor() as u32;
            Value::Count(value.clamp(floor.min(limit), limit))
        }
        _ => limit,
    }
}

fn way(floor: f64, limit: f64, openness: Percent) -> f64 {
    let u = f64::from(openness) / 100.0;
    if floor > 0.0 && limit / floor > GEOMETRIC {
        // Slightly more, so that a result that is a whole number on paper is one here too.
        limit.powf(u) * floor.powf(1.0 - u) + 1e-9
    } else {
        (limit - floor).mul_add(u, floor)
    }
}

/// Whole seconds from 10 s on, tenths of a second from 1 s on: the precision that people use in a configuration.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Positive, and far below 2^53.
fn round(ms: f64) -> u64 {
    let ms = ms as u64;
    match ms {
        10_000.. => ms / 1000 * 1000,
        1_000.. => ms / 100 * 100,
        _ => ms,
    }
}

#[allow(clippy::cast_precision_loss)] // Far below 2^53.
fn millis(duration: Duration) -> f64 {
    duration.as_millis() as f64
}

/// What part of a pool is left when the openness changes, by the limits alone; 1 is all of it. Idle connections are
/// arrivals times their idle time (Little's law), so a timeout takes precedence over a count.
#[must_use]
pub fn remaining(declared: &LimitValues, floor: &LimitValues, from: Percent, to: Percent) -> f64 {
    let size = |openness| {
        let settings = at(declared, floor, openness);
        let of = |timeouts: bool| {
            let values = settings.iter().filter(|(key, _)| floor.contains_key(key));
            let sizes = values.filter_map(|(key, value)| match value {
                Value::Duration(d) if timeouts && key.is_idle_time() => Some(millis(*d)),
                Value::Count(n) if !timeouts && key.is_of_connections() => Some(f64::from(*n)),
                _ => None,
            });
            sizes.reduce(f64::max)
        };
        of(true).or_else(|| of(false))
    };
    match (size(from), size(to)) {
        (Some(from), Some(to)) if from > 0.0 => (to / from).clamp(0.0, 1.0),
        _ => 1.0,
    }
}

/// The openness of nodes, inferred from what they store: the highest that fits all limits with a floor; 100 where none
/// does.
#[must_use]
pub fn infer(declared: &LimitValues, floor: &LimitValues, stored: &LimitValues) -> Percent {
    (0..=100).rev().find(|openness| fits(declared, floor, *openness, stored)).unwrap_or(100)
}

/// Whether what a node stores is what the limits with a floor are at an openness.
#[must_use]
pub fn fits(declared: &LimitValues, floor: &LimitValues, openness: Percent, stored: &LimitValues) -> bool {
    let wanted = at(declared, floor, openness);
    floor.keys().filter_map(|key| Some((wanted.get(key)?, stored.get(key)?))).all(|(wanted, stored)| wanted == stored)
}

/// The longest idle timeout of the limits that have a floor: how long a pool takes to drain.
#[must_use]
pub fn longest_idle(declared: &LimitValues, floor: &LimitValues, openness: Percent) -> Duration {
    at(declared, floor, openness)
        .into_iter()
        .filter(|(key, _)| key.is_idle_time() && floor.contains_key(key))
        .filter_map(|(_, value)| if let Value::Duration(d) = value { Some(d) } else { None })
        .max()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: u64) -> Value {
        Value::Duration(Duration::from_secs(s))
    }

    #[test]
    fn envoys_own_example_comes_out_as_envoy_says() {
        // 600 s to 2 s, scaled from 85% to 95%, at 92%: 2 + 598 * 0.3 s. Envoy's law is linear; this one is linear up
        // to a factor of 20.
        assert!((way(2000.0 * 20.0, 600_000.0, 30) - (40_000.0 + 560_000.0 * 0.3)).abs() < 1e-6);
        let (limit, floor) = (
            LimitValues::from([(Limit::ServerIdleTimeout, seconds(40))]),
            LimitValues::from([(Limit::ServerIdleTimeout, seconds(2))]),
        );
        assert_eq!(at(&limit, &floor, 30)[&Limit::ServerIdleTimeout], seconds(13));
    }

    #[test]
    fn a_part_may_be_as_large_as_its_whole_and_a_whole_of_zero_has_no_end() {
        let said = |part, whole| {
            apart(&LimitValues::from([
                (Limit::BackendMaxIdleConnsPerHost, Value::Count(part)),
                (Limit::BackendMaxIdleConns, Value::Count(whole)),
            ]))
        };
        assert_eq!((said(9, 9), said(9, 0)), (None, None));
        assert!(said(10, 9).is_some_and(|said| said.contains("10 exceeds")));
    }

    #[test]
    fn far_apart_the_way_is_geometric() {
        let (limit, floor) = (
            LimitValues::from([(Limit::BackendMaxIdleConns, Value::Count(10_000))]),
            LimitValues::from([(Limit::BackendMaxIdleConns, Value::Count(100))]),
        );
        assert_eq!(at(&limit, &floor, 50)[&Limit::BackendMaxIdleConns], Value::Count(1000));
    }

    #[test]
    fn a_limit_without_a_floor_stays_and_at_full_openness_all_do() {
        let limits = LimitValues::from([(Limit::ServerIdleTimeout, seconds(30)), (Limit::BackendIdleConnTimeout, seconds(20))]);
        let floor = LimitValues::from([(Limit::ServerIdleTimeout, seconds(5))]);
        assert_eq!(at(&limits, &floor, 100), limits);
        assert_eq!(
            at(&limits, &floor, 0),
            LimitValues::from([(Limit::ServerIdleTimeout, seconds(5)), (Limit::BackendIdleConnTimeout, seconds(20))])
        );
    }

    #[test]
    fn a_client_lets_go_before_its_server_all_the_way() {
        let limits =
            LimitValues::from([(Limit::ServerIdleTimeout, seconds(500)), (Limit::IntraClusterIdleConnTimeout, seconds(60))]);
        let floor = LimitValues::from([(Limit::ServerIdleTimeout, seconds(5)), (Limit::IntraClusterIdleConnTimeout, seconds(4))]);
        for openness in 0..=100 {
            let settings = at(&limits, &floor, openness);
            let (Value::Duration(client), Value::Duration(server)) =
                (settings[&Limit::IntraClusterIdleConnTimeout], settings[&Limit::ServerIdleTimeout])
            else {
                unreachable!()
            };
            assert!(client + MARGIN <= server, "{openness}%: {client:?} and {server:?}");
        }
    }

    #[test]
    fn a_part_is_never_more_than_the_whole_and_moves_for_no_other_reason() {
        let (part, whole) = (Limit::BackendMaxIdleConnsPerHost, Limit::BackendMaxIdleConns);
        let of = |p, w| LimitValues::from([(part, Value::Count(p)), (whole, Value::Count(w))]);
        let parts = |limits: &LimitValues, floor: &LimitValues, openness| at(limits, floor, openness)[&part];
        // The whole is interpolated geometrically (100 at 50%, 25 at 20%), the part linearly (55 and 28).
        let (limits, floor) = (of(100, 1000), of(10, 10));
        assert_eq!(parts(&limits, &floor, 50), Value::Count(55));
        assert_eq!((parts(&limits, &floor, 20), at(&limits, &floor, 20)[&whole]), (Value::Count(25), Value::Count(25)));
        let alone = LimitValues::from([(whole, Value::Count(10))]);
        assert_eq!(parts(&limits, &alone, 0), Value::Count(100), "a limit without a floor stays");
        let unlimited = of(100, 0);
        assert_eq!(parts(&unlimited, &LimitValues::from([(part, Value::Count(10))]), 50), Value::Count(55), "0 is no limit");
    }

    #[test]
    fn a_client_moves_for_its_server_only_where_it_must() {
        let (client, server) = (Limit::IntraClusterIdleConnTimeout, Limit::ServerIdleTimeout);
        let of = |c, s| LimitValues::from([(client, seconds(c)), (server, seconds(s))]);
        assert_eq!(
            at(&of(40, 400), &of(20, 200), 50)[&client],
            seconds(30),
            "far below the server's timeout, the client's is not clamped"
        );
        let floor = LimitValues::from([(client, seconds(20))]);
        assert_eq!(at(&of(40, 0), &floor, 50)[&client], seconds(30), "0 is no limit");
        let floor = LimitValues::from([(server, seconds(20))]);
        assert_eq!(at(&of(40, 60), &floor, 0)[&client], seconds(40), "a limit without a floor stays");
    }

    #[test]
    fn times_are_rounded_for_people() {
        let half = |limit, floor| {
            let ms = |n| LimitValues::from([(Limit::ServerIdleTimeout, Value::Duration(Duration::from_millis(n)))]);
            at(&ms(limit), &ms(floor), 50)[&Limit::ServerIdleTimeout].to_string()
        };
        assert_eq!([half(20_500, 10_400), half(2_000, 469), half(900, 333)], ["15s", "1s200ms", "616ms"]);
    }

    #[test]
    fn where_nodes_stand_is_told_from_what_they_store() {
        let (limits, floor) = (
            LimitValues::from([(Limit::ServerIdleTimeout, seconds(100)), (Limit::BackendMaxIdleConns, Value::Count(9))]),
            LimitValues::from([(Limit::ServerIdleTimeout, seconds(20))]),
        );
        for openness in [0, 40, 99, 100] {
            let stored = at(&limits, &floor, openness);
            let told = infer(&limits, &floor, &stored);
            assert_eq!(at(&limits, &floor, told), stored);
            assert!(told >= openness && (told == 100 || at(&limits, &floor, told + 1) != stored), "the widest that fits: {told}");
        }
        let stored = LimitValues::from([(Limit::ServerIdleTimeout, seconds(7))]);
        assert_eq!(infer(&limits, &floor, &stored), 100, "values that the operator did not write count as full openness");
        assert_eq!(infer(&limits, &floor, &LimitValues::new()), 100);
    }

    #[test]
    fn a_pool_drains_by_the_longest_idle_time_that_moves() {
        let limits = LimitValues::from([
            (Limit::ServerIdleTimeout, seconds(30)),
            (Limit::BackendIdleConnTimeout, seconds(90)),
            (Limit::ServerReadHeaderTimeout, seconds(60)),
        ]);
        let floor = LimitValues::from([(Limit::ServerIdleTimeout, seconds(10)), (Limit::ServerReadHeaderTimeout, seconds(50))]);
        assert_eq!([longest_idle(&limits, &floor, 100), longest_idle(&limits, &floor, 50)].map(|d| d.as_secs()), [30, 20]);
        assert_eq!(longest_idle(&limits, &LimitValues::new(), 100), Duration::ZERO);
    }

    #[test]
    fn of_an_unlimited_pool_all_is_left() {
        let zero = LimitValues::from([(Limit::ServerIdleTimeout, seconds(0))]);
        assert!((remaining(&zero, &zero, 100, 0) - 1.0).abs() < 1e-9);
        let (many, floor) = (
            LimitValues::from([(Limit::BackendMaxIdleConns, Value::Count(100))]),
            LimitValues::from([(Limit::BackendMaxIdleConns, Value::Count(50))]),
        );
        assert!((remaining(&many, &floor, 0, 100) - 1.0).abs() < 1e-9, "a pool never grows by tightening");
    }

    #[test]
    fn from_nothing_the_way_is_straight() {
        assert!((way(0.0, 100.0, 50) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn only_idle_times_and_numbers_of_connections_make_a_pool() {
        let left = |pairs: &[(Limit, Value, Value)]| {
            let limits = pairs.iter().map(|(key, limit, _)| (*key, *limit)).collect();
            let floor = pairs.iter().map(|(key, _, floor)| (*key, *floor)).collect();
            format!("{:.0}", remaining(&limits, &floor, 100, 0) * 100.0)
        };
        let ms = |n| Value::Duration(Duration::from_millis(n));
        let counts = (Limit::BackendMaxIdleConns, Value::Count(100), Value::Count(50));
        let idle = (Limit::ServerIdleTimeout, ms(40), ms(10));
        let header = (Limit::ServerReadHeaderTimeout, ms(900), ms(450));
        let requests = (Limit::ServerMaxRequestsPerConn, Value::Count(1000), Value::Count(900));
        assert_eq!([left(&[idle, counts]), left(&[idle, header]), left(&[counts, header])], ["25", "25", "50"]);
        assert_eq!([left(&[counts, requests]), left(&[requests]), left(&[header])], ["50", "100", "100"]);
    }

    #[test]
    fn a_floor_that_cannot_be_one_is_named() {
        let limits = LimitValues::from([(Limit::ServerIdleTimeout, seconds(30)), (Limit::BackendMaxIdleConns, Value::Count(0))]);
        let check = |key, value| invalid(&limits, &LimitValues::from([(key, value)])).unwrap_or_default();
        assert!(check(Limit::ServerIdleTimeout, seconds(31)).contains("exceeds the limit 30s"));
        assert!(check(Limit::BackendMaxIdleConns, Value::Count(5)).contains("0 means no limit"));
        assert!(check(Limit::BackendIdleConnTimeout, seconds(3)).contains("has no limit above it"));
        assert_eq!(check(Limit::ServerIdleTimeout, seconds(30)), "");
    }

    #[test]
    fn what_is_left_of_a_pool_follows_the_time_out() {
        let limits =
            LimitValues::from([(Limit::ServerIdleTimeout, seconds(40)), (Limit::BackendMaxIdleConns, Value::Count(100))]);
        let floor = LimitValues::from([(Limit::ServerIdleTimeout, seconds(10)), (Limit::BackendMaxIdleConns, Value::Count(99))]);
        assert!((remaining(&limits, &floor, 100, 0) - 0.25).abs() < 1e-9);
        assert_eq!(longest_idle(&limits, &floor, 100), Duration::from_secs(40));
    }
}

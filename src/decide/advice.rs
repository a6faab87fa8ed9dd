//! Advice on a policy: rules for tuning HTTP connection pools, each with its fix in one sentence. docs/advice.md gives
//! the reasons.

use std::{fmt, time::Duration};

use super::{
    Declared, TargetCapabilities,
    measured::Idled,
    path::{ClientIdle, Verdict, verdict},
};
use crate::api::{Format, IdleConnectionPolicySpec, Limit, Preset, Value};

/// One piece of advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// The rule, as docs/advice.md calls it.
    pub rule: &'static str,
    /// What was found, and what to do.
    pub sentence: String,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.sentence, self.rule)
    }
}

/// What was observed at run time; `None` where it was not observed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observed<'a> {
    /// Concurrent requests to one host.
    pub concurrency: Option<f64>,
    /// The highest use of file descriptors, in percent of the limit, and its node.
    pub open_files: Option<(u32, &'a str)>,
    /// A node that closes streams, such as those of `WebSocket`, at once when its configuration changes.
    pub cut_streams: Option<&'a str>,
    /// How long the servers of all nodes keep idle connections, as measured.
    pub server_idle: Option<Duration>,
}

/// `http.DefaultMaxIdleConnsPerHost`.
const GO_PER_HOST: u32 = 2;
/// `http.DefaultTransport.IdleConnTimeout`, seconds.
const GO_IDLE: u64 = 90;
/// Idle connections as a share of all, in percent. With fewer, each burst opens new ones; more only cost.
const FREE: std::ops::RangeInclusive<u32> = 10..=20;
/// Use of file descriptors above which there is advice, in percent of the limit.
const MAX_FILES_PERCENT: u32 = 80;

struct Rules<'a> {
    spec: &'a IdleConnectionPolicySpec,
    declared: &'a Declared,
    traits: &'a TargetCapabilities,
}

/// All advice on a policy.
#[must_use]
pub fn advice(
    spec: &IdleConnectionPolicySpec,
    declared: &Declared,
    traits: &TargetCapabilities,
    observed: Observed<'_>,
) -> Vec<Advice> {
    let rules = Rules { spec, declared, traits };
    let found = [
        ("per-host-two", rules.per_host(Limit::IntraClusterMaxIdleConnsPerHost)),
        ("per-host-two", rules.per_host(Limit::BackendMaxIdleConnsPerHost)),
        ("conns-unlimited", rules.unlimited()),
        ("client-outlives-server", rules.outlives(observed.server_idle)),
        ("client-outlives-server", rules.outlives_backend()),
        ("per-host-far-off", rules.concurrency(observed.concurrency)),
        ("free-share", rules.free()),
        ("streams", rules.streams(observed.cut_streams)),
        ("open-files", open_files(observed.open_files)),
    ];
    found.into_iter().filter_map(|(rule, sentence)| Some(Advice { rule, sentence: sentence? })).collect()
}

fn open_files(observed: Option<(u32, &str)>) -> Option<String> {
    let (percent, node) = observed.filter(|(percent, _)| *percent > MAX_FILES_PERCENT)?;
    Some(format!("{node} uses {percent}% of its file descriptor limit; tighten the limits or raise the descriptor limit"))
}

/// Each rule, with its sentence where it applies.
impl Rules<'_> {
    fn count(&self, key: Limit) -> Option<u32> {
        if let Some(Value::Count(n)) = self.declared.settings.get(&key) { Some(*n) } else { None }
    }

    fn time(&self, key: Limit) -> Option<Duration> {
        if let Some(Value::Duration(time)) = self.declared.settings.get(&key) { Some(*time) } else { None }
    }

    /// Whether unset limits have the defaults of Go's net/http.
    fn is_go(&self) -> bool {
        let format = self.spec.target.config_map.as_ref().map(|config_map| config_map.format);
        matches!(format, Some(Format::Yaml | Format::Json | Format::Env))
    }

    /// Whether the policy sets any limit of a pool.
    fn governs(&self, pool: &str) -> bool {
        self.declared.settings.keys().any(|key| key.pool() == pool)
    }

    fn per_host(&self, key: Limit) -> Option<String> {
        let two = match self.count(key) {
            Some(n) => n == GO_PER_HOST && (self.declared.written.contains(&key) || self.spec.preset == Some(Preset::GoDefault)),
            None => self.is_go() && self.governs(key.pool()),
        };
        (two && self.traits.supports(key)).then(|| {
            format!(
                "{key} is 2 (Go's default), so all but two connections to a host are closed after each burst; set it to the \
                 number of concurrent requests to one host"
            )
        })
    }

    fn unlimited(&self) -> Option<String> {
        let key = Limit::BackendMaxConnsPerHost;
        let applies = self.traits.supports(key) && self.governs("backend") && self.count(key).unwrap_or(0) == 0;
        applies.then(|| {
            format!("{key} has no limit, so a slow backend gets a connection for every request; set it to what one host can take")
        })
    }

    /// A measured timeout counts, whatever is declared.
    fn outlives(&self, measured: Option<Duration>) -> Option<String> {
        let (key, server) = (Limit::IntraClusterIdleConnTimeout, Limit::ServerIdleTimeout);
        let declared = self.time(key);
        let is_go = declared.is_none() && self.is_go();
        let Some(measured) = measured else {
            let short = self.time(server).is_some_and(|server| !server.is_zero() && server.as_secs() <= GO_IDLE);
            return (short && is_go).then(|| {
                format!(
                    "{key} is {GO_IDLE}s (Go's default), and {server} is not longer; set {key} at least 1s shorter than \
                     {server}, or requests are lost on closed connections"
                )
            });
        };
        let client = declared.or_else(|| is_go.then_some(Duration::from_secs(GO_IDLE)))?;
        (verdict(ClientIdle::After(client), Idled::Closed(measured)) != Verdict::Safe).then(|| {
            let (client, server) = (Value::Duration(client), Value::Duration(measured));
            format!(
                "{key} is {client}, and measurements show that the servers close idle connections after {server}; set {key} at \
                 least 1s shorter, or requests are lost on closed connections"
            )
        })
    }

    fn outlives_backend(&self) -> Option<String> {
        let key = Limit::BackendIdleConnTimeout;
        (self.is_go() && self.time(key).is_none() && self.governs("backend")).then(|| {
            format!(
                "{key} is {GO_IDLE}s (Go's default), and many servers and load balancers close idle connections earlier; set \
                 it shorter than the idle timeout of the server behind it"
            )
        })
    }

    /// Caddy closes streams when its configuration changes, unless a proxy has a `stream_close_delay`
    /// (caddyserver/caddy#5471).
    fn streams(&self, cut_by: Option<&str>) -> Option<String> {
        let node = cut_by.filter(|_| self.spec.adaptive.is_some())?;
        Some(format!(
            "A reverse_proxy of {node} closes its WebSockets and other streams whenever a limit changes; set stream_close_delay, \
             for example to 5m"
        ))
    }

    fn concurrency(&self, observed: Option<f64>) -> Option<String> {
        let key = Limit::BackendMaxIdleConnsPerHost;
        let (seen, set) = (observed.filter(|seen| *seen >= 1.0)?, self.count(key).filter(|set| *set > 0)?);
        let (far, advice) = match f64::from(set) / seen {
            ..0.5 => ("less than half of", "raise it, or each burst opens new connections"),
            share if share > 4.0 => ("more than four times", "lower it, because the other connections only cost"),
            _ => return None,
        };
        Some(format!("{key} {set} is {far} the {seen:.0} concurrent requests; {advice}"))
    }

    fn free(&self) -> Option<String> {
        let (idle, all) = (Limit::BackendMaxIdleConnsPerHost, Limit::BackendMaxConnsPerHost);
        let written = [idle, all].iter().any(|key| self.declared.written.contains(key));
        let (idle_set, all_set) = (self.count(idle)?, self.count(all).filter(|all| *all > 0)?);
        let percent = u32::try_from(u64::from(idle_set) * 100 / u64::from(all_set)).unwrap_or(u32::MAX);
        let way = if percent < *FREE.start() { "raise" } else { "lower" };
        let (least, most) = (FREE.start(), FREE.end());
        (written && !FREE.contains(&percent))
            .then(|| format!("{idle} {idle_set} is {percent}% of {all} {all_set}; {way} it to between {least}% and {most}%"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, from_value, json};

    use super::*;
    use crate::decide::declare;

    fn said(format: &str, spec: &Json, observed: Observed<'_>) -> Vec<&'static str> {
        advised(format, spec, observed).into_iter().map(|advice| advice.rule).collect()
    }

    fn advised(format: &str, spec: &Json, observed: Observed<'_>) -> Vec<Advice> {
        let mut whole = json!({"target": {"type": "ConfigMap", "configMap": {
            "name": "x", "key": "y", "format": format, "selector": {"matchLabels": {"app": "x"}},
        }}});
        whole.as_object_mut().expect("an object").extend(spec.as_object().cloned().expect("an object"));
        let spec: IdleConnectionPolicySpec = from_value(whole).expect("a spec");
        let file = spec.target.config_map.as_ref().map(|config_map| config_map.format);
        let traits = TargetCapabilities { file, ..TargetCapabilities::PLAIN };
        advice(&spec, &declare(&spec, &traits), &traits, observed)
    }

    fn backend(fields: &Json) -> Json {
        json!({"limits": {"backend": fields}})
    }

    #[test]
    fn each_rule_has_its_reason_to_speak_and_to_be_silent() {
        let good = json!({"idleConnTimeout": "20s", "maxIdleConnsPerHost": 20, "maxConnsPerHost": 100});
        let with = |field: &str, value: Json| {
            let mut fields = good.clone();
            if value.is_null() {
                fields.as_object_mut().expect("an object").remove(field);
            } else {
                fields[field] = value;
            }
            backend(&fields)
        };
        let cases: [(&str, &str, Json, &[&str]); 19] = [
            ("good limits get no advice", "yaml", backend(&good), &[]),
            (
                "no advice on a pool that the policy does not govern",
                "yaml",
                json!({"limits": {"server": {"readHeaderTimeout": "1s"}}}),
                &[],
            ),
            ("Go's default of 2", "yaml", with("maxIdleConnsPerHost", json!(2)), &["per-host-two", "free-share"]),
            ("Go's default of 2, not set", "json", with("maxIdleConnsPerHost", Json::Null), &["per-host-two"]),
            ("a format with another default", "thanos-objstore", with("maxIdleConnsPerHost", Json::Null), &[]),
            (
                "Go's default of 2 from a preset",
                "yaml",
                json!({"preset": "GoDefault"}),
                &["per-host-two", "per-host-two", "conns-unlimited"],
            ),
            ("a preset that means 2", "yaml", json!({"preset": "Batch"}), &[]),
            ("no limit", "yaml", with("maxConnsPerHost", Json::Null), &["conns-unlimited"]),
            ("0 is no limit", "yaml", with("maxConnsPerHost", json!(0)), &["conns-unlimited"]),
            ("a target without the limit", "nginx", json!({"limits": {"backend": {"maxIdleConnsPerHost": 9}}}), &[]),
            ("Go's default of 90s towards backends", "env", with("idleConnTimeout", Json::Null), &["client-outlives-server"]),
            (
                "Go's default of 90s between nodes",
                "yaml",
                json!({"limits": {"server": {"idleTimeout": "90s"}}}),
                &["client-outlives-server"],
            ),
            ("a server with a longer timeout", "yaml", json!({"limits": {"server": {"idleTimeout": "91s"}}}), &[]),
            ("a server without a timeout", "yaml", json!({"limits": {"server": {"idleTimeout": "0s"}}}), &[]),
            ("too many idle", "yaml", with("maxIdleConnsPerHost", json!(21)), &["free-share"]),
            ("too few idle", "yaml", with("maxIdleConnsPerHost", json!(9)), &["free-share"]),
            ("a tenth idle", "yaml", with("maxIdleConnsPerHost", json!(10)), &[]),
            ("the share of a preset is deliberate", "yaml", json!({"preset": "CostOptimized"}), &[]),
            ("a target without the pool", "haproxy", backend(&json!({"idleConnTimeout": "5s"})), &[]),
        ];
        for (what, format, spec, expected) in cases {
            assert_eq!(said(format, &spec, Observed::default()), expected, "{what}");
        }
    }

    #[test]
    fn a_share_is_said_with_the_way_out() {
        for (idle, way) in [(9, "raise it to between 10% and 20%"), (21, "lower it to between 10% and 20%")] {
            let spec = backend(&json!({"idleConnTimeout": "20s", "maxIdleConnsPerHost": idle, "maxConnsPerHost": 100}));
            let advised = advised("yaml", &spec, Observed::default());
            assert!(advised[0].sentence.ends_with(way), "{idle}: {}", advised[0].sentence);
        }
    }

    #[test]
    fn a_pool_without_a_bound_is_not_too_small() {
        let spec = backend(&json!({"idleConnTimeout": "20s", "maxIdleConnsPerHost": 0, "maxConnsPerHost": 100}));
        let observed = Observed { concurrency: Some(20.0), ..Observed::default() };
        assert!(!said("yaml", &spec, observed).contains(&"per-host-far-off"));
    }

    #[test]
    fn what_was_seen_is_held_against_what_is_set() {
        let spec = backend(&json!({"idleConnTimeout": "20s", "maxIdleConnsPerHost": 20, "maxConnsPerHost": 100}));
        for (seen, far) in [(0.5, false), (4.9, true), (5.0, false), (20.0, false), (40.0, false), (41.0, true)] {
            let observed = Observed { concurrency: Some(seen), ..Observed::default() };
            assert_eq!(said("yaml", &spec, observed), if far { vec!["per-host-far-off"] } else { vec![] }, "{seen}");
        }
        for (adaptive, cut_streams, told) in [
            (json!({"adaptive": {}}), Some("gw-0"), vec!["streams"]),
            (json!({"adaptive": {}}), None, vec![]),
            // Effects of a change by hand are expected; those of a step of adaptive control are not.
            (json!({}), Some("gw-0"), vec![]),
        ] {
            let mut spec = spec.clone();
            spec.as_object_mut().expect("an object").extend(adaptive.as_object().cloned().expect("an object"));
            assert_eq!(said("yaml", &spec, Observed { cut_streams, ..Observed::default() }), told);
        }
        for (percent, full) in [(80, false), (81, true)] {
            let observed = Observed { open_files: Some((percent, "gw-0")), ..Observed::default() };
            assert_eq!(said("yaml", &spec, observed), if full { vec!["open-files"] } else { vec![] }, "{percent}");
        }
    }

    #[test]
    fn what_was_measured_counts_and_not_what_is_declared() {
        let spec = json!({"limits": {"server": {"idleTimeout": "100s"}, "intraCluster": {"idleConnTimeout": "20s"}}});
        for (measured, told) in [(None, false), (Some(30), false), (Some(21), false), (Some(20), true), (Some(5), true)] {
            let observed = Observed { server_idle: measured.map(Duration::from_secs), ..Observed::default() };
            let all = advised("yaml", &spec, observed);
            let found: Vec<_> = all.iter().filter(|advice| advice.sentence.contains("measurements show")).collect();
            assert_eq!(found.len(), usize::from(told), "{measured:?}: {all:?}");
            assert!(found.iter().all(|advice| advice.rule == "client-outlives-server"));
        }
    }
}

//! Formats of files that servers read: the limits that each format has, and how it is written. Pure; one file for each format.
//!
//! A new format is a file with a `FORMAT` in this folder and a line in the list below. docs/extending.md shows an example.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::{Limit, LimitValues, Value, flush::Reload};

/// Specification of a format.
pub struct Spec {
    /// Limits of the format, with their names in the file.
    pub fields: &'static [(Limit, &'static str)],
    /// Renders the files: the suffix that follows the key's name (empty for most formats), and the text. The function gets only
    /// limits of `fields`. A format without providers ignores those of the providers.
    pub render: fn(&Named, &Providers) -> Files,
    /// Programs that read the format.
    pub reader: &'static str,
    /// Reaction of the reader to a change of each of `fields`; tests/it/flushes.rs measures it.
    pub reload: fn(Limit) -> Reload,
    /// Reason why the reader cannot represent a value, as the end of a sentence that begins with the value; `None` if it can.
    pub inexpressible: fn(Limit, Value) -> Option<&'static str>,
}

/// Limits that are set, with their names in a format, in the order of its fields.
pub type Named = Vec<(Limit, &'static str, Value)>;

/// Limits of each provider, by the provider's name.
pub type Providers = BTreeMap<String, Named>;

/// Texts, by the suffix that follows the key's name.
pub type Files = Vec<(&'static str, String)>;

macro_rules! formats {
    ($($module:ident => $name:ident,)*) => {
        $(mod $module;)*

        /// Format of a file in a ConfigMap.
        #[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[serde(rename_all = "kebab-case")]
        #[allow(missing_docs)] // docs/targets/configmap.md describes each of them.
        pub enum Format {
            $($name,)*
        }

        impl Format {
            /// All formats.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            const fn spec(self) -> &'static Spec {
                match self {
                    $(Self::$name => &$module::FORMAT,)*
                }
            }
        }
    };
}

formats! {
    yaml => Yaml,
    json => Json,
    env => Env,
    http_connection_pool => HttpConnectionPool,
    thanos_objstore => ThanosObjstore,
    nginx => Nginx,
    haproxy => Haproxy,
}

impl Format {
    /// Name of the format in a policy.
    #[must_use]
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Returns the limits of the format, with their names in the file.
    #[must_use]
    pub const fn fields(self) -> &'static [(Limit, &'static str)] {
        self.spec().fields
    }

    /// Reports whether the format has a limit.
    #[must_use]
    pub fn has(self, limit: Limit) -> bool {
        self.fields().iter().any(|(field, _)| *field == limit)
    }

    /// Returns the reaction of the reader to a change of a limit.
    #[must_use]
    pub fn reload(self, limit: Limit) -> Reload {
        (self.spec().reload)(limit)
    }

    /// Returns the time that the reader keeps an idle connection if the limit is not set; `None` if it is not known. nginx:
    /// `keepalive_timeout` 75 s, and 60 s in an `upstream` (`ngx_http_core_module`, `ngx_http_upstream_module`).
    #[must_use]
    pub const fn default_idle(self, limit: Limit) -> Option<Duration> {
        match (self, limit) {
            (Self::Nginx, Limit::ServerIdleTimeout) => Some(Duration::from_secs(75)),
            (Self::Nginx, Limit::BackendIdleConnTimeout) => Some(Duration::from_secs(60)),
            _ => None,
        }
    }

    /// Returns the check for values that the reader cannot represent; see [`Spec::inexpressible`].
    #[must_use]
    pub const fn inexpressible(self) -> fn(Limit, Value) -> Option<&'static str> {
        self.spec().inexpressible
    }

    /// Programs that read the format.
    #[must_use]
    pub const fn reader(self) -> &'static str {
        self.spec().reader
    }

    /// Renders the files, by the suffix that follows the key's name. A limit that the format does not have is left out. The same
    /// limits always give the same bytes.
    #[must_use]
    pub fn render(self, limits: &LimitValues, providers: &BTreeMap<String, LimitValues>) -> BTreeMap<&'static str, String> {
        let named = |limits: &LimitValues| -> Named {
            self.fields().iter().filter_map(|(limit, name)| Some((*limit, *name, *limits.get(limit)?))).collect()
        };
        let providers = providers.iter().map(|(provider, limits)| (provider.clone(), named(limits))).collect();
        (self.spec().render)(&named(limits), &providers).into_iter().collect()
    }

    /// Returns the suffixes of all files of the format.
    #[must_use]
    pub fn suffixes(self) -> Vec<&'static str> {
        (self.spec().render)(&Named::new(), &Providers::new()).into_iter().map(|(suffix, _)| suffix).collect()
    }
}

/// First line of every file whose format allows comments.
const HEADER: &str = "Written by idleconn-operator; what is changed here by hand is not kept.";

/// Behavior of examples/go-service: a server applies its limits while it runs, and a pool is replaced when its limits change.
const fn reload_in_go(limit: Limit) -> Reload {
    if limit.is_client() { Reload::OWN_POOL } else { Reload::Hot }
}

/// Longest time in signed 32-bit milliseconds: 24 days, 20 hours, 31 minutes.
const MAX_MILLISECONDS: Duration = Duration::from_millis(i32::MAX as u64);

/// Limits for which Go's `net/http` does not treat 0 as "no limit" (documented at `http.Transport` and `net.Dialer`).
pub(crate) fn inexpressible_in_go(limit: Limit, value: Value) -> Option<&'static str> {
    match (limit, value.is_zero()) {
        (Limit::IntraClusterMaxIdleConnsPerHost | Limit::BackendMaxIdleConnsPerHost, true) => {
            Some("Go keeps 2 idle connections per host for 0")
        }
        (Limit::BackendTcpKeepAlive, true) => Some("Go probes every 15s for 0"),
        (Limit::BackendExpectContinueTimeout, true) => Some("Go does not wait at all for 0"),
        _ => None,
    }
}

/// Builds an object of pools, with durations as text.
fn tree(named: &Named) -> Json {
    let mut pools = Map::new();
    for (_, name, value) in named {
        let Some((pool, field)) = name.split_once('.') else { continue };
        let pool = pools.entry(pool).or_insert_with(|| Json::Object(Map::new()));
        pool[field] = value.json();
    }
    Json::Object(pools)
}

/// Converts a duration to milliseconds.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> LimitValues {
        let value =
            |limit: Limit| if limit.is_count() { Value::Count(7) } else { Value::Duration(Duration::from_millis(90_500)) };
        Limit::ALL.into_iter().map(|limit| (limit, value(limit))).collect()
    }

    #[test]
    fn every_format_writes_what_it_has_a_place_for_and_always_the_same() {
        for &format in Format::ALL {
            let whole = format.render(&everything(), &BTreeMap::new());
            assert_eq!(whole, format.render(&everything(), &BTreeMap::new()), "{format:?}");
            assert_eq!(whole.keys().copied().collect::<Vec<_>>(), format.suffixes(), "{format:?}");
            for (limit, name) in format.fields() {
                let mut without = everything();
                without.remove(limit);
                assert_ne!(whole, format.render(&without, &BTreeMap::new()), "{format:?} does not write {limit} ({name})");
                let mut other = everything();
                other.insert(*limit, if limit.is_count() { Value::Count(8) } else { Value::Duration(Duration::from_secs(8)) });
                assert_ne!(
                    whole,
                    format.render(&other, &BTreeMap::new()),
                    "{format:?} does not write the value of {limit} ({name})"
                );
            }
            assert!(whole.values().all(|text| text.ends_with('\n')), "{format:?}");
        }
    }

    #[test]
    fn a_limit_without_a_place_changes_nothing() {
        for &format in Format::ALL {
            let placed: LimitValues =
                everything().into_iter().filter(|(limit, _)| format.fields().iter().any(|(k, _)| k == limit)).collect();
            assert_eq!(format.render(&placed, &BTreeMap::new()), format.render(&everything(), &BTreeMap::new()), "{format:?}");
        }
    }

    #[test]
    fn its_name_is_what_a_user_writes() {
        assert_eq!(Format::HttpConnectionPool.name(), "http-connection-pool");
        for format in Format::ALL {
            assert_eq!(serde_json::from_value::<Format>(format.name().into()).ok(), Some(*format));
        }
    }
}

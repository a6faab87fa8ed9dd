//! Behavior of each reader with 0, without a value, and with the largest value of a policy: docs/targets/extremes.md.
//!
//! The operator's own code defines the result of 0 and of the largest value, and the tests of formats and of Caddy check it with
//! the readers. This file has the behavior of each reader without a value, with the test that checks it or its source.

use std::fmt::Write as _;

use idleconn_operator::{
    api::{Format, Limit},
    decide::{Capability, TargetCapabilities},
    targets::{aistore, caddy, configmap},
};

use crate::{
    formats::{largest, no_limit},
    golden::check,
    support::cluster::ROOT,
};

/// Source of a fact.
#[derive(Clone, Copy)]
enum Known {
    /// Test that checks the reader.
    Asked(&'static str),
    /// Documentation or source code.
    Read(&'static str),
}
use Known::{Asked, Read};

/// Limits of one reader: its name, its capabilities, and the value of each limit that is not set.
struct Reader {
    name: String,
    traits: TargetCapabilities,
    absent: fn(Limit) -> Option<(&'static str, Known)>,
}

fn readers() -> Vec<Reader> {
    let of = |name: &str, traits, absent| Reader { name: name.into(), traits, absent };
    let format = |format: Format| {
        let absent = match format {
            Format::Yaml | Format::Json | Format::Env => go,
            Format::HttpConnectionPool => agentkeepalive,
            Format::ThanosObjstore => thanos,
            Format::Nginx => nginx,
            Format::Haproxy => haproxy,
        };
        of(&format.name(), configmap::traits(format), absent)
    };
    let mut all = vec![of("AIStore", aistore::TRAITS, aistore as fn(Limit) -> _), of("Caddy", caddy::TRAITS, caddy)];
    all.extend(Format::ALL.iter().map(|each| format(*each)));
    all
}

fn aistore(key: Limit) -> Option<(&'static str, Known)> {
    let own = Asked("replay::the_stand_in_answers_as_the_real_server_did");
    Some(match key {
        Limit::IntraClusterIdleConnTimeout | Limit::BackendIdleConnTimeout => ("its own 6s", own),
        Limit::IntraClusterMaxIdleConns => ("its own 256", own),
        Limit::IntraClusterMaxIdleConnsPerHost => ("its own 32", own),
        _ => return None,
    })
}

fn caddy(key: Limit) -> Option<(&'static str, Known)> {
    const TRANSPORT: &str = "Caddy 2.11.9, reverseproxy/httptransport.go";
    Some(match key {
        Limit::ServerIdleTimeout => ("5m", Read("Caddy 2.11.9, caddyhttp/app.go:406")),
        Limit::ServerReadHeaderTimeout => ("1m", Read("Caddy 2.11.9, caddyhttp/app.go:409")),
        Limit::BackendIdleConnTimeout => ("2m", Read("Caddy 2.11.9, reverseproxy/httptransport.go:215")),
        Limit::BackendMaxIdleConns => ("no limit", Read("Caddy 2.11.9, reverseproxy/httptransport.go:490")),
        Limit::BackendMaxIdleConnsPerHost => ("32", Read("Caddy 2.11.9, reverseproxy/httptransport.go:218")),
        Limit::BackendTcpKeepAlive => ("30s", Read("Caddy 2.11.9, reverseproxy/httptransport.go:212")),
        Limit::BackendMaxConnsPerHost | Limit::BackendTlsHandshakeTimeout | Limit::BackendResponseHeaderTimeout => {
            ("no limit", Read(TRANSPORT))
        }
        Limit::BackendExpectContinueTimeout => ("it does not wait", Read(TRANSPORT)),
        _ => return None,
    })
}

/// A program that changes only the settings in the file, such as examples/go-service, has Go's defaults for the others.
fn go(key: Limit) -> Option<(&'static str, Known)> {
    Some(match key {
        Limit::ServerIdleTimeout => ("ReadTimeout, or no limit", Read("Go 1.26, net/http/server.go:3607")),
        Limit::ServerReadHeaderTimeout => ("ReadTimeout, or no limit", Read("Go 1.26, net/http/server.go:3614")),
        Limit::IntraClusterIdleConnTimeout | Limit::BackendIdleConnTimeout => {
            ("90s (DefaultTransport)", Read("Go 1.26, net/http/transport.go:54"))
        }
        Limit::IntraClusterMaxIdleConns | Limit::BackendMaxIdleConns => {
            ("100 (DefaultTransport)", Read("Go 1.26, net/http/transport.go:53"))
        }
        Limit::IntraClusterMaxIdleConnsPerHost | Limit::BackendMaxIdleConnsPerHost => {
            ("2", Read("Go 1.26, net/http/transport.go:61"))
        }
        Limit::BackendMaxConnsPerHost => ("no limit", Read("Go 1.26, net/http/transport.go:214")),
        Limit::BackendTcpKeepAlive => ("30s (DefaultTransport)", Read("Go 1.26, net/http/transport.go:50")),
        Limit::BackendTlsHandshakeTimeout => ("10s (DefaultTransport)", Read("Go 1.26, net/http/transport.go:55")),
        Limit::BackendExpectContinueTimeout => ("1s (DefaultTransport)", Read("Go 1.26, net/http/transport.go:56")),
        Limit::BackendResponseHeaderTimeout => ("no limit", Read("Go 1.26, net/http/transport.go:227")),
        Limit::BackendRequestTimeout => ("no limit", Read("Go 1.26, net/http/client.go:96")),
        _ => return None,
    })
}

fn agentkeepalive(key: Limit) -> Option<(&'static str, Known)> {
    let asked = Asked("formats::node_reads_an_http_connection_pool");
    Some(match key {
        Limit::BackendIdleConnTimeout => ("4s", asked),
        Limit::BackendMaxIdleConnsPerHost => ("256", asked),
        Limit::BackendMaxConnsPerHost | Limit::BackendMaxConnLifetime => ("no limit", asked),
        Limit::BackendTcpKeepAlive => ("1s", asked),
        Limit::BackendRequestTimeout => ("twice the idle time, at least 8s: so 0 is written beside each idle time", asked),
        _ => return None,
    })
}

fn thanos(key: Limit) -> Option<(&'static str, Known)> {
    const OBJSTORE: &str = "thanos-io/objstore 71d60dfee488, the default of each provider, such as providers/azure/azure.go:36";
    Some(match key {
        Limit::BackendIdleConnTimeout => ("90s", Read(OBJSTORE)),
        Limit::BackendMaxIdleConns | Limit::BackendMaxIdleConnsPerHost => ("100", Read(OBJSTORE)),
        Limit::BackendMaxConnsPerHost => ("no limit", Read(OBJSTORE)),
        Limit::BackendTlsHandshakeTimeout => ("10s", Read(OBJSTORE)),
        Limit::BackendExpectContinueTimeout => ("1s", Read(OBJSTORE)),
        Limit::BackendResponseHeaderTimeout => ("2m", Read(OBJSTORE)),
        _ => return None,
    })
}

fn nginx(key: Limit) -> Option<(&'static str, Known)> {
    const CORE: &str = "nginx's manual, ngx_http_core_module";
    const UPSTREAM: &str = "nginx's manual, ngx_http_upstream_module";
    Some(match key {
        Limit::ServerIdleTimeout => ("75s", Read(CORE)),
        Limit::ServerReadHeaderTimeout => ("60s", Read(CORE)),
        Limit::ServerMaxRequestsPerConn => ("1000", Read(CORE)),
        Limit::BackendIdleConnTimeout => ("60s", Read(UPSTREAM)),
        Limit::BackendMaxIdleConnsPerHost => ("it keeps none, unless your file says keepalive itself", Read(UPSTREAM)),
        Limit::BackendMaxConnLifetime => ("1h", Read(UPSTREAM)),
        _ => return None,
    })
}

fn haproxy(key: Limit) -> Option<(&'static str, Known)> {
    const TIMEOUTS: &str = "HAProxy 2.6's manual, 4.2";
    const SERVER: &str = "HAProxy 2.6's manual, 5.2";
    Some(match key {
        Limit::ServerIdleTimeout => ("timeout http-request, or else timeout client", Read(TIMEOUTS)),
        Limit::ServerReadHeaderTimeout => ("timeout client", Read(TIMEOUTS)),
        Limit::BackendIdleConnTimeout => ("5s", Read(SERVER)),
        Limit::BackendMaxIdleConnsPerHost => ("no limit", Read(SERVER)),
        Limit::BackendResponseHeaderTimeout | Limit::BackendRequestTimeout => ("no limit, and it warns", Read(TIMEOUTS)),
        _ => return None,
    })
}

/// Returns the refusal by the API server for AIStore, which has its own ranges.
fn refused(reader: &str, key: Limit, zero: bool) -> Option<&'static str> {
    Some(match (reader, key, zero) {
        ("AIStore", Limit::IntraClusterIdleConnTimeout | Limit::BackendIdleConnTimeout, true) => "refused: it takes its 6s for 0",
        ("AIStore", Limit::IntraClusterMaxIdleConns, true) => "refused: AIStore refuses it beside any per-host limit",
        ("AIStore", Limit::IntraClusterMaxIdleConnsPerHost, true) => "refused: it takes its 32 for 0",
        ("AIStore", Limit::IntraClusterIdleConnTimeout, false) => "refused: its servers close at 30s, 29s is the largest",
        ("AIStore", Limit::IntraClusterMaxIdleConns, false) => "refused: 4096 is its largest",
        ("AIStore", Limit::IntraClusterMaxIdleConnsPerHost, false) => "refused: 128 is its largest",
        _ => return None,
    })
}

#[test]
fn what_each_reader_does_with_zero_with_nothing_and_with_the_largest_value() {
    let mut page = "# 0, nothing, and the largest value\n\nGenerated by `make generate`; do not edit.\n\n\
        In a policy, 0 means \"no limit\". If a reader takes a value for something else, or cannot take it, the operator does not\n\
        write it: the limit is *not governed*, and `status.unsupported` names it. The API server refuses what AIStore would refuse.\n\
        A limit that the policy does not set is not written, and the reader uses its own default. The tests ask the real readers\n\
        for the columns of 0 and of the largest value (times of 99,999 hours, counts of 1,000,000). The last column says how the\n\
        default is known: *asked* names the test, *read* names the source or the manual.\n"
        .to_owned();
    for Reader { name, traits, absent } in readers() {
        let _ = write!(page, "\n## {name}\n\n| limit | 0 | the largest | nothing | known |\n|---|---|---|---|---|\n");
        for key in Limit::ALL {
            if traits.capability(key) == Capability::Unsupported {
                assert!(absent(key).is_none(), "{name} has no place for {key}");
                continue;
            }
            let (nothing, known) = absent(key).unwrap_or_else(|| panic!("{name}: what is {key} without a value?"));
            let known = match known {
                Asked(test) => {
                    let (module, test) = test.split_once("::").unwrap();
                    let source = std::fs::read_to_string(format!("{ROOT}/tests/it/{module}.rs")).unwrap();
                    assert!(source.contains(&format!("fn {test}(")), "{module} has no test {test}");
                    format!("asked: {module}, {}", test.replace('_', " "))
                }
                Read(place) => format!("read: {place}"),
            };
            let said = |zero: bool, taken: &str| {
                let value = if zero { no_limit()[&key] } else { largest()[&key] };
                let not = (traits.inexpressible)(key, value).map(|why| format!("not governed: {why}"));
                refused(&name, key, zero).map(str::to_owned).or(not).unwrap_or_else(|| taken.to_owned())
            };
            let _ = writeln!(page, "| `{key}` | {} | {} | {nothing} | {known} |", said(true, "no limit"), said(false, "taken"));
        }
    }
    check("docs/targets/extremes.md", &page);
}

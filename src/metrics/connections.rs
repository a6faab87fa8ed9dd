//! The pool's counters as Prometheus metrics.

use prometheus::proto::{MetricFamily, MetricType};

use super::family::family;
use crate::pool::{Closed, Pool, Tally};

/// Values of one metric, each with the value of the label that distinguishes its series.
type Values = Vec<(Option<&'static str>, f64)>;

/// A metric of each provider.
struct MetricValues {
    name: &'static str,
    /// Whether it is a counter; otherwise it is a gauge.
    grows: bool,
    /// The label that distinguishes several series, if there are several.
    apart: Option<&'static str>,
    help: &'static str,
    values: fn(&Tally) -> Values,
}

const fn counter(name: &'static str, help: &'static str, values: fn(&Tally) -> Values) -> MetricValues {
    MetricValues { name, grows: true, apart: None, help, values }
}

#[allow(clippy::cast_precision_loss)] // Counts below 2^53.
fn one(value: u64) -> Values {
    vec![(None, value as f64)]
}

#[allow(clippy::cast_precision_loss)] // Counts below 2^53.
const METRICS: [MetricValues; 8] = [
    MetricValues {
        name: "idleconn_pool_connections",
        grows: false,
        apart: Some("state"),
        help: "The operator's own open connections, active or idle; steadily growing idle connections indicate a leak",
        values: |tally| vec![(Some("active"), (tally.active + tally.connecting) as f64), (Some("idle"), tally.idle as f64)],
    },
    counter("idleconn_pool_requests_total", "Requests over the operator's own connections", |tally| one(tally.requests)),
    counter(
        "idleconn_pool_reused_total",
        "Requests over a connection that had served one before; a ratio to idleconn_pool_requests_total below 0.7 means that connections are closed too soon",
        |tally| one(tally.reuses),
    ),
    counter(
        "idleconn_pool_opened_total",
        "Connections that the operator opened; a high rate costs handshakes on both sides",
        |tally| one(tally.opened),
    ),
    counter(
        "idleconn_pool_connect_failures_total",
        "Connections that could not be opened: refused, unreachable, timed out, or not trusted",
        |tally| one(tally.refused),
    ),
    MetricValues {
        name: "idleconn_pool_closed_total",
        grows: true,
        apart: Some("reason"),
        help: "Connections closed: expired, lifetime, peer, full, done, broken, abandoned or destroyed",
        values: |tally| {
            let each = Closed::ALL.into_iter().map(|why| (Some(why.name()), tally.closed(why) as f64));
            each.filter(|(_, n)| *n > 0.0).collect()
        },
    },
    counter("idleconn_pool_waits_total", "Requests that waited for a connection because all of them were in use", |tally| {
        one(tally.waits)
    }),
    counter(
        "idleconn_pool_wait_seconds_total",
        "Total time that requests waited for a connection; divided by idleconn_pool_waits_total it is the mean",
        |tally| vec![(None, tally.waited as f64 / 1e9)],
    ),
];

/// The metrics with at least one series, one after the other: with thousands of providers, each takes megabytes. A removed
/// provider has no series.
pub fn families(pool: &Pool) -> impl Iterator<Item = MetricFamily> {
    let all = pool.statistics();
    let of = move |MetricValues { name, grows, apart, help, values }: MetricValues| {
        let series = all.iter().flat_map(|one| {
            let labels = [("protocol", one.protocol.name()), ("provider", &*one.provider)];
            values(&one.tally).into_iter().map(move |(which, value)| (labels.into_iter().chain(apart.zip(which)), value))
        });
        family(name, help, if grows { MetricType::COUNTER } else { MetricType::GAUGE }, series)
    };
    METRICS.into_iter().map(of).filter(|family| !family.get_metric().is_empty())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{metrics::Metrics, pool::Request};

    #[tokio::test]
    async fn the_operators_own_connections_are_counted_by_provider_and_gone_with_it() {
        let (metrics, pool) = (Metrics::new().expect("metrics"), Pool::default());
        metrics.connections(&pool);
        let request = Request::get("http://127.0.0.1:1", "/", Duration::from_secs(5));
        pool.provider("shop/gw").send(None, request).await.expect_err("no listener");
        let text = metrics.text().expect("text");
        assert!(text.contains(r#"idleconn_pool_connect_failures_total{protocol="http",provider="shop/gw"} 1"#), "{text}");
        assert!(text.contains(r#"idleconn_pool_connections{protocol="http",provider="shop/gw",state="idle"} 0"#), "{text}");
        pool.forget("shop/gw");
        assert!(!metrics.text().expect("text").contains("shop/gw"));
    }
}

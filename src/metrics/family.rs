//! A metric with its series, as the `prometheus` crate exposes it.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// A metric with these series, each with its labels in alphabetical order and its value.
pub fn family<'a, L: Iterator<Item = (&'a str, &'a str)>>(
    name: &str,
    help: &str,
    kind: MetricType,
    series: impl Iterator<Item = (L, f64)>,
) -> MetricFamily {
    let metric = |(labels, value): (L, f64)| {
        let mut metric = Metric::default();
        metric.set_label(labels.map(label).collect());
        if kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    };
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(series.map(metric).collect());
    family
}

fn label((name, value): (&str, &str)) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_owned());
    label
}

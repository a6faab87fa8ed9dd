//! A question to a Prometheus server whose answer is one number.

use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::sampler::{Node, Watch};
use crate::{
    decide::signal::{Gap, Measure},
    pool::{Provider, Request},
};

#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Series>),
    Scalar((f64, String)),
    Matrix(serde::de::IgnoredAny),
    String(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Series {
    value: (f64, String),
}

/// Asks; the threshold is the policy's.
pub async fn ask(
    provider: &Provider,
    watch: &Watch,
    node: &Node,
    query: &str,
    threshold: f64,
    timeout: Duration,
) -> Result<Measure, Gap> {
    let mut url = Url::parse("http://prometheus/api/v1/query").map_err(|_| Gap::QueryFailed)?;
    url.query_pairs_mut().append_pair("query", query);
    let path = format!("{}?{}", url.path(), url.query().unwrap_or_default());
    let mut request = Request::get(&node.address, &path, timeout);
    if let Some(token) = &watch.token {
        request.headers.push(("authorization", format!("Bearer {token}")));
    }
    let response = provider.send(watch.ca.as_deref(), request).await.map_err(|_| Gap::Unreachable)?;
    match response.status {
        200 => {}
        401 | 403 => return Err(Gap::Unauthorized),
        400 | 422 => return Err(Gap::QueryFailed),
        _ => return Err(Gap::Unreachable),
    }
    let answer: Answer = serde_json::from_slice(&response.body).map_err(|_| Gap::Unreachable)?;
    read(answer, threshold)
}

fn read(answer: Answer, threshold: f64) -> Result<Measure, Gap> {
    let text = match answer.data {
        Data::Scalar((_, text)) => text,
        Data::Vector(series) => {
            let mut series = series.into_iter();
            match (series.next(), series.next()) {
                (Some(only), None) => only.value.1,
                (None, _) => return Err(Gap::NoSeries),
                (Some(_), Some(_)) => return Err(Gap::SeveralSeries),
            }
        }
        Data::Matrix(_) | Data::String(_) => return Err(Gap::QueryFailed),
    };
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0).ok_or(Gap::NotFinite)?;
    Ok(Measure { tasks: Some(value), threshold: Some(threshold), pressure: value / threshold, ..Measure::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(data: &str) -> Result<f64, Gap> {
        let answer = serde_json::from_str(&format!("{{\"status\":\"success\",\"data\":{data}}}")).expect("an answer");
        read(answer, 10.0).map(|measure| measure.pressure)
    }

    #[test]
    fn one_number_is_wanted() {
        let series = r#"{"metric":{},"value":[1700000000.1,"25"]}"#;
        assert_eq!(said(&format!(r#"{{"resultType":"vector","result":[{series}]}}"#)), Ok(2.5));
        assert_eq!(said(r#"{"resultType":"scalar","result":[1700000000.1,"5"]}"#), Ok(0.5));
        assert_eq!(said(r#"{"resultType":"vector","result":[]}"#), Err(Gap::NoSeries));
        assert_eq!(said(&format!(r#"{{"resultType":"vector","result":[{series},{series}]}}"#)), Err(Gap::SeveralSeries));
        assert_eq!(said(r#"{"resultType":"vector","result":[{"metric":{},"value":[1,"NaN"]}]}"#), Err(Gap::NotFinite));
        assert_eq!(said(r#"{"resultType":"matrix","result":[]}"#), Err(Gap::QueryFailed));
    }
}

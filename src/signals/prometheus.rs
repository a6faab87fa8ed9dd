//! A query to a Prometheus server whose result is one number.

use serde::Deserialize;
use url::Url;

use super::watch::{Watch, refused, silence};
use crate::{
    decide::adaptive::signal::{Measure, NoSample},
    pass::world::SampledNode,
    pool::{Provider, Request},
};

#[derive(Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum QueryResponse {
    Success { data: Data },
    Error {},
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Series>),
    Scalar((f64, String)),
    Matrix(serde::de::IgnoredAny),
    String(serde::de::IgnoredAny),
}

/// Prometheus sends exactly one of the two.
#[derive(Deserialize)]
struct Series {
    value: Option<(f64, String)>,
    histogram: Option<serde::de::IgnoredAny>,
}

/// Runs the query. `threshold` comes from the policy.
pub async fn ask(
    provider: &Provider,
    watch: &Watch,
    node: &SampledNode,
    query: &str,
    threshold: f64,
) -> Result<Measure, NoSample> {
    if node.address.is_empty() {
        return Err(NoSample::NotPermitted);
    }
    let mut url = Url::parse("http://prometheus").map_err(|_| NoSample::NotAnAnswer)?;
    url.query_pairs_mut().append_pair("query", query);
    let path = format!("{}/api/v1/query?{}", node.path.trim_end_matches('/'), url.query().unwrap_or_default());
    let mut request = Request::get(&node.address, &path, watch.timeout());
    if let Some(token) = &watch.token {
        request.headers.push(("authorization".into(), format!("Bearer {token}")));
    }
    request.headers.push(("accept-encoding".into(), "identity".into()));
    request.headers.extend(watch.headers.iter().map(|(name, value)| (name.clone().into(), value.clone())));
    let response = provider.send(watch.ca.as_deref(), request).await.map_err(|error| silence(&error))?;
    match response.status {
        200 => {}
        status @ (400 | 422) => return Err(NoSample::QueryFailed(status)),
        status @ (401 | 403 | 300..400) => {
            return Err(refused(status, &response.headers, &format!("{}{}", node.address, node.path)));
        }
        status => return Err(NoSample::QueryStatus(status)),
    }
    if response.header("content-encoding").is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err(NoSample::Encoded);
    }
    read(serde_json::from_slice(&response.body).map_err(|_| NoSample::NotAnAnswer)?, threshold)
}

fn read(answer: QueryResponse, threshold: f64) -> Result<Measure, NoSample> {
    let QueryResponse::Success { data } = answer else { return Err(NoSample::QueryError) };
    let text = match data {
        Data::Scalar((_, text)) => text,
        Data::Vector(series) => {
            let mut series = series.into_iter();
            match (series.next(), series.next()) {
                (Some(Series { histogram: Some(_), .. }), None) => return Err(NoSample::NotANumber("native histogram")),
                (Some(Series { value: Some((_, text)), .. }), None) => text,
                (Some(_), None) => return Err(NoSample::NotAnAnswer),
                (None, _) => return Err(NoSample::NoSeries),
                (Some(_), Some(_)) => return Err(NoSample::SeveralResults),
            }
        }
        Data::Matrix(_) => return Err(NoSample::NotANumber("range of values")),
        Data::String(_) => return Err(NoSample::NotANumber("string")),
    };
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0).ok_or(NoSample::NotFinite)?;
    Ok(Measure { tasks: Some(value), threshold: Some(threshold), pressure: value / threshold, ..Measure::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(data: &str) -> Result<f64, NoSample> {
        let answer = serde_json::from_str(&format!("{{\"status\":\"success\",\"data\":{data}}}")).expect("an answer");
        read(answer, 10.0).map(|measure| measure.pressure)
    }

    #[test]
    fn one_number_is_wanted() {
        let series = r#"{"metric":{},"value":[1700000000.1,"25"]}"#;
        assert_eq!(said(&format!(r#"{{"resultType":"vector","result":[{series}]}}"#)), Ok(2.5));
        assert_eq!(said(r#"{"resultType":"scalar","result":[1700000000.1,"5"]}"#), Ok(0.5));
        assert_eq!(said(r#"{"resultType":"vector","result":[]}"#), Err(NoSample::NoSeries));
        assert_eq!(said(&format!(r#"{{"resultType":"vector","result":[{series},{series}]}}"#)), Err(NoSample::SeveralResults));
        assert_eq!(said(r#"{"resultType":"vector","result":[{"metric":{},"value":[1,"NaN"]}]}"#), Err(NoSample::NotFinite));
        assert_eq!(said(r#"{"resultType":"matrix","result":[]}"#), Err(NoSample::NotANumber("range of values")));
        let histogram = r#"{"metric":{},"histogram":[1,{"count":"5","sum":"3","buckets":[[0,"1","2","5"]]}]}"#;
        assert_eq!(
            said(&format!(r#"{{"resultType":"vector","result":[{histogram}]}}"#)),
            Err(NoSample::NotANumber("native histogram"))
        );
    }

    #[test]
    fn an_error_in_an_answer_of_200_is_one() {
        let answer =
            serde_json::from_str(r#"{"status":"error","errorType":"timeout","error":"query timed out"}"#).expect("an answer");
        assert_eq!(read(answer, 10.0), Err(NoSample::QueryError));
    }
}

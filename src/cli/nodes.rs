//! `nodes`: the nodes of a policy, from the API of the running operator.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{ListParams, PostParams},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
};
use tower::BoxError;
use url::Url;

use super::{Error, Nodes, error::cause, table::Table};
use crate::{
    api::Limits,
    pool::{self, Pool},
    serve::{
        answer::{ApiResponse, Refusal},
        policies::{Node, NodeList},
    },
};

/// Port of the API in a pod of the operator.
const PORT: u16 = 8081;
/// Labels of the pods of the operator.
const PODS: &str = "app.kubernetes.io/name=idleconn-operator";
/// Account whose token a request has.
const VIEWER: &str = "idleconn-viewer";
/// Maximum time for an answer of the operator.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of an answer, in bytes: enough for thousands of nodes.
const MAX_BODY: usize = 16 * 1024 * 1024;

fn problem(text: impl Into<String>) -> Error {
    Error::Operator(text.into())
}

/// Asks the operator. The request has a token of the viewer that expires after ten minutes, and never the caller's own token: with that,
/// the recipient could do everything that the caller may do.
pub async fn ask(config: Config, namespace: &str, options: &Nodes) -> Result<NodeList, Error> {
    let path = format!("/api/policies/{namespace}/{}/nodes", options.name);
    let client = Client::try_from(config)?;
    let token = viewer(&client, &options.operator_namespace).await;
    if let Some(url) = &options.operator {
        let answer = at(url, &path, token.as_ref().ok()).await?;
        let is_unauthorized =
            serde_json::from_slice::<Refusal>(&answer).is_ok_and(|refusal| refusal.error.code == "Unauthorized");
        return match token {
            // An operator without authentication needs no token.
            Err(error) if is_unauthorized => Err(error),
            _ => read(&answer),
        };
    }
    let token = token?;
    let pods = Api::<Pod>::namespaced(client, &options.operator_namespace);
    let mut failure = problem(format!(
        "no operator runs in namespace {}; give --operator-namespace, or --operator and its address",
        options.operator_namespace
    ));
    for pod in pods.list(&ListParams::default().labels(PODS)).await? {
        if pod.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Running") {
            continue;
        }
        let mut forwarded = pods.portforward(&pod.name_any(), &[PORT]).await?;
        let Some(stream) = forwarded.take_stream(PORT) else { continue };
        // The leader has the data. A standby answers with an error.
        match exchange(stream, "localhost", &path, Some(&token)).await.and_then(|answer| read(&answer)) {
            Ok(found) => return Ok(found),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Asks the operator at an address: with TLS anywhere, without TLS on this machine only.
async fn at(url: &Url, path: &str, token: Option<&String>) -> Result<Bytes, Error> {
    let host = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https"));
    let host = host.ok_or_else(|| problem("--operator is http://host:port or https://host:port"))?;
    let port = url.port().unwrap_or(if url.scheme() == "https" { 443 } else { PORT });
    if url.scheme() == "https" {
        let headers = token.map(|token| ("authorization".into(), format!("Bearer {token}"))).into_iter().collect();
        let request = pool::Request { headers, ..pool::Request::get(&format!("https://{host}:{port}"), path, OPERATOR_TIMEOUT) };
        let pool = Pool::default();
        let answer = pool.provider("operator").send(None, request).await;
        return Ok(answer.map_err(|error| problem(error.to_string()))?.body.into());
    }
    let silent = |error: std::io::Error| problem(format!("no operator answers at {host}:{port}: {error}"));
    let addresses: Vec<_> =
        lookup_host((host.trim_start_matches('[').trim_end_matches(']'), port)).await.map_err(silent)?.collect();
    if !addresses.iter().all(|address| address.ip().to_canonical().is_loopback()) {
        let message =
            format!("{host} is not this machine, and a token must not be sent without TLS; use https or a port-forward");
        return Err(problem(message));
    }
    let stream = TcpStream::connect(&addresses[..]).await.map_err(silent)?;
    exchange(stream, &format!("{host}:{port}"), path, token.map(String::as_str)).await
}

async fn viewer(client: &Client, namespace: &str) -> Result<String, Error> {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec { expiration_seconds: Some(600), ..TokenRequestSpec::default() },
        ..TokenRequest::default()
    };
    let made = accounts.create_token_request(VIEWER, &PostParams::default(), &request).await.map_err(|error| {
        problem(format!(
            "cannot create a token of ServiceAccount {VIEWER} in namespace {namespace}: {}; check that the operator runs there with \
             api.viewer, and that you may create serviceaccounts/token",
            cause(&error)
        ))
    })?;
    made.status.map(|status| status.token).ok_or_else(|| problem("the API server created no token"))
}

async fn exchange<S>(stream: S, host: &str, path: &str, token: Option<&str>) -> Result<Bytes, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asked = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::get(path).header(header::HOST, host);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await?.to_bytes();
        connection.abort();
        Ok::<_, BoxError>(body)
    };
    match tokio::time::timeout(OPERATOR_TIMEOUT, asked).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => Err(problem(format!("the operator did not answer: {error}"))),
        Err(_) => Err(problem(format!("the operator did not answer within {OPERATOR_TIMEOUT:?}"))),
    }
}

fn read(body: &[u8]) -> Result<NodeList, Error> {
    if let Ok(ApiResponse { data, .. }) = serde_json::from_slice::<ApiResponse<NodeList>>(body) {
        return Ok(data);
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => Err(problem(refusal.error.message)),
        Err(_) => Err(problem("the answer is not from an operator, or from another version of it")),
    }
}

/// Prints one row for each limit of each node.
pub fn rows(list: &NodeList, wide: bool, no_headers: bool) -> String {
    let mut headings = vec!["NODE", "TASKS", "LIMIT", "DESIRED", "PROGRAMMED", "IN EFFECT", "MEASURED", "STATE", "ERROR"];
    if wide {
        headings.extend(["UNIT", "UTILIZATION"]);
    }
    let row = |node: &Node| {
        let percent = node.load.utilization_percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent}%"));
        let more = if wide { vec![node.unit.clone(), percent] } else { Vec::new() };
        of_node(node).into_iter().map(move |cells| cells.into_iter().chain(more.clone()).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    Table::new(&headings, no_headers).lines(&list.nodes.iter().flat_map(row).collect::<Vec<_>>())
}

fn of_node(node: &Node) -> Vec<[String; 9]> {
    let [desired, programmed, in_effect, measured] =
        [&node.desired, &node.programmed, &node.in_effect, &node.measured].map(Limits::settings);
    let tasks = match (node.load.tasks, node.load.threshold, &node.gap) {
        (Some(tasks), Some(threshold), _) => format!("{tasks}/{threshold}"),
        (Some(tasks), None, _) => tasks.to_string(),
        // A missing count is not zero.
        (None, _, Some(_)) => "unknown".to_owned(),
        (None, _, None) => "-".to_owned(),
    };
    let row = |limit: String, desired: String, programmed: String, in_effect: String, measured: String| {
        let error = node.error.clone().or_else(|| node.gap.clone()).unwrap_or_else(|| "-".to_owned());
        [node.name.clone(), tasks.clone(), limit, desired, programmed, in_effect, measured, format!("{:?}", node.stage), error]
    };
    let or = |value: Option<&crate::api::Value>, otherwise: &str| value.map_or_else(|| otherwise.to_owned(), ToString::to_string);
    let dash = || "-".to_owned();
    // A limit that the target does not have can still be measured.
    let beside = measured.iter().filter(|(limit, _)| !desired.contains_key(*limit));
    let beside = beside.map(|(limit, value)| row(limit.to_string(), dash(), dash(), dash(), value.to_string()));
    if desired.is_empty() && measured.is_empty() {
        return vec![row(dash(), dash(), dash(), dash(), dash())];
    }
    let declared = desired.iter().map(|(limit, value)| {
        let (programmed, in_effect) = (or(programmed.get(limit), "nothing"), or(in_effect.get(limit), "unknown"));
        row(limit.to_string(), value.to_string(), programmed, in_effect, or(measured.get(limit), "-"))
    });
    declared.chain(beside).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_limit_has_its_values_and_unknown_ones_are_named() {
        let body = json!({"success": true, "data": {"seen": "2026-11-22T01:00:00Z", "nodes": [
            {"name": "gw-1", "unit": "gw-1", "stage": "Programmed", "tasks": 90, "threshold": 100, "utilizationPercent": 90,
             "desired": {"server": {"idleTimeout": "30s", "readHeaderTimeout": "5s"}}, "programmed": {"server": {"idleTimeout": "30s"}},
             "inEffect": {}, "measured": {"server": {"idleTimeout": "5m"}}},
            {"name": "gw-2", "unit": "gw-2", "stage": "Unreachable", "error": "gw-2 did not answer", "gap": "does not answer",
             "desired": {}, "programmed": {}, "inEffect": {}},
            {"name": "t-1", "unit": "ais", "stage": "InEffect", "desired": {}, "programmed": {}, "inEffect": {},
             "measured": {"server": {"idleTimeout": "30s"}}},
        ]}});
        let list = read(body.to_string().as_bytes()).expect("a list");
        assert_eq!(
            rows(&list, false, false),
            "NODE   TASKS     LIMIT                      DESIRED   PROGRAMMED   IN EFFECT   MEASURED   STATE         ERROR\n\
             gw-1   90/100    server.idleTimeout         30s       30s          unknown     5m         Programmed    -\n\
             gw-1   90/100    server.readHeaderTimeout   5s        nothing      unknown     -          Programmed    -\n\
             gw-2   unknown   -                          -         -            -           -          Unreachable   gw-2 did not answer\n\
             t-1    -         server.idleTimeout         -         -            -           30s        InEffect      -\n"
        );
        let wide = rows(&list, true, true);
        assert!(wide.starts_with("gw-1 ") && wide.lines().all(|line| line.ends_with('%') || line.ends_with('-')), "{wide}");
        assert!(wide.lines().last().is_some_and(|line| line.contains(" ais ")), "{wide}");
    }

    #[test]
    fn a_refusal_is_passed_on_and_other_answers_are_not_from_an_operator() {
        let said = |body: &str| read(body.as_bytes()).expect_err("no list").to_string();
        assert_eq!(said(r#"{"success": false, "error": {"code": "NotLeading", "message": "ask another"}}"#), "ask another");
        assert_eq!(said("<html>"), "the answer is not from an operator, or from another version of it");
    }
}

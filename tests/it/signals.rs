//! Sources of the task count: metrics pages as real servers write them, and the fields that select series and configure the
//! Prometheus query.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use idleconn_operator::{
    decide::adaptive::signal::{Ages, Signal},
    pass::world::SampledNode,
    pool::Pool,
    signals::{
        Sampler, Source, Watch,
        exposition::{Families, Found, Sample},
        page::{Probe, Threshold},
    },
};
use jiff::Timestamp;
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};

use crate::support::{
    caddy::{Caddy, address},
    cluster::ROOT,
    operator::{World, endpoints, find},
    service::{pod, target},
};

/// Server that sends a configured response for each path and query, byte for byte, and closes the connection. It ends with the
/// test.
struct Raw {
    address: String,
    answers: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// Heads of the requests.
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Raw {
    async fn start(at: (std::net::Ipv4Addr, u16)) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (answers, asked) = (Arc::new(Mutex::new(BTreeMap::<String, Vec<u8>>::new())), Arc::new(Mutex::new(Vec::new())));
        let shared = (answers.clone(), asked.clone());
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (answers, asked) = shared.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let head = String::from_utf8(head).unwrap();
                    let path = head.split(' ').nth(1).unwrap().to_owned();
                    asked.lock().unwrap().push(head);
                    let answer = answers.lock().unwrap().get(&path).cloned();
                    let answer = answer.unwrap_or_else(|| b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec());
                    let _ = stream.write_all(&answer).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { address, answers, asked, task }
    }

    fn says(&self, path: &str, answer: impl Into<Vec<u8>>) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer.into());
    }

    fn last(&self) -> String {
        self.asked.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns a response with a Content-Length.
fn page(body: &str) -> Vec<u8> {
    typed("text/plain; version=0.0.4", body)
}

fn typed(kind: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Returns a response that ends with its connection.
fn unframed(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n{body}").into_bytes()
}

/// Returns the result of one round for one node: the count, or the reason and the message.
async fn count(address: &str, path: &str, source: Source) -> String {
    let watch = Watch {
        nodes: vec![SampledNode {
            name: "node".into(),
            address: address.to_owned(),
            named: false,
            pod: String::new(),
            path: path.to_owned(),
        }],
        source,
        interval: Duration::from_secs(30),
        ca: None,
        token: None,
        headers: Vec::new(),
        permit: None,
        key: String::new(),
    };
    let (sender, mut rounds) = tokio::sync::mpsc::unbounded_channel();
    let pool = Pool::default();
    let after = move || {
        let _ = sender.send(());
    };
    let sampler = Sampler::start(pool.provider("ns/p"), watch, "seed", after, || {});
    tokio::time::timeout(Duration::from_secs(20), rounds.recv()).await.unwrap().unwrap();
    match sampler.signal(95, Ages { most: 90_000, young: 0 }, Timestamp::now().as_millisecond()) {
        Signal::Fresh(reading) => format!("{}", reading.max.unwrap()),
        Signal::Unasked { message } => message,
        Signal::Missing { reason, message } => format!("{reason}: {}", message.split_once("; ").unwrap().1),
    }
}

#[allow(clippy::too_many_lines)] // A table.
fn pages() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let now = Timestamp::now().as_millisecond();
    let hour = 3_600_000;
    let filler: String = (0..60_000).fold(String::new(), |mut text, n| {
        writeln!(text, "http_request_duration_seconds_bucket{{route=\"/api/v1/objects/{n}\",code=\"200\",le=\"0.25\"}} {n}")
            .unwrap();
        text
    });
    let large = format!("# TYPE go_goroutines gauge\ngo_goroutines 25\nx 1\n{filler}{filler}");
    assert!(large.len() > 8 * 1024 * 1024, "{}", large.len());
    let old = "Stale: node answers with a sample whose timestamp is too old or too far in the future";
    let several =
        "SeveralSeries: node has several series; set spec.adaptive.signal.matchLabels or spec.adaptive.signal.aggregation";
    vec![
        ("a sample of an hour ago", page(&format!("go_goroutines 2500 {}\n", now - hour)), old),
        ("a sample of now", page(&format!("go_goroutines 25 {now}\n")), "25"),
        (
            "seconds in OpenMetrics",
            typed("application/openmetrics-text; version=1.0.0", &format!("go_goroutines 25 {}\n# EOF\n", now / 1000)),
            "25",
        ),
        (
            "an hour ago in OpenMetrics",
            typed("application/openmetrics-text; version=1.0.0", &format!("go_goroutines 25 {}\n# EOF\n", (now - hour) / 1000)),
            old,
        ),
        ("a trailing blank in TYPE", page("# TYPE go_goroutines gauge \ngo_goroutines 25\n"), "25"),
        ("two blanks", page("#  TYPE\tgo_goroutines  gauge\ngo_goroutines  25\n"), "25"),
        ("leading blanks", page("  # TYPE go_goroutines gauge\n  go_goroutines 25\n"), "25"),
        ("a quoted name", page("# TYPE \"go_goroutines\" gauge\n{\"go_goroutines\"} 25\n"), "25"),
        ("GAUGE", page("# TYPE go_goroutines GAUGE\ngo_goroutines 25\n"), "25"),
        (
            "a summary",
            page("# TYPE go_goroutines summary\ngo_goroutines 25\n"),
            "NoSeries: node has the series as a summary; name a gauge",
        ),
        ("the same line twice", page("go_goroutines 25\ngo_goroutines 25\n"), "25"),
        (
            "three times of one series",
            page(&format!("go_goroutines 1 {}\ngo_goroutines 25 {now}\ngo_goroutines 3 {}\n", now - 2000, now - 1000)),
            "25",
        ),
        ("a series for each worker", page("go_goroutines{pid=\"1\"} 5\ngo_goroutines{pid=\"2\"} 6\n"), several),
        (
            "a redirect",
            b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /metrics/?secret=1\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "BelowQuorum: node answers with HTTP status 307, a redirect to /metrics/, which is not followed; correct the path",
        ),
        (
            "a redirect elsewhere",
            b"HTTP/1.1 302 Found\r\nLocation: https://sso.example/login\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "BelowQuorum: node answers with HTTP status 302, a redirect, which is not followed; correct the path",
        ),
        (
            "503",
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "BelowQuorum: node answers with HTTP status 503 instead of metrics",
        ),
        (
            "401",
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "Unauthorized: node refuses access (HTTP status 401)",
        ),
        (
            "a login page",
            typed("text/html; charset=utf-8", "<html><body>Log in</body></html>"),
            "BelowQuorum: node answers with a web page (text/html) instead of metrics; correct the path or the port",
        ),
        (
            "compressed unasked",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00".to_vec(),
            "BelowQuorum: node answers with a Content-Encoding that was not requested; turn off compression for this path",
        ),
        ("a page of more than 8 MiB, the gauge at its beginning", page(&large), "25"),
        ("and at its end", page(&format!("{filler}{filler}go_goroutines 25\n")), "25"),
        ("cut in the middle of a value", unframed("a 1\ngo_goroutines 12"), "BelowQuorum: node sent an incomplete page"),
        ("whole without a length", unframed("a 1\ngo_goroutines 25\n"), "25"),
        ("whole without a last newline", page("a 1\ngo_goroutines 25"), "25"),
        (
            "a last chunk without a last newline",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nd\r\ngo_goroutines\r\n3\r\n 25\r\n0\r\n\r\n".to_vec(),
            "25",
        ),
        (
            "less than its length",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ngo_goroutines 25\n".to_vec(),
            "BelowQuorum: node closed the connection before the end of its answer, or does not speak HTTP",
        ),
        ("a byte order mark", page("\u{feff}go_goroutines 25\r\n"), "25"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_as_servers_write_them_count_or_are_named_for_what_is_wrong() {
    let server = Raw::start((address(), 0)).await;
    let mut wrong = Vec::new();
    for (what, answer, expected) in pages() {
        server.says("/metrics", answer);
        let probe = Probe::gauge("go_goroutines", Threshold::Value(100.0));
        let seen = count(&server.address, "/metrics", Source::Nodes(Arc::new(probe))).await;
        if seen != expected {
            wrong.push(format!("{what}: {seen}, expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(server.last().to_ascii_lowercase().contains("\r\naccept-encoding: identity\r\n"), "{}", server.last());
    let probe = Probe::gauge("go_goroutines", Threshold::Value(100.0));
    let unreachable = count(&format!("http://{}:9", address()), "/metrics", Source::Nodes(Arc::new(probe))).await;
    assert_eq!(unreachable, "BelowQuorum: node cannot be reached: connection refused or no route");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_query_is_answered_with_is_named_for_what_it_is() {
    let server = Raw::start((address(), 0)).await;
    let json = |body: &str| typed("application/json", body);
    let failed = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes();
    let vector = |series: &str| json(&format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{series}]}}}}"#));
    let mut wrong = Vec::new();
    for (what, answer, expected) in [
        ("a number", vector(r#"{"metric":{},"value":[1700000000.1,"25"]}"#), "25"),
        (
            "a native histogram",
            vector(r#"{"metric":{},"histogram":[1700000000.1,{"count":"5","sum":"3","buckets":[[0,"1","2","5"]]}]}"#),
            "QueryFailed: node answers with a native histogram; the query must return one number",
        ),
        (
            "an error in a 200",
            json(r#"{"status":"error","errorType":"timeout","error":"query timed out"}"#),
            "QueryFailed: node answers with an error instead of a result",
        ),
        ("503", failed("503 Service Unavailable"), "QueryFailed: node answers the query with HTTP status 503"),
        ("404", failed("404 Not Found"), "QueryFailed: node answers the query with HTTP status 404"),
        ("400", failed("400 Bad Request"), "QueryFailed: node refused the query (HTTP status 400)"),
        (
            "a web page",
            typed("text/html", "<html>"),
            "QueryFailed: node does not answer with a query result; correct the endpoint or pathPrefix",
        ),
        ("more than is read", json(&" ".repeat(9 * 1024 * 1024)), "BelowQuorum: node answers with more than 8 MiB"),
    ] {
        server.says("/api/v1/query?query=up", answer);
        let seen = count(&server.address, "", Source::Prometheus { query: "up".into(), threshold: 100.0 }).await;
        if seen != expected {
            wrong.push(format!("{what}: {seen}, expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Syntax that the format allows and the parser of Prometheus accepts. That parser treats blanks before a name as part of the
/// name, so there are none.
const ALLOWED: &str = concat!(
    "# TYPE a gauge\na  1\n\t# a comment\n\na { b = \"c\" , d = \"e\" , } 2.5 1700000000000\na{b=\"c\"}3\n{\"a.b\",c=\"d\"} 4\n",
    "{c=\"d\", \"a.b\"} 5\n{ \"a\" } 6\na{b=\"x\\\\y\\\"z\\n,}{=\"} 7\n# TYPE \"q\" gauge\n# EOF\na_after 8\na{\"b.c\"=\"d\"} +Inf \n",
    "a{b=\"d\",c=\"\"} -0.5e-3 \t 17 \n",
);

#[test]
fn real_prometheus_reads_the_same_samples() {
    let folder = std::env::temp_dir().join(format!("idleconn-textparse-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (root, program) = (Path::new(ROOT), folder.join("textparse"));
    let built =
        Command::new("go").current_dir(root.join("tests/textparse")).args(["build", "-o"]).arg(&program).arg(".").status();
    assert!(built.is_ok_and(|status| status.success()), "tests/textparse cannot be built; see above");
    let file = folder.join("page.txt");
    std::fs::write(&file, ALLOWED).unwrap();
    let said = Command::new(&program).arg(&file).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let theirs = String::from_utf8(said.stdout).unwrap();
    let families = Families::new(["a", "a.b", "a_after"], Vec::new());
    let found = families.find(ALLOWED.as_bytes()).filter_map(|(_, found)| match found {
        Found::Sample(sample) => Some(shown(&sample)),
        Found::Type(_) | Found::Malformed => None,
    });
    let ours: Vec<String> = found.collect();
    assert!(ours.len() > 9);
    assert_eq!(ours, theirs.lines().collect::<Vec<_>>());
    let _ = std::fs::remove_dir_all(&folder);
}

/// Formats a sample as tests/textparse does.
fn shown(sample: &Sample<'_>) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut labels: Vec<_> = sample.labels.map(|(name, value)| (text(name), text(&value.text()))).collect();
    labels.sort();
    let labels: String = labels.iter().fold(String::new(), |all, (name, value)| format!("{all} {name}={value:?}"));
    #[allow(clippy::cast_possible_truncation)] // Whole milliseconds.
    let time = sample.timestamp.map(|time| format!(" @{}", time as i64)).unwrap_or_default();
    format!("{}{labels} {:016x}{time}", text(sample.name), sample.value.to_bits())
}

/// Returns a policy whose nodes have their metrics page at this path.
fn paged(path: &str, signal: &Json) -> Json {
    let mut target = target("yaml");
    target["configMap"]["metrics"] = json!({"port": 8081, "path": path});
    json!({
        "target": target,
        "limits": {"server": {"idleTimeout": "30s"}},
        "adaptive": {"mode": "Recommend", "floor": {"server": {"idleTimeout": "5s"}}, "signal": signal},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_says_which_series_count_and_where_the_page_is() {
    let world = World::new("series").await;
    let ip = address();
    let server = Raw::start((ip, 8081)).await;
    let workers = page("tasks{pid=\"1\",app=\"web\"} 30\ntasks{pid=\"2\",app=\"web\"} 12\ntasks{pid=\"3\",app=\"batch\"} 500\n");
    server.says("/v1/metrics?format=prometheus", workers);
    pod(&world, "gw-0", &json!({"app": "gateway"}), &json!({}), &ip.to_string()).await;
    let signal = |extra: Json| {
        let mut signal = json!({"metric": "tasks", "threshold": {"value": 1000}, "interval": "1s"});
        signal.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        signal
    };
    let path = "/v1/metrics?format=prometheus";
    let reads = async |extra: Json, tasks: f64| {
        world.apply("gw", &paged(path, &signal(extra))).await;
        let what = format!("{tasks} tasks");
        #[allow(clippy::float_cmp, clippy::cast_precision_loss)] // Small whole numbers.
        world.until("gw", &what, |s| s.tasks.as_ref().and_then(|t| t.max).is_some_and(|max| max as f64 == tasks)).await;
    };
    world.apply("gw", &paged(path, &signal(json!({})))).await;
    let status = world.until_condition("gw", "MetricsAvailable", "False", "SeveralSeries").await;
    let message = &find(&status, "MetricsAvailable").unwrap().message;
    assert!(
        message.ends_with(
            "set spec.adaptive.signal.matchLabels or spec.adaptive.signal.aggregation; spec.adaptive.signal.metric is tasks"
        ),
        "{message}"
    );
    reads(json!({"aggregation": "Sum"}), 542.0).await;
    reads(json!({"aggregation": "Max"}), 500.0).await;
    reads(json!({"aggregation": "Sum", "matchLabels": {"app": "web"}}), 42.0).await;
    reads(json!({"matchLabels": {"app": "web", "pid": "2"}}), 12.0).await;
    world.apply("gw", &paged(path, &signal(json!({"matchLabels": {"app": "none"}})))).await;
    let status = world.until_condition("gw", "MetricsAvailable", "False", "NoSeries").await;
    let message = &find(&status, "MetricsAvailable").unwrap().message;
    assert!(
        message.ends_with("not with the labels in spec.adaptive.signal.matchLabels; spec.adaptive.signal.metric is tasks"),
        "{message}"
    );
    world.apply("gw", &paged("/metrics", &signal(json!({})))).await;
    world
        .until("gw", "the status is named", |s| {
            find(s, "MetricsAvailable").is_some_and(|c| c.message.contains("answers with HTTP status 404"))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_is_asked_under_its_prefix_and_with_headers_from_secrets() {
    let world = World::new("mimir").await;
    let caddy = Caddy::start(json!({"web": {"listen": ["IP:8080"]}})).await;
    let server = Raw::start((address(), 0)).await;
    let number = r#"{"status":"success","data":{"resultType":"scalar","result":[1700000000.1,"7"]}}"#;
    server.says("/prometheus/api/v1/query?query=max%28tasks%29", typed("application/json", number));
    let spec = json!({
        "target": endpoints([caddy.admin().as_str()]),
        "limits": {"server": {"idleTimeout": "30s"}},
        "adaptive": {
            "mode": "Recommend",
            "floor": {"server": {"idleTimeout": "5s"}},
            "signal": {"source": "Prometheus", "interval": "1s", "threshold": {"value": 10}, "prometheus": {
                "endpoint": server.address, "pathPrefix": "/prometheus", "query": "max(tasks)",
                "headers": [{"name": "X-Scope-OrgID", "secretRef": {"name": "mimir", "key": "tenant"}}],
            }},
        },
    });
    world.apply("gw", &spec).await;
    let message =
        |status: &idleconn_operator::api::IdleConnectionPolicyStatus| find(status, "MetricsAvailable").unwrap().message.clone();
    let status = world.until_condition("gw", "MetricsAvailable", "False", "RefNotFound").await;
    assert_eq!(
        message(&status),
        "Secret mimir does not exist; create it, or correct prometheus.headers[X-Scope-OrgID].secretRef"
    );
    world.secret("mimir", &[("tenent", "team-a")]).await;
    let status = world.until_condition("gw", "MetricsAvailable", "False", "RefKeyNotFound").await;
    let no_key = "Secret mimir has no key tenant; add it, or correct prometheus.headers[X-Scope-OrgID].secretRef.key";
    assert_eq!(message(&status), no_key);
    world.secret("mimir", &[("tenant", "team-a\n")]).await;
    let status = world.until_condition("gw", "MetricsAvailable", "True", "Fresh").await;
    assert_eq!(status.tasks.unwrap().max.map(|max| max.to_string()).as_deref(), Some("7"));
    let head = server.last().to_ascii_lowercase();
    assert!(head.contains("\r\nx-scope-orgid: team-a\r\n") && head.contains("\r\nhost: 127."), "{head}");
    let everything = format!("{:?}{:?}", world.status("gw").await, world.event_notes("gw").await);
    assert!(!everything.contains("team-a"), "a header's value reached the user");
}

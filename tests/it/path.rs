//! `kubectl idleconn path` on a real chain: a Go client, nginx, and Node with its short idle timeout.

use std::{net::SocketAddr, time::Duration};

use futures::future::join_all;
use serde_json::{Value as Json, json};
use tokio::{process::Command, time::Instant};

use crate::support::{caddy::address, scripted::Scripted, servers::Server, service::Service, slow_link::SlowLink};

/// Number of concurrent requests. Each needs a separate connection.
const BURST: usize = 500;
/// Network delay between nginx and Node. nginx learns this much later that Node has closed a connection.
const DELAY: Duration = Duration::from_millis(40);
/// Time after which Node closes: `keepAliveTimeout` of 2 s, and one second that Node adds.
const NODE_CLOSES: Duration = Duration::from_secs(3);

async fn path(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kubectl-idleconn")).arg("path").args(arguments).output().await.unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
}

/// Go client that keeps idle connections for a second, with an nginx in front of `api`.
struct Chain {
    go: Service,
    nginx: Server,
}

impl Chain {
    async fn start(api: SocketAddr, nginx_keeps: Duration) -> Self {
        let upstream = format!(
            "upstream api {{ server {api}; keepalive {}; keepalive_timeout {}ms; }}",
            BURST + 100,
            nginx_keeps.as_millis()
        );
        let location = "location = /api { proxy_pass http://api/; proxy_http_version 1.1; proxy_set_header Connection \"\"; }";
        let nginx = Server::nginx("", &upstream, location).await;
        let mut go = Service::alone(&[&format!("-upstream={}api", nginx.url())]).await;
        go.write(&format!("backend: {{IdleConnTimeout: 1s, MaxIdleConns: {0}, MaxIdleConnsPerHost: {0}}}\n", BURST + 100));
        go.restart().await;
        Self { go, nginx }
    }

    /// Sends one POST in each millisecond and returns the number of lost requests. nginx uses the connection that was used last,
    /// so the idle times of the connections of the next burst are spread over a second.
    async fn burst(&self) -> usize {
        let (client, url) = (reqwest::Client::new(), format!("http://{}/upstream", self.go.listen()));
        let begin = Instant::now();
        let each = (0..BURST).map(|n| {
            let request = client.post(&url);
            async move {
                tokio::time::sleep_until(begin + Duration::from_millis(n as u64)).await;
                request.send().await
            }
        });
        join_all(each).await.into_iter().filter(|answer| !answer.as_ref().is_ok_and(|answer| answer.status() == 200)).count()
    }

    /// Sends bursts when connections have been idle for as long as Node keeps them, until `is_enough` of the number of bursts and
    /// of lost requests. Returns both numbers. Each burst comes a little earlier than the one before, because it takes longer on a
    /// loaded machine, and connections that are known to be closed lose nothing.
    async fn lost(&self, is_enough: impl Fn(u64, usize) -> bool) -> (u64, usize) {
        assert_eq!(self.burst().await, 0, "over new connections");
        let (mut bursts, mut lost) = (0, 0);
        while !is_enough(bursts, lost) {
            let early = Duration::from_millis(400 + 100 * (bursts % 10));
            // This sleep sets the pace and does not wait for an event: the connections have the required idle time then.
            tokio::time::sleep_until(Instant::now() + NODE_CLOSES.checked_sub(early).unwrap()).await;
            (bursts, lost) = (bursts + 1, lost + self.burst().await);
        }
        (bursts, lost)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hop_is_named_and_what_is_advised_ends_the_losses() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The handler is slow enough that a burst needs a connection for each request.
    let slow =
        "server.removeAllListeners('request'); server.on('request', (_, answer) => setTimeout(() => answer.end('ok'), 700));";
    let node = Server::node(Duration::from_secs(2), slow).await;
    let link = SlowLink::start(SocketAddr::from((address(), 0)), node.listen, DELAY).await;
    let before = Chain::start(link.address, Duration::from_secs(60)).await;
    let (nginx, api) = (format!("nginx={}", before.nginx.url()), format!("api=http://{}/", link.address));

    let (in_words, in_json, changed) = (
        ["--client-idle", "1s", &nginx, &api],
        ["-o", "json", "--client-idle", "1s", &nginx, &api],
        ["--client-idle", "1s", "--client-idle", "nginx=2s", &nginx, &api],
    );
    let ((ok, said), (_, hops), (fixed, says)) = tokio::join!(path(&in_words), path(&in_json), path(&changed));
    let lost = "Requests are lost between nginx and api: nginx keeps idle connections for 1m, and api closes them after ";
    assert!(!ok && said.contains(lost), "{said}");
    assert!(
        said.contains("lower the idle time of nginx from 1m to 2s or less, or raise the idle timeout of api from "),
        "{said}"
    );
    assert!(fixed && !says.contains("lost"), "{says}");
    // Progress follows on standard error.
    let hops: Json = serde_json::Deserializer::from_str(&hops).into_iter().next().unwrap().unwrap();
    let verdicts: Vec<_> = hops.as_array().unwrap().iter().map(|hop| hop["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["Safe", "Trap"], "{hops}");
    let measured = Duration::from_millis(hops[1]["serverIdleMillis"].as_u64().unwrap());
    assert!(measured.abs_diff(NODE_CLOSES) < Duration::from_millis(250), "{hops}");

    let advised = &hops[1]["changes"][0];
    assert_eq!((&advised["side"], &advised["name"]), (&"client".into(), &"nginx".into()), "{hops}");
    let after = Chain::start(link.address, Duration::from_millis(advised["toMillis"].as_u64().unwrap())).await;
    let (bursts, lost_before) = before.lost(|bursts, lost| (bursts >= 2 && lost > 0) || bursts >= 20).await;
    let (_, lost_after) = after.lost(|sent, _| sent >= bursts).await;
    println!("of {bursts} bursts of {BURST} requests {lost_before} were lost before, and {lost_after} after");
    assert!(lost_before > 0, "before, some are lost");
    assert_eq!(lost_after, 0, "after, none is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_known_by_its_policy_its_name_or_what_is_given() {
    let server = Scripted::idle(Duration::from_secs(2), "").await;
    let file = std::env::temp_dir().join(format!("idleconn-path-{}.yaml", std::process::id()));
    let policy = json!({"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": {"name": "gateway"}, "spec": {
        "target": {"type": "Caddy", "caddy": {"selector": {"matchLabels": {"app": "gateway"}}}},
        "limits": {"server": {"idleTimeout": "5s"}, "backend": {"idleConnTimeout": "500ms"}}}});
    std::fs::write(&file, policy.to_string()).unwrap();
    let (file_, api, other) = (file.to_str().unwrap(), format!("api={}", server.url()), format!("other={}", server.url()));

    let (ok, said) = path(&["-f", file_, "--client-idle", "httpx", "gateway", &api]).await;
    let lines: Vec<_> = said.lines().collect();
    assert!(!ok && lines[1].contains("5s (default of httpx)") && lines[1].contains("5s (declared in the policy)"), "{said}");
    assert!(lines[2].contains("500ms (declared in the policy)") && lines[2].ends_with("Safe"), "{said}");
    assert!(said.contains("raise the idle timeout of gateway from 5s to 6s or more"), "{said}");

    let (ok, said) = path(&["--client-idle", "1s", &api, &other, "--max-wait", "3s"]).await;
    assert!(!ok && said.contains("the idle time of api is not known; give --client-idle api=TIME, or its software"), "{said}");
    let (ok, said) = path(&["--client-idle", "envoy", &api, "--max-wait", "100ms"]).await;
    assert!(!ok && said.contains("api keeps connections longer than 100ms; give a longer --max-wait"), "{said}");
    for (arguments, problem) in [
        (&["--client-idle", "pony", api.as_str()][..], "pony is neither a time nor one of agentkeepalive"),
        (&["--client-idle", "nope=1s", &api], "--client-idle nope=… names no hop"),
        (&["ftp://x"], "is neither NAME=URL"),
        (&["x=ftp://x"], "is neither NAME=URL"),
    ] {
        let (ok, said) = path(arguments).await;
        assert!(!ok && said.contains(problem), "{said}");
    }
    std::fs::remove_file(file).unwrap();
}

//! `kubectl idleconn probe` with real servers with known settings, and with hostile servers.

use std::time::{Duration, Instant};

use serde_json::Value as Json;
use tokio::process::Command;

use crate::support::{scripted::Scripted, servers::Server};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Returns whether the plugin succeeded, and its output.
async fn idleconn(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kubectl-idleconn")).args(arguments).output().await.unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Returns the rows of `probe -o json`.
async fn rows(arguments: &[&str]) -> Vec<Json> {
    let all: Vec<_> = ["probe", "-o", "json"].iter().chain(arguments).copied().collect();
    let (_, out, err) = idleconn(&all).await;
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"))
}

/// Checks that every connection of a row closed within 1% or 250 ms of the expected time.
fn assert_closes_after(row: &Json, expected: Duration, connections: u64) {
    let idle = &row["idleTimeout"];
    let allowed = (expected / 100).max(Duration::from_millis(250));
    assert_eq!((idle["connections"].as_u64(), idle["stillOpen"].as_u64()), (Some(connections), Some(0)), "{row}");
    for bound in ["minMillis", "medianMillis", "maxMillis"] {
        let measured = Duration::from_millis(idle[bound].as_u64().unwrap());
        assert!(measured.abs_diff(expected) <= allowed, "{bound}: {measured:?} instead of {expected:?}: {row}");
    }
}

/// Measures each server over ten connections, twice.
async fn twenty_times(servers: &[(Server, Duration)], flags: &[&str], url: impl Fn(&Server) -> String) {
    let urls: Vec<_> = servers.iter().flat_map(|(server, _)| [url(server), url(server)]).collect();
    let arguments: Vec<_> = ["--connections", "10", "--max-wait", "75s"]
        .iter()
        .chain(flags)
        .copied()
        .chain(urls.iter().map(String::as_str))
        .collect();
    let rows = rows(&arguments).await;
    assert_eq!(rows.len(), urls.len());
    for (row, (_, expected)) in rows.iter().zip(servers.iter().flat_map(|one| [one, one])) {
        assert_closes_after(row, *expected, 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_timeouts_of_real_servers_are_measured_within_a_percent_or_250_ms_twenty_times() {
    let servers = [
        (Server::go(secs(3)).await, secs(3)),
        (Server::node(secs(2), "").await, secs(3)),
        (Server::nginx("", "keepalive_timeout 2s;", "").await, secs(2)),
        (Server::haproxy(secs(3), "").await, secs(3)),
        (Server::envoy(secs(2), secs(1), false).await, secs(3)),
    ];
    twenty_times(&servers, &[], Server::url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http2_goaway_counts_as_the_close() {
    let servers = [
        (Server::caddy(secs(2)).await, secs(2)),
        (Server::nginx(" ssl http2", "keepalive_timeout 2s;", "").await, secs(2)),
        (Server::haproxy(secs(3), " ssl crt DIR/both.pem alpn h2,http/1.1").await, secs(3)),
        (Server::envoy(secs(2), secs(5), true).await, secs(2)),
    ];
    twenty_times(&servers, &["--insecure", "--host", "localhost", "--protocol", "http2"], Server::secure_url).await;
    // The two HTTP versions of one server are separate rows, and the certificate is verified.
    let (caddy, _) = &servers[0];
    let ca = caddy.ca();
    let both = rows(&["--ca", ca.to_str().unwrap(), "--host", "localhost", &caddy.secure_url()]).await;
    let protocols: Vec<_> = both.iter().map(|row| row["protocol"].as_str().unwrap()).collect();
    assert_eq!(protocols, ["HTTP/1.1", "HTTP/2"]);
    for row in &both {
        assert_closes_after(row, secs(2), 3);
        assert!(row["tlsHandshakeMicros"].as_u64() < row["reuseSavesMicros"].as_u64(), "{row}");
    }
    let (ok, _, _) = idleconn(&["probe", "--host", "localhost", &caddy.secure_url()]).await;
    assert!(!ok, "the system does not know this CA");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make probe"]
async fn long_idle_timeouts_of_real_servers_are_measured_within_a_percent() {
    let servers = [
        (Server::go(secs(60)).await, secs(60)),
        (Server::node(secs(59), "").await, secs(60)),
        (Server::nginx("", "keepalive_timeout 60s;", "").await, secs(60)),
        (Server::haproxy(secs(30), "").await, secs(30)),
        (Server::envoy(secs(55), secs(5), false).await, secs(60)),
    ];
    let secure = [
        (Server::caddy(secs(60)).await, secs(60)),
        (Server::nginx(" ssl http2", "keepalive_timeout 60s;", "").await, secs(60)),
        (Server::haproxy(secs(30), " ssl crt DIR/both.pem alpn h2,http/1.1").await, secs(30)),
        (Server::envoy(secs(60), secs(5), true).await, secs(60)),
    ];
    let over_http2 = ["--insecure", "--host", "localhost", "--protocol", "http2"];
    tokio::join!(twenty_times(&servers, &[], Server::url), twenty_times(&secure, &over_http2, Server::secure_url));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_closes_before_the_time_that_it_advertises_is_named() {
    let liar = Scripted::idle(secs(3), "keep-alive: timeout=5\r\n").await;
    let honest = Scripted::idle(secs(2), "keep-alive: timeout=2, max=100\r\n").await;
    let (ok, out, err) = idleconn(&["probe", &liar.url(), &honest.url()]).await;
    assert!(ok, "{out}");
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 5, "two servers, and one sentence: {out}");
    let said = format!("{} HTTP/1.1: the server advertises timeout=5s and closed an idle connection after ", liar.url());
    let after = lines[4].strip_prefix(&said).and_then(|rest| rest.trim_end_matches('s').parse().ok());
    assert!(after.is_some_and(|after: f64| (after - 3.0).abs() < 0.25), "{out}");
    assert!(lines[2].contains("timeout=2, max=100"), "{out}");
    // Standard error is not a terminal, so the progress is one line.
    // On a busy machine some connections become idle later.
    assert!(err.ends_with(" are idle after 2s, at most 6m\n") && err.lines().count() == 1, "{err}");
    assert_eq!((liar.connections(), liar.requests()), (3, 3), "one request on each of three connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_closes_is_longer_than_the_wait() {
    let server = Scripted::idle(secs(3600), "").await;
    let (ok, out, err) = idleconn(&["probe", "--max-wait", "1s", &server.url()]).await;
    assert!(ok && out.lines().nth(1).unwrap().contains("longer than 1s"), "{out}");
    assert_eq!(err, "", "what is quick has no progress line");
    let row = &rows(&["--max-wait", "1s", "--connections", "1", &server.url()]).await[0]["idleTimeout"];
    assert_eq!((&row["stillOpen"], &row["minMillis"]), (&1.into(), &1000.into()), "{row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expectation_that_is_not_met_fails() {
    let server = Scripted::idle(secs(2), "").await;
    let url = &server.url();
    let probe = |expect| async move { idleconn(&["probe", "--expect", expect, url]).await };
    let ((met, _, _), (near, _, _), (short, said, _), (long, _, _)) =
        tokio::join!(probe("2s"), probe("1s200ms"), probe("500ms"), probe("4s"));
    assert_eq!((met, near, short, long), (true, true, false, false), "{said}");
    assert!(said.contains("HTTP/1.1: the idle timeout is ") && said.ends_with("; 500ms is expected\n"), "{said}");
    let (ok, _, err) = idleconn(&["probe", "--expect", "30s", "--max-wait", "31s", url]).await;
    assert!(!ok && err.contains("--max-wait must be more than 31.5s"), "{err}");
    let (ok, out, _) = idleconn(&["probe", "--expect", "2s", "http://127.0.0.1:1/"]).await;
    assert!(!ok && out.contains("cannot connect"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_until_the_server_closes() {
    let plain = Server::nginx("", "keepalive_timeout 1s; keepalive_requests 7;", "").await;
    let four = Server::node(secs(1), "server.maxRequestsPerSocket = 4;").await;
    let five = Server::nginx(" ssl http2", "keepalive_timeout 1s; keepalive_requests 5;", "").await;
    let (nginx, node, secure) = (plain.url(), four.url(), five.secure_url());
    let in_the_clear = ["--requests", "20", &nginx, &node];
    let over_http2 = ["--requests", "20", "--insecure", "--protocol", "http2", &secure];
    let (http1, http2) = tokio::join!(rows(&in_the_clear), rows(&over_http2));
    let answered = |row: &Json| (row["requests"]["answered"].as_u64(), row["requests"]["closed"].as_bool());
    assert_eq!(answered(&http1[0]), (Some(7), Some(true)), "{}", http1[0]);
    assert_eq!(answered(&http1[1]), (Some(4), Some(true)), "{}", http1[1]);
    assert_eq!((&http1[1]["keepAlive"]["max"], &http1[1]["keepAlive"]["maxKept"]), (&4.into(), &true.into()), "{}", http1[1]);
    assert_eq!(answered(&http2[0]), (Some(5), Some(true)), "{}", http2[0]);
    let endless = Scripted::idle(secs(1), "keep-alive: timeout=1, max=3\r\n").await;
    let row = &rows(&["--requests", "5", &endless.url()]).await[0];
    assert_eq!(answered(row), (Some(5), Some(false)));
    assert_eq!((endless.connections(), endless.requests()), (4, 8), "three idle, and one that takes five");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_servers_end_within_their_bound() {
    let body_drips = Scripted::start(|mut connection| async move {
        connection.request().await;
        connection.write("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await;
        while connection.write("x").await.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let body_never_ends = Scripted::start(|mut connection| async move {
        connection.request().await;
        connection.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        while connection.write(&format!("4000\r\n{}\r\n", "x".repeat(0x4000))).await.is_some() {}
    })
    .await;
    let headers_never_end = Scripted::start(|mut connection| async move {
        connection.request().await;
        connection.write("HTTP/1.1 200 OK\r\n").await;
        while connection.write("x-more: and more\r\n").await.is_some() {}
    })
    .await;
    let continues = Scripted::start(|mut connection| async move {
        connection.request().await;
        while connection.write("HTTP/1.1 100 Continue\r\n\r\n").await.is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let redirects = Scripted::start(|mut connection| async move {
        while connection.request().await.is_some() {
            connection.write("HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        }
    })
    .await;
    let silent = Scripted::start(|mut connection| async move { connection.until_closed().await }).await;
    let other = Scripted::start(|mut connection| async move {
        connection.write("220 mail.example ESMTP\r\n").await;
        connection.until_closed().await;
    })
    .await;
    let drips_when_idle = Scripted::start(|mut connection| async move {
        connection.request().await;
        connection.answer("").await;
        tokio::time::sleep(secs(1)).await;
        connection.write("HTTP/1.1 408 Request Timeout\r\n").await;
        connection.until_closed().await;
    })
    .await;
    let tls_hangs = format!("https://{}/", silent.listen);
    let servers = [&body_drips, &body_never_ends, &headers_never_end, &continues, &redirects, &silent, &other, &drips_when_idle];
    let urls: Vec<_> = servers.iter().map(|server| server.url()).chain([tls_hangs]).collect();
    let arguments: Vec<_> = ["--protocol", "http1"].into_iter().chain(urls.iter().map(String::as_str)).collect();
    let began = Instant::now();
    let rows = rows(&arguments).await;
    assert!(began.elapsed() < secs(12), "10 s for an answer, and a little: {:?}", began.elapsed());
    let reasons =
        ["within 10s", "longer than 1 MiB", "HTTP", "within 10s", "after each response (status 302)", "within 10s", "HTTP"];
    for (row, reason) in rows.iter().zip(reasons) {
        assert!(row["error"].as_str().is_some_and(|error| error.contains(reason)), "{reason}: {row}");
        assert!(row["idleTimeout"].is_null(), "{row}");
    }
    assert_closes_after(&rows[7], secs(1), 3);
    assert!(rows[8]["error"].as_str().unwrap().contains("within 10s"), "{}", rows[8]);
    assert_eq!((redirects.connections(), redirects.requests()), (3, 3), "redirects are not followed");
    // Three connections for http:// and three for https://.
    for (server, most) in servers.iter().zip([3, 3, 3, 3, 3, 6, 3, 3]) {
        assert!(server.connections() <= most, "{}", server.connections());
    }
}

//! Each format with its real reader: Go and Node programs, the types of Thanos, nginx and HAProxy.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use idleconn_operator::api::{Format, GoDuration, Limit, LimitValues, Value};
use serde_json::{Value as Json, json};

use crate::support::{caddy::address, cluster::ROOT, eventually, leashed, service};

/// Returns all limits, each with a different value.
pub fn every_limit() -> LimitValues {
    let value = |(limit, n): (Limit, u32)| {
        let time = Duration::from_millis(u64::from(n) * 30_500);
        (limit, if limit.is_count() { Value::Count(100 * n) } else { Value::Duration(time) })
    };
    Limit::ALL.into_iter().zip(1..).map(value).collect()
}

/// Returns all limits with the value 0, "no limit".
pub fn no_limit() -> LimitValues {
    let zero = |limit: Limit| if limit.is_count() { Value::Count(0) } else { Value::Duration(Duration::ZERO) };
    Limit::ALL.into_iter().map(|limit| (limit, zero(limit))).collect()
}

/// Temporary folder with files.
pub struct Files(PathBuf);

impl Files {
    pub fn new(about: &str, files: &BTreeMap<&str, String>, name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let own = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("idleconn-formats-{about}-{}-{own}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let at = Self(dir);
        at.write(files, name);
        at
    }

    /// Replaces the files, each atomically.
    pub fn write(&self, files: &BTreeMap<&str, String>, name: &str) {
        for (suffix, text) in files {
            let fresh = self.add("fresh", text);
            std::fs::rename(fresh, self.0.join(format!("{name}{suffix}"))).unwrap();
        }
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }

    pub fn add(&self, name: &str, text: &str) -> PathBuf {
        let at = self.0.join(name);
        std::fs::write(&at, text).unwrap();
        at
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn ran(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?} refuses it: {said}");
    assert!(!said.contains("[WARNING]") && !said.contains("[warn]"), "{command:?} warns: {said}");
    String::from_utf8(stdout).unwrap()
}

/// Returns the settings that the reader has read, as JSON.
fn understood(command: &mut Command) -> Json {
    serde_json::from_str(&ran(command)).unwrap()
}

/// Returns the limits of each pool with Go's names.
fn go_names(limits: &LimitValues) -> Json {
    let mut all = json!({"server": {}, "intraCluster": {}, "backend": {}});
    for (limit, name) in Format::Yaml.fields() {
        let Some(value) = limits.get(limit) else { continue };
        let (pool, field) = name.split_once('.').unwrap();
        all[pool][field] = match value {
            Value::Count(n) => (*n).into(),
            Value::Duration(time) => in_go(*time).into(),
        };
    }
    all
}

/// Formats a duration as `time.Duration.String` does: hours, minutes, and seconds with a fraction.
fn in_go(time: Duration) -> String {
    let (minutes, millis) = (time.as_secs() / 60, time.as_millis() % 60_000);
    let fraction = format!("{:03}", millis % 1000);
    let fraction = fraction.trim_end_matches('0');
    let seconds = if fraction.is_empty() { format!("{}s", millis / 1000) } else { format!("{}.{fraction}s", millis / 1000) };
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

/// Returns all limits with the largest value that the CRD accepts.
pub fn largest() -> LimitValues {
    let largest = |limit: Limit| {
        if limit.is_count() { Value::Count(1_000_000) } else { Value::Duration(Duration::from_secs(4 * 99_999 * 3600)) }
    };
    Limit::ALL.into_iter().map(|limit| (limit, largest(limit))).collect()
}

/// Returns all limits with the largest value of a reader with 32-bit milliseconds.
fn longest() -> LimitValues {
    let time = Value::Duration(Duration::from_millis(i32::MAX.unsigned_abs().into()));
    largest().into_iter().map(|(limit, value)| (limit, if limit.is_count() { value } else { time })).collect()
}

/// Removes values that the format cannot represent. They are not written, and the status lists them in `status.unsupported`.
pub fn expressible(format: Format, limits: LimitValues) -> LimitValues {
    limits.into_iter().filter(|(limit, value)| format.inexpressible()(*limit, *value).is_none()).collect()
}

fn cases(format: Format) -> [(&'static str, LimitValues); 5] {
    let all = [
        ("every", every_limit()),
        ("zero", no_limit()),
        ("largest", largest()),
        ("longest", longest()),
        ("none", LimitValues::new()),
    ];
    all.map(|(about, limits)| (about, expressible(format, limits)))
}

#[test]
fn go_reads_yaml_json_and_an_environment_by_its_own_names() {
    for format in [Format::Yaml, Format::Json, Format::Env] {
        for (about, limits) in cases(format) {
            let name = format!("http.{}", format.name());
            let files = Files::new(&format!("{}-{about}", format.name()), &format.render(&limits, &BTreeMap::new()), &name);
            let read = understood(Command::new(service::program()).arg("-print").arg("-config").arg(files.0.join(&name)));
            assert_eq!(read, go_names(&limits), "{format:?} {about}");
        }
    }
}

/// Returns the options of a real agent that is created from a file.
fn agent(dir: &Path, file: &Path) -> Json {
    let program = "import { Pool } from './pool.js'; import { parse } from './settings.js'; import { readFileSync } from 'node:fs'; \
                   const pool = new Pool(); pool.apply(parse(readFileSync(process.argv[1], 'utf8'))); \
                   const agent = pool.agent('any', 'http:'); const { timeout, freeSocketTimeout, socketActiveTTL } = agent.options; \
                   console.log(JSON.stringify({ timeout, freeSocketTimeout, socketActiveTTL, keepAliveMsecs: agent.keepAliveMsecs, maxSockets: agent.maxSockets, maxFreeSockets: agent.maxFreeSockets }));";
    understood(Command::new("node").current_dir(dir).args(["--input-type=module", "--eval", program, "--"]).arg(file))
}

#[test]
fn node_reads_an_http_connection_pool() {
    let dir = Path::new(ROOT).join("examples/node-service");
    for (about, limits) in cases(Format::HttpConnectionPool) {
        let files =
            Files::new(&format!("node-{about}"), &Format::HttpConnectionPool.render(&limits, &BTreeMap::new()), "http.json");
        let read = understood(
            Command::new("node").arg("main.js").current_dir(&dir).args(["--print", "--config"]).arg(files.0.join("http.json")),
        );
        let mut global = json!({"keepAlive": true});
        for (limit, name) in Format::HttpConnectionPool.fields() {
            match limits.get(limit) {
                Some(Value::Duration(time)) => global[*name] = u64::try_from(time.as_millis()).unwrap().into(),
                Some(Value::Count(n)) => global[*name] = (*n).into(),
                None => {}
            }
        }
        assert_eq!(read, json!({"enabled": true, "global": global, "providers": {}}), "{about}");
        // The agent applies the limits: it treats 0 as no limit.
        let agent = agent(&dir, &files.0.join("http.json"));
        // Settings that are absent have the agent's own defaults: docs/targets/extremes.md.
        let own = [("timeout", 8000), ("freeSocketTimeout", 4000), ("keepAliveMsecs", 1000)];
        for (name, own) in own {
            assert_eq!(agent[name], global.get(name).cloned().unwrap_or(json!(own)), "{about} {name}");
        }
        assert_eq!(agent["socketActiveTTL"], global.get("maxSocketLifetime").cloned().unwrap_or(json!(0)), "{about}");
        for (name, none) in [("maxSockets", Json::Null), ("maxFreeSockets", 256.into())] {
            let expected = global.get(name).filter(|value| **value != 0).cloned().unwrap_or(none);
            assert_eq!(agent[name], expected, "{about} {name}");
        }
    }
    // An idle timeout alone does not shorten requests.
    let idle = LimitValues::from([(Limit::BackendIdleConnTimeout, Value::Duration(Duration::from_secs(2)))]);
    let files = Files::new("node-idle", &Format::HttpConnectionPool.render(&idle, &BTreeMap::new()), "http.json");
    let agent = agent(&dir, &files.0.join("http.json"));
    assert_eq!((&agent["freeSocketTimeout"], &agent["timeout"]), (&json!(2000), &json!(0)));
    // A provider has its own settings, and inherits the others from `global`.
    let providers =
        BTreeMap::from([("anthropic".to_owned(), LimitValues::from([(Limit::BackendMaxConnsPerHost, Value::Count(20))]))]);
    let files = Files::new("node-provider", &Format::HttpConnectionPool.render(&every_limit(), &providers), "http.json");
    let read = understood(
        Command::new("node").arg("main.js").current_dir(&dir).args(["--print", "--config"]).arg(files.0.join("http.json")),
    );
    assert_eq!(read["providers"], json!({"anthropic": {"keepAlive": true, "maxSockets": 20}}));
    let tests = ran(Command::new("node").arg("--test").current_dir(&dir));
    assert!(tests.contains("fail 0") && !tests.contains("pass 0"), "{tests}");
}

#[test]
fn thanos_reads_its_http_config() {
    let dir = Path::new(ROOT).join("tests/readers/objstore");
    let program = Path::new(ROOT).join(format!("target/objstore-reader-{}", std::process::id()));
    ran(Command::new("go").current_dir(dir).args(["build", "-o"]).arg(&program).arg("."));
    for (about, limits) in cases(Format::ThanosObjstore) {
        let files =
            Files::new(&format!("thanos-{about}"), &Format::ThanosObjstore.render(&limits, &BTreeMap::new()), "objstore.yaml");
        let read = understood(Command::new(&program).arg(files.0.join("objstore.yaml")));
        for (limit, name) in Format::ThanosObjstore.fields() {
            let expected: Json = match limits.get(limit) {
                Some(Value::Count(n)) => (*n).into(),
                Some(Value::Duration(time)) => in_go(*time).into(),
                None if limit.is_count() => 0.into(),
                None => "0s".into(),
            };
            assert_eq!(read[*name], expected, "{about} {name}");
        }
    }
    std::fs::remove_file(program).unwrap();
}

#[test]
fn nginx_takes_its_directives() {
    for (about, limits) in cases(Format::Nginx) {
        let files = Files::new(&format!("nginx-{about}"), &Format::Nginx.render(&limits, &BTreeMap::new()), "http.conf");
        let dir = files.0.display();
        let main = files.add(
            "nginx.conf",
            &format!(
                "pid {dir}/pid; error_log stderr; events {{}}\nhttp {{\n access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;\n \
                 fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n include {dir}/http.conf;\n \
                 upstream back {{ server 127.0.0.1:9; include {dir}/http.conf.upstream; }}\n \
                 server {{ listen 127.0.0.1:18999; location / {{ proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n}}\n"
            ),
        );
        let whole = ran(Command::new("nginx").args(["-T", "-q", "-c"]).arg(&main).args(["-p"]).arg(&files.0));
        for (limit, name) in Format::Nginx.fields() {
            let value = match limits.get(limit) {
                Some(Value::Duration(time)) if !time.is_zero() => format!("{name} {}ms;", time.as_millis()),
                Some(Value::Count(n @ 1..)) => format!("{name} {n};"),
                _ => continue,
            };
            assert!(whole.contains(&value), "{about}: nginx has no {value}");
        }
    }
}

#[test]
fn haproxy_takes_its_defaults() {
    for (about, limits) in cases(Format::Haproxy) {
        let files = Files::new(&format!("haproxy-{about}"), &Format::Haproxy.render(&limits, &BTreeMap::new()), "http.cfg");
        // Timeouts that HAProxy requires and the policy does not set.
        let own = "timeout connect 5s\n timeout server 30s";
        let user = files.add(
            "user.cfg",
            &format!("frontend in from idleconn\n timeout client 30s\n bind 127.0.0.1:18998\n default_backend out\nbackend out from idleconn\n {own}\n server a 127.0.0.1:9\n"),
        );
        ran(Command::new("haproxy").arg("-c").arg("-f").arg(files.0.join("http.cfg")).arg("-f").arg(&user));
    }
}

/// HAProxy uses `timeout http-request` as the idle timeout if none is set.
#[test]
fn a_header_time_out_alone_shortens_no_idle_time_of_haproxy() {
    let header = LimitValues::from([(Limit::ServerReadHeaderTimeout, Value::Duration(Duration::from_secs(5)))]);
    let file = &Format::Haproxy.render(&header, &BTreeMap::new())[""];
    assert!(file.contains("timeout http-request 5000ms") && file.contains("timeout http-keep-alive 2147483647ms"), "{file}");
}

#[test]
fn a_duration_is_written_as_go_reads_it() {
    assert_eq!(GoDuration::from(Duration::from_millis(90_500)).to_string(), "1m30s500ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_node_go_on_while_its_idle_time_goes_to_the_floor() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (slow, service) = (address(), address());
    let answer = || async {
        tokio::time::sleep(Duration::from_secs(12)).await;
        "slow"
    };
    let listener = tokio::net::TcpListener::bind((slow, 0)).await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await.unwrap() });
    let file = |idle: u64| {
        let limits = LimitValues::from([(Limit::BackendIdleConnTimeout, Value::Duration(Duration::from_secs(idle)))]);
        Format::HttpConnectionPool.render(&limits, &BTreeMap::new())
    };
    let files = Files::new("node-loop", &file(8), "http.json");
    let mut node = leashed(Path::new("node"))
        .arg("main.js")
        .current_dir(Path::new(ROOT).join("examples/node-service"))
        .args(["--host", &service.to_string(), "--port", "8080", "--every", "100", "--config"])
        .arg(files.0.join("http.json"))
        .spawn()
        .unwrap();
    let page = format!("http://{service}:8080");
    let hash =
        async || reqwest::get(format!("{page}/config-hash")).await.ok()?.text().await.ok().filter(|hash| !hash.trim().is_empty());
    let mut known = eventually("the service has read its file", hash).await;
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let asked = futures::future::join_all((0..100).map(|_| {
        let ask = client.get(format!("{page}/ask?url=http://{upstream}/&provider=any"));
        tokio::spawn(async move { ask.send().await.unwrap().status() })
    }));
    // Adaptive control tightens while requests are in progress.
    let tighten = async {
        for idle in [5, 3, 2] {
            std::fs::write(files.0.join("http.json"), &file(idle)[""]).unwrap();
            known = eventually("the service has read its file again", async || hash().await.filter(|hash| *hash != known)).await;
        }
    };
    let (answers, ()) = futures::future::join(asked, tighten).await;
    let broken = answers.into_iter().filter(|status| *status.as_ref().unwrap() != 200).count();
    assert_eq!(broken, 0, "of 100 requests");
    // Closing standard input ends the program. Killing the shell around it would leave the program running.
    drop(node.stdin.take());
    node.wait().unwrap();
    serving.abort();
}

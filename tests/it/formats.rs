//! Each format, read by its real reader: Go and Node programs, Thanos's own types, nginx and HAProxy.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use idleconn_operator::api::{Format, GoDuration, Knob, Settings, Value};
use serde_json::{Value as Json, json};

use crate::support::{cluster::ROOT, service};

/// Every limit there is, each with a value of its own.
pub fn every_limit() -> Settings {
    let value = |(knob, n): (Knob, u32)| {
        let time = Duration::from_millis(u64::from(n) * 30_500);
        (knob, if knob.is_count() { Value::Count(100 * n) } else { Value::Duration(time) })
    };
    Knob::ALL.into_iter().zip(1..).map(value).collect()
}

/// Every limit, and none of them one.
pub fn no_limit() -> Settings {
    let zero = |knob: Knob| if knob.is_count() { Value::Count(0) } else { Value::Duration(Duration::ZERO) };
    Knob::ALL.into_iter().map(|knob| (knob, zero(knob))).collect()
}

/// A folder of the test's own with the files in it.
struct Files(PathBuf);

impl Files {
    fn new(about: &str, files: &BTreeMap<&str, String>, name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("idleconn-formats-{about}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for (suffix, text) in files {
            std::fs::write(dir.join(format!("{name}{suffix}")), text).unwrap();
        }
        Self(dir)
    }

    fn add(&self, name: &str, text: &str) -> PathBuf {
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

/// What the reader understood, as JSON.
fn understood(command: &mut Command) -> Json {
    serde_json::from_str(&ran(command)).unwrap()
}

/// By Go's own names, pool by pool.
fn go_names(limits: &Settings) -> Json {
    let mut all = json!({"server": {}, "intraCluster": {}, "backend": {}});
    for (knob, name) in Format::Yaml.fields() {
        let Some(value) = limits.get(knob) else { continue };
        let (pool, field) = name.split_once('.').unwrap();
        all[pool][field] = match value {
            Value::Count(n) => (*n).into(),
            Value::Duration(time) => in_go(*time).into(),
        };
    }
    all
}

/// As `time.Duration.String` writes what these tests use: minutes and seconds with a half.
fn in_go(time: Duration) -> String {
    let (minutes, seconds) = (time.as_secs() / 60, time.as_millis() % 60_000);
    let fraction = if seconds % 1000 == 0 { String::new() } else { format!(".{}", seconds % 1000 / 100) };
    let seconds = format!("{}{fraction}s", seconds / 1000);
    if minutes == 0 { seconds } else { format!("{minutes}m{seconds}") }
}

fn cases() -> [(&'static str, Settings); 3] {
    [("every", every_limit()), ("zero", no_limit()), ("none", Settings::new())]
}

#[test]
fn go_reads_yaml_json_and_an_environment_by_its_own_names() {
    for format in [Format::Yaml, Format::Json, Format::Env] {
        for (about, limits) in cases() {
            let name = format!("http.{}", format.name());
            let files = Files::new(&format!("{}-{about}", format.name()), &format.render(&limits, &BTreeMap::new()), &name);
            let read = understood(Command::new(service::program()).arg("-print").arg("-config").arg(files.0.join(&name)));
            assert_eq!(read, go_names(&limits), "{format:?} {about}");
        }
    }
}

#[test]
fn node_reads_an_http_connection_pool() {
    let dir = Path::new(ROOT).join("examples/node-service");
    for (about, limits) in cases() {
        let files =
            Files::new(&format!("node-{about}"), &Format::HttpConnectionPool.render(&limits, &BTreeMap::new()), "http.json");
        let read = understood(
            Command::new("node").arg("main.js").current_dir(&dir).args(["--print", "--config"]).arg(files.0.join("http.json")),
        );
        let mut global = json!({"keepAlive": true});
        for (knob, name) in Format::HttpConnectionPool.fields() {
            let value = match limits.get(knob) {
                Some(Value::Duration(time)) => u64::try_from(time.as_millis()).unwrap(),
                Some(Value::Count(n)) => u64::from(*n),
                None => 0,
            };
            if value > 0 {
                global[*name] = value.into();
            }
        }
        assert_eq!(read, json!({"enabled": true, "global": global, "providers": {}}), "{about}");
    }
    // A provider has what is its own; the rest is the global.
    let providers =
        BTreeMap::from([("anthropic".to_owned(), Settings::from([(Knob::BackendMaxConnsPerHost, Value::Count(20))]))]);
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
    for (about, limits) in cases() {
        let files =
            Files::new(&format!("thanos-{about}"), &Format::ThanosObjstore.render(&limits, &BTreeMap::new()), "objstore.yaml");
        let read = understood(Command::new(&program).arg(files.0.join("objstore.yaml")));
        for (knob, name) in Format::ThanosObjstore.fields() {
            let expected: Json = match limits.get(knob) {
                Some(Value::Count(n)) => (*n).into(),
                Some(Value::Duration(time)) => in_go(*time).into(),
                None if knob.is_count() => 0.into(),
                None => "0s".into(),
            };
            assert_eq!(read[*name], expected, "{about} {name}");
        }
    }
    std::fs::remove_file(program).unwrap();
}

#[test]
fn nginx_takes_its_directives() {
    for (about, limits) in cases() {
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
        for (knob, name) in Format::Nginx.fields() {
            let value = match limits.get(knob) {
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
    for (about, limits) in cases() {
        let files = Files::new(&format!("haproxy-{about}"), &Format::Haproxy.render(&limits, &BTreeMap::new()), "http.cfg");
        // The time-outs that HAProxy wants everybody to have, where the policy does not set them.
        let own = "timeout connect 5s\n timeout server 30s";
        let user = files.add(
            "user.cfg",
            &format!("frontend in from idleconn\n timeout client 30s\n bind 127.0.0.1:18998\n default_backend out\nbackend out from idleconn\n {own}\n server a 127.0.0.1:9\n"),
        );
        ran(Command::new("haproxy").arg("-c").arg("-f").arg(files.0.join("http.cfg")).arg("-f").arg(&user));
    }
}

#[test]
fn a_duration_is_written_as_go_reads_it() {
    assert_eq!(GoDuration::from(Duration::from_millis(90_500)).to_string(), "1m30s500ms");
}

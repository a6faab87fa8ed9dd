//! Idle connections that a change of each limit closes, counted on real servers: connections of their clients, and of the pools
//! to their upstreams.
//!
//! The test changes a limit in the same way as the operator, or reloads the file as the reader does. All idle timeouts are much
//! longer than the tests, so only the change closes connections.

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use idleconn_operator::{
    api::{
        Format, Limit, LimitValues, Limits, Value,
        flush::{Closes, Flush},
        limits::WITHIN,
    },
    decide::{Capability, TargetCapabilities},
    targets::{caddy, configmap},
};
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::{
    formats::Files,
    support::{
        self,
        caddy::address,
        cluster::ROOT,
        eventually,
        idle::{CONNECTIONS, Clients, Upstream},
        leashed,
        operator::{World, endpoints},
        service::Service,
    },
};

/// Returns all limits, with values that end no idle connection during the test.
fn limits(traits: &TargetCapabilities) -> LimitValues {
    let is_part = |limit: Limit| WITHIN.iter().any(|(part, _)| *part == limit);
    let count = |limit: Limit| Value::Count(if is_part(limit) { 40 } else { 50 });
    let value = |limit: Limit| if limit.is_count() { count(limit) } else { Value::Duration(Duration::from_secs(200)) };
    let has = |limit: &Limit| traits.capability(*limit) != Capability::Unsupported;
    Limit::ALL.into_iter().filter(has).map(|limit| (limit, value(limit))).collect()
}

/// Returns the same limits with one of them larger: a relaxation, for which a server has no reason to close connections.
fn relaxed(limits: &LimitValues, limit: Limit) -> LimitValues {
    let mut limits = limits.clone();
    let value = match limits[&limit] {
        Value::Count(n) => Value::Count(n + 1),
        Value::Duration(time) => Value::Duration(time + Duration::from_secs(1)),
    };
    limits.insert(limit, value);
    limits
}

/// Route through a server to an upstream, with the pool of its connections.
struct Route {
    path: String,
    pool: &'static str,
    upstream: Upstream,
}

impl Route {
    async fn new(path: &str, pool: &'static str) -> Self {
        Self { path: path.into(), pool, upstream: Upstream::start().await }
    }
}

/// Idle connections of the clients, and of the server to the upstream of each route.
struct Idle<'a> {
    clients: Clients,
    routes: &'a [Route],
    accepted: Vec<usize>,
}

impl<'a> Idle<'a> {
    async fn open(ip: std::net::Ipv4Addr, port: u16, routes: &'a [Route]) -> Self {
        let mut clients = Clients::connect(ip, port).await;
        for route in routes {
            assert_eq!(clients.ask(&route.path).await, CONNECTIONS, "all clients are answered");
            assert_eq!(route.upstream.open(), CONNECTIONS, "each over its own connection to the upstream");
        }
        Self { clients, routes, accepted: routes.iter().map(|route| route.upstream.accepted()).collect() }
    }

    /// Checks after a change of a limit that exactly the connections of the flush were closed.
    async fn holds(mut self, limit: Limit, flush: Option<Flush>) {
        let closed = |pool: &str| match flush.map(|flush| flush.closes) {
            Some(Closes::AllPools) => true,
            Some(Closes::OwnPool) => pool == limit.pool(),
            None => false,
        };
        for route in self.routes.iter().filter(|route| closed(route.pool)) {
            route.upstream.is_left().await;
        }
        if closed("server") {
            self.clients.are_left().await;
            return;
        }
        for (route, before) in self.routes.iter().zip(self.accepted) {
            assert_eq!(self.clients.ask(&route.path).await, CONNECTIONS, "{limit}: the clients' connections are open");
            let fresh = route.upstream.accepted() - before;
            assert_eq!(
                fresh,
                if closed(route.pool) { CONNECTIONS } else { 0 },
                "{limit}: connections of the {} pool",
                route.pool
            );
        }
    }
}

/// Writes the files of a format with these limits.
fn files(format: Format, limits: &LimitValues, about: &str, name: &str) -> Files {
    Files::new(about, &format.render(limits, &BTreeMap::new()), name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_nginx_closes_all_idle_connections() {
    let traits = configmap::traits(Format::Nginx);
    let limits = limits(&traits);
    for &limit in limits.keys() {
        let route = Route::new("/", "backend").await;
        let files = files(Format::Nginx, &limits, &format!("flush-{limit}"), "http.conf");
        let (ip, dir) = (address(), files.dir().display());
        let main = files.add(
            "nginx.conf",
            &format!(
                "daemon off; pid {dir}/pid; error_log stderr; worker_processes 1; events {{}}\nhttp {{\n access_log off; client_body_temp_path {dir}/b; \
                 proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n include {dir}/http.conf;\n \
                 upstream back {{ server {}; include {dir}/http.conf.upstream; }}\n \
                 server {{ listen {ip}:8080; location / {{ proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n}}\n",
                route.upstream.address
            ),
        );
        let mut nginx = leashed("nginx").arg("-c").arg(&main).arg("-p").arg(files.dir()).spawn().unwrap();
        let routes = [route];
        let idle = Idle::open(ip, 8080, &routes).await;
        files.write(&Format::Nginx.render(&relaxed(&limits, limit), &BTreeMap::new()), "http.conf");
        let reload = Command::new("nginx").args(["-s", "reload", "-c"]).arg(&main).arg("-p").arg(files.dir()).status();
        assert!(reload.unwrap().success());
        idle.holds(limit, traits.capability(limit).flush()).await;
        drop(nginx.stdin.take());
        nginx.wait().unwrap();
    }
}

/// Checks that the HAProxy master answers on its socket.
async fn answers(socket: &Path) -> Option<()> {
    let mut stream = UnixStream::connect(socket).await.ok()?;
    stream.write_all(b"show proc\n").await.ok()?;
    stream.read(&mut [0; 16]).await.ok().filter(|n| *n > 0).map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_haproxy_closes_all_idle_connections() {
    let traits = configmap::traits(Format::Haproxy);
    let limits = limits(&traits);
    for &limit in limits.keys() {
        let route = Route::new("/", "backend").await;
        let files = files(Format::Haproxy, &limits, &format!("flush-{limit}"), "http.cfg");
        let ip = address();
        let user = files.add(
            "user.cfg",
            &format!(
                "defaults mine from idleconn\n timeout connect 5s\nfrontend in from mine\n bind {ip}:8080\n default_backend out\nbackend out from mine\n server a {}\n",
                route.upstream.address
            ),
        );
        let (pid, cli) = (files.dir().join("pid"), files.dir().join("cli"));
        let mut haproxy = leashed("haproxy");
        haproxy
            .arg("-W")
            .arg("-S")
            .arg(&cli)
            .arg("-p")
            .arg(&pid)
            .arg("-f")
            .arg(files.dir().join("http.cfg"))
            .arg("-f")
            .arg(&user);
        let mut haproxy = haproxy.spawn().unwrap();
        // Before that, the master loses signals although its worker already serves.
        eventually("HAProxy's master answers", || answers(&cli)).await;
        let routes = [route];
        let idle = Idle::open(ip, 8080, &routes).await;
        files.write(&Format::Haproxy.render(&relaxed(&limits, limit), &BTreeMap::new()), "http.cfg");
        let master = std::fs::read_to_string(&pid).unwrap();
        assert!(Command::new("kill").args(["-USR2", master.trim()]).status().unwrap().success());
        idle.holds(limit, traits.capability(limit).flush()).await;
        drop(haproxy.stdin.take());
        haproxy.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_go_service_closes_the_connections_of_its_own_pool() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    for format in [Format::Yaml, Format::Json, Format::Env] {
        let traits = configmap::traits(format);
        let limits = limits(&traits);
        let name = format!("http.{}", format.name());
        let files = files(format, &limits, &format!("flush-{}", format.name()), &name);
        let routes = [Route::new("/upstream", "backend").await, Route::new("/peer", "intraCluster").await];
        let [upstream, peer] = &routes;
        let service = Service::alone(&[
            &format!("-upstream=http://{}", upstream.upstream.address),
            &format!("-peer=http://{}", peer.upstream.address),
            &format!("-config={}", files.dir().join(&name).display()),
        ])
        .await;
        for &limit in limits.keys() {
            let idle = Idle::open(service.ip, 8080, &routes).await;
            let old = service.hash().await;
            files.write(&format.render(&relaxed(&limits, limit), &BTreeMap::new()), &name);
            eventually("the service uses the change", || async { (service.hash().await != old).then_some(()) }).await;
            idle.holds(limit, traits.capability(limit).flush()).await;
            let changed = service.hash().await;
            files.write(&format.render(&limits, &BTreeMap::new()), &name);
            eventually("the service uses the old file", || async { (service.hash().await != changed).then_some(()) }).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_node_service_closes_the_connections_of_its_pool() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let format = Format::HttpConnectionPool;
    let traits = configmap::traits(format);
    let limits = limits(&traits);
    let files = files(format, &limits, "flush-node", "http.json");
    let ip = address();
    let mut node = leashed(Path::new("node"))
        .arg("main.js")
        .current_dir(Path::new(ROOT).join("examples/node-service"))
        .args(["--host", &ip.to_string(), "--port", "8080", "--every", "20", "--config"])
        .arg(files.dir().join("http.json"))
        .spawn()
        .unwrap();
    let mut route = Route::new("", "backend").await;
    route.path = format!("/ask?url=http://{}/&provider=any", route.upstream.address);
    let routes = [route];
    let hash = async || reqwest::get(format!("http://{ip}:8080/config-hash")).await.ok()?.text().await.ok();
    let mut known = eventually("the service has read its file", hash).await;
    for &limit in limits.keys() {
        for limits in [relaxed(&limits, limit), limits.clone()] {
            let idle = Idle::open(ip, 8080, &routes).await;
            files.write(&format.render(&limits, &BTreeMap::new()), "http.json");
            known = eventually("the service uses the change", async || hash().await.filter(|hash| *hash != known)).await;
            idle.holds(limit, traits.capability(limit).flush()).await;
        }
    }
    drop(node.stdin.take());
    node.wait().unwrap();
}

/// Servers with a proxy, and with another proxy with TLS that gets no requests: only a proxy with TLS has a handshake timeout.
fn servers(upstream: &Upstream) -> Json {
    let proxy =
        |transport: Json| json!({"handler": "reverse_proxy", "upstreams": [{"dial": upstream.address}], "transport": transport});
    json!({"web": {"listen": ["IP:8080"], "routes": [
        {"match": [{"path": ["/tls/*"]}], "handle": [proxy(json!({"protocol": "http", "tls": {}}))]},
        {"handle": [proxy(json!({"protocol": "http"}))]},
    ]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_caddy_closes_all_idle_connections() {
    let world = World::new("flush").await;
    let routes = [Route::new("/", "backend").await];
    let node = support::caddy::Caddy::start(servers(&routes[0].upstream)).await;
    let target = endpoints([node.admin().as_str()]);
    let limits = limits(&caddy::TRAITS);
    let declare = async |limits: &LimitValues| {
        let limits = serde_json::to_value(Limits::from(limits)).unwrap();
        world.apply("gw", &json!({"target": target, "limits": limits})).await;
        world.until_programmed("gw").await;
    };
    declare(&limits).await;
    for &limit in limits.keys() {
        for limits in [relaxed(&limits, limit), limits.clone()] {
            let idle = Idle::open(node.ip, 8080, &routes).await;
            declare(&limits).await;
            idle.holds(limit, caddy::TRAITS.capability(limit).flush()).await;
        }
    }
}

//! `spec.verify`: measurement of the nodes' servers by the operator.

use std::{net::SocketAddr, time::Duration};

use idleconn_operator::api::{GoDuration, IdleConnectionPolicyStatus};
use serde_json::{Value as Json, json};
use tokio::process::Command;

use crate::support::{
    admin_api::AdminApi,
    ais::Ais,
    caddy::{Caddy, address},
    cluster::kubeconfig,
    eventually,
    operator::{World, find},
    scripted::{Scripted, closing},
    service::pod,
};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Returns a Caddy server that answers itself.
fn answering() -> Json {
    json!({"web": {"listen": ["IP:8080"], "idle_timeout": "5m", "routes": [{"handle": [{"handler": "static_response", "body": "ok"}]}]}})
}

/// Returns a policy with an idle timeout of two seconds for these Caddys, verified every five minutes; `http_get` is the request.
fn spec(caddys: &[&Caddy], http_get: &Json) -> Json {
    let endpoints: Vec<_> = caddys.iter().map(|caddy| caddy.admin()).collect();
    json!({
        "target": {"type": "Caddy", "caddy": {"endpoints": endpoints}}, "limits": {"server": {"idleTimeout": "2s"}},
        "verify": {"server": {"interval": "5m", "httpGet": http_get}},
    })
}

fn measured(status: &IdleConnectionPolicyStatus) -> Option<String> {
    Some(status.limits.as_ref()?.measured.as_ref()?.server.as_ref()?.idle_timeout.as_ref()?.to_string())
}

fn message<'a>(status: &'a IdleConnectionPolicyStatus, type_: &str) -> &'a str {
    &find(status, type_).unwrap().message
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_what_is_programmed_is_measured_and_nothing_more_is_written() {
    let (world, node) = (World::new("verify").await, AdminApi::start(answering()).await);
    let at: SocketAddr = node.address.trim_start_matches("http://").parse().unwrap();
    let server = Scripted::at(SocketAddr::new(at.ip(), 8080), |connection| closing(connection, secs(2), "")).await;
    let mut policy = spec(&[], &json!({}));
    policy["target"]["caddy"]["endpoints"] = json!([node.address]);
    world.apply("gw", &policy).await;
    let status = world.until_condition("gw", "InEffect", "True", "Measured").await;
    assert_eq!(measured(&status).as_deref(), Some("2s"));
    assert_eq!(message(&status, "InEffect"), "The server of the node closes idle connections after the programmed time");
    // Reconciliation continues and writes nothing.
    let version = world.get("gw").await.metadata.resource_version;
    let reads = node.reads();
    eventually("more looks", || async { (node.reads() > reads + 4).then_some(()) }).await;
    assert_eq!(world.get("gw").await.metadata.resource_version, version);
    assert_eq!((server.connections(), server.requests()), (1, 1), "one connection for each node and interval");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_listener_that_does_something_else_is_measured_differently() {
    let (mut world, caddy) = (World::new("verify").await, Caddy::start(answering()).await);
    let other = Scripted::at(SocketAddr::from((caddy.ip, 0)), |connection| closing(connection, secs(4), "")).await;
    world.apply("gw", &spec(&[&caddy], &json!({"port": other.listen.port(), "host": "gateway.example"}))).await;
    let status = world.until_condition("gw", "InEffect", "False", "MeasuredDifferently").await;
    let said = format!("{}:2019 closed an idle connection after 4s; 2s is programmed", caddy.ip);
    assert_eq!((message(&status, "InEffect"), measured(&status).as_deref()), (&*said, Some("4s")));
    assert_eq!(find(&status, "Ready").unwrap().status, "True");
    world.until_event("gw", "MeasuredDifferently").await;
    let mut path = Command::new(env!("CARGO_BIN_EXE_kubectl-idleconn"));
    path.args(["path", "gw", "--client-idle", "3s500ms", "--namespace", &world.namespace, "--kubeconfig"]).arg(kubeconfig());
    let path_says = String::from_utf8(path.output().await.unwrap().stdout).unwrap();
    let both = path_says.contains("4s (measured by the operator)") && path_says.contains("from 3.5s to 3s or less");
    assert!(both, "{path_says}");
    assert_eq!((other.connections(), other.requests()), (1, 1), "one connection for each node and interval");
    // A new operator takes over the measured value and reports it until its own first measurement.
    world.kill().await;
    world.start(Duration::from_millis(500));
    eventually("the next operator measures too", || async { (other.connections() == 2).then_some(()) }).await;
    let status = world.status("gw").await;
    assert_eq!((message(&status, "InEffect"), measured(&status).as_deref()), (&*said, Some("4s")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_probed_is_not_measured_and_not_guessed() {
    let (world, good, bad) = (World::new("verify").await, Caddy::start(answering()).await, Caddy::start(answering()).await);
    let closes = Scripted::at(SocketAddr::from((bad.ip, 7070)), |mut connection| async move {
        connection.request().await;
        connection.answer("connection: close\r\n").await;
    })
    .await;
    let fine = Scripted::at(SocketAddr::from((good.ip, 7070)), |connection| closing(connection, secs(2), "")).await;
    world.apply("gw", &spec(&[&good, &bad], &json!({"port": 7070}))).await;
    let status = world.until_condition("gw", "InEffect", "True", "NotMeasured").await;
    let said = format!("{}:2019 was not measured: the server closes the connection after each response (status 200)", bad.ip);
    assert!(message(&status, "InEffect").ends_with(&said), "{}", message(&status, "InEffect"));
    assert_eq!(measured(&status), None);
    assert_eq!((closes.connections(), fine.connections() <= 1), (1, true));
}

/// The configuration of AIStore has no idle timeout of its servers, because it is a constant. Only a probe shows it.
#[tokio::test(flavor = "multi_thread")]
async fn what_aistore_has_no_setting_for_is_measured() {
    shows_constant(secs(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half a minute: make probe"]
async fn the_constant_of_aistore_is_measured_with_a_long_idle_timeout() {
    shows_constant(secs(30)).await;
}

async fn shows_constant(constant: Duration) {
    let (world, ais) = (World::new("verify-ais").await, Ais::start().await);
    let policy = json!({
        "target": {"type": "AIStore", "aistore": {"endpoint": ais.proxies[0]}},
        "limits": {"server": {"idleTimeout": "20s"}, "intraCluster": {"idleConnTimeout": "15s"}},
        "verify": {"server": {"interval": "5m", "httpGet": {"port": 7071}}},
    });
    // Each node of the fake has a separate address.
    let mut servers = Vec::new();
    for host in ais.hosts() {
        servers.push(Scripted::at(SocketAddr::new(host, 7071), move |connection| closing(connection, constant, "")).await);
    }
    world.apply("prod", &policy).await;
    let status = world.until("prod", "the constant is measured", |status| measured(status).is_some()).await;
    let said = measured(&status).unwrap().parse::<GoDuration>().unwrap().get().unwrap();
    assert!(said.abs_diff(constant) <= (constant / 100).max(Duration::from_millis(250)), "{said:?}");
    assert_eq!(status.unsupported, ["server.idleTimeout"]);
    assert_eq!(servers.iter().map(Scripted::connections).sum::<usize>(), 5, "one for each node");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_addresses_of_the_policys_own_pods_are_probed() {
    let mut world = World::empty("verify").await;
    let settings =
        idleconn_operator::controller::ControllerConfig { allow_endpoints: "".parse().unwrap(), ..world.settings(secs(1)) };
    world.start_with(settings);
    let caddy = Caddy::start(answering()).await;
    let metal = Scripted::start(|connection| closing(connection, secs(2), "")).await;
    pod(&world, "gw-a", &json!({"app": "gateway"}), &json!({}), &caddy.ip.to_string()).await;
    let mut policy = spec(&[], &json!({}));
    policy["target"]["caddy"] = json!({"selector": {"matchLabels": {"app": "gateway"}}});
    world.apply("gw", &policy).await;
    let status = world.until_condition("gw", "InEffect", "True", "Measured").await;
    assert_eq!(measured(&status).as_deref(), Some("2s"));
    assert_eq!(metal.connections(), 0);
}

/// More nodes than the limit of concurrent probes; each node is still probed once.
#[tokio::test(flavor = "multi_thread")]
async fn one_namespace_has_at_most_sixteen_probes_open() {
    const NODES: usize = 40;
    let world = World::new("verify-many").await;
    let first = Scripted::at(SocketAddr::from((address(), 7072)), |connection| closing(connection, secs(2), "")).await;
    let (mut nodes, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..NODES {
        let node = AdminApi::start(answering()).await;
        let at: SocketAddr = node.address.trim_start_matches("http://").parse().unwrap();
        servers.push(first.beside(SocketAddr::new(at.ip(), 7072), |connection| closing(connection, secs(2), "")).await);
        nodes.push(node);
    }
    let endpoints: Vec<_> = nodes.iter().map(|node| node.address.clone()).collect();
    let policy = json!({
        "target": {"type": "Caddy", "caddy": {"endpoints": endpoints}}, "limits": {"server": {"idleTimeout": "2s"}},
        "updateStrategy": {"type": "AllAtOnce"},
        "verify": {"server": {"interval": "5m", "httpGet": {"port": 7072}}},
    });
    world.apply("gw", &policy).await;
    let status = world.until_condition("gw", "InEffect", "True", "Measured").await;
    assert_eq!(message(&status, "InEffect"), "The servers of all 40 nodes close idle connections after the programmed time");
    assert_eq!((first.connections(), first.requests()), (NODES, NODES), "one connection for each node");
    assert!((9..=16).contains(&first.most_open()), "{} were open at the same time", first.most_open());
}

//! Waves: nodes whose connections each write closes are written in batches.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::join_all;
use idleconn_operator::{api::IdleConnectionPolicyStatus, controller::ControllerConfig};
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
};

use crate::support::{
    admin_api::AdminApi,
    caddy::{Caddy, typical},
    eventually,
    operator::{World, endpoints, find, gateway},
};

/// Batches of one node, with a short pause.
fn one_by_one(pause: &str) -> Json {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxNodes": 1, "pause": pause}})
}

fn policy(nodes: &[AdminApi], limit: &str, strategy: &Json) -> Json {
    json!({
        "target": endpoints(nodes.iter().map(|node| node.address.as_str())),
        "limits": {"server": {"idleTimeout": limit}},
        "updateStrategy": strategy,
    })
}

async fn fleet(count: usize) -> Vec<AdminApi> {
    join_all((0..count).map(|_| AdminApi::start(typical()))).await
}

/// The idle timeout of each node.
fn held(nodes: &[AdminApi]) -> Vec<String> {
    nodes.iter().map(|node| node.servers()["web"]["idle_timeout"].as_str().unwrap().to_owned()).collect()
}

fn updated(status: &IdleConnectionPolicyStatus) -> Option<(u32, u32)> {
    status.update.as_ref().map(|update| (update.updated_nodes, update.total_nodes))
}

/// Clients that keep connections to servers and connect again when one is closed, with the time of each close.
struct Fleet {
    closed: Arc<Mutex<Vec<Instant>>>,
    open: Arc<Semaphore>,
    _clients: JoinSet<()>,
}

impl Fleet {
    async fn connect(servers: &[Ipv4Addr], each: usize) -> Self {
        let (closed, open) = (Arc::<Mutex<Vec<Instant>>>::default(), Arc::new(Semaphore::new(0)));
        let mut clients = JoinSet::new();
        for ip in servers.iter().flat_map(|ip| std::iter::repeat_n(*ip, each)) {
            let (closed, open) = (closed.clone(), open.clone());
            clients.spawn(async move {
                loop {
                    let Some(mut stream) = ask(ip).await else { continue };
                    open.add_permits(1);
                    // The server sends nothing more until it closes the connection.
                    let _ = stream.read(&mut [0; 16]).await;
                    open.forget_permits(1);
                    closed.lock().unwrap().push(Instant::now());
                }
            });
        }
        let fleet = Self { closed, open, _clients: clients };
        fleet.is_whole(servers.len() * each).await;
        fleet
    }

    async fn is_whole(&self, connections: usize) {
        eventually("all clients are connected", || async { (self.open.available_permits() == connections).then_some(()) }).await;
    }

    /// The times at which connections were closed.
    fn closed(&self) -> Vec<Instant> {
        let mut closed = self.closed.lock().unwrap().clone();
        closed.sort();
        closed
    }
}

/// Connects, and makes a request; `None` if the server closes the connection meanwhile.
async fn ask(ip: Ipv4Addr) -> Option<TcpStream> {
    let mut stream = TcpStream::connect((ip, 8080)).await.ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: fleet\r\n\r\n").await.ok()?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello") {
        (stream.read_buf(&mut answer).await.ok()? > 0).then_some(())?;
    }
    Some(stream)
}

/// The most of these times that lie within five seconds.
fn most_in_five_seconds(times: &[Instant]) -> usize {
    let within = |from: &Instant| times.iter().filter(|time| *time >= from && **time < *from + Duration::from_secs(5)).count();
    times.iter().map(within).max().unwrap_or(0)
}

/// A test process may have 1,024 open files by default.
fn open_many_files() {
    let process = std::process::id().to_string();
    let prlimit = |args: &[&str]| {
        let output = std::process::Command::new("prlimit").args(["--pid", &process]).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let hard = prlimit(&["--nofile", "--output=HARD", "--noheadings"]);
    prlimit(&[&format!("--nofile={}", hard.trim())]);
}

/// Draws how many connections are open, and how many were closed so far.
fn draw(closed: &[Instant], from: Instant, connections: usize) -> String {
    let (wide, high, left, top) = (720.0, 220.0, 56.0, 16.0);
    let end = closed.last().map_or(1.0, |last| (*last - from).as_secs_f64()) + 5.0;
    let x = |seconds: f64| left + seconds / end * (wide - left - 16.0);
    #[allow(clippy::cast_precision_loss)] // Connections.
    let y = |count: usize| top + (1.0 - count as f64 / connections as f64) * (high - top - 32.0);
    let mut path = format!("M{:.1},{:.1}", x(0.0), y(0));
    for (count, at) in closed.iter().enumerate() {
        let _ = write!(path, "H{:.1}V{:.1}", x((*at - from).as_secs_f64()), y(count + 1));
    }
    let _ = write!(path, "H{:.1}", x(end));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {wide} {high}\" font-family=\"sans-serif\" font-size=\"11\">\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for part in 0..=4 {
        let count = connections * part / 4;
        let _ = writeln!(
            text,
            "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/><text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{count}</text>",
            x(end),
            y(count),
            left - 6.0,
            y(count) + 4.0
        );
    }
    let mut second = 0.0;
    while second <= end {
        let _ = writeln!(text, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{second}s</text>", x(second), high - 10.0);
        second += 10.0;
    }
    let _ = writeln!(text, "<path d=\"{path}\" fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"2\"/>\n</svg>");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn one_change_closes_a_quarter_of_the_connections_of_a_fleet_at_a_time() {
    const SERVERS: usize = 20;
    const EACH: usize = 150;
    open_many_files();
    let world = World::new("waves").await;
    let servers = json!({"web": {
        "listen": ["IP:8080"],
        "idle_timeout": "5m",
        "routes": [{"handle": [{"handler": "static_response", "body": "hello"}]}],
    }});
    let nodes = join_all((0..SERVERS).map(|_| Caddy::start(servers.clone()))).await;
    for (n, node) in nodes.iter().enumerate() {
        world.pod(&format!("gw-{n:02}"), &json!({"app": "gateway"}), node).await;
    }
    let addresses: Vec<_> = nodes.iter().map(|node| node.ip).collect();
    let fleet = Fleet::connect(&addresses, EACH).await;
    let connections = SERVERS * EACH;

    let from = Instant::now();
    world.apply("gw", &json!({"target": gateway(), "limits": {"server": {"idleTimeout": "4m"}}})).await;
    world.until("gw", "a quarter is updated", |status| updated(status) == Some((5, 20))).await;
    world.until_programmed("gw").await;
    fleet.is_whole(connections).await;
    let closed = fleet.closed();
    assert!(closed.len() >= connections, "each server was written, and closed its {EACH} connections: {}", closed.len());
    let most = most_in_five_seconds(&closed);
    println!("{} of {connections} connections were closed, at most {most} in five seconds", closed.len());
    assert!(most * 4 <= connections, "{most} of {connections} connections were closed within five seconds");
    assert_eq!(world.status("gw").await.update, None);
    if let Ok(picture) = std::env::var("IDLECONN_PICTURE") {
        std::fs::write(picture, draw(&closed, from, connections)).unwrap();
    }

    // For comparison: all at once.
    let before = fleet.closed().len();
    let at_once = json!({
        "target": gateway(),
        "limits": {"server": {"idleTimeout": "3m"}},
        "updateStrategy": {"type": "AllAtOnce"},
    });
    world.apply("gw", &at_once).await;
    world.until_programmed("gw").await;
    fleet.is_whole(connections).await;
    let most = most_in_five_seconds(&fleet.closed()[before..]);
    assert!(most >= connections, "all connections are closed within five seconds with AllAtOnce: {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_answer_after_its_write_stops_the_update_until_it_answers() {
    let world = World::new("stopped").await;
    let nodes = fleet(4).await;
    let mut spec = policy(&nodes, "2m", &json!({"type": "AllAtOnce"}));
    spec["adaptive"] = json!({
        "mode": "Recommend",
        "floor": {"server": {"idleTimeout": "1s"}},
        "signal": {"threshold": {"value": 1000}, "interval": "1s"},
    });
    world.apply("gw", &spec).await;
    world.until_programmed("gw").await;
    world.until("gw", "the tasks are counted", |status| status.tasks.is_some()).await;

    nodes.iter().for_each(AdminApi::end_with_the_next_write);
    spec["limits"]["server"]["idleTimeout"] = json!("1m");
    spec["updateStrategy"] = one_by_one("1s");
    world.apply("gw", &spec).await;
    let status = world.until_condition("gw", "Programmed", "False", "UpdateStopped").await;
    let broken = held(&nodes).iter().position(|idle| idle == "1m").unwrap();
    assert_eq!(held(&nodes).iter().filter(|idle| *idle == "1m").count(), 1, "one node was written");
    let name = status.update.as_ref().unwrap().blocked_by.clone().unwrap();
    assert!(nodes[broken].address.contains(&name), "{name}");
    for type_ in ["Programmed", "Ready"] {
        let message = &find(&status, type_).unwrap().message;
        assert!(message.contains(&format!("{name} has not answered since it was written")), "{message}");
        assert!(message.contains(&format!("Check {name} or remove it")), "{message}");
    }
    assert!(world.until_event("gw", "UpdateStopped").await.contains(&name));

    // A node with twice as many tasks as its threshold is written meanwhile, and no other.
    let urgent = (broken + 2) % 4;
    nodes[urgent].end_never();
    nodes[urgent].run(2_500);
    eventually("the urgent node is written", || async { (held(&nodes)[urgent] == "1m").then_some(()) }).await;
    let status = world.until("gw", "two nodes are updated", |status| updated(status).is_some_and(|(nodes, _)| nodes >= 1)).await;
    assert_eq!(status.update.unwrap().blocked_by.as_deref(), Some(name.as_str()));
    assert_eq!(held(&nodes).iter().filter(|idle| *idle == "1m").count(), 2);

    nodes.iter().for_each(AdminApi::end_never);
    nodes[broken].recover();
    let status = world.until_programmed("gw").await;
    assert_eq!((held(&nodes), status.update), (vec!["1m".to_owned(); 4], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_continues_the_update_after_a_pause_and_a_newer_version_replaces_it() {
    const PAUSE: Duration = Duration::from_secs(3);
    let mut world = World::new("leaders").await;
    let nodes = fleet(4).await;
    world.apply("gw", &policy(&nodes, "2m", &json!({"type": "AllAtOnce"}))).await;
    world.until_programmed("gw").await;
    world.apply("gw", &policy(&nodes, "1m", &one_by_one("3s"))).await;
    world.until("gw", "one node is updated", |status| updated(status) == Some((1, 4))).await;
    world.kill().await;
    let first = held(&nodes).iter().position(|idle| idle == "1m").unwrap();
    let written = nodes[first].times()[1];
    world.start(Duration::from_millis(500));
    world.until("gw", "two nodes are updated", |status| updated(status) == Some((2, 4))).await;
    let second = nodes.iter().filter_map(|node| node.times().get(1).copied()).max().unwrap();
    assert!(second - written >= PAUSE, "{:?}", second - written);

    // The nodes that wait take the newest version alone.
    world.apply("gw", &policy(&nodes, "50s", &one_by_one("0s"))).await;
    world.until_programmed("gw").await;
    assert_eq!(held(&nodes), vec!["50s"; 4]);
    let writes: Vec<_> = nodes.iter().map(AdminApi::writes).collect();
    assert_eq!(writes.iter().sum::<usize>(), 4 + 2 + 4, "{writes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_just_started_is_written_at_once() {
    let world = World::new("started").await;
    let mut nodes = Vec::new();
    for n in 0..4 {
        nodes.push(Caddy::typical().await);
        world.pod(&format!("gw-{n}"), &json!({"app": "gateway"}), &nodes[n]).await;
    }
    let spec = |limit: &str, strategy: Json| json!({"target": gateway(), "limits": {"server": {"idleTimeout": limit}}, "updateStrategy": strategy});
    world.apply("gw", &spec("2m", json!({"type": "AllAtOnce"}))).await;
    world.until_programmed("gw").await;
    world.apply("gw", &spec("1m", one_by_one("1h"))).await;
    world.until("gw", "one node is updated", |status| updated(status) == Some((1, 4))).await;

    // A new pod, and a process that restarts with the settings of its file.
    let new = Caddy::typical().await;
    world.pod("gw-9", &json!({"app": "gateway"}), &new).await;
    new.shows("/web/idle_timeout", &json!("1m")).await;
    world.until("gw", "the new node is updated", |status| updated(status) == Some((2, 5))).await;
    let mut waiting = None;
    for (n, node) in nodes.iter().enumerate() {
        if node.servers().await["web"]["idle_timeout"] == "2m" {
            waiting = Some(n);
        }
    }
    let waiting = waiting.unwrap();
    nodes[waiting].stop();
    nodes[waiting].resume().await;
    nodes[waiting].shows("/web/idle_timeout", &json!("1m")).await;
    world.until("gw", "two nodes wait", |status| updated(status) == Some((3, 5))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_policies_that_are_edited_at_once_stay_within_the_maximum_of_the_cluster() {
    let mut world = World::new("maximum").await;
    let fleets = join_all((0..20).map(|_| fleet(2))).await;
    let apply = async |world: &World, limit: &str| {
        for (n, nodes) in fleets.iter().enumerate() {
            world.apply(&format!("gw-{n}"), &policy(nodes, limit, &json!({"type": "AllAtOnce"}))).await;
        }
    };
    let programmed = async |world: &World| {
        for n in 0..20 {
            world.until_programmed(&format!("gw-{n}")).await;
        }
    };
    apply(&world, "2m").await;
    programmed(&world).await;
    world.kill().await;

    let most = NonZeroU32::new(60);
    let began = Instant::now();
    world.start_with(ControllerConfig { max_flushes_per_minute: most, ..world.settings(Duration::from_millis(500)) });
    apply(&world, "1m").await;
    let waits = world.until("gw-19", "the policy waits", |status| status.update.is_some()).await;
    let message = &find(&waits, "Programmed").unwrap().message;
    assert!(message.contains("--max-flushes-per-minute"), "{message}");
    programmed(&world).await;
    let mut times: Vec<_> = fleets.iter().flatten().flat_map(AdminApi::times).filter(|time| *time > began).collect();
    times.sort();
    assert_eq!(times.len(), 40, "each node is written once");
    // The minute before the process began counts as used up: one write is free in each second.
    for (count, time) in times.iter().enumerate() {
        let seconds = (*time - began).as_secs_f64();
        #[allow(clippy::cast_precision_loss)] // Forty.
        let free = count as f64;
        assert!(free <= seconds, "{} writes within {seconds:.1} s", count + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_during_an_update_restores_every_node_although_one_does_not_answer_for_a_while() {
    let world = World::new("unwritten").await;
    let nodes = fleet(6).await;
    let before: Vec<_> = nodes.iter().map(AdminApi::servers).collect();
    world.apply("gw", &policy(&nodes, "2m", &json!({"type": "AllAtOnce"}))).await;
    world.until_programmed("gw").await;
    let mut spec = policy(&nodes, "1m", &one_by_one("1h"));
    spec["restoreTimeout"] = json!("1m");
    world.apply("gw", &spec).await;
    world.until("gw", "one node is updated", |status| updated(status) == Some((1, 6))).await;

    let silent = nodes[3].hold().await;
    let policies = world.policies();
    policies.delete("gw", &kube::api::DeleteParams::default()).await.unwrap();
    let restored = || nodes.iter().zip(&before).filter(|(node, before)| node.servers() == **before).count();
    eventually("all nodes that answer are restored", || async { (restored() == 5).then_some(()) }).await;
    assert!(policies.get_opt("gw").await.unwrap().is_some(), "the deletion waits for the node that does not answer");
    drop(silent);
    eventually("the policy is gone", || async { policies.get_opt("gw").await.unwrap().is_none().then_some(()) }).await;
    assert_eq!(restored(), 6);
    assert!(!world.events("gw").await.contains(&"RestoreAbandoned".to_owned()));
}

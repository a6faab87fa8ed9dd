//! Addresses: the operator connects only to addresses of the policy's namespace and to those that an administrator lists,
//! whatever a policy, a node, an `EndpointSlice` or a saved original names.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use idleconn_operator::targets::AllowList;
use k8s_openapi::api::{apps::v1::ControllerRevision, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
    core::ApiResource,
};
use serde_json::{Value as Json, json};

use super::{ais, caddies};
use crate::support::{
    admin_api::AdminApi,
    caddy::typical,
    eventually,
    hostile::{Hostile, Process, Script},
    operator::{World, endpoints, find},
};

fn host(address: &str) -> &str {
    address.trim_start_matches("http://").split(':').next().unwrap()
}

/// Starts the operator with only these servers in its list of allowed addresses.
async fn listing(worlds: &[&World], addresses: &[&str]) -> Process {
    let listed: Vec<_> = addresses.iter().map(|address| host(address)).collect();
    Process::start(worlds, &[("IDLECONN_ALLOW_ENDPOINTS", &listed.join(","))]).await
}

/// Creates a pod that runs at this address.
async fn pod(world: &World, name: &str, ip: &str) {
    let pods = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "c"}]}});
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

async fn create(world: &World, group: &str, version: &str, kind: &str, object: &Json) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api = Api::<DynamicObject>::namespaced_with(world.client.clone(), &world.namespace, &resource);
    let mut object = object.clone();
    object["apiVersion"] = json!(if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") });
    object["kind"] = json!(kind);
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_original_sends_the_operator_nowhere() {
    let world = World::empty("forged").await;
    let node = AdminApi::start(typical()).await;
    let victim = Hostile::start(Arc::new(|_| (Duration::ZERO, 200, typical().to_string().into_bytes()))).await;
    let operator = listing(&[&world], &[&node.address]).await;
    let mut spec = caddies([node.address.as_str()]);
    spec["restoreTimeout"] = json!("4s");
    world.apply("gw", &spec).await;
    world.until_programmed("gw").await;
    drop(operator);
    // A tenant with the right to write a ControllerRevision saves a unit at the address of the victim, with each kind of name
    // that a unit can have.
    let pod_id = format!("pod/00000000-0000-0000-0000-000000000000:{}", victim.address.rsplit_once(':').unwrap().1);
    let target = serde_json::to_value(&world.get("gw").await.spec.target).unwrap();
    let saved =
        json!({"name": "victim", "address": victim.address, "target": target, "sites": {"server.idleTimeout@web": "1ms"}});
    let units = json!({(victim.address.as_str()): saved, (pod_id.as_str()): saved, "aistore/x": saved});
    let revision = json!({
        "metadata": {"name": "gw-original-7", "labels": {"idleconn.io/policy": "gw"}}, "revision": 7, "data": {"units": units},
    });
    let revisions = Api::<ControllerRevision>::namespaced(world.client.clone(), &world.namespace);
    revisions.create(&PostParams::default(), &serde_json::from_value(revision).unwrap()).await.unwrap();
    let _operator = listing(&[&world], &[&node.address]).await;
    world.until_event("gw", "RestoreAbandoned").await;
    world.policies().delete("gw", &DeleteParams::default()).await.unwrap();
    eventually("the policy is gone", || async { world.policies().get_opt("gw").await.unwrap().is_none().then_some(()) }).await;
    assert_eq!(victim.asked(), 0);
    assert_eq!(node.servers()["web"]["idle_timeout"], "5m", "what is really its own is restored");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_slice_leads_only_to_pods_of_the_namespace() {
    let world = World::empty("slices").await;
    let _operator = Process::start(&[&world], &[("IDLECONN_ALLOW_ENDPOINTS", "")]).await;
    let service = json!({"metadata": {"name": "gw"}, "spec": {"clusterIP": "None", "ports": [{"name": "admin", "port": 2019}]}});
    create(&world, "", "v1", "Service", &service).await;
    let slice = |name: &str, address: &str, pod: &str| {
        json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "gw"}},
            "addressType": "IPv4",
            "ports": [{"name": "admin", "port": 2019}],
            "endpoints": [{"addresses": [address], "targetRef": {"kind": "Pod", "name": pod, "uid": "u", "namespace": world.namespace}}],
        })
    };
    // Address of another tenant (TEST-NET-1), with the name of an existing pod.
    pod(&world, "own", "192.0.2.7").await;
    create(&world, "discovery.k8s.io", "v1", "EndpointSlice", &slice("own", "192.0.2.7", "own")).await;
    let spec = json!({"target": {"type": "Caddy", "caddy": {"service": {"name": "gw", "port": 2019}}}, "limits": {"server": {"idleTimeout": "30s"}}});
    world.apply("gw", &spec).await;
    world.until("gw", "its own pod is a node", |status| status.nodes.as_ref().is_some_and(|nodes| nodes.summary == "0/1")).await;
    let foreign = json!({
        "metadata": {"name": "foreign", "labels": {"kubernetes.io/service-name": "gw"}},
        "addressType": "IPv4", "ports": [{"name": "admin", "port": 2019}], "endpoints": [{"addresses": ["192.0.2.9"]}],
    });
    create(&world, "discovery.k8s.io", "v1", "EndpointSlice", &foreign).await;
    let status = world.until_condition("gw", "Accepted", "False", "RefNotPermitted").await;
    let message = &find(&status, "Accepted").unwrap().message;
    assert!(message.contains("192.0.2.9:2019") && message.contains("--allow-endpoints"), "{message}");
}

/// Cluster of one node. The cluster reports this address for the metrics of the node.
pub fn naming(metrics: &str) -> Script {
    running(metrics, "")
}

/// The same cluster; the node reports that it runs in this pod.
fn running(metrics: &str, pod: &str) -> Script {
    let status = json!({"tracker": {"up.ns.time": 1}, "k8s_pod_name": pod}).to_string();
    let map = json!({
        "uuid": format!("uuid-{metrics}"), "pmap": {"p0": {"daemon_id": "p0", "public_net": {"direct_url": metrics}}}, "tmap": {},
        "proxy_si": {"daemon_id": "p0"},
    })
    .to_string();
    let config = json!({"net": {"http": {"idle_conn_time": "6s", "idle_conns": 64, "idle_conns_per_host": 8}},
        "periodic": {"stats_time": "10s"}, "lastupdate_time": ""})
    .to_string();
    Arc::new(move |path| {
        let body = match path {
            _ if path.starts_with("/v1/health") => String::new(),
            _ if path.contains("what=smap") => map.clone(),
            _ if path.contains("what=node_status") => status.clone(),
            _ => config.clone(),
        };
        (Duration::ZERO, 200, body.into_bytes())
    })
}

pub fn sampled(address: &str) -> Json {
    let mut spec = ais(address);
    spec["adaptive"] = json!({
        "mode": "Enforce", "floor": {"intraCluster": {"idleConnTimeout": "5s"}},
        "signal": {"source": "Nodes", "metric": "go_goroutines", "threshold": {"value": 1000}, "interval": "1s"},
    });
    spec
}

/// Starts a metrics page, and records the requested paths.
async fn page() -> (Hostile, Arc<Mutex<Vec<String>>>) {
    let paths = Arc::<Mutex<Vec<String>>>::default();
    let seen = paths.clone();
    let script: Script = Arc::new(move |path| {
        seen.lock().unwrap().push(path.to_owned());
        (Duration::ZERO, 200, b"# TYPE go_goroutines gauge\ngo_goroutines 12\n".to_vec())
    });
    (Hostile::start(script).await, paths)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_a_cluster_map_is_a_pods_for_as_long_as_the_pod_is_there_and_its_path_is_dropped() {
    let world = World::empty("map").await;
    let (node, paths) = page().await;
    let cluster = Hostile::start(naming(&format!("{}/admin/quit?confirm=yes&", node.address))).await;
    let _operator = listing(&[&world], &[&cluster.address]).await;
    pod(&world, "node", host(&node.address)).await;
    world.apply("ais", &sampled(&cluster.address)).await;
    world.until_condition("ais", "MetricsAvailable", "True", "Fresh").await;
    assert!(paths.lock().unwrap().iter().all(|path| path == "/metrics"), "{:?}", paths.lock().unwrap());
    let pods = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    pods.delete("node", &DeleteParams::default().grace_period(0)).await.unwrap();
    // From now on the address may belong to another pod.
    world.until_condition("ais", "MetricsAvailable", "False", "BelowQuorum").await;
    let asked = node.asked();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(node.asked(), asked, "asked after its pod was gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_of_a_host_is_a_pods_only_at_a_port_that_the_pod_publishes() {
    let world = World::empty("host").await;
    let (node, _) = page().await;
    let cluster = Hostile::start(naming(&node.address)).await;
    let _operator = listing(&[&world], &[&cluster.address]).await;
    let port: u16 = node.address.rsplit_once(':').unwrap().1.parse().unwrap();
    let pods = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    let run = |name: &'static str, port: u16| {
        let (pods, ip) = (pods.clone(), host(&node.address).to_owned());
        async move {
            let container = json!({"name": "c", "image": "c", "ports": [{"containerPort": port, "hostPort": port}]});
            let pod = json!({"metadata": {"name": name}, "spec": {"containers": [container]}});
            pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
            let status = json!({"status": {
                "phase": "Running", "podIP": "10.99.0.9", "podIPs": [{"ip": "10.99.0.9"}], "hostIP": ip, "hostIPs": [{"ip": ip}],
            }});
            pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        }
    };
    // Pod on the same host with another port, such as that of the kubelet.
    run("neighbour", port ^ 1).await;
    world.apply("ais", &sampled(&cluster.address)).await;
    let status = world.until_condition("ais", "MetricsAvailable", "False", "BelowQuorum").await;
    let message = &find(&status, "MetricsAvailable").unwrap().message;
    assert!(message.contains("was not queried"), "{message}");
    assert_eq!(node.asked(), 0);
    run("node", port).await;
    world.until_condition("ais", "MetricsAvailable", "True", "Fresh").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_behind_a_load_balancer_is_asked_at_its_pod_and_the_balancer_is_not() {
    let world = World::empty("balancer").await;
    let (node, _) = page().await;
    let (balancer, _) = page().await;
    let port = node.address.rsplit_once(':').unwrap().1;
    let named = [balancer.address.clone(), format!("http://192.0.2.9:{port}"), format!("http://node-7.example.com:{port}")];
    let mut clusters = Vec::new();
    for (address, pod) in named.iter().zip(["missing", "target-0", "target-0"]) {
        clusters.push(Hostile::start(running(address, pod)).await);
    }
    let _operator = listing(&[&world], &clusters.iter().map(|cluster| cluster.address.as_str()).collect::<Vec<_>>()).await;
    for (n, cluster) in clusters.iter().enumerate() {
        world.apply(&format!("ais-{n}"), &sampled(&cluster.address)).await;
    }
    for n in 0..3 {
        let status = world.until_condition(&format!("ais-{n}"), "MetricsAvailable", "False", "BelowQuorum").await;
        let message = &find(&status, "MetricsAvailable").unwrap().message;
        assert!(message.contains("was not queried"), "{message}");
    }
    pod(&world, "target-0", host(&node.address)).await;
    for n in 1..3 {
        world.until_condition(&format!("ais-{n}"), "MetricsAvailable", "True", "Fresh").await;
    }
    world.until_condition("ais-0", "MetricsAvailable", "False", "BelowQuorum").await;
    assert_eq!(balancer.asked(), 0, "its address is no pod's, whatever the node says");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_an_ipv6_address_is_sampled() {
    let world = World::empty("ipv6").await;
    let page =
        axum::Router::new().route("/metrics", axum::routing::get(|| async { "# TYPE go_goroutines gauge\ngo_goroutines 12\n" }));
    let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move { axum::serve(listener, page).await.unwrap() });
    let cluster = Hostile::start(naming(&address)).await;
    let _operator = listing(&[&world], &[&cluster.address]).await;
    pod(&world, "node", "::1").await;
    world.apply("ais", &sampled(&cluster.address)).await;
    world.until_condition("ais", "MetricsAvailable", "True", "Fresh").await;
    task.abort();
}

/// Endpoints that a policy must not reach, because no administrator lists them: other hosts, this host, its link-local addresses
/// and the metadata services of clouds, each in every spelling that some parser accepts as an address.
const BARRED: [&str; 70] = [
    "http://127.0.0.1",
    "http://127.0.0.1:8081",
    "http://127.1",
    "http://127.0.1",
    "http://127.255.255.254",
    "http://2130706433",
    "http://0x7f000001",
    "http://0x7f.0.0.1",
    "http://0x7f.1",
    "http://0177.0.0.1",
    "http://017700000001",
    "http://0",
    "http://0.0.0.0",
    "http://0.0.0.0:6443",
    "http://localhost",
    "http://LOCALHOST",
    "http://localhost.",
    "http://localhost.localdomain",
    "http://[::1]",
    "http://[0:0:0:0:0:0:0:1]",
    "http://[::]",
    "http://[::ffff:127.0.0.1]",
    "http://[::ffff:7f00:1]",
    "http://[0:0:0:0:0:ffff:127.0.0.1]",
    "http://[::127.0.0.1]",
    "http://[64:ff9b::127.0.0.1]",
    "http://[64:ff9b::7f00:1]",
    "http://169.254.169.254",
    "http://169.254.169.254:80",
    "http://2852039166",
    "http://0xa9fea9fe",
    "http://0xa9.0xfe.0xa9.0xfe",
    "http://0251.0376.0251.0376",
    "http://169.254.43518",
    "http://[::ffff:169.254.169.254]",
    "http://[::ffff:a9fe:a9fe]",
    "http://[64:ff9b::a9fe:a9fe]",
    "http://[fd00:ec2::254]",
    "http://169.254.170.2",
    "http://100.100.100.200",
    "http://192.0.0.192",
    "http://168.63.129.16",
    "http://metadata.google.internal",
    "http://[fe80::1]",
    "http://[fe80::a9fe:a9fe]",
    "http://224.0.0.1",
    "http://255.255.255.255",
    "http://[ff02::1]",
    "http://10.0.0.1",
    "http://172.16.0.1:6443",
    "http://kubernetes.default.svc",
    "https://kubernetes.default.svc.cluster.local:443",
    "http://ais.example.com.evil.example",
    "http://evil.example",
    "http://evil-ais.example.com",
    "http://ais.example.com@evil.example",
    "http://user:password@ais.example.com",
    "http://ais.example.com#@evil.example",
    "http://ais.example.com/../admin",
    "http://ais.example.com?x=http://evil.example",
    "http://ais.example.com\\@evil.example",
    "http://ais.example.com%2eevil.example",
    "http://ais%00.example.com",
    "http://\u{ff41}is.example.com.evil.example",
    "http://127。0。0。1",
    "http://①②⑦.0.0.1",
    "ftp://ais.example.com",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "javascript:alert(1)",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_reaches_what_is_not_listed() {
    let listed = "198.51.100.0/24,2001:db8::/32,ais.example.com";
    for list in [listed, "0.0.0.0/0,::/0,ais.example.com"] {
        let list: AllowList = list.parse().unwrap();
        for endpoint in BARRED {
            let private = ["10.0.0.1", "172.16.0.1"].iter().any(|private| endpoint.contains(private));
            if let Ok(address) = list.check(endpoint) {
                let wide = list.check("http://203.0.113.1").is_ok();
                assert!(private && wide, "{endpoint} would be reached as {address}");
            }
        }
    }
    assert!(listed.parse::<AllowList>().unwrap().check("http://198.51.100.7:2019").is_ok());

    // The same check end to end: the API server accepts or refuses the spelling, and the operator refuses an accepted policy in
    // its status.
    let world = World::empty("barred").await;
    let _operator = Process::start(&[&world], &[("IDLECONN_ALLOW_ENDPOINTS", listed)]).await;
    let mut taken = 0;
    for (n, endpoint) in BARRED.iter().enumerate() {
        let spec = json!({"target": endpoints([*endpoint]), "limits": {"server": {"idleTimeout": "30s"}}});
        match world.try_apply(&format!("p-{n}"), &spec).await {
            Ok(_) => taken += 1,
            Err(kube::Error::Api(status)) => assert_eq!(status.code, 422, "{endpoint}: {status}"),
            Err(error) => panic!("{endpoint}: {error}"),
        }
    }
    assert!(taken > 40, "{taken} of {} are spelled as the CRD allows", BARRED.len());
    for (n, endpoint) in BARRED.iter().enumerate() {
        let name = format!("p-{n}");
        if world.policies().get_opt(&name).await.unwrap().is_none() {
            continue;
        }
        let status =
            world.until(&name, "it is refused", |status| find(status, "Accepted").is_some_and(|c| c.status == "False")).await;
        let accepted = find(&status, "Accepted").unwrap();
        assert!(["RefNotPermitted", "Invalid"].contains(&accepted.reason.as_str()), "{endpoint}: {accepted:?}");
    }
    assert!(BARRED.len() >= 60 && "127.0.0.1".parse::<IpAddr>().is_ok());
}

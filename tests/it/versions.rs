//! Operator with no CRD, an older CRD or a newer CRD. Each test has a separate control plane, because a CRD affects all
//! namespaces.

use std::time::Duration;

use idleconn_operator::api::{IdleConnectionPolicy, MANAGER, crd};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, ValidationDirective},
};
use reqwest::StatusCode;
use serde_json::{Value as Json, from_value, json};
use tokio::net::TcpListener;

use crate::support::{
    admin_api::AdminApi,
    caddy::typical,
    cluster::{Own, install},
    eventually, leashed,
    operator::{World, endpoints, find},
};

struct Operator {
    address: String,
    process: tokio::process::Child,
}

impl Operator {
    async fn start(cluster: &Own) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let mut process = leashed(env!("CARGO_BIN_EXE_idleconn-operator"));
        process
            .args(["run", "--metrics-address", &address, "--api-address", "none", "--resync-interval", "1s"])
            .args(["--allow-endpoints", "127.0.0.0/8", "--kubeconfig"])
            .arg(cluster.kubeconfig());
        Self { address, process: tokio::process::Command::from(process).spawn().unwrap() }
    }

    /// Stops the operator as the kubelet does; the operator exits by itself.
    async fn stop(mut self) {
        // Closing standard input tells the program to end; the test waits for the exit.
        drop(self.process.stdin.take());
        let ended = tokio::time::timeout(Duration::from_secs(20), self.process.wait()).await;
        ended.expect("it ends on SIGTERM").unwrap();
    }

    /// Returns whether `check` succeeded, and its output.
    async fn check(&self, cluster: &Own) -> (bool, String) {
        let mut check = tokio::process::Command::new(env!("CARGO_BIN_EXE_idleconn-operator"));
        check.args(["check", "--operator", &format!("http://{}", self.address), "--kubeconfig"]).arg(cluster.kubeconfig());
        let output = check.output().await.unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    /// Waits until the readiness endpoint returns this status and text.
    async fn says(&self, status: StatusCode, words: &str) {
        eventually(&format!("/readyz answers {status} with {words:?}"), || async {
            let response = reqwest::get(format!("http://{}/readyz", self.address)).await.ok()?;
            (response.status() == status && response.text().await.ok()?.contains(words)).then_some(())
        })
        .await;
    }
}

/// CRD without a field that this version needs, and without a field that it reports.
fn older() -> Json {
    let mut crd = crd::crd();
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    schema["spec"]["properties"].as_object_mut().unwrap().remove("restart");
    schema["status"]["properties"].as_object_mut().unwrap().remove("recommendation");
    // The rules refer to the removed fields.
    schema["spec"].as_object_mut().unwrap().remove("x-kubernetes-validations");
    crd
}

/// CRD with a limit, a restart policy and a kind of target that this version does not know.
fn newer() -> Json {
    let mut crd = crd::crd();
    let spec = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let fields = &mut spec["properties"];
    fields["limits"]["properties"]["server"]["properties"]["patience"] = json!({"type": "string"});
    fields["restart"]["properties"]["policy"]["enum"].as_array_mut().unwrap().push("Canary".into());
    fields["target"]["properties"]["type"]["enum"].as_array_mut().unwrap().push("Envoy".into());
    // The rules refer to the targets of this version.
    fields["target"].as_object_mut().unwrap().remove("x-kubernetes-validations");
    spec.as_object_mut().unwrap().remove("x-kubernetes-validations");
    crd
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_older_crd_is_waited_for_and_what_a_newer_one_allows_is_refused_where_it_is_used() {
    let cluster = tokio::task::spawn_blocking(Own::start).await.unwrap();
    let client = cluster.client().await;
    let node = AdminApi::start(typical()).await;
    let before = node.servers();
    let operator = Operator::start(&cluster).await;
    operator.says(StatusCode::SERVICE_UNAVAILABLE, "the CRD for policies is not installed; apply the CRD of this version").await;

    operator.stop().await;
    let operator = Operator::start(&cluster).await;
    operator.says(StatusCode::SERVICE_UNAVAILABLE, "the CRD for policies is not installed").await;

    install(&client, &older()).await;
    operator
        .says(
            StatusCode::SERVICE_UNAVAILABLE,
            "older than this operator 0.1.0 and lacks spec.restart, status.recommendation; apply",
        )
        .await;
    let raw = Api::<DynamicObject>::namespaced_with(
        client.clone(),
        "default",
        &kube::api::ApiResource::erase::<IdleConnectionPolicy>(&()),
    );
    let limits = |server: Json| json!({"target": endpoints([node.address.as_str()]), "limits": {"server": server}});
    // The API server applies a CRD with a short delay. Until then it refuses the new fields.
    let apply = async |name: &str, spec: Json| {
        let object = json!({"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": {"name": name}, "spec": spec});
        eventually(&format!("{name} is taken"), || async {
            let params =
                PatchParams { field_validation: Some(ValidationDirective::Strict), ..PatchParams::apply("user").force() };
            raw.patch(name, &params, &Patch::Apply(&object)).await.ok()
        })
        .await
    };
    apply("gw", limits(json!({"idleTimeout": "30s"}))).await;
    let policies = Api::<IdleConnectionPolicy>::namespaced(client.clone(), "default");
    operator.says(StatusCode::SERVICE_UNAVAILABLE, "older").await;
    assert_eq!(policies.get("gw").await.unwrap().status.unwrap().observed_generation, Some(-1), "nothing is done with it");
    assert_eq!(node.writes(), 0);
    let (is_content, said) = operator.check(&cluster).await;
    assert!(!is_content && said.starts_with("idleconn-operator: the CRD is older than this operator"), "{said}");

    // After the upgrade of the CRD the operator continues without a restart.
    install(&client, &crd::crd()).await;
    operator.says(StatusCode::OK, "ok").await;
    let condition = async |name: &str, type_: &str, reason: &str| {
        eventually(&format!("{name}: {type_} for {reason}"), || async {
            // Only the status is read, because this program cannot read every spec here.
            let status = from_value(raw.get(name).await.ok()?.data["status"].take()).ok()?;
            find(&status, type_).filter(|condition| condition.reason == reason).cloned()
        })
        .await
    };
    condition("gw", "Programmed", "Programmed").await;
    let ready = format!("the CRD has the version of this operator\nthe operator at http://{} is ready\n", operator.address);
    assert_eq!(operator.check(&cluster).await, (true, ready));

    // The CRD is upgraded before the operator: the operator refuses unknown fields at once, by name, and continues with the other
    // policies.
    install(&client, &newer()).await;
    apply("ahead", limits(json!({"idleTimeout": "10s", "patience": "5s"}))).await;
    let refused = condition("ahead", "Accepted", "Invalid").await.message;
    assert!(
        refused.starts_with("spec.limits.server.patience is of a newer version; upgrade the operator from 0.1.0"),
        "{refused}"
    );
    apply("gw", limits(json!({"idleTimeout": "20s"}))).await;
    eventually("what it does know goes on", || async { node.servers().to_string().contains("20s").then_some(()) }).await;
    let mut canary = limits(json!({"idleTimeout": "10s"}));
    canary["restart"] = json!({"policy": "Canary"});
    apply("gw", canary).await;
    let refused = condition("gw", "Accepted", "Invalid").await.message;
    assert!(refused.starts_with("spec.restart.policy=Canary is of a newer version"), "{refused}");
    assert!(node.servers().to_string().contains("20s"), "nothing of it is done");
    apply("mesh", json!({"target": {"type": "Envoy"}, "limits": {}})).await;

    // The plugin of this version shows the fields that it knows, and names the others.
    let ask = async |words: &[&str]| {
        let mut plugin = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubectl-idleconn"));
        plugin.args(words).args(["--namespace", "default", "--kubeconfig"]).arg(cluster.kubeconfig());
        let output = plugin.output().await.unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (is_done, shown, said) = ask(&["status"]).await;
    assert!(is_done && shown.contains("False (Invalid)") && !shown.contains("mesh"), "{shown}");
    let warnings = [
        "ahead: spec.limits.server.patience is of a newer version: upgrade kubectl-idleconn from 0.1.0\n",
        "gw: spec.restart.policy=Canary is of a newer version: upgrade kubectl-idleconn from 0.1.0\n",
        "mesh: spec.target.type=Envoy is of a newer version: upgrade kubectl-idleconn from 0.1.0\n",
    ];
    assert_eq!(said, warnings.map(|warning| format!("Warning: {warning}")).concat());
    assert_eq!(ask(&["explain", "mesh"]).await, (false, String::new(), format!("error: {}", warnings[2])));
    assert!(ask(&["pause", "gw"]).await.0 && ask(&["resume", "gw"]).await.0, "nothing in the spec is asked for");

    // The same holds for an operator that starts now. It still handles deletions, and a policy that it cannot read does not block
    // it.
    operator.stop().await;
    let operator = Operator::start(&cluster).await;
    operator.says(StatusCode::OK, "ok").await;
    apply("late", limits(json!({"patience": "5s"}))).await;
    condition("late", "Accepted", "Invalid").await;
    raw.delete("gw", &DeleteParams::default()).await.unwrap();
    eventually("gw has gone", || async { raw.get_opt("gw").await.ok()?.is_none().then_some(()) }).await;
    assert_eq!(node.servers(), before, "the node has back what it held");
    let mesh = raw.get("mesh").await.unwrap();
    assert_eq!(mesh.data["status"]["observedGeneration"], json!(-1), "nothing is said of what was not understood");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_with_a_former_name_is_removed_from_a_live_status() {
    let mut world = World::empty("renamed").await;
    let node = AdminApi::start(typical()).await;
    world.apply("gw", &json!({"target": endpoints([node.address.as_str()]), "limits": {"server": {"idleTimeout": "30s"}}})).await;
    // As a former operator left it, under the operator's field manager.
    let condition = |type_: &str| {
        json!({"type": type_, "status": "False", "reason": "NotLimited", "message": "The operator does what it wants to",
            "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let status = json!({"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": {"name": "gw"},
        "status": {"observedGeneration": 1, "conditions": [condition("Ready"), condition("Limited")]}});
    let policies = Api::<DynamicObject>::namespaced_with(
        world.client.clone(),
        &world.namespace,
        &kube::api::ApiResource::erase::<IdleConnectionPolicy>(&()),
    );
    policies.patch_status("gw", &PatchParams::apply(MANAGER).force(), &Patch::Apply(status)).await.unwrap();
    let before = world.status("gw").await;
    assert!(find(&before, "Limited").is_some(), "{before:?}");

    world.start(Duration::from_secs(1));
    let status = world.until_programmed("gw").await;
    assert_eq!(find(&status, "Limited"), None, "{:?}", status.conditions);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tightened_policy_of_a_former_version_keeps_its_openness_and_no_node_is_written() {
    let mut world = World::new("former-state").await;
    let node = AdminApi::start(typical()).await;
    node.run(100);
    let policy = json!({
        "target": endpoints([node.address.as_str()]),
        "limits": {"server": {"idleTimeout": "30s"}},
        "adaptive": {
            "mode": "Enforce",
            "floor": {"server": {"idleTimeout": "10s"}},
            "signal": {"threshold": {"value": 1000}, "interval": "1s"},
        },
    });
    world.apply("gw", &policy).await;
    world.until_programmed("gw").await;
    world.until("gw", "a state", |s| s.control.as_ref().is_some_and(|control| control.adaptive.is_some())).await;
    world.kill().await;
    // As a former version left it, with a state that this version does not read.
    node.store("/web/idle_timeout", json!("20s"));
    let former = json!({"status": {"opennessPercent": 50, "control": {"adaptive": null, "loop": "u1e"}}});
    world.policies().patch_status("gw", &PatchParams::default(), &Patch::Merge(former)).await.unwrap();
    let (reads, writes) = (node.reads(), node.writes());

    world.start(Duration::from_secs(1));
    let status =
        world.until("gw", "a state again", |s| s.control.as_ref().is_some_and(|control| control.adaptive.is_some())).await;
    assert_eq!(status.openness_percent, Some(50));
    eventually("three more passes", || async { (node.reads() >= reads + 4).then_some(()) }).await;
    assert_eq!(node.writes(), writes, "no node is written");
    let status = world.status("gw").await;
    assert_eq!((status.openness_percent, status.control.unwrap().adaptive.unwrap().openness), (Some(50), 50));
    let events = world.events("gw").await;
    assert!(!events.iter().any(|event| event.starts_with("Drift") || event == "Relaxed"), "{events:?}");
}

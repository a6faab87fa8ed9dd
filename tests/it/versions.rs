//! An operator that meets no CRD, an older one, or a newer one. Each with a control plane of its own: a CRD is everybody's.

use std::time::Duration;

use idleconn_operator::api::{IdleConnectionPolicy, crd};
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams},
};
use reqwest::StatusCode;
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;

use crate::support::{
    admin_api::AdminApi,
    caddy::typical,
    cluster::{Own, install},
    eventually, leashed,
    operator::{endpoints, find},
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

    /// What the kubelet does; it ends by itself.
    async fn stop(mut self) {
        // The leash: it is told to end, and waited for.
        drop(self.process.stdin.take());
        let ended = tokio::time::timeout(Duration::from_secs(20), self.process.wait()).await;
        ended.expect("it ends when it is told to").unwrap();
    }

    /// What `check` prints, and whether it is content.
    async fn check(&self, cluster: &Own) -> (bool, String) {
        let mut check = tokio::process::Command::new(env!("CARGO_BIN_EXE_idleconn-operator"));
        check.args(["check", "--operator", &format!("http://{}", self.address), "--kubeconfig"]).arg(cluster.kubeconfig());
        let output = check.output().await.unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    /// Waits until it says this of its readiness.
    async fn says(&self, status: StatusCode, words: &str) {
        eventually(&format!("/readyz answers {status} with {words:?}"), || async {
            let response = reqwest::get(format!("http://{}/readyz", self.address)).await.ok()?;
            (response.status() == status && response.text().await.ok()?.contains(words)).then_some(())
        })
        .await;
    }
}

/// Without a field that this version needs, and without one that it reports.
fn older() -> Json {
    let mut crd = crd::crd();
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    schema["spec"]["properties"].as_object_mut().unwrap().remove("restart");
    schema["status"]["properties"].as_object_mut().unwrap().remove("recommendation");
    // Its rules speak of what is no longer there.
    schema["spec"].as_object_mut().unwrap().remove("x-kubernetes-validations");
    crd
}

/// With a limit that this version has not heard of.
fn newer() -> Json {
    let mut crd = crd::crd();
    let spec = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    spec["properties"]["limits"]["properties"]["server"]["properties"]["patience"] = json!({"type": "string"});
    crd
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_older_crd_is_waited_for_and_what_a_newer_one_allows_is_refused_where_it_is_used() {
    let cluster = tokio::task::spawn_blocking(Own::start).await.unwrap();
    let client = cluster.client().await;
    let node = AdminApi::start(typical()).await;
    let operator = Operator::start(&cluster).await;
    operator.says(StatusCode::SERVICE_UNAVAILABLE, "there is no CRD for policies: apply the one of this version").await;

    operator.stop().await;
    let operator = Operator::start(&cluster).await;
    operator.says(StatusCode::SERVICE_UNAVAILABLE, "there is no CRD for policies").await;

    install(&client, &older()).await;
    operator
        .says(
            StatusCode::SERVICE_UNAVAILABLE,
            "older than this operator 0.1.0, and lacks spec.restart, status.recommendation: apply",
        )
        .await;
    let raw = Api::<DynamicObject>::namespaced_with(
        client.clone(),
        "default",
        &kube::api::ApiResource::erase::<IdleConnectionPolicy>(&()),
    );
    let apply = async |name: &str, server: Json| {
        let object = json!({
            "apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": {"name": name},
            "spec": {"target": endpoints([node.address.as_str()]), "limits": {"server": server}},
        });
        raw.patch(name, &PatchParams::apply("user").force(), &Patch::Apply(object)).await.unwrap()
    };
    apply("gw", json!({"idleTimeout": "30s"})).await;
    let policies = Api::<IdleConnectionPolicy>::namespaced(client.clone(), "default");
    operator.says(StatusCode::SERVICE_UNAVAILABLE, "older").await;
    assert_eq!(policies.get("gw").await.unwrap().status.unwrap().observed_generation, Some(-1), "nothing is done with it");
    assert_eq!(node.writes(), 0);
    let (is_content, said) = operator.check(&cluster).await;
    assert!(!is_content && said.starts_with("idleconn-operator: the CRD is older than this operator"), "{said}");

    // Upgraded, it goes on by itself.
    install(&client, &crd::crd()).await;
    operator.says(StatusCode::OK, "ok").await;
    let condition = async |name: &str, type_: &str, reason: &str| {
        eventually(&format!("{name}: {type_} for {reason}"), || async {
            let status = policies.get(name).await.ok()?.status?;
            find(&status, type_).filter(|condition| condition.reason == reason).cloned()
        })
        .await
    };
    condition("gw", "Programmed", "Programmed").await;
    let ready = format!("the CRD is this version's\nthe operator at http://{} is ready\n", operator.address);
    assert_eq!(operator.check(&cluster).await, (true, ready));
    operator.stop().await;

    // Rolled back, the operator meets a CRD that is ahead of it.
    install(&client, &newer()).await;
    let operator = Operator::start(&cluster).await;
    operator.says(StatusCode::OK, "ok").await;
    apply("ahead", json!({"idleTimeout": "10s", "patience": "5s"})).await;
    let refused = condition("ahead", "Accepted", "Invalid").await;
    assert!(
        refused.message.starts_with("spec.limits.server.patience is of a newer version: upgrade the operator from 0.1.0"),
        "{}",
        refused.message
    );
    apply("gw", json!({"idleTimeout": "20s"})).await;
    eventually("what it does know goes on", || async { (node.servers().to_string().contains("20s")).then_some(()) }).await;
}

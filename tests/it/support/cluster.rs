//! Control plane that all tests of a process share.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use idleconn_operator::{api::StoredPolicy, pool::Pool};
use k8s_openapi::{api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition};
use kube::{
    Api, Client, Config,
    api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::wait::{await_condition, conditions::is_crd_established},
};

use super::eventually;

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

struct Cluster {
    kubeconfig: PathBuf,
    bin: PathBuf,
    // The control plane runs as long as the standard input of this process is open.
    serve: Child,
}

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::start(""))
}

/// Control plane of a single test, without the CRD, for tests that affect all namespaces. It ends on drop.
pub struct Own(Cluster);

impl Own {
    pub fn start() -> Self {
        Self(Cluster::start("-own"))
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.0.kubeconfig
    }

    pub async fn client(&self) -> Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let file = Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        idleconn_operator::controller::client(&config, &Pool::default()).unwrap()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.0.serve.stdin.take());
        let _ = self.0.serve.wait();
    }
}

impl Cluster {
    fn start(about: &str) -> Self {
        let tools = Path::new(ROOT).join("tests/tools");
        let built = Command::new(tools.join("build")).stderr(Stdio::inherit()).output().expect("tests/tools/build");
        assert!(built.status.success(), "tests/tools/build failed; see above");
        let bin = PathBuf::from(String::from_utf8(built.stdout).unwrap().lines().last().unwrap());
        let dir = std::env::temp_dir().join(format!("idleconn-test-{}{about}", std::process::id()));
        let mut serve = Command::new(tools.join("cluster"))
            .args(["serve".as_ref(), dir.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/tools/cluster");
        let mut line = String::new();
        BufReader::new(serve.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.trim().is_empty(), "the control plane did not start; see above");
        Self { kubeconfig: line.trim().into(), bin, serve }
    }
}

/// Returns the path of a pinned program.
pub fn tool(name: &str) -> PathBuf {
    cluster().bin.join(name)
}

pub fn kubeconfig() -> &'static Path {
    &cluster().kubeconfig
}

/// Returns the audit log of the API server; `None` for an existing cluster.
pub fn audit_log() -> Option<PathBuf> {
    Some(kubeconfig().with_file_name("audit.log")).filter(|path| path.exists())
}

pub async fn config() -> Config {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = Kubeconfig::read_from(kubeconfig()).unwrap();
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap()
}

/// Returns a client of the control plane, in which the CRD is installed.
pub async fn client() -> Client {
    let client = idleconn_operator::controller::client(&config().await, &Pool::default()).unwrap();
    install(&client, &idleconn_operator::api::crd::crd()).await;
    client
}

/// Installs the CRD of the policies. A changed CRD takes effect after a short delay, which a test can observe only by the change
/// itself.
pub async fn install(client: &Client, crd: &serde_json::Value) {
    let crds = Api::<CustomResourceDefinition>::all(client.clone());
    let name = crd["metadata"]["name"].as_str().unwrap();
    crds.patch(name, &PatchParams::apply("tests").force(), &Patch::Apply(crd)).await.unwrap();
    await_condition(crds, name, is_crd_established()).await.unwrap();
    let policies = Api::<StoredPolicy>::all(client.clone());
    eventually("policies are served", || async { policies.list(&ListParams::default().limit(1)).await.ok() }).await;
}

/// Creates a namespace for a test.
pub async fn namespace(client: &Client, about: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{about}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let object = Namespace { metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() }, ..Namespace::default() };
    Api::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
    name
}

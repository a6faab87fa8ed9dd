//! examples/go-service as a pod: a real process, with a fake kubelet that copies the key of a ConfigMap into a file.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value as Json, json};
use tokio::task::JoinHandle;

use super::{caddy::address, cluster::ROOT, eventually, leashed, operator::World};

/// Returns the program, which is built once for each test process.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let to = Path::new(ROOT).join("target/go-service");
        // The program is built under another name first, because other test processes may be running the existing file.
        let fresh = to.with_file_name(format!("go-service-{}", std::process::id()));
        let built = Command::new("go")
            .current_dir(Path::new(ROOT).join("examples/go-service"))
            .args(["build", "-o"])
            .arg(&fresh)
            .arg(".")
            .stderr(Stdio::inherit())
            .status();
        assert!(built.is_ok_and(|status| status.success()), "examples/go-service cannot be built; see above");
        std::fs::rename(&fresh, &to).unwrap();
        to
    })
}

/// Pod with the service.
pub struct Service {
    pub ip: Ipv4Addr,
    dir: PathBuf,
    process: Option<Child>,
    kubelet: Option<JoinHandle<()>>,
    arguments: Vec<String>,
}

impl Service {
    /// Starts the service without a file, as a pod of the namespace with the label `app: gateway`.
    pub async fn start(world: &World, name: &str, arguments: &[&str]) -> Self {
        let service = Self::alone(arguments).await;
        pod(world, name, &json!({"app": "gateway"}), &json!({}), &service.ip.to_string()).await;
        service
    }

    /// Starts the service without a pod.
    pub async fn alone(arguments: &[&str]) -> Self {
        let ip = address();
        let dir = std::env::temp_dir().join(format!("idleconn-service-{ip}"));
        std::fs::create_dir_all(&dir).unwrap();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut service = Self { ip, dir, process: None, kubelet: None, arguments };
        service.run().await;
        service
    }

    /// Mounts a key, as the kubelet does: the file follows the API server with a short delay.
    pub fn mount(&mut self, world: &World, config_map: &str, key: &str) {
        let api = Api::<ConfigMap>::namespaced(world.client.clone(), &world.namespace);
        let (key, file) = (key.to_owned(), self.file());
        let events = watcher(api, watcher::Config::default().fields(&format!("metadata.name={config_map}")));
        self.kubelet = Some(tokio::spawn(async move {
            let mut events = std::pin::pin!(events.default_backoff());
            while let Some(event) = events.next().await {
                let text = match event {
                    Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                        object.data.and_then(|data| data.get(&key).cloned())
                    }
                    Ok(watcher::Event::Delete(_)) => None,
                    _ => continue,
                };
                match text {
                    Some(text) => {
                        let fresh = file.with_extension("fresh");
                        std::fs::write(&fresh, text).unwrap();
                        std::fs::rename(&fresh, &file).unwrap();
                    }
                    None => drop(std::fs::remove_file(&file)),
                }
            }
        }));
    }

    /// Writes the file manually.
    pub fn write(&self, text: &str) {
        std::fs::write(self.file(), text).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.dir.join("http.yaml")
    }

    async fn run(&mut self) {
        let mut command = leashed(program());
        command.args([format!("-listen={}:8080", self.ip), format!("-admin={}:8081", self.ip), "-every=50ms".into()]);
        command.arg(format!("-config={}", self.file().display())).args(&self.arguments);
        self.process = Some(command.spawn().unwrap());
        eventually("the service answers", || async { self.page("/config-hash").await }).await;
    }

    /// Restarts the service, as a container restart does.
    pub async fn restart(&mut self) {
        self.stop();
        self.run().await;
    }

    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.stdin.take());
            process.wait().unwrap();
        }
    }

    /// Returns the address on which the service listens.
    pub fn listen(&self) -> SocketAddr {
        SocketAddr::from((self.ip, 8080))
    }

    async fn page(&self, path: &str) -> Option<String> {
        reqwest::get(format!("http://{}:8081{path}", self.ip)).await.ok()?.text().await.ok()
    }

    /// Returns the hash of the settings that the service uses; empty if it has none.
    pub async fn hash(&self) -> String {
        eventually("the service says its hash", || self.page("/config-hash")).await.trim().to_owned()
    }

    /// Returns the value of a series on the metrics page.
    pub async fn metric(&self, series: &str) -> f64 {
        let page = eventually("the service shows its metrics", || self.page("/metrics")).await;
        let line = page.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("no {series} in {page}")).trim().parse().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
        if let Some(kubelet) = self.kubelet.take() {
            kubelet.abort();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Creates a running pod, as a kubelet would, started at the beginning of this year. `extra` goes into its metadata.
pub async fn pod(world: &World, name: &str, labels: &Json, extra: &Json, ip: &str) {
    let pods = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    let mut pod =
        json!({"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "service", "image": "service"}]}});
    pod["metadata"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    started(world, name, ip, "2026-01-01T00:00:00Z").await;
}

/// Sets the start time of a pod's container, as the kubelet reports it.
pub async fn started(world: &World, name: &str, ip: &str, at: &str) {
    let pods = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    let container = json!({"name": "service", "image": "service", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {"startedAt": at}}});
    let mut status = json!({"status": {"phase": "Pending", "containerStatuses": [container]}});
    if !ip.is_empty() {
        let running = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
        status["status"].as_object_mut().unwrap().extend(running.as_object().unwrap().clone());
    }
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// Returns a target of the pods with the label `app: gateway`, with the pages on which they report their settings.
pub fn target(format: &str) -> Json {
    json!({"type": "ConfigMap", "configMap": {
        "name": "gateway-http", "key": "http.yaml", "format": format,
        "selector": {"matchLabels": {"app": "gateway"}}, "metrics": {"port": 8081},
    }})
}

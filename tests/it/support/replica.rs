//! Replicas of the operator, as processes that stand for election.

use std::{path::PathBuf, process::Stdio};

use tokio::process::{Child, Command};

use super::{caddy, cluster, operator::World};

/// How long the replicas' Lease is valid, for how long after a renewal they act, and how often they renew.
pub type Times = [&'static str; 3];

/// One replica. Ends with the test.
pub struct Replica {
    child: Child,
    metrics: String,
    log: PathBuf,
}

impl Replica {
    /// Starts one in the world's namespace.
    pub fn start(world: &World, name: &str, [duration, renew_deadline, retry_period]: Times) -> Self {
        Self::start_with(world, name, [duration, renew_deadline, retry_period], &[])
    }

    /// The same with more environment.
    pub fn start_with(world: &World, name: &str, [duration, renew_deadline, retry_period]: Times, env: &[(&str, &str)]) -> Self {
        let address = format!("{}:8080", caddy::address());
        let log = std::env::temp_dir().join(format!("idleconn-{}-{name}.log", world.namespace));
        let child = Command::new(env!("CARGO_BIN_EXE_idleconn-operator"))
            .args(["run", "--leader-election", "--resync-interval", "1s", "--allow-endpoints", "127.0.0.0/8"])
            .args([
                "--metrics-address",
                &address,
                "--api-address",
                "none",
                "--namespaces",
                &world.namespace,
                "--lease-namespace",
                &world.namespace,
            ])
            .args(["--lease-duration", duration, "--lease-renew-deadline", renew_deadline, "--lease-retry-period", retry_period])
            .arg("--kubeconfig")
            .arg(cluster::kubeconfig())
            .env("POD_NAME", name)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, metrics: format!("http://{address}"), log }
    }

    /// A signal by its name.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        assert!(std::process::Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    /// Ends it as a node that falls over does.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits for its end; whether it ended well.
    pub async fn ended(&mut self) -> bool {
        tokio::time::timeout(super::PATIENCE, self.child.wait()).await.expect("it ends").unwrap().success()
    }

    /// One of its metrics; none where it does not answer.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let page = reqwest::get(format!("{}/metrics", self.metrics)).await.ok()?.text().await.ok()?;
        page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Whether it acts, by its own word.
    pub async fn leads(&self) -> bool {
        self.metric("idleconn_leader ").await == Some(1.0)
    }

    /// Waits until it acts.
    pub async fn until_it_leads(&self) {
        super::eventually("this replica leads", || async { self.leads().await.then_some(()) }).await;
    }

    /// Waits until it is ready, whether it acts or not.
    pub async fn until_ready(&self) {
        let ready = || async {
            reqwest::get(format!("{}/readyz", self.metrics)).await.is_ok_and(|r| r.status().is_success()).then_some(())
        };
        super::eventually("this replica is ready", ready).await;
    }

    /// What it had to say.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Removes what it said, once all is well.
    pub fn clean(&self) {
        let _ = std::fs::remove_file(&self.log);
    }
}

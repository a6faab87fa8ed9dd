//! Replicas of the operator, as processes with leader election.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Stdio,
    str::FromStr,
    sync::LazyLock,
};

use tokio::process::{Child, Command};

use super::{caddy, cluster, operator::World};

/// Times of the leader election: lease duration, renew deadline and retry period.
pub type Times = [&'static str; 3];

/// Replica of the operator. It ends with the test.
pub struct Replica {
    child: Child,
    metrics: String,
    /// URL of its API, if it has one.
    pub api: String,
    log: PathBuf,
}

impl Replica {
    /// Starts a replica in the namespace of the world.
    pub fn start(world: &World, name: &str, [duration, renew_deadline, retry_period]: Times) -> Self {
        Self::start_with(world, name, [duration, renew_deadline, retry_period], &[])
    }

    /// Starts a replica with additional environment variables.
    pub fn start_with(world: &World, name: &str, times: Times, env: &[(&str, &str)]) -> Self {
        Self::spawn(world, name, times, env, cluster::kubeconfig(), &world.namespace)
    }

    /// Starts a replica with shards, in the namespaces of all these worlds. Its API needs no tokens.
    pub fn start_shards(worlds: &[World], name: &str, times: Times, shards: &str) -> Self {
        let namespaces: Vec<_> = worlds.iter().map(|world| world.namespace.as_str()).collect();
        let env = [("IDLECONN_SHARDS", shards), ("IDLECONN_DEMO", "true")];
        Self::spawn(&worlds[0], name, times, &env, cluster::kubeconfig(), &namespaces.join(","))
    }

    /// Starts a replica with the user of this kubeconfig.
    pub fn start_as(world: &World, name: &str, times: Times, kubeconfig: &Path) -> Self {
        Self::spawn(world, name, times, &[], kubeconfig, &world.namespace)
    }

    fn spawn(
        world: &World,
        name: &str,
        [duration, renew_deadline, retry_period]: Times,
        env: &[(&str, &str)],
        kubeconfig: &Path,
        namespaces: &str,
    ) -> Self {
        let host = caddy::address();
        let (address, api) = (format!("{host}:8080"), format!("{host}:8081"));
        let open = env.iter().any(|(name, _)| *name == "IDLECONN_DEMO");
        let log = std::env::temp_dir().join(format!("idleconn-{}-{name}.log", world.namespace));
        let child = Command::new(env!("CARGO_BIN_EXE_idleconn-operator"))
            .args(["run", "--leader-election", "--resync-interval", "1s", "--allow-endpoints", "127.0.0.0/8"])
            .args([
                "--metrics-address",
                &address,
                "--api-address",
                if open { &api } else { "none" },
                "--namespaces",
                namespaces,
                "--lease-namespace",
                &world.namespace,
            ])
            .args(["--lease-duration", duration, "--lease-renew-deadline", renew_deadline, "--lease-retry-period", retry_period])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .env("POD_NAME", name)
            .env("IDLECONN_API_HOST", host.to_string())
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, metrics: format!("http://{address}"), api: format!("http://{api}"), log }
    }

    /// Sends a signal, given by its name.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        assert!(std::process::Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    /// Kills the replica, as the failure of its node does.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits until the process exits. Returns whether it succeeded.
    pub async fn ended(&mut self) -> bool {
        tokio::time::timeout(super::TIMEOUT, self.child.wait()).await.expect("it ends").unwrap().success()
    }

    /// Returns the value of a metric; `None` if the replica does not answer.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        self.metrics([name]).await.map(|[value]| value)
    }

    /// Returns several metrics of the same scrape.
    pub async fn metrics<T: FromStr, const N: usize>(&self, names: [&str; N]) -> Option<[T; N]> {
        let page = reqwest::get(format!("{}/metrics", self.metrics)).await.ok()?.text().await.ok()?;
        let of = |name: &str| page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        let values: Option<Vec<T>> = names.into_iter().map(of).collect();
        values?.try_into().ok()
    }

    /// Returns the number of connections to this port, as the kernel reports it.
    pub fn sockets(&self, port: u16) -> usize {
        let of = format!("/proc/{}", self.child.id().expect("it runs"));
        let open = std::fs::read_dir(format!("{of}/fd")).unwrap();
        let links = open.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        let sockets: BTreeSet<_> =
            links.filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
        let table = std::fs::read_to_string(format!("{of}/net/tcp")).unwrap();
        let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row[2].ends_with(&format!(":{port:04X}")) && sockets.contains(row[9])).count()
    }

    /// Reports whether the replica is the leader, by its own metric.
    pub async fn leads(&self) -> bool {
        self.metric("idleconn_leader ").await == Some(1.0)
    }

    /// Returns the shards for which the replica acts, by its own metrics.
    pub async fn shards(&self) -> Vec<u32> {
        // One client for all polls: a new one costs milliseconds.
        static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(reqwest::Client::new);
        let Ok(answer) = CLIENT.get(format!("{}/metrics", self.metrics)).send().await else { return Vec::new() };
        let page = answer.text().await.unwrap_or_default();
        let held = |line: &str| line.strip_prefix("idleconn_leader{shard=\"")?.strip_suffix("\"} 1")?.parse().ok();
        page.lines().filter_map(held).collect()
    }

    /// Waits until the replica is the leader.
    pub async fn until_it_leads(&self) {
        super::eventually("this replica leads", || async { self.leads().await.then_some(()) }).await;
    }

    /// Waits until the replica is ready, as leader or standby.
    pub async fn until_ready(&self) {
        let ready = || async {
            reqwest::get(format!("{}/readyz", self.metrics)).await.is_ok_and(|r| r.status().is_success()).then_some(())
        };
        super::eventually("this replica is ready", ready).await;
    }

    /// Returns the log of the replica.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Removes the log after a successful test.
    pub fn clean(&self) {
        let _ = std::fs::remove_file(&self.log);
    }
}

//! Flags and environment, checked once and turned into plain values.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{api::GoDuration, controller::Settings, leader::Terms, targets::AllowList};

/// Manages how HTTP connections may idle.
#[derive(Parser, Debug)]
#[command(name = "idleconn-operator", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs the controller, in a cluster or with a kubeconfig.
    Run(Run),
    /// Prints the `CustomResourceDefinition`.
    Crd,
    /// Says whether an operator could work here: whether the CRD is this version's, and whether one that runs is ready. Fails if not.
    Check(Check),
    /// Puts the nodes' old settings back and drops the finalizers of policies that are being deleted. With --leader-election it takes the
    /// Lease from a controller that runs; without, stop the controller first.
    Release(Release),
}

/// Where the cluster is, and where to work in it.
#[derive(Args, Debug)]
pub struct Cluster {
    /// A kubeconfig; without it, KUBECONFIG and then the cluster that this runs in.
    #[arg(long, env = "IDLECONN_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespaces to work in, comma-separated; empty: all.
    #[arg(long, env = "IDLECONN_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// Networks and host names that `endpoint` fields may reach, comma-separated; empty: Services and selected pods only.
    #[arg(long, env = "IDLECONN_ALLOW_ENDPOINTS", default_value = "")]
    pub allow_endpoints: AllowList,
    /// text or json.
    #[arg(long, env = "IDLECONN_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// error, warn, info, debug or trace; or by module.
    #[arg(long, env = "IDLECONN_LOG_LEVEL", default_value = "info,kube=warn,kube_client=error")]
    pub log_level: String,
}

/// Which of several processes acts.
#[derive(Args, Debug)]
pub struct Lease {
    /// Acts only while it holds a Lease, so that several replicas can run.
    #[arg(long, env = "IDLECONN_LEADER_ELECTION")]
    pub leader_election: bool,
    /// The Lease's namespace; by default that of the kubeconfig, or in a cluster its own.
    #[arg(long, env = "IDLECONN_LEASE_NAMESPACE", default_value = "")]
    pub lease_namespace: String,
    /// The Lease's name.
    #[arg(long, env = "IDLECONN_LEASE_NAME", default_value = crate::api::MANAGER)]
    pub lease_name: String,
    /// How long other replicas wait for one that is not heard of, whole seconds.
    #[arg(long, env = "IDLECONN_LEASE_DURATION", default_value = "15s", value_parser = span)]
    pub lease_duration: Duration,
    /// How long after its last renewal a replica acts.
    #[arg(long, env = "IDLECONN_LEASE_RENEW_DEADLINE", default_value = "10s", value_parser = span)]
    pub lease_renew_deadline: Duration,
    /// How often it renews.
    #[arg(long, env = "IDLECONN_LEASE_RETRY_PERIOD", default_value = "2s", value_parser = span)]
    pub lease_retry_period: Duration,
}

impl Lease {
    /// The terms, if there is an election.
    ///
    /// # Errors
    /// Where two processes could act at once.
    pub fn terms(&self) -> Result<Option<Terms>, crate::leader::Error> {
        let terms = || {
            Terms {
                namespace: self.lease_namespace.clone(),
                name: self.lease_name.clone(),
                // Another process under the same pod's name is another one.
                identity: format!("{}_{:016x}", instance(), fastrand::u64(..)),
                duration: self.lease_duration,
                renew_deadline: self.lease_renew_deadline,
                retry_period: self.lease_retry_period,
            }
            .checked()
        };
        self.leader_election.then(terms).transpose()
    }
}

/// `run`.
#[derive(Args, Debug)]
pub struct Run {
    /// Where.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Whether it is this one that acts.
    #[command(flatten)]
    pub lease: Lease,
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, env = "IDLECONN_METRICS_ADDRESS", default_value = ":8080", value_parser = address)]
    pub metrics_address: SocketAddr,
    /// Where the API and the live page are served; none serves neither.
    #[arg(long, env = "IDLECONN_API_ADDRESS", default_value = ":8081", value_parser = api_address)]
    pub api_address: ApiAddress,
    /// Serves the API to everybody, without tokens: for a demonstration, on a loopback address only.
    #[arg(long, env = "IDLECONN_DEMO")]
    pub demo: bool,
    /// How often nodes are read when nothing happens, 1s to 1h: a change by hand is seen after at most this.
    #[arg(long, env = "IDLECONN_RESYNC_INTERVAL", default_value = "30s", value_parser = resync)]
    pub resync_interval: Duration,
    /// Decides and reports, and writes to no node.
    #[arg(long, env = "IDLECONN_DRY_RUN")]
    pub dry_run: bool,
}

/// `check`.
#[derive(Args, Debug)]
pub struct Check {
    /// Where.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Where an operator that runs serves its readiness, such as `http://idleconn-operator.idleconn-system:8080`.
    #[arg(long)]
    pub operator: Option<String>,
}

/// `release`.
#[derive(Args, Debug)]
pub struct Release {
    /// Where.
    #[command(flatten)]
    pub cluster: Cluster,
    /// What a controller that runs is kept from acting with.
    #[command(flatten)]
    pub lease: Lease,
    /// Every policy, not only those that are being deleted.
    #[arg(long, env = "IDLECONN_ALL")]
    pub all: bool,
}

/// How logs look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl Cluster {
    /// As the controller takes it.
    #[must_use]
    pub fn settings(&self, resync: Duration, dry_run: bool) -> Settings {
        Settings {
            namespaces: self.namespaces.iter().map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect(),
            allow_endpoints: self.allow_endpoints.clone(),
            resync,
            dry_run,
            instance: instance(),
        }
    }
}

fn instance() -> String {
    std::env::var("POD_NAME").unwrap_or_else(|_| crate::api::MANAGER.into())
}

/// Where the API is served, if it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiAddress(pub Option<SocketAddr>);

fn api_address(text: &str) -> Result<ApiAddress, String> {
    if text == "none" { Ok(ApiAddress(None)) } else { address(text).map(|address| ApiAddress(Some(address))) }
}

/// `:8080` is every address, as in Go.
fn address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    full.parse().map_err(|_| "write address:port, or :port for every address".to_owned())
}

fn span(text: &str) -> Result<Duration, String> {
    Ok(text.parse::<GoDuration>().map_err(|error| error.to_string())?.get().unwrap_or_default())
}

fn resync(text: &str) -> Result<Duration, String> {
    let duration = span(text)?;
    if (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&duration) {
        Ok(duration)
    } else {
        Err("must be between 1s and 1h".into())
    }
}

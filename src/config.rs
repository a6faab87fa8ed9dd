//! Flags and environment variables, validated and converted to plain values.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{api::GoDuration, controller::ControllerConfig, decide::shard::MAX_SHARDS, leader::LeaseConfig, targets::AllowList};

/// Manages limits of idle HTTP connections.
#[derive(Parser, Debug)]
#[command(name = "idleconn-operator", version, about)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the operator, in a cluster or with a kubeconfig.
    Run(Run),
    /// Print the `CustomResourceDefinition`.
    Crd,
    /// Check that the CRD has this version and, with --operator, that a running operator is ready. Fails otherwise.
    Check(Check),
    /// Restore the original settings of the nodes and remove the finalizers of policies that are being deleted. With
    /// --leader-election, it takes the Lease from a running operator; without it, stop the operator first.
    Release(Release),
}

/// Cluster, namespaces and logging.
#[derive(Args, Debug)]
pub struct Cluster {
    /// Path to a kubeconfig; by default KUBECONFIG, then the cluster in which the operator runs.
    #[arg(long, env = "IDLECONN_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespaces to watch, comma-separated; empty means all.
    #[arg(long, env = "IDLECONN_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// Networks and host names that `endpoint` fields may use, comma-separated; empty allows only Services and selected
    /// pods.
    #[arg(long, env = "IDLECONN_ALLOW_ENDPOINTS", default_value = "")]
    pub allow_endpoints: AllowList,
    /// Log format.
    #[arg(long, env = "IDLECONN_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Log level: error, warn, info, debug or trace, also by module.
    #[arg(long, env = "IDLECONN_LOG_LEVEL", default_value = "info,kube=warn,kube_client=error")]
    pub log_level: String,
}

/// Leader election.
#[derive(Args, Debug)]
pub struct Lease {
    /// Act only while holding a Lease, so that several replicas can run.
    #[arg(long, env = "IDLECONN_LEADER_ELECTION")]
    pub leader_election: bool,
    /// Namespace of the Lease; by default that of the kubeconfig or, in a cluster, the operator's namespace.
    #[arg(long, env = "IDLECONN_LEASE_NAMESPACE", default_value = "")]
    pub lease_namespace: String,
    /// Name of the Lease.
    #[arg(long, env = "IDLECONN_LEASE_NAME", default_value = crate::api::MANAGER)]
    pub lease_name: String,
    /// How long a standby waits after the last renewal it saw before it takes the Lease; whole seconds.
    #[arg(long, env = "IDLECONN_LEASE_DURATION", default_value = "15s", value_parser = span)]
    pub lease_duration: Duration,
    /// How long the leader keeps acting after its last successful renewal.
    #[arg(long, env = "IDLECONN_LEASE_RENEW_DEADLINE", default_value = "10s", value_parser = span)]
    pub lease_renew_deadline: Duration,
    /// Interval between renewals.
    #[arg(long, env = "IDLECONN_LEASE_RETRY_PERIOD", default_value = "2s", value_parser = span)]
    pub lease_retry_period: Duration,
    /// Number of shards, 1 to 64. Each namespace belongs to one shard, each shard has a Lease, and the replicas share the shards
    /// evenly. More than one needs --leader-election.
    #[arg(long, env = "IDLECONN_SHARDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SHARDS)))]
    pub shards: u32,
}

impl Lease {
    /// The election's terms; `None` without election.
    ///
    /// # Errors
    /// Returns an error if two processes could act at the same time.
    pub fn terms(&self) -> Result<Option<LeaseConfig>, crate::leader::Error> {
        let terms = self.leader_election.then(|| LeaseConfig {
            namespace: self.lease_namespace.clone(),
            name: self.lease_name.clone(),
            // A restarted process under the same pod name has another identity.
            identity: format!("{}_{:016x}", instance(), fastrand::u64(..)),
            duration: self.lease_duration,
            renew_deadline: self.lease_renew_deadline,
            retry_period: self.lease_retry_period,
            group: None,
        });
        terms.map(LeaseConfig::checked).transpose()
    }
}

/// Options of `run`.
#[derive(Args, Debug)]
pub struct Run {
    /// Cluster options.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Leader election options.
    #[command(flatten)]
    pub lease: Lease,
    /// Address that serves /metrics, /healthz and /readyz.
    #[arg(long, env = "IDLECONN_METRICS_ADDRESS", default_value = ":8080", value_parser = address)]
    pub metrics_address: SocketAddr,
    /// Address that serves the API and the live page; none disables both.
    #[arg(long, env = "IDLECONN_API_ADDRESS", default_value = ":8081", value_parser = api_address)]
    pub api_address: ApiAddress,
    /// IP address under which other replicas and clients reach this replica's API, at the port of --api-address. With shards, a
    /// replica that does not act for a namespace redirects to the one that does. By default it does not redirect.
    #[arg(long, env = "IDLECONN_API_HOST")]
    pub api_host: Option<IpAddr>,
    /// Serve the API without authentication, for a demonstration; allowed only on a loopback address.
    #[arg(long, env = "IDLECONN_DEMO")]
    pub demo: bool,
    /// How often nodes are read if nothing changes, 1s to 1h. A manual change is detected within this time.
    #[arg(long, env = "IDLECONN_RESYNC_INTERVAL", default_value = "30s", value_parser = resync)]
    pub resync_interval: Duration,
    /// Maximum number of nodes whose idle connections the operator closes by a write in any minute, for all policies together; 0
    /// means no maximum. With shards, each shard may use an equal part. A deletion is counted, and is not held back.
    #[arg(long, env = "IDLECONN_MAX_FLUSHES_PER_MINUTE", default_value_t = 0)]
    pub max_flushes_per_minute: u32,
    /// Decide and report, but write to no node.
    #[arg(long, env = "IDLECONN_DRY_RUN")]
    pub dry_run: bool,
}

/// Options of `check`.
#[derive(Args, Debug)]
pub struct Check {
    /// Cluster options.
    #[command(flatten)]
    pub cluster: Cluster,
    /// URL of a running operator's readiness server, such as `http://idleconn-operator.idleconn-system:8080`.
    #[arg(long)]
    pub operator: Option<String>,
}

/// Options of `release`.
#[derive(Args, Debug)]
pub struct Release {
    /// Cluster options.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Lease of the operator to stop.
    #[command(flatten)]
    pub lease: Lease,
    /// Release all policies, not only those that are being deleted.
    #[arg(long, env = "IDLECONN_ALL")]
    pub all: bool,
}

/// Log format.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// Readable lines.
    Text,
    /// One JSON object per line.
    Json,
}

impl Cluster {
    /// The controller's settings, with no maximum of flushes.
    #[must_use]
    pub fn settings(&self, resync: Duration, dry_run: bool) -> ControllerConfig {
        ControllerConfig {
            namespaces: self.namespaces.iter().map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect(),
            allow_endpoints: self.allow_endpoints.clone(),
            resync,
            max_flushes_per_minute: None,
            dry_run,
            instance: instance(),
        }
    }
}

impl Run {
    /// The controller's settings.
    ///
    /// # Errors
    /// Returns a message if a shard could not close the connections of any node.
    pub fn settings(&self) -> Result<ControllerConfig, String> {
        let (most, shards) = (self.max_flushes_per_minute, self.lease.shards);
        if most != 0 && most < shards {
            return Err(format!("--max-flushes-per-minute is {most} and must be 0 or at least the number of shards ({shards})"));
        }
        let settings = self.cluster.settings(self.resync_interval, self.dry_run);
        Ok(ControllerConfig { max_flushes_per_minute: NonZeroU32::new(most), ..settings })
    }
}

fn instance() -> String {
    std::env::var("POD_NAME").unwrap_or_else(|_| crate::api::MANAGER.into())
}

/// Address of the API; `None` disables it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiAddress(pub Option<SocketAddr>);

fn api_address(text: &str) -> Result<ApiAddress, String> {
    if text == "none" { Ok(ApiAddress(None)) } else { address(text).map(|address| ApiAddress(Some(address))) }
}

/// `:8080` means every address, as in Go.
fn address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    full.parse().map_err(|_| "use address:port, or :port for all addresses".to_owned())
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

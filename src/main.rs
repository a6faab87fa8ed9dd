//! Entry point of the operator: flags, the TLS provider, and the exit code.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use clap::Parser as _;
use idleconn_operator::{
    api::crd,
    config::{Check, Cli, Cluster, Command, Lease, Release, Run},
    controller::{self, Operator, Process, actors::Actors, crd_version},
    decide::shard::Shard,
    leader::{self, Election, Leadership},
    metrics::Metrics,
    pool::{Pool, Request},
    serve,
    shards::{self, Shards},
    telemetry,
};
use kube::{Client, Config, config::Kubeconfig};
use tokio_util::sync::CancellationToken;

/// Time after a release during which no replica acts: an uninstall deletes the controller task in that time.
const AFTER_RELEASE: Duration = Duration::from_secs(300);

/// Timeout for the readiness of a running operator.
const READINESS_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the process ends with exit code 1. Each text is one line and says what to do.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Log(#[from] telemetry::Error),
    #[error("cannot write the CRD: {0}")]
    Crd(#[from] serde_saphyr::ser::Error),
    #[error("cannot print: {0}")]
    Print(#[from] std::io::Error),
    #[error("cannot find a cluster: {0}; set --kubeconfig or KUBECONFIG, or run in a cluster")]
    Cluster(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot listen on --metrics-address {0}: {1}; choose another address")]
    Listen(SocketAddr, #[source] std::io::Error),
    #[error("cannot listen on --api-address {0}: {1}; choose another address, or none")]
    Api(SocketAddr, #[source] std::io::Error),
    #[error(
        "--demo serves the API without authentication and {0} is reachable from other hosts; set --api-address to a loopback address such as 127.0.0.1:8081"
    )]
    Open(SocketAddr),
    #[error("{0}")]
    Check(String),
    #[error("{0}")]
    Settings(String),
    #[error("{0}")]
    Controller(#[from] controller::Error),
    #[error("{0}")]
    Leader(#[from] leader::Error),
    #[error("{0}")]
    Shards(#[from] shards::Error),
    #[error("--shards above 1 needs --leader-election: without it, each replica would act for all shards")]
    Unelected,
    #[error("cannot register the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("{0} exited unexpectedly; exiting so that the pod is restarted")]
    Ended(&'static str),
}

// Two threads, as in all published figures. By default there is one for each core of the node.
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match command(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("idleconn-operator: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn command(cli: Cli) -> Result<(), Error> {
    // This fails only if a provider is already installed, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli.command {
        Command::Crd => {
            use std::io::Write as _;
            let yaml = crd::yaml()?;
            Ok(std::io::stdout().write_all(yaml.as_bytes())?)
        }
        Command::Run(options) => run(options).await,
        Command::Check(options) => check(options).await,
        Command::Release(options) => release(options).await,
    }
}

async fn check(options: Check) -> Result<(), Error> {
    let pool = Pool::default();
    let served = crd_version::ask(&client(&options.cluster, &pool).await?).await;
    if let Some(obstacle) = served.obstacle() {
        return Err(Error::Check(obstacle));
    }
    println!("{served}");
    let Some(address) = options.operator else { return Ok(()) };
    let answer =
        pool.provider("operator").send(None, Request::get(address.trim_end_matches('/'), "/readyz", READINESS_TIMEOUT)).await;
    match answer {
        Ok(answer) if answer.status == 200 => {
            println!("the operator at {address} is ready");
            Ok(())
        }
        Ok(answer) => {
            Err(Error::Check(format!("the operator at {address} is not ready: {}", String::from_utf8_lossy(&answer.body).trim())))
        }
        Err(error) => Err(Error::Check(error.to_string())),
    }
}

async fn release(options: Release) -> Result<(), Error> {
    telemetry::start(options.cluster.log_format, &options.cluster.log_level)?;
    let pool = Pool::default();
    let client = client(&options.cluster, &pool).await?;
    let settings = options.cluster.settings(Duration::from_secs(30), false);
    let mut election = election(&options.lease, &options.cluster, &pool).await?;
    if let Some(election) = &mut election {
        election.take_over().await?;
    }
    let operator = Operator::new(&client, &pool, settings, Metrics::new()?, leadership(election.as_ref()));
    let released = tokio::select! {
        released = operator.release(options.all) => released,
        lost = stands(election.as_mut()) => return Err(lost.into()),
    };
    if let Some(election) = &mut election {
        match &released {
            Ok(()) => {
                election.bar(AFTER_RELEASE).await;
                forget_shards(&options, &pool).await;
            }
            Err(_) => election.give_up().await,
        }
    }
    Ok(released?)
}

/// Deletes the Leases of shards and replicas. The replicas end, because the Lease of all of them was taken.
async fn forget_shards(options: &Release, pool: &Pool) {
    if options.lease.shards == 1 {
        return;
    }
    let deleted = async {
        let Some(terms) = options.lease.terms()? else { return Ok(()) };
        let client = lease_client(&options.cluster, pool).await?;
        leader::group::delete_all(&client, &terms).await.map_err(no_cluster)
    };
    if let Err(error) = deleted.await {
        tracing::warn!(
            "the Leases of the shards could not be deleted: {error}; delete those with the label {}",
            leader::group::LABEL
        );
    }
}

fn leadership(election: Option<&Election>) -> Leadership {
    election.map_or_else(Leadership::always, Election::leadership)
}

/// Campaigns for the Lease until it is lost. Never ends without leader election.
async fn stands(election: Option<&mut Election>) -> leader::Error {
    match election {
        Some(election) => election.run().await,
        None => std::future::pending().await,
    }
}

async fn run(options: Run) -> Result<(), Error> {
    telemetry::start(options.cluster.log_format, &options.cluster.log_level)?;
    let settings = options.settings().map_err(Error::Settings)?;
    let pool = Pool::default();
    let client = client(&options.cluster, &pool).await?;
    let process = Process::new(&client, &pool, settings, Metrics::new()?);
    process.metrics.connections(&pool);
    if options.lease.shards > 1 {
        return Box::pin(run_shards(options, &client, &pool, process)).await;
    }
    let mut election = election(&options.lease, &options.cluster, &pool).await?;
    let operator = process.actor(Shard::ALL, leadership(election.as_ref()));
    let context = operator.context.clone();
    let (health, api) = servers(&options, &client, context.clone().into()).await?;
    let stop = CancellationToken::new();
    // End the process if a task ends: otherwise it would look healthy and do nothing.
    let controller = operator.run(stop.clone().cancelled_owned());
    tokio::pin!(controller);
    let work = async {
        tokio::select! {
            () = &mut controller => Err(Error::Ended("the controller task")),
            _ = health => Err(Error::Ended("the health server")),
            () = api => Err(Error::Ended("the API server")),
            () = signalled() => {
                stop.cancel();
                // Finish the current work first. A controller that still waits for its first list would never finish.
                if context.is_listed() {
                    controller.await;
                }
                Ok(())
            }
        }
    };
    // Renew the Lease until the work has ended, and release it only then.
    let elected = async {
        context.workable().await;
        stands(election.as_mut()).await
    };
    let ended = tokio::select! {
        ended = work => ended,
        lost = elected => return Err(lost.into()),
    };
    if let Some(election) = &mut election {
        election.give_up().await;
    }
    ended
}

async fn run_shards(options: Run, client: &Client, pool: &Pool, process: Process) -> Result<(), Error> {
    let terms = options.lease.terms()?.ok_or(Error::Unelected)?;
    let address = options.api_host.zip(options.api_address.0);
    let url = address.map(|(host, api)| format!("http://{}", SocketAddr::new(host, api.port())));
    let shards = Shards::new(process, lease_client(&options.cluster, pool).await?, terms, options.lease.shards, url);
    let (health, api) = servers(&options, client, shards.actors.clone()).await?;
    let stop = CancellationToken::new();
    let mut acting = std::pin::pin!(shards.run(stop.clone()));
    tokio::select! {
        ended = &mut acting => return Ok(ended?),
        _ = health => return Err(Error::Ended("the health server")),
        () = api => return Err(Error::Ended("the API server")),
        () = signalled() => stop.cancel(),
    }
    Ok(acting.await?)
}

/// Binds all addresses and returns the futures that serve them.
async fn servers(
    options: &Run,
    client: &Client,
    actors: Actors,
) -> Result<(impl Future<Output = std::io::Result<()>> + use<>, impl Future<Output = ()> + use<>), Error> {
    let listener = serve::bind(options.metrics_address).await.map_err(|error| Error::Listen(options.metrics_address, error))?;
    let api = api(options, client, actors.clone()).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "started");
    Ok((serve::health(listener, actors), api))
}

/// Binds the API and returns the future that serves it. Leader and standbys authorize callers.
async fn api(options: &Run, client: &Client, actors: Actors) -> Result<impl Future<Output = ()> + use<>, Error> {
    let listener = match options.api_address.0 {
        Some(address) if options.demo && !address.ip().is_loopback() => return Err(Error::Open(address)),
        Some(address) => Some(serve::bind(address).await.map_err(|error| Error::Api(address, error))?),
        None => None,
    };
    if let Some(address) = listener.as_ref().and_then(|listener| listener.local_addr().ok()) {
        tracing::info!(%address, open = options.demo, "serving the API and the live page");
    }
    let asked = (!options.demo).then(|| client.clone());
    Ok(async move {
        match listener {
            Some(listener) => drop(serve::api(listener, actors, asked).await),
            None => std::future::pending().await,
        }
    })
}

async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

async fn client(cluster: &Cluster, pool: &Pool) -> Result<Client, Error> {
    controller::client(&config(cluster).await?, pool).map_err(no_cluster)
}

/// Returns a candidate for the Lease with separate connections; `None` without leader election.
async fn election(lease: &Lease, cluster: &Cluster, pool: &Pool) -> Result<Option<Election>, Error> {
    let Some(terms) = lease.terms()? else { return Ok(None) };
    Ok(Some(Election::new(lease_client(cluster, pool).await?, terms)))
}

/// Returns a client with separate connections for the Leases.
async fn lease_client(cluster: &Cluster, pool: &Pool) -> Result<Client, Error> {
    controller::lease_client(&config(cluster).await?, pool).map_err(no_cluster)
}

async fn config(cluster: &Cluster) -> Result<Config, Error> {
    match &cluster.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(no_cluster)?;
            Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await.map_err(no_cluster)
        }
        None => Config::infer().await.map_err(no_cluster),
    }
}

fn no_cluster(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Cluster(error.into())
}

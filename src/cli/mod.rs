//! `kubectl idleconn`: what people ask a policy at their own terminal, with their own rights.
//!
//! Lives here: the commands. Each is a function from what was read to text; only this file reads files and clusters.

mod cluster;
mod explain;
mod history;
pub mod lint;
mod measure;
mod nodes;
mod path;
mod pause;
mod plot;
mod probe;
mod progress;
mod status;
mod table;
mod words;

use std::{fmt::Write as _, io::Write as _, path::PathBuf};

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use cluster::{Cluster, understood};
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::{
    Api,
    api::ListParams,
    runtime::{WatchStreamExt as _, watcher},
};
use pause::Direction;
use serde::Serialize;
use serde_json::json;
use words::counted;

use crate::{
    api::{GoDuration, IdleConnectionPolicy, StoredPolicy, adaptive::Mode},
    simulate::{
        self, Plant, Run,
        plant::{Kind, Model},
        trace::{self, Trace},
    },
    targets,
};

/// Asks idle connection policies.
#[derive(Parser, Debug)]
#[command(name = "kubectl-idleconn", bin_name = "kubectl idleconn", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Shows how policies are doing.
    Status(Status),
    /// Shows a policy's nodes with the three truths of each limit, as the operator sees them now.
    Nodes(Nodes),
    /// Says in sentences what a policy does, why, and what to do next.
    Explain(Explain),
    /// Shows what was decided for a policy, why, and whether it helped.
    History(History),
    /// Stops tightening and relaxing, for a time or until it is resumed. Changes by hand are still corrected.
    Pause(Pause),
    /// Takes every pause away.
    Resume(Resume),
    /// Says what the API server would refuse in a file, and what there is to advise; without a cluster. Fails on an error.
    Lint(Lint),
    /// Measures how long servers keep idle connections, from here; without a cluster. Fails where a server cannot be measured.
    Probe(probe::Probe),
    /// Compares how long clients keep idle connections with how long their servers do, hop by hop, and names the first at which requests are lost.
    Path(path::Path),
    /// Replays a task count through the code that decides, and prints each decision with its reason.
    Simulate(Simulate),
    /// Prints what a shell needs to complete these commands.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// `status`.
#[derive(clap::Args, Debug)]
pub struct Status {
    /// The policy; by default all of the namespace.
    pub name: Option<String>,
    /// Policies of all namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "name"])]
    pub all_namespaces: bool,
    /// Prints the table again whenever something changes, until it is interrupted.
    #[arg(short, long)]
    pub watch: bool,
    /// Where.
    #[command(flatten)]
    pub cluster: Cluster,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `nodes`.
#[derive(clap::Args, Debug)]
pub struct Nodes {
    /// The policy.
    pub name: String,
    /// Where the operator runs: it is asked through a port-forward to its pod, with a token of its account `idleconn-viewer`.
    #[arg(long, default_value = "idleconn-system")]
    pub operator_namespace: String,
    /// Asks the operator here instead, such as `http://127.0.0.1:8081`: over https, or on this machine.
    #[arg(long)]
    pub operator: Option<url::Url>,
    /// Where.
    #[command(flatten)]
    pub cluster: Cluster,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `explain`.
#[derive(clap::Args, Debug)]
pub struct Explain {
    /// The policy.
    pub name: String,
    /// Where.
    #[command(flatten)]
    pub cluster: Cluster,
}

/// `history`.
#[derive(clap::Args, Debug)]
pub struct History {
    /// The policy.
    pub name: String,
    /// Where.
    #[command(flatten)]
    pub cluster: Cluster,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `pause`.
#[derive(clap::Args, Debug)]
pub struct Pause {
    /// The policy.
    pub name: String,
    /// For how long, for example 2h; by default until it is resumed.
    #[arg(long = "for", value_name = "TIME")]
    pub time: Option<GoDuration>,
    /// Goes on relaxing.
    #[arg(long, conflicts_with = "relax")]
    pub tighten: bool,
    /// Goes on tightening.
    #[arg(long)]
    pub relax: bool,
    /// Where.
    #[command(flatten)]
    pub cluster: Cluster,
}

/// `resume`.
#[derive(clap::Args, Debug)]
pub struct Resume {
    /// The policy.
    pub name: String,
    /// Where.
    #[command(flatten)]
    pub cluster: Cluster,
}

/// `lint`.
#[derive(clap::Args, Debug)]
pub struct Lint {
    /// Files with policies or Lists of them, as YAML or JSON, folders of such files, or - for standard input. Other kinds are passed over.
    #[arg(short, long = "file", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
    /// Requests to one backend host at the same time, as measured: for advice on idle connections per host.
    #[arg(long)]
    pub concurrency: Option<f64>,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `simulate`.
#[derive(clap::Args, Debug)]
pub struct Simulate {
    /// The policy, as YAML.
    #[arg(short, long)]
    pub file: PathBuf,
    /// CSV with `time,node,tasks` and optionally `pooled_share`; an empty cell is a missing sample.
    #[arg(long, conflicts_with = "model", required_unless_present = "model")]
    pub trace: Option<PathBuf>,
    /// A built-in model instead.
    #[arg(long, value_enum)]
    pub model: Option<Kind>,
    /// Its noise.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How long.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=8784))]
    pub hours: u32,
    /// Tasks that are too many, where the policy has no `threshold.value`.
    #[arg(long)]
    pub threshold: Option<u32>,
    /// Writes a plot of tasks, threshold, openness and decisions.
    #[arg(long)]
    pub svg: Option<PathBuf>,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people, with a plot.
    Table,
    /// For machines.
    Json,
    /// For machines and people.
    Yaml,
}

impl Output {
    /// What machines read, or the table.
    fn of(self, value: &impl Serialize, table: impl FnOnce() -> String) -> Result<String, Error> {
        let unprintable = |error: &dyn std::fmt::Display| Error::Setup(format!("cannot be printed: {error}"));
        match self {
            Self::Table => Ok(table()),
            Self::Json => serde_json::to_string(value).map(|text| text + "\n").map_err(|error| unprintable(&error)),
            Self::Yaml => serde_saphyr::to_string(value).map_err(|error| unprintable(&error)),
        }
    }
}

/// Why there is no answer: one line, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    /// Nothing to look at.
    #[error("no IdleConnectionPolicy was found in what -f names")]
    NoPolicies,
    /// A policy that is none.
    #[error("{0} is no IdleConnectionPolicy: {1}")]
    Policy(PathBuf, String),
    /// A policy that says what this version does not understand.
    #[error("{name}: {foreign}: upgrade kubectl-idleconn from {version}", version = env!("CARGO_PKG_VERSION"))]
    Newer {
        /// The policy.
        name: String,
        /// What is not understood.
        foreign: String,
    },
    /// A policy that cannot be simulated.
    #[error("{0}")]
    Setup(String),
    /// A trace.
    #[error("{0}")]
    Trace(#[from] trace::Error),
    /// No threshold.
    #[error("the policy has no adaptive.signal.threshold.value, and a trace has no CPU count; give --threshold")]
    Threshold,
    /// A plot.
    #[error("the plot cannot be written: {0}")]
    Plot(String),
    /// No kubeconfig.
    #[error("no cluster to ask: {0}; set KUBECONFIG or give --kubeconfig")]
    Kubeconfig(String),
    /// The API server.
    #[error("{0}")]
    Kube(#[from] kube::Error),
    /// The watch broke off.
    #[error("{0}")]
    Watch(#[from] watcher::Error),
    /// Nobody reads any more, or nobody can.
    #[error("cannot print: {0}")]
    Print(std::io::Error),
    /// The operator.
    #[error("{0}")]
    Operator(String),
    /// No such policy.
    #[error("there is no policy {name} in namespace {namespace}; kubectl get icp -A lists them")]
    NotFound {
        /// Its name.
        name: String,
        /// Where it was looked for.
        namespace: String,
    },
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What to print.
    pub text: String,
    /// Whether the exit code is 1 all the same: what was looked at is wrong, and the text says how.
    pub is_failure: bool,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self { text, is_failure: false }
    }
}

/// Does what is asked and answers what to print.
///
/// # Errors
/// See [`Error`].
pub async fn run(cli: Cli) -> Result<Answer, Error> {
    match cli.command {
        Command::Status(options) => Ok(status(options).await?.into()),
        Command::Nodes(options) => {
            let (config, namespace) = options.cluster.config().await?;
            let list = nodes::ask(config, &namespace, &options).await?;
            Ok(options.output.of(&list, || nodes::rows(&list))?.into())
        }
        Command::Explain(options) => {
            Ok(explain::sentences(&options.cluster.policy(&options.name).await?, Timestamp::now()).into())
        }
        Command::History(options) => {
            let policy = options.cluster.policy(&options.name).await?;
            let decisions = policy.status.as_ref().map(|status| status.history.clone()).unwrap_or_default();
            Ok(options.output.of(&decisions, || history::rows(&policy))?.into())
        }
        Command::Pause(options) => {
            let (api, namespace) = options.cluster.policies().await?;
            let direction = match (options.tighten, options.relax) {
                (true, _) => Direction::Tighten,
                (_, true) => Direction::Relax,
                _ => Direction::Both,
            };
            let end = pause::pause(&api, &options.name, direction, options.time, Timestamp::now()).await;
            let end = end.map_err(|error| found(error, &options.name, &namespace))?;
            Ok(format!("{} is paused {end}\n", options.name).into())
        }
        Command::Resume(options) => {
            let (api, namespace) = options.cluster.policies().await?;
            pause::resume(&api, &options.name).await.map_err(|error| found(error, &options.name, &namespace))?;
            Ok(format!("{} goes on\n", options.name).into())
        }
        Command::Lint(options) => linted(&options),
        Command::Probe(options) => probe::run(&options).await,
        Command::Path(options) => path::run(&options).await,
        Command::Simulate(options) => Ok(simulate(&options)?.into()),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "kubectl-idleconn", &mut script);
            Ok(String::from_utf8_lossy(&script).into_owned().into())
        }
    }
}

/// The API server's own `not found` names a resource, and not what to do.
fn found(error: Error, name: &str, namespace: &str) -> Error {
    match error {
        Error::Kube(kube::Error::Api(status)) if status.is_not_found() => {
            Error::NotFound { name: name.to_owned(), namespace: namespace.to_owned() }
        }
        error => error,
    }
}

async fn status(options: Status) -> Result<String, Error> {
    let (api, namespace) = if options.all_namespaces {
        (options.cluster.all_policies().await?, String::new())
    } else {
        options.cluster.policies().await?
    };
    if options.watch {
        return follow(&api, &options).await;
    }
    let policies = match &options.name {
        Some(name) => vec![understood(api.get(name).await.map_err(|error| found(error.into(), name, &namespace))?)?],
        None => api.list(&ListParams::default()).await?.into_iter().filter_map(shown).collect(),
    };
    options.output.of(&policies, || {
        if policies.is_empty() { "No policies found.\n".to_owned() } else { status::rows(&policies, Timestamp::now()) }
    })
}

/// A policy that can be shown; one that cannot does not hide the others.
fn shown(stored: StoredPolicy) -> Option<IdleConnectionPolicy> {
    understood(stored).inspect_err(|error| eprintln!("kubectl idleconn: {error}")).ok()
}

/// Prints on until it is interrupted.
async fn follow(api: &Api<StoredPolicy>, options: &Status) -> Result<String, Error> {
    let wanted = options
        .name
        .as_ref()
        .map_or_else(watcher::Config::default, |name| watcher::Config::default().fields(&format!("metadata.name={name}")));
    let mut changes = std::pin::pin!(watcher(api.clone(), wanted).default_backoff().applied_objects());
    while let Some(change) = changes.next().await {
        let policy = match change {
            Ok(stored) => match shown(stored) {
                Some(policy) => policy,
                None => continue,
            },
            // No rights, or no CRD: waiting would change nothing.
            Err(error @ watcher::Error::InitialListFailed(kube::Error::Api(_))) => return Err(error.into()),
            Err(error) => {
                eprintln!("kubectl idleconn: {error}; trying again");
                continue;
            }
        };
        let text = options.output.of(&policy, || status::rows(std::slice::from_ref(&policy), Timestamp::now()))?;
        std::io::stdout().write_all(text.as_bytes()).map_err(Error::Print)?;
    }
    Ok(String::new())
}

fn linted(options: &Lint) -> Result<Answer, Error> {
    let linter = lint::Linter::new().map_err(Error::Setup)?;
    let mut findings = Vec::new();
    let mut policies = 0;
    for (path, text) in texts(&options.files)? {
        let (count, found) = linter.file(&path, &text, options.concurrency);
        policies += count;
        findings.extend(found);
    }
    if policies == 0 && findings.is_empty() {
        // A check that looked at nothing has not passed.
        return Err(Error::NoPolicies);
    }
    let errors = findings.iter().filter(|finding| finding.is_error).count();
    let each = |finding: &lint::Finding| json!({"at": finding.at, "error": finding.is_error, "message": finding.message});
    let all = json!({"policies": policies, "findings": findings.iter().map(each).collect::<Vec<_>>()});
    let text = options.output.of(&all, || {
        let lines: String = findings.iter().map(|finding| finding.to_string() + "\n").collect();
        let policies = counted(policies, "policy", "policies");
        let advice = counted(findings.len() - errors, "piece of advice", "pieces of advice");
        format!("{lines}{policies}, {}, {advice}\n", counted(errors, "error", "errors"))
    })?;
    Ok(Answer { text, is_failure: errors > 0 })
}

/// What `-f` names, as kubectl takes it: a file, the YAML and JSON files of a folder, or standard input.
fn texts(paths: &[PathBuf]) -> Result<Vec<(PathBuf, String)>, Error> {
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).map_err(|error| Error::File(path.clone(), error))?;
        Ok::<_, Error>((path, text))
    };
    let mut texts = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let text = std::io::read_to_string(std::io::stdin()).map_err(|error| Error::File(path.clone(), error))?;
            texts.push((path.clone(), text));
        } else if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(|error| Error::File(path.clone(), error))?;
            let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            files.retain(|file| file.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json"));
            files.sort();
            texts.extend(files.into_iter().map(read).collect::<Result<Vec<_>, _>>()?);
        } else {
            texts.push(read(path.clone())?);
        }
    }
    Ok(texts)
}

fn simulate(options: &Simulate) -> Result<String, Error> {
    let text = std::fs::read_to_string(&options.file).map_err(|error| Error::File(options.file.clone(), error))?;
    let policy: IdleConnectionPolicy =
        serde_saphyr::from_str(&text).map_err(|error| Error::Policy(options.file.clone(), error.to_string()))?;
    let mut setup = simulate::setup(&policy.spec, &targets::traits(&policy.spec.target)).map_err(Error::Setup)?;
    // The simulation shows what adaptive control would do, whatever the mode of the policy is.
    setup.tuning.mode = Mode::Enforce;
    let signal = policy.spec.adaptive.as_ref().and_then(|adaptive| adaptive.signal.as_ref());
    let threshold = options.threshold.or_else(|| signal?.threshold.as_ref()?.value);
    let (mut plant, seconds, caveat): (Box<dyn Plant>, i64, _) = match (&options.trace, options.model) {
        (Some(path), _) => {
            let file = std::fs::File::open(path).map_err(|error| Error::File(path.clone(), error))?;
            let trace = Trace::read(file, f64::from(threshold.ok_or(Error::Threshold)?), &setup.declared)?;
            let seconds = trace.seconds();
            let caveat = if trace.has_shares() {
                "The task counts are those of the trace, minus the pooled connections that tightening would have closed."
            } else {
                "The task counts are those of the trace, whatever was decided: without pooled_share, a trace cannot show whether tightening helps."
            };
            (Box::new(trace), seconds, caveat)
        }
        (None, kind) => {
            let kind = kind.unwrap_or(Kind::Burst);
            let plant = Model::new(kind, options.seed, 8, false, &setup.declared);
            let caveat = "The task counts come from a model, which knows nothing about your servers.";
            (Box::new(plant), i64::from(options.hours) * 3600, caveat)
        }
    };
    let run = simulate::run(&setup, plant.as_mut(), seconds, None);
    if let Some(path) = &options.svg {
        let svg = plot::svg(&run).map_err(Error::Plot)?;
        std::fs::write(path, svg).map_err(|error| Error::File(path.clone(), error))?;
    }
    options.output.of(&json!({"decisions": run.decisions, "summary": run.summary}), || decisions(&run, caveat))
}

fn decisions(run: &Run, caveat: &str) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{:>9}  {:>5}  {:>5}  {:<13}  REASON", "TIME", "FROM", "TO", "VERDICT");
    for decided in &run.decisions {
        let time = format!("{}:{:02}:{:02}", decided.time / 3600, decided.time / 60 % 60, decided.time % 60);
        let verdict = decided.verdict.as_deref().unwrap_or("-");
        let _ = writeln!(
            text,
            "{time:>9}  {:>4}%  {:>4}%  {verdict:<13}  {}",
            decided.from_percent, decided.to_percent, decided.reason
        );
    }
    let summary = &run.summary;
    let _ = write!(
        text,
        "\n{}\n{}, {}, {:.0} min over the threshold, {}% open at the end, {}\n{caveat}\n",
        plot::terminal(run),
        counted(summary.changes, "change", "changes"),
        counted(summary.reversals, "reversal", "reversals"),
        summary.minutes_over_threshold,
        summary.final_openness_percent,
        summary.verdict,
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn linted(file: &str) -> (bool, serde_json::Value) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(file);
        let cli =
            Cli::parse_from(["kubectl-idleconn".as_ref(), "lint".as_ref(), "-o=json".as_ref(), "-f".as_ref(), path.as_os_str()]);
        let answer = run(cli).await.expect("an answer");
        (answer.is_failure, serde_json::from_str(&answer.text).expect("JSON"))
    }

    #[tokio::test]
    async fn a_refused_file_is_an_answer_that_machines_can_read_and_a_failure() {
        let (is_failure, said) = linted("refused.yaml").await;
        assert!(is_failure);
        assert_eq!((&said["policies"], &said["findings"][0]["error"]), (&json!(1), &json!(true)), "{said}");
        let (is_failure, said) = linted("caddy.yaml").await;
        assert!(!is_failure, "{said}");
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/refused.yaml");
        let cli = Cli::parse_from(["kubectl-idleconn".as_ref(), "lint".as_ref(), "-f".as_ref(), path.as_os_str()]);
        let text = run(cli).await.expect("an answer").text;
        assert!(text.ends_with("\n1 policy, 1 error, 0 pieces of advice\n"), "{text}");
    }

    #[test]
    fn a_simulation_is_summed_up_with_plurals_and_percent_signs() {
        let decided = |from_percent, to_percent| simulate::Decided {
            time: 3730,
            from_percent,
            to_percent,
            reason: "235% of the threshold for 2m".into(),
            verdict: None,
        };
        let summary = simulate::Summary {
            changes: 2,
            reversals: 1,
            minutes_over_threshold: 4.2,
            final_openness_percent: 100,
            verdict: "NotTightened".into(),
        };
        let run = Run {
            decisions: vec![decided(100, 50), decided(50, 100)],
            points: Vec::new(),
            summary,
            blind: 0,
            written: 0,
            told: Vec::new(),
        };
        let text = decisions(&run, "It is a model.");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "     TIME   FROM     TO  VERDICT        REASON");
        assert_eq!(lines[1], "  1:02:10   100%    50%  -              235% of the threshold for 2m");
        let end = "2 changes, 1 reversal, 4 min over the threshold, 100% open at the end, NotTightened\nIt is a model.\n";
        assert!(text.ends_with(end), "{text}");
        assert!(text.contains("  100% ") && text.contains("Bars: utilization"), "{text}");
        assert!(plot::svg(&run).expect("a plot").contains("Utilization (blue)"));
    }

    #[tokio::test]
    async fn lists_and_folders_are_looked_into_and_a_check_of_nothing_does_not_pass() {
        let dir = std::env::temp_dir().join(format!("idleconn-lint-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder");
        let policy =
            "{apiVersion: idleconn.io/v1alpha1, kind: IdleConnectionPolicy, metadata: {name: gw}, spec: {target: {type: Caddy}}}";
        std::fs::write(dir.join("list.yaml"), format!("{{apiVersion: v1, kind: List, items: [{policy}]}}")).expect("a file");
        std::fs::write(dir.join("notes.txt"), "no YAML: [").expect("a file");
        let (is_failure, said) = linted(dir.to_str().expect("a path")).await;
        assert!(is_failure && said["policies"] == 1, "{said}");
        std::fs::write(dir.join("list.yaml"), "{apiVersion: v1, kind: List, items: []}").expect("a file");
        let cli = Cli::parse_from(["kubectl-idleconn".as_ref(), "lint".as_ref(), "-f".as_ref(), dir.as_os_str()]);
        assert!(matches!(run(cli).await, Err(Error::NoPolicies)));
        std::fs::remove_dir_all(&dir).expect("a folder");
    }
}

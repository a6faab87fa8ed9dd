//! `kubectl idleconn`: what people ask a policy at their own terminal, with their own rights.
//!
//! Lives here: the commands. Each is a function from what was read to text; only this file reads files and clusters.

mod cluster;
mod error;
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
pub use error::Error;
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

/// Kind and group of policies, as kubectl writes them before a name.
const RESOURCE: &str = "idleconnectionpolicy.idleconn.io";

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
    /// Duration of the pause, such as 2h; by default until `resume`.
    #[arg(long = "for", value_name = "TIME")]
    pub time: Option<GoDuration>,
    /// Pause tightening only.
    #[arg(long, conflicts_with = "relax")]
    pub tighten: bool,
    /// Pause relaxing only.
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
        let unprintable = |error: &dyn std::fmt::Display| Error::Other(format!("cannot be printed: {error}"));
        match self {
            Self::Table => Ok(table()),
            Self::Json => serde_json::to_string(value).map(|text| text + "\n").map_err(|error| unprintable(&error)),
            Self::Yaml => serde_saphyr::to_string(value).map_err(|error| unprintable(&error)),
        }
    }
}

/// Result of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Text for standard output.
    pub text: String,
    /// Lines for standard error.
    pub notice: String,
    /// Whether the exit code is 1: a check failed, or one of several policies was not found.
    pub is_failure: bool,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self { text, ..Self::default() }
    }
}

/// Runs a command and returns what to print.
///
/// # Errors
/// See [`Error`].
pub async fn run(cli: Cli) -> Result<Answer, Error> {
    match cli.command {
        Command::Status(options) => status(options).await,
        Command::Nodes(options) => {
            let (config, namespace) = options.cluster.config().await?;
            let list = nodes::ask(config, &namespace, &options).await?;
            if options.output == Output::Table && list.nodes.is_empty() {
                let notice = format!("No nodes found for policy {}.\n", options.name);
                return Ok(Answer { notice, ..Answer::default() });
            }
            Ok(options.output.of(&list, || nodes::rows(&list))?.into())
        }
        Command::Explain(options) => {
            Ok(explain::sentences(&options.cluster.policy(&options.name).await?, Timestamp::now()).into())
        }
        Command::History(options) => {
            let policy = options.cluster.policy(&options.name).await?;
            if options.output == Output::Table && policy.status.as_ref().is_none_or(|status| status.history.is_empty()) {
                let notice = format!("No decisions found for policy {}.\n", options.name);
                return Ok(Answer { notice, ..Answer::default() });
            }
            let decisions = policy.status.as_ref().map(|status| status.history.clone()).unwrap_or_default();
            Ok(options.output.of(&decisions, || history::rows(&policy))?.into())
        }
        Command::Pause(options) => {
            let (api, _) = options.cluster.policies().await?;
            let direction = match (options.tighten, options.relax) {
                (true, _) => Direction::Tighten,
                (_, true) => Direction::Relax,
                _ => Direction::Both,
            };
            let end = pause::pause(&api, &options.name, direction, options.time, Timestamp::now()).await?;
            Ok(format!("{RESOURCE}/{} paused{end}\n", options.name).into())
        }
        Command::Resume(options) => {
            let (api, _) = options.cluster.policies().await?;
            pause::resume(&api, &options.name).await?;
            Ok(format!("{RESOURCE}/{} resumed\n", options.name).into())
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

async fn status(options: Status) -> Result<Answer, Error> {
    let (api, namespace) = if options.all_namespaces {
        (options.cluster.all_policies().await?, None)
    } else {
        let (api, namespace) = options.cluster.policies().await?;
        (api, Some(namespace))
    };
    if options.watch {
        return follow(&api, &options).await;
    }
    let policies = match &options.name {
        Some(name) => vec![understood(api.get(name).await?)?],
        None => api.list(&ListParams::default()).await?.into_iter().filter_map(shown).collect(),
    };
    if policies.is_empty() && options.output == Output::Table {
        return Ok(Answer { notice: none_found(namespace.as_deref()), ..Answer::default() });
    }
    Ok(options.output.of(&policies, || status::rows(&policies, Timestamp::now()))?.into())
}

/// Says that there are no policies, in the words of kubectl.
fn none_found(namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("No resources found in {namespace} namespace.\n"),
        None => "No resources found\n".into(),
    }
}

/// Reads a policy of a list. A policy that cannot be read is named on standard error and does not hide the others.
fn shown(stored: StoredPolicy) -> Option<IdleConnectionPolicy> {
    understood(stored).inspect_err(|error| eprintln!("Warning: {error}")).ok()
}

/// Prints policies when they change, until the process is interrupted.
async fn follow(api: &Api<StoredPolicy>, options: &Status) -> Result<Answer, Error> {
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
            // Without the permission or the CRD, a retry changes nothing.
            Err(watcher::Error::InitialListFailed(error @ kube::Error::Api(_))) => return Err(error.into()),
            Err(error) => {
                eprintln!("Warning: {error}; retrying");
                continue;
            }
        };
        let text = options.output.of(&policy, || status::rows(std::slice::from_ref(&policy), Timestamp::now()))?;
        std::io::stdout().write_all(text.as_bytes()).map_err(Error::Print)?;
    }
    Ok(Answer::default())
}

fn linted(options: &Lint) -> Result<Answer, Error> {
    let linter = lint::Linter::new().map_err(Error::Other)?;
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
    Ok(Answer { text, is_failure: errors > 0, ..Answer::default() })
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
    let mut setup = simulate::setup(&policy.spec, &targets::traits(&policy.spec.target)).map_err(Error::Other)?;
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

    #[test]
    fn an_empty_list_is_named_as_in_kubectl() {
        assert_eq!(none_found(Some("default")), "No resources found in default namespace.\n");
        assert_eq!(none_found(None), "No resources found\n");
    }

    #[test]
    fn wrong_arguments_exit_with_2() {
        let error = Cli::try_parse_from(["kubectl-idleconn", "pause", "gw", "--tighten", "--relax"]).expect_err("a conflict");
        assert_eq!(error.exit_code(), i32::from(Error::Usage(String::new()).exit_code()));
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

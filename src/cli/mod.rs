//! `kubectl idleconn`: commands for policies, with the user's own permissions.
//!
//! The output and the errors follow kubectl. Each command turns what was read into text.

mod cluster;
mod complete;
mod error;
mod explain;
mod history;
pub mod lint;
mod measure;
mod nodes;
mod output;
mod path;
mod pause;
mod plot;
mod probe;
mod progress;
mod selection;
mod status;
mod table;

use std::{fmt::Write as _, io::Write as _, path::PathBuf};

use clap::{CommandFactory as _, Parser, Subcommand};
use cluster::Cluster;
pub use error::Error;
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::{
    Api, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use output::{NODES, Output, POLICIES, ROWS, formats, objects};
use pause::{Annotations, Direction};
use progress::waiting;
use selection::{RESOURCE, Selection, none_found};
use serde_json::json;
use status::Columns;
use table::Table;

use crate::{
    api::{GoDuration, IdleConnectionPolicy, StoredPolicy, wording::with_noun},
    simulate::{
        self, Plant, Run,
        plant::{Kind, Model},
        trace::Trace,
    },
    targets,
};

/// Show, explain and pause idle connection policies, and measure idle connections.
#[derive(Parser, Debug)]
#[command(
    name = "kubectl-idleconn",
    bin_name = "kubectl idleconn",
    version,
    about = "Shows, explains and pauses idle connection policies, and measures idle connections"
)]
pub struct Cli {
    /// Command.
    #[command(subcommand)]
    pub command: Command,
}

/// Command.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show the state of policies.
    Status(Status),
    /// Show the nodes of a policy with the desired, programmed, effective and measured value of each limit.
    ///
    /// The values come from the running operator.
    Nodes(Nodes),
    /// Explain in sentences what policies do, why, and what to do next.
    Explain(Chosen),
    /// Show the decisions of adaptive control, their reasons, and whether they helped.
    History(History),
    /// Pause adaptive control, for a time or until it is resumed.
    ///
    /// While it is paused, the operator still corrects changes by other clients.
    Pause(Pause),
    /// Resume adaptive control: remove all pauses.
    Resume(Chosen),
    /// Check files for errors that the API server would refuse, and give advice. Needs no cluster.
    ///
    /// The exit code is 1 if there is an error. Advice alone is no failure.
    Lint(Lint),
    /// Measure how long servers keep idle connections. Needs no cluster.
    ///
    /// The exit code is 1 if a server cannot be measured, or if --expect is not met.
    Probe(probe::Probe),
    /// Find the first hop at which the client keeps idle connections longer than the server, so that requests are lost.
    ///
    /// The exit code is 1 if there is such a hop, or if a hop cannot be compared.
    Path(path::Path),
    /// Run adaptive control on a model or on your own task counts, and print each decision with its reason. Needs no cluster.
    Simulate(Simulate),
    /// Print the completion script of a shell.
    ///
    /// The script completes the command kubectl-idleconn. To complete `kubectl idleconn`, put `kubectl_complete-idleconn` on the PATH.
    Completion {
        /// Shell.
        shell: clap_complete::Shell,
    },
    /// Print candidates for the last word, for `kubectl_complete-idleconn`.
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete {
        /// Words after `kubectl idleconn`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// `status`.
#[derive(clap::Args, Debug)]
pub struct Status {
    /// Names of the policies; by default all policies of the namespace.
    #[arg(value_name = "NAME", value_parser = selection::name)]
    pub names: Vec<String>,
    /// Label selector, such as app=gateway.
    #[arg(short = 'l', long, conflicts_with = "names")]
    pub selector: Option<String>,
    /// Show policies of all namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "names"])]
    pub all_namespaces: bool,
    /// After the first output, print each policy again when it changes.
    #[arg(short, long)]
    pub watch: bool,
    /// Omit the header line of tables.
    #[arg(long)]
    pub no_headers: bool,
    /// Cluster and namespace.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Output format.
    #[arg(short, long, default_value = "table", value_parser = formats(POLICIES))]
    pub output: Output,
}

/// `nodes`.
#[derive(clap::Args, Debug)]
pub struct Nodes {
    /// Name of the policy.
    #[arg(value_parser = selection::name)]
    pub name: String,
    /// Namespace of the operator. The request goes through a port-forward to its pod, with a token of its account
    /// `idleconn-viewer`.
    #[arg(long, default_value = "idleconn-system")]
    pub operator_namespace: String,
    /// URL of the operator instead of a port-forward, such as `http://127.0.0.1:8081`. It must be https, or this machine.
    #[arg(long)]
    pub operator: Option<url::Url>,
    /// Omit the header line of tables.
    #[arg(long)]
    pub no_headers: bool,
    /// Cluster and namespace.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Output format.
    #[arg(short, long, default_value = "table", value_parser = formats(NODES))]
    pub output: Output,
}

/// `explain` and `resume`. `explain` has no formats: the sentences are for people, and `status -o json` has the facts.
#[derive(clap::Args, Debug)]
pub struct Chosen {
    /// Policies.
    #[command(flatten)]
    pub selection: Selection,
    /// Cluster and namespace.
    #[command(flatten)]
    pub cluster: Cluster,
}

/// `history`.
#[derive(clap::Args, Debug)]
pub struct History {
    /// Policies.
    #[command(flatten)]
    pub selection: Selection,
    /// Omit the header line of tables.
    #[arg(long)]
    pub no_headers: bool,
    /// Cluster and namespace.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Output format.
    #[arg(short, long, default_value = "table", value_parser = formats(ROWS))]
    pub output: Output,
}

/// `pause`.
#[derive(clap::Args, Debug)]
pub struct Pause {
    /// Policies.
    #[command(flatten)]
    pub selection: Selection,
    /// Duration of the pause, such as 2h; by default until `resume`.
    #[arg(long = "for", value_name = "TIME")]
    pub time: Option<GoDuration>,
    /// Pause tightening only.
    #[arg(long, conflicts_with = "relax")]
    pub tighten: bool,
    /// Pause relaxing only.
    #[arg(long)]
    pub relax: bool,
    /// Cluster and namespace.
    #[command(flatten)]
    pub cluster: Cluster,
}

/// `lint`.
#[derive(clap::Args, Debug)]
pub struct Lint {
    /// YAML or JSON files with policies or Lists, folders of such files, or - for standard input. Other kinds are ignored.
    #[arg(short, long = "file", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
    /// Measured number of concurrent requests to one backend host, for advice on idle connections per host.
    #[arg(long)]
    pub concurrency: Option<f64>,
    /// Output format.
    #[arg(short, long, default_value = "table", value_parser = formats(ROWS))]
    pub output: Output,
}

/// `simulate`.
#[derive(clap::Args, Debug)]
pub struct Simulate {
    /// YAML file with the policy.
    #[arg(short, long)]
    pub file: PathBuf,
    /// CSV file with the columns `time,node,tasks` and optionally `pooled_share`. An empty cell is a missing sample.
    #[arg(long, conflicts_with = "model", required_unless_present = "model")]
    pub trace: Option<PathBuf>,
    /// Built-in model instead of a trace.
    #[arg(long, value_enum)]
    pub model: Option<Kind>,
    /// Seed of the noise of the model.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Simulated hours of the model.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=8784))]
    pub hours: u32,
    /// Threshold of the task count, if the policy has no `threshold.value`.
    #[arg(long)]
    pub threshold: Option<u32>,
    /// SVG file for a plot of utilization, threshold, openness and decisions.
    #[arg(long)]
    pub svg: Option<PathBuf>,
    /// Output format.
    #[arg(short, long, default_value = "table", value_parser = formats(ROWS))]
    pub output: Output,
}

/// Result of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandResult {
    /// Text for standard output.
    pub text: String,
    /// Lines for standard error.
    pub notice: String,
    /// Whether the exit code is 1: a check failed, or one of several policies was not found.
    pub is_failure: bool,
}

impl From<String> for CommandResult {
    fn from(text: String) -> Self {
        Self { text, ..Self::default() }
    }
}

/// Runs a command and returns what to print.
///
/// # Errors
/// See [`Error`].
pub async fn run(cli: Cli) -> Result<CommandResult, Error> {
    match cli.command {
        Command::Status(options) => status(options).await,
        Command::Nodes(options) => show_nodes(options).await,
        Command::Explain(options) => explain(options).await,
        Command::History(options) => show_history(options).await,
        Command::Pause(options) => pause(options).await,
        Command::Resume(options) => resume(options).await,
        Command::Lint(options) => linted(&options),
        Command::Probe(options) => probe::run(&options).await,
        Command::Path(options) => path::run(&options).await,
        Command::Simulate(options) => Ok(simulate(&options)?.into()),
        Command::Complete { words } => Ok(complete::complete(Cli::command(), &words).await.into()),
        Command::Completion { shell } => {
            // The generator does not leave out hidden commands.
            let all = Cli::command();
            let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
            let mut command = clap::Command::new("kubectl-idleconn").args(all.get_arguments().cloned()).subcommands(shown);
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "kubectl-idleconn", &mut script);
            Ok(String::from_utf8_lossy(&script).into_owned().into())
        }
    }
}

async fn status(options: Status) -> Result<CommandResult, Error> {
    let (api, namespace) = if options.all_namespaces {
        (options.cluster.all_policies().await?, None)
    } else {
        let (api, namespace) = options.cluster.policies().await?;
        (api, Some(namespace))
    };
    let columns = Columns { namespace: options.all_namespaces, wide: options.output == Output::Wide };
    let mut table = Table::new(&columns.headings(), options.no_headers);
    let mut print = |policies: &[IdleConnectionPolicy], is_one: bool| {
        let names = || policies.iter().map(|policy| [RESOURCE, "/", &policy.name_any(), "\n"].concat()).collect();
        let row = |policy: &IdleConnectionPolicy| columns.row(policy, Timestamp::now());
        let rows = || table.lines(&policies.iter().map(row).collect::<Vec<_>>());
        match options.output {
            Output::Name => Ok(names()),
            output => output.of(&objects(policies, is_one), rows),
        }
    };
    if options.watch {
        return follow(&api, &options, print).await;
    }
    let mut found = selection::find(&api, &options.names, options.selector.as_deref()).await?;
    // An empty JSON or YAML list is a List without items, as in kubectl.
    if !matches!(options.output, Output::Json | Output::Yaml) || found.is_failure {
        found = match found.or_none(namespace.as_deref()) {
            Ok(found) => found,
            Err(answer) => return Ok(answer),
        };
    }
    let text = print(&std::mem::take(&mut found.policies), options.names.len() == 1)?;
    Ok(found.answer(text))
}

/// Prints policies when they change, until the process is interrupted.
async fn follow(
    api: &Api<StoredPolicy>,
    options: &Status,
    mut print: impl FnMut(&[IdleConnectionPolicy], bool) -> Result<String, Error>,
) -> Result<CommandResult, Error> {
    let mut wanted = watcher::Config::default();
    match &options.names[..] {
        [] => {}
        [name] => wanted = wanted.fields(&format!("metadata.name={name}")),
        // As in kubectl: a watch has one selector, and a field selector matches one name.
        _ => return Err(Error::Usage("--watch takes one NAME, or a --selector".into())),
    }
    if let Some(selector) = &options.selector {
        wanted = wanted.labels(selector);
    }
    let mut changes = std::pin::pin!(watcher(api.clone(), wanted).default_backoff().applied_objects());
    while let Some(change) = changes.next().await {
        let stored = match change {
            Ok(stored) => stored,
            // Without the permission or the CRD, a retry changes nothing.
            Err(watcher::Error::InitialListFailed(error @ kube::Error::Api(_))) => return Err(error.into()),
            Err(error) => {
                eprintln!("Warning: {error}; retrying");
                continue;
            }
        };
        match cluster::read(stored) {
            Ok((policy, warning)) => {
                if let Some(warning) = warning {
                    eprintln!("Warning: {warning}");
                }
                let text = print(std::slice::from_ref(&policy), true)?;
                std::io::stdout().write_all(text.as_bytes()).map_err(Error::Print)?;
            }
            Err(error) => eprintln!("Warning: {error}"),
        }
    }
    Ok(CommandResult::default())
}

async fn show_nodes(options: Nodes) -> Result<CommandResult, Error> {
    let (config, namespace) = options.cluster.config().await?;
    let list = waiting("the operator", Box::pin(nodes::ask(config, &namespace, &options))).await?;
    if options.output.is_table() && list.nodes.is_empty() {
        let notice = format!("No nodes found for policy {}.\n", options.name);
        return Ok(CommandResult { notice, ..CommandResult::default() });
    }
    let rows = || nodes::rows(&list, options.output == Output::Wide, options.no_headers);
    Ok(options.output.of(&list, rows)?.into())
}

async fn explain(Chosen { selection, cluster }: Chosen) -> Result<CommandResult, Error> {
    let found = match selection::chosen(&cluster, &selection).await? {
        Ok(found) => found,
        Err(answer) => return Ok(answer),
    };
    let texts: Vec<_> = found.policies.iter().map(|policy| explain::sentences(policy, Timestamp::now())).collect();
    Ok(found.answer(texts.join("\n")))
}

async fn show_history(options: History) -> Result<CommandResult, Error> {
    let mut found = match selection::chosen(&options.cluster, &options.selection).await? {
        Ok(found) => found,
        Err(answer) => return Ok(answer),
    };
    let rows: Vec<_> = found.policies.iter().flat_map(history::rows).collect();
    if options.output.is_table() && rows.is_empty() {
        for policy in std::mem::take(&mut found.policies) {
            found.notice.extend(["No decisions found for policy ", &policy.name_any(), ".\n"]);
        }
        return Ok(found.answer(String::new()));
    }
    // The name of the only policy is in the command.
    let skipped = usize::from(found.policies.len() == 1);
    let cells = |row: &history::Row| history::cells(row).split_off(skipped);
    let mut table = Table::new(&history::HEADINGS[skipped..], options.no_headers);
    let text = options.output.of(&rows, || table.lines(&rows.iter().map(cells).collect::<Vec<_>>()))?;
    Ok(found.answer(text))
}

async fn pause(options: Pause) -> Result<CommandResult, Error> {
    let direction = match (options.tighten, options.relax) {
        (true, _) => Direction::Tighten,
        (_, true) => Direction::Relax,
        _ => Direction::Both,
    };
    let end = pause::end(options.time.as_ref(), Timestamp::now())?;
    let until = end.map_or_else(String::new, |end| format!(" until {end}"));
    let done = format!("{}{until}", direction.done());
    each(&options.cluster, &options.selection, &done, &pause::annotations(direction, end)).await
}

async fn resume(options: Chosen) -> Result<CommandResult, Error> {
    each(&options.cluster, &options.selection, "resumed", &pause::no_annotations()).await
}

/// Sets annotations of each policy, and prints what was done to it.
async fn each(cluster: &Cluster, selection: &Selection, done: &str, annotations: &Annotations) -> Result<CommandResult, Error> {
    let (api, namespace) = cluster.policies().await?;
    let names = selection::names(&api, selection).await?;
    if names.is_empty() {
        return Ok(none_found(Some(&namespace)));
    }
    let mut answer = CommandResult::default();
    for name in names {
        match pause::annotate(&api, &name, annotations).await {
            Ok(is_suspended) => {
                answer.text.extend([RESOURCE, "/", &name, " ", done, "\n"]);
                if is_suspended {
                    let _ = writeln!(answer.notice, "warning: {name} stays suspended, because its spec.suspend is true");
                }
            }
            Err(error @ Error::Kube(kube::Error::Api(_))) => {
                answer.notice += &(error.line() + "\n");
                answer.is_failure = true;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

fn linted(options: &Lint) -> Result<CommandResult, Error> {
    let linter = lint::Linter::new().map_err(Error::Other)?;
    let mut findings = Vec::new();
    let mut policies = 0;
    for (path, text) in texts(&options.files)? {
        let (count, found) = linter.file(&path, &text, options.concurrency);
        policies += count;
        findings.extend(found);
    }
    if policies == 0 && findings.is_empty() {
        // A check of no policy must not pass.
        return Err(Error::NoPolicies);
    }
    let errors = findings.iter().filter(|finding| finding.is_error).count();
    let each = |finding: &lint::Finding| json!({"at": finding.at, "error": finding.is_error, "message": finding.message});
    let all = json!({"policies": policies, "findings": findings.iter().map(each).collect::<Vec<_>>()});
    let text = options.output.of(&all, || {
        let lines: String = findings.iter().map(|finding| finding.to_string() + "\n").collect();
        let policies = with_noun(policies, "policy", "policies");
        let advice = with_noun(findings.len() - errors, "piece of advice", "pieces of advice");
        format!("{lines}{policies}, {}, {advice}\n", with_noun(errors, "error", "errors"))
    })?;
    Ok(CommandResult { text, is_failure: errors > 0, ..CommandResult::default() })
}

/// Reads the files of `-f`, as kubectl does: a file, the YAML and JSON files of a folder, or standard input.
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
    let config = simulate::config(&policy.spec, &targets::traits(&policy.spec.target)).map_err(Error::Other)?;
    let signal = policy.spec.adaptive.as_ref().and_then(|adaptive| adaptive.signal.as_ref());
    let threshold = options.threshold.or_else(|| signal?.threshold.as_ref()?.value);
    let (mut plant, seconds, caveat): (Box<dyn Plant>, i64, _) = match (&options.trace, options.model) {
        (Some(path), _) => {
            let file = std::fs::File::open(path).map_err(|error| Error::File(path.clone(), error))?;
            let trace = Trace::read(file, f64::from(threshold.ok_or(Error::Threshold)?), &config.declared.settings)?;
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
            let plant = Model::new(kind, options.seed, 8, false, &config.declared.settings);
            let caveat = "The task counts come from a model, which knows nothing about your servers.";
            (Box::new(plant), i64::from(options.hours) * 3600, caveat)
        }
    };
    let run = simulate::run(&config, plant.as_mut(), seconds, None);
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
        with_noun(summary.changes, "change", "changes"),
        with_noun(summary.reversals, "reversal", "reversals"),
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
    async fn a_refused_file_is_printed_as_json_and_fails() {
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
            reason: "on average 235% of the threshold for 2m".into(),
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
        assert_eq!(lines[1], "  1:02:10   100%    50%  -              on average 235% of the threshold for 2m");
        let end = "2 changes, 1 reversal, 4 min over the threshold, 100% open at the end, NotTightened\nIt is a model.\n";
        assert!(text.ends_with(end), "{text}");
        assert!(text.contains("  100% ") && text.contains("Bars: utilization"), "{text}");
        assert!(plot::svg(&run).expect("a plot").contains("Utilization (blue)"));
    }

    #[test]
    fn the_flags_are_those_of_kubectl() {
        let accepts = |line: &str| Cli::try_parse_from(["kubectl-idleconn"].into_iter().chain(line.split(' '))).is_ok();
        for line in [
            "status",
            "status a icp/b -n shop --no-headers -o name",
            "status -A -l app=gw -o wide",
            "status -w a",
            "nodes gw -o wide --no-headers --context prod --kubeconfig /tmp/x",
            "explain a b",
            "history -l app=gw -o yaml --no-headers",
            "pause a b --for 2h --tighten",
            "resume -l app=gw",
        ] {
            assert!(accepts(line), "{line}");
        }
        for line in
            ["status -A a", "status -A -n shop", "status a -l app=gw", "explain", "pause", "history a -o name", "resume pod/a"]
        {
            assert!(!accepts(line), "{line}");
        }
    }

    #[test]
    fn wrong_arguments_exit_with_2() {
        let error = Cli::try_parse_from(["kubectl-idleconn", "pause", "gw", "--tighten", "--relax"]).expect_err("a conflict");
        assert_eq!(error.exit_code(), i32::from(Error::Usage(String::new()).exit_code()));
    }

    #[tokio::test]
    async fn lists_and_folders_are_read_and_a_check_of_no_policy_fails() {
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

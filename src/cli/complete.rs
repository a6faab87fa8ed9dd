//! Completion of commands, options and values, for `kubectl_complete-idleconn`.
//!
//! The output has the format of the library cobra, which kubectl reads: one candidate in each line with a description after a tab, and
//! `:N` in the last line. `:4` means that file names are no candidates, `:0` that they are.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::{Arg, ArgAction, Command, ValueHint};

use super::cluster::Cluster;
use crate::decide::path::KNOWN_CLIENTS;

/// Maximum time for a request to the API server, because a user waits for the completion.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Kind of the word to complete.
#[derive(Clone, Copy, Debug)]
enum Wanted<'a> {
    /// A command.
    Command(&'a Command),
    /// An option of the command.
    Option(&'a Command),
    /// One of the values of an argument.
    Value(&'a Arg),
    /// The name of a policy.
    Policy,
    /// The name of a namespace.
    Namespace,
    /// The name of a context of the kubeconfig.
    Context,
    /// The name of a known client of `path`.
    Client,
    /// The name of a file.
    File,
    /// A word that only the user knows.
    Other,
}

impl<'a> Wanted<'a> {
    fn value(arg: &'a Arg) -> Self {
        match arg.get_id().as_str() {
            "name" | "names" | "hops" => Self::Policy,
            "namespace" | "operator_namespace" => Self::Namespace,
            "context" => Self::Context,
            "client_idle" => Self::Client,
            _ if !arg.get_possible_values().is_empty() => Self::Value(arg),
            _ if matches!(arg.get_value_hint(), ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath) => Self::File,
            _ => Self::Other,
        }
    }
}

/// The last word, and the meaning of the words before it.
struct Request<'a> {
    wanted: Wanted<'a>,
    /// Beginning of the word.
    prefix: &'a str,
    /// Positional arguments before the word.
    given: Vec<&'a str>,
    /// Values of options before the word, by the id of the option.
    options: BTreeMap<&'a str, &'a str>,
}

impl<'a> Request<'a> {
    fn read(root: &'a Command, words: &'a [String]) -> Self {
        let (prefix, before) = words.split_last().map_or(("", words), |(last, before)| (last.as_str(), before));
        let (mut command, mut given, mut options) = (root, Vec::new(), BTreeMap::new());
        // The option whose value is the next word, and the option that takes all following values.
        let (mut pending, mut collecting): (Option<&Arg>, Option<&Arg>) = (None, None);
        let mut only_values = false;
        for word in before.iter().map(String::as_str) {
            if let Some(arg) = pending.take() {
                options.insert(arg.get_id().as_str(), word);
                collecting = Some(arg).filter(|arg| takes_several(arg));
            } else if only_values || word == "-" || !word.starts_with('-') {
                match command.find_subcommand(word).filter(|_| given.is_empty() && !only_values) {
                    Some(subcommand) => command = subcommand,
                    None if collecting.is_none() => given.push(word),
                    None => {}
                }
            } else if word == "--" {
                only_values = true;
            } else {
                collecting = None;
                let (arg, value) = option(command, word);
                match value {
                    Some(value) => options.extend(arg.map(|arg| (arg.get_id().as_str(), value))),
                    None => pending = arg,
                }
            }
        }
        let with_value = prefix.starts_with("--") && prefix.contains('=') && !only_values;
        let (wanted, prefix) = match pending.or(collecting.filter(|_| !prefix.starts_with('-'))) {
            Some(arg) => (Wanted::value(arg), prefix),
            None if with_value => match option(command, prefix) {
                (Some(arg), Some(value)) => (Wanted::value(arg), value),
                _ => (Wanted::Other, prefix),
            },
            None if prefix.starts_with('-') && !only_values => (Wanted::Option(command), prefix),
            None if command.has_subcommands() => (Wanted::Command(command), prefix),
            None => (
                command.get_positionals().nth(given.len()).or(last_of_several(command)).map_or(Wanted::Other, Wanted::value),
                prefix,
            ),
        };
        Self { wanted, prefix, given, options }
    }

    fn cluster(&self) -> Cluster {
        let option = |id: &str| self.options.get(id).map(|&value| value.to_owned());
        Cluster {
            namespace: option("namespace"),
            kubeconfig: option("kubeconfig").map(PathBuf::from),
            context: option("context"),
        }
    }
}

/// The last positional argument of the command, if it takes any number of values.
fn last_of_several(command: &Command) -> Option<&Arg> {
    command.get_positionals().last().filter(|arg| takes_several(arg))
}

fn takes_several(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|count| count.max_values() > 1) || (arg.is_positional() && is_repeatable(arg))
}

fn is_repeatable(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append | ArgAction::Count)
}

/// The option that takes a value in this word: with its value, or without if the value is the next word.
fn option<'a>(command: &'a Command, word: &'a str) -> (Option<&'a Arg>, Option<&'a str>) {
    let find = |is_named: &dyn Fn(&Arg) -> bool| command.get_arguments().find(|arg| !arg.is_positional() && is_named(arg));
    if let Some(long) = word.strip_prefix("--") {
        let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
        return (find(&|arg| arg.get_long() == Some(name)).filter(|arg| arg.get_action().takes_values()), value);
    }
    // Short options may share a word, as in -An, and the last may have its value there: -nshop.
    for (at, letter) in word.char_indices().skip(1) {
        let arg = find(&|arg| arg.get_short() == Some(letter)).filter(|arg| arg.get_action().takes_values());
        if arg.is_some() {
            let value = &word[at + letter.len_utf8()..];
            return (arg, Some(value.strip_prefix('=').unwrap_or(value)).filter(|value| !value.is_empty()));
        }
    }
    (None, None)
}

/// Returns the candidates for the last of the words after `kubectl idleconn`. Without an answer of the API server, there are none.
pub async fn complete(mut root: Command, words: &[String]) -> String {
    root.build();
    let request = Request::read(&root, words);
    let cluster = request.cluster();
    let names = match request.wanted {
        Wanted::Policy => tokio::time::timeout(TIMEOUT, cluster.policy_names()).await.ok().and_then(Result::ok),
        Wanted::Namespace => tokio::time::timeout(TIMEOUT, cluster.namespaces()).await.ok().and_then(Result::ok),
        Wanted::Context => cluster.contexts().ok(),
        Wanted::Client => Some(KNOWN_CLIENTS.iter().map(|client| client.name.to_owned()).collect()),
        _ => None,
    };
    print(&request, names.unwrap_or_default())
}

fn print(request: &Request<'_>, names: Vec<String>) -> String {
    let about = |text: Option<String>| text.and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_default();
    let mut candidates: Vec<(String, String)> = match request.wanted {
        Wanted::Command(command) => command
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(|command| (command.get_name().to_owned(), about(command.get_about().map(ToString::to_string))))
            .collect(),
        Wanted::Option(command) => command
            .get_arguments()
            .filter(|arg| !arg.is_hide_set() && (is_repeatable(arg) || !request.options.contains_key(arg.get_id().as_str())))
            .filter_map(|arg| Some((format!("--{}", arg.get_long()?), about(arg.get_help().map(ToString::to_string)))))
            .collect(),
        Wanted::Value(arg) => arg
            .get_possible_values()
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| (value.get_name().to_owned(), about(value.get_help().map(ToString::to_string))))
            .collect(),
        _ => names.into_iter().map(|name| (name, String::new())).collect(),
    };
    candidates.retain(|(word, _)| word.starts_with(request.prefix) && !request.given.contains(&word.as_str()));
    let line = |(word, about): (String, String)| if about.is_empty() { word + "\n" } else { format!("{word}\t{about}\n") };
    let directive = if matches!(request.wanted, Wanted::File) { 0 } else { 4 };
    candidates.into_iter().map(line).collect::<String>() + &format!(":{directive}\n")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::{super::Cli, *};

    /// Completes the last word of a line, with these names of policies.
    fn completed(line: &str) -> String {
        let mut root = Cli::command();
        root.build();
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let request = Request::read(&root, &words);
        let policies =
            if matches!(request.wanted, Wanted::Policy) { ["api", "gw", "gw-2"].map(str::to_owned).to_vec() } else { Vec::new() };
        print(&request, policies)
    }

    /// The first words of the lines.
    fn words(line: &str) -> Vec<String> {
        completed(line).lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn commands_have_a_description_and_hidden_ones_are_no_candidates() {
        assert_eq!(words("st"), ["status", ":4"]);
        assert!(completed("st").starts_with("status\tS"), "{}", completed("st"));
        let all = words("");
        assert!(all.contains(&"explain".to_owned()) && !all.contains(&"__complete".to_owned()), "{all:?}");
    }

    #[test]
    fn policies_are_completed_where_a_name_stands() {
        assert_eq!(words("explain g"), ["gw", "gw-2", ":4"]);
        assert_eq!(words("status gw "), ["api", "gw-2", ":4"]);
        assert_eq!(words("pause --for 2h -n shop a"), ["api", ":4"]);
        assert_eq!(words("nodes -nshop gw-"), ["gw-2", ":4"]);
        assert_eq!(words("nodes gw "), [":4"]);
        assert_eq!(words("resume -- g"), ["gw", "gw-2", ":4"]);
    }

    #[test]
    fn options_and_their_values_are_completed() {
        assert_eq!(words("pause gw --t"), ["--tighten", ":4"]);
        assert_eq!(words("status -o "), ["table", "wide", "name", "json", "yaml", ":4"]);
        assert_eq!(words("history gw -o js"), ["json", ":4"]);
        assert_eq!(words("status --output=w"), ["wide", ":4"]);
        assert_eq!(words("completion f"), ["fish", ":4"]);
        assert_eq!(words("simulate --model b").last().map(String::as_str), Some(":4"));
    }

    #[test]
    fn files_are_left_to_the_shell() {
        for line in ["lint -f ", "lint -f a.yaml b", "status --kubeconfig /", "probe --ca x"] {
            assert_eq!(completed(line), ":0\n", "{line}");
        }
        assert_eq!(completed("pause gw --for "), ":4\n");
    }

    #[test]
    fn options_before_the_word_choose_the_cluster() {
        let mut root = Cli::command();
        root.build();
        let words = ["status", "-Anshop", "--context=prod", "--kubeconfig", "/tmp/x", ""].map(str::to_owned);
        let cluster = Request::read(&root, &words).cluster();
        assert_eq!((cluster.namespace.as_deref(), cluster.context.as_deref()), (Some("shop"), Some("prod")));
        assert_eq!(cluster.kubeconfig, Some(PathBuf::from("/tmp/x")));
    }

    #[tokio::test]
    async fn known_clients_need_no_cluster() {
        let words = ["path", "--client-idle", "ngi"].map(str::to_owned);
        assert_eq!(complete(Cli::command(), &words).await, "nginx\n:4\n");
    }
}

//! `kubectl idleconn` as a user runs it: the binary with a real API server.

use std::{path::Path, process::Output};

use idleconn_operator::leader::Leadership;
use serde_json::Value as Json;
use tokio::process::Command;

use crate::support::{
    admin_api::AdminApi,
    api::Api,
    caddy::typical,
    cluster::kubeconfig,
    eventually,
    operator::{World, restless},
};

/// Runs the plugin and returns its exit code, standard output and standard error.
async fn run(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-idleconn"));
    let Output { status, stdout, stderr } = command.args(args).arg("--kubeconfig").arg(kubeconfig()).output().await.unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// The same in the namespace of the world.
async fn run_in(world: &World, args: &[&str]) -> (i32, String, String) {
    run(&[args, &["--namespace", &world.namespace]].concat()).await
}

/// Returns the output, or the error line.
async fn idleconn(world: &World, args: &[&str]) -> Result<String, String> {
    let (code, out, err) = run_in(world, args).await;
    if code == 0 { Ok(out) } else { Err(err) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_the_limits_until_resume() {
    let (world, node) = (World::new("plugin").await, AdminApi::start(typical()).await);
    world.apply("gw", &restless(&node, "1m")).await;
    world.until_condition("gw", "MetricsAvailable", "True", "Fresh").await;

    assert_eq!(idleconn(&world, &["pause", "gw"]).await.unwrap(), "idleconnectionpolicy.idleconn.io/gw paused\n");
    node.run(2000);
    world.until_condition("gw", "TighteningLimited", "True", "Paused").await;
    let said = idleconn(&world, &["status"]).await.unwrap();
    assert!(
        said.lines().nth(1).is_some_and(|line| line.contains("gw") && line.contains("100%") && line.contains("1/1")),
        "{said}"
    );
    let empty = (0, String::new(), "No decisions found for policy gw.\n".to_owned());
    assert_eq!(run_in(&world, &["history", "gw"]).await, empty);

    assert_eq!(idleconn(&world, &["resume", "gw"]).await.unwrap(), "idleconnectionpolicy.idleconn.io/gw resumed\n");
    world.until("gw", "tightened", |s| s.openness_percent.is_some_and(|u| u < 100)).await;
    let said = idleconn(&world, &["history", "gw"]).await.unwrap();
    assert!(said.lines().nth(1).is_some_and(|line| line.contains("100%") && line.contains("2000 -> ")), "{said}");
    let decisions: Json = serde_json::from_str(&idleconn(&world, &["history", "gw", "-o", "json"]).await.unwrap()).unwrap();
    assert_eq!(decisions[0]["fromPercent"], 100);
    let status: Json = serde_json::from_str(&idleconn(&world, &["status", "gw", "-o", "json"]).await.unwrap()).unwrap();
    assert_eq!((&status["kind"], &status["metadata"]["name"]), (&"IdleConnectionPolicy".into(), &"gw".into()));

    let said = idleconn(&world, &["pause", "gw", "--relax", "--for", "2h"]).await.unwrap();
    let end: jiff::Timestamp =
        said.trim_end().strip_prefix("idleconnectionpolicy.idleconn.io/gw relaxing paused until ").unwrap().parse().unwrap();
    let left = end.duration_since(jiff::Timestamp::now());
    assert!(left > jiff::SignedDuration::from_mins(119) && left <= jiff::SignedDuration::from_mins(121), "{left}");
    let object = world.get("gw").await;
    assert_eq!(object.metadata.annotations.unwrap_or_default()["idleconn.io/paused-relax"], end.to_string());
    world.delete("gw").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_and_exit_codes_are_those_of_kubectl() {
    let world = World::empty("plugin").await;
    let none = (0, String::new(), format!("No resources found in {} namespace.\n", world.namespace));
    assert_eq!(run_in(&world, &["status"]).await, none);
    for command in ["status", "history", "explain", "pause", "resume"] {
        let said = run_in(&world, &[command, "gw"]).await;
        let line = "Error from server (NotFound): idleconnectionpolicies.idleconn.io \"gw\" not found\n";
        assert_eq!(said, (1, String::new(), line.to_owned()), "{command}");
    }
    // Wrong arguments exit with 2, a failed check with 1.
    let (code, _, err) = run_in(&world, &["pause", "gw", "--tighten", "--relax"]).await;
    assert!(code == 2 && err.starts_with("error: "), "{code} {err}");
    let (code, _, err) = run(&["path", "ftp://x"]).await;
    assert!(code == 2 && err.starts_with("error: ftp://x is neither"), "{code} {err}");
    // No API server listens on port 1.
    let file = std::env::temp_dir().join(format!("idleconn-nowhere-{}.yaml", std::process::id()));
    let nowhere = "{clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: a, user: {}}], \
                   contexts: [{name: a, context: {cluster: a, user: a}}], current-context: a}";
    std::fs::write(&file, nowhere).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-idleconn"));
    let Output { status, stderr, .. } = command.arg("status").arg("--kubeconfig").arg(&file).output().await.unwrap();
    let err = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{err}");
    assert!(err.starts_with("error: cannot connect to the API server: ") && err.lines().count() == 1, "{err}");
    std::fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_labels_and_formats_are_those_of_kubectl() {
    let (world, node) = (World::empty("plugin").await, AdminApi::start(typical()).await);
    let (a, b) = ("idleconnectionpolicy.idleconn.io/a", "idleconnectionpolicy.idleconn.io/b");
    for name in ["a", "b"] {
        world.apply(name, &restless(&node, "1m")).await;
    }
    let out = async |args: &[&str]| idleconn(&world, args).await.unwrap();
    assert_eq!(out(&["status", "-o", "name"]).await, format!("{a}\n{b}\n"));
    assert!(out(&["status"]).await.starts_with("NAME   TARGET   MODE "));
    assert!(out(&["status", "-o", "wide"]).await.lines().next().unwrap().contains("IN EFFECT"));
    assert!(out(&["status", "a", "b", "--no-headers"]).await.starts_with("a   Caddy   Enforce "));
    let list: Json = serde_json::from_str(&out(&["status", "-o", "json"]).await).unwrap();
    assert_eq!((&list["kind"], &list["items"][1]["metadata"]["name"]), (&"List".into(), &"b".into()));
    assert!(out(&["status", "a", "-o", "yaml"]).await.contains("kind: IdleConnectionPolicy\n"));
    assert!(out(&["explain", "a", "b"]).await.contains("\n\nb"));

    // A name that is not found does not hide the others.
    let (code, out_, err) = run_in(&world, &["status", "a", "c", "-o", "name"]).await;
    assert_eq!((code, out_), (1, format!("{a}\n")));
    assert_eq!(err, "Error from server (NotFound): idleconnectionpolicies.idleconn.io \"c\" not found\n");
    let (code, out_, err) = run_in(&world, &["pause", a, "c", "icp/b"]).await;
    assert_eq!((code, out_), (1, format!("{a} paused\n{b} paused\n")));
    assert!(err.starts_with("Error from server (NotFound): "), "{err}");
    for name in ["a", "b"] {
        assert!(world.get(name).await.metadata.annotations.unwrap_or_default().contains_key("idleconn.io/paused"), "{name}");
    }

    // No policy has this label.
    let (code, printed, err) = run_in(&world, &["resume", "-l", "app=gateway"]).await;
    let nothing = format!("No resources found in {} namespace.\n", world.namespace);
    assert_eq!((code, printed.as_str(), &err), (0, "", &nothing));
    assert_eq!(run_in(&world, &["status", "-l", "app=gateway"]).await, (0, String::new(), nothing));
    assert_eq!(out(&["resume", "-l", "app!=gateway"]).await, format!("{a} resumed\n{b} resumed\n"));

    let (code, all, _) = run(&["status", "-A"]).await;
    assert!(code == 0 && all.starts_with("NAMESPACE ") && all.contains(&world.namespace), "{all}");
    let (code, _, err) = run_in(&world, &["status", "-w", "a", "b"]).await;
    assert!(code == 2 && err.starts_with("error: --watch takes one NAME"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_completes_commands_options_and_the_names_of_policies() {
    let (world, node) = (World::empty("plugin").await, AdminApi::start(typical()).await);
    for name in ["gw", "api"] {
        world.apply(name, &restless(&node, "1m")).await;
    }
    // kubectl runs this program with the words after `idleconn`, and it finds the plugin on the PATH.
    let plugin = Path::new(env!("CARGO_BIN_EXE_kubectl-idleconn")).parent().unwrap();
    let path = std::env::join_paths([plugin, Path::new("/usr/bin"), Path::new("/bin")]).unwrap();
    let complete = async |words: &[&str]| {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/image/kubectl_complete-idleconn");
        let output = Command::new(program).args(words).env("PATH", &path).output().await.unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let file = kubeconfig().to_str().unwrap();
    let there = ["--kubeconfig", file, "-n", &world.namespace];
    // A request takes at most two seconds, because a user waits: on a loaded machine there may be no candidates.
    let names = async |words: &[&str], expected: &str| {
        eventually(expected, || async { (complete(words).await == expected).then_some(()) }).await;
    };
    names(&[&["explain"], &there[..], &[""]].concat(), "api\ngw\n:4\n").await;
    names(&[&["pause"], &there[..], &["api", "g"]].concat(), "gw\n:4\n").await;
    let namespace = ["status", "--kubeconfig", file, "--namespace", &world.namespace];
    eventually("the namespace", || async {
        let found = complete(&namespace).await;
        (found.lines().any(|line| line == world.namespace) && found.ends_with("\n:4\n")).then_some(())
    })
    .await;
    let flags = complete(&["pause", "gw", "--t"]).await;
    assert!(flags.starts_with("--tighten\tPause tightening only\n") && flags.ends_with("\n:4\n"), "{flags}");
    assert!(complete(&["--he"]).await.starts_with("--help\t"));
    assert!(complete(&["expl"]).await.starts_with("explain\t"));
    // Without a cluster, there are no candidates and no error.
    assert_eq!(complete(&["explain", "--kubeconfig", "/nonexistent", ""]).await, ":4\n");
    // This command takes no kubeconfig.
    let script = Command::new(env!("CARGO_BIN_EXE_kubectl-idleconn")).args(["completion", "bash"]).output().await.unwrap();
    let script = String::from_utf8(script.stdout).unwrap();
    assert!(script.contains("kubectl-idleconn") && !script.contains("__complete"), "{script}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_itself_says_what_each_node_has() {
    let (world, node) = (World::empty("plugin").await, AdminApi::start(typical()).await);
    world.apply("gw", &restless(&node, "1m")).await;
    // The task count is set first, because the command shows the last sample.
    node.run(250);
    let (open, gated) = (Api::start(&[&world], true).await, Api::of(&[&world], false, Leadership::none()).await);
    world.until_condition("gw", "MetricsAvailable", "True", "Fresh").await;
    world.until_condition("gw", "InEffect", "True", "InEffect").await;
    let said = idleconn(&world, &["nodes", "gw", "--operator", &open.address]).await.unwrap();
    let without = idleconn(&world, &["nodes", "gw", "--no-headers", "-o", "wide", "--operator", &open.address]).await.unwrap();
    assert!(!without.contains("NODE") && without.lines().count() == said.lines().count() - 1, "{without}");
    let words: Vec<_> = said.lines().nth(1).unwrap().split_whitespace().collect();
    let host = node.address.trim_start_matches("http://");
    assert_eq!(words, [host, "250/1000", "server.idleTimeout", "4s", "4s", "4s", "-", "InEffect", "-"]);
    let list: Json =
        serde_json::from_str(&idleconn(&world, &["nodes", "gw", "-o", "json", "--operator", &open.address]).await.unwrap())
            .unwrap();
    assert_eq!(list["nodes"][0]["inEffect"]["server"]["idleTimeout"], "4s");

    let said = idleconn(&world, &["nodes", "nope", "--operator", &open.address]).await.unwrap_err();
    assert!(said.contains("Policy \"nope\" not found in namespace"), "{said}");
    // The command uses a token of the viewer, and never that of the kubeconfig.
    let said = idleconn(&world, &["nodes", "gw", "--operator", &gated.address, "--operator-namespace", &world.namespace]).await;
    let said = said.unwrap_err();
    assert!(said.contains("cannot create a token of ServiceAccount idleconn-viewer in namespace"), "{said}");
    world.viewer().await;
    let said = idleconn(&world, &["nodes", "gw", "--operator", "http://192.0.2.1:8081"]).await.unwrap_err();
    assert!(said.contains("192.0.2.1 is not this machine, and a token must not be sent without TLS"), "{said}");
    let there = ["nodes", "gw", "--operator", &gated.address, "--operator-namespace", &world.namespace];
    let said = idleconn(&world, &there).await.unwrap_err();
    assert_eq!(said, "error: This replica is a standby and has no data of the nodes; ask the leader, which holds the Lease\n");
    let said = idleconn(&world, &["nodes", "gw", "--operator", "http://127.0.0.1:1"]).await.unwrap_err();
    assert!(said.starts_with("error: no operator answers at 127.0.0.1:1"), "{said}");
    let said = idleconn(&world, &["nodes", "gw", "--operator-namespace", &world.namespace]).await.unwrap_err();
    assert!(said.contains("no operator runs in namespace") && said.contains("give --operator-namespace"), "{said}");
}

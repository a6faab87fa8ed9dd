//! The live page in a real browser, and the API with a test generator that knows only the `OpenAPI` document.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
};

use crate::support::{
    admin_api::AdminApi,
    api::{Api, token},
    caddy::typical,
    cluster::ROOT,
    operator::{World, restless},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_shows_what_happens_while_it_happens() {
    let world = World::empty("page").await;
    let node = AdminApi::start(typical()).await;
    world.apply("gw", &restless(&node, "1h")).await;
    let (open, gated) =
        (Api::start(&[&world], true).await, Api::of(&[&world], false, idleconn_operator::leader::Leadership::none()).await);
    world.until_condition("gw", "MetricsAvailable", "True", "Fresh").await;
    world.until_condition("gw", "InEffect", "True", "InEffect").await;
    let mut page = Command::new("node");
    page.arg(format!("{ROOT}/tests/page/page.mjs")).args([&open.address, &gated.address]);
    if std::env::var_os("IDLECONN_SCREENSHOTS").is_some() {
        page.arg(format!("{ROOT}/docs"));
    }
    let mut page = page.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let (mut answers, mut wants) = (page.stdin.take().unwrap(), BufReader::new(page.stdout.take().unwrap()).lines());
    let mut done = false;
    while let Some(want) = wants.next_line().await.unwrap() {
        let answer = match want.as_str() {
            "tighten" => {
                node.run(1_500);
                String::new()
            }
            "token" => token(&world, "viewer", &[("get", "idleconnectionpolicies"), ("list", "idleconnectionpolicies")]).await,
            "done" => {
                done = true;
                continue;
            }
            other => panic!("the page wants {other}"),
        };
        answers.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
    }
    assert!(page.wait().await.unwrap().success() && done, "see above");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_kept_to_whatever_is_sent() {
    let world = World::empty("schema").await;
    let node = AdminApi::start(typical()).await;
    world.apply("gw", &restless(&node, "1h")).await;
    let api = Api::start(&[&world], false).await;
    world.until_programmed("gw").await;
    let rights = [("get", "idleconnectionpolicies"), ("delete", "idleconnectionpolicies/connections")];
    let token = token(&world, "tester", &rights).await;
    let built = Command::new(format!("{ROOT}/tests/schemathesis/build")).stderr(Stdio::inherit()).output().await.unwrap();
    assert!(built.status.success(), "schemathesis could not be installed; see above");
    let schemathesis = String::from_utf8(built.stdout).unwrap().trim().to_owned();
    let output = Command::new(schemathesis)
        // schemathesis writes its requests to the current folder.
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        // A stream has no end, so it is excluded.
        .args(["run", "--checks", "all", "--max-examples", "40", "--seed", "1", "--workers", "1", "--no-color"])
        .args(["--exclude-path-regex", "/stream$", "--request-timeout", "10"])
        .args(["--header", &format!("Authorization: Bearer {token}")])
        .args(["--url", &api.address, &format!("{}/api/openapi.json", api.address)])
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

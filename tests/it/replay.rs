//! The fake AIStore compared with recordings of the real server: every request of the operator, and requests that show how the
//! server validates.

use serde_json::{Value as Json, json};

use crate::support::{
    ais::{Ais, Life, Phase, Token},
    cluster::{self, ROOT},
};

/// Recorded request and response.
struct Recording {
    name: String,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    to: String,
    body: Option<String>,
    status: u16,
    answer: Option<String>,
}

fn recordings() -> Vec<Recording> {
    let mut names: Vec<_> =
        std::fs::read_dir(format!("{ROOT}/tests/fixtures/aistore")).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    // The tests of the metrics reader cover the metrics pages.
    names.into_iter().filter(|path| !path.to_string_lossy().contains("-metrics-")).map(|path| parse(&path)).collect()
}

fn parse(path: &std::path::Path) -> Recording {
    let bytes = std::fs::read(path).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let sent: Vec<_> = text.lines().filter_map(|line| line.strip_prefix('>')).map(str::trim).collect();
    let mut first = sent[0].split(' ');
    let blank = sent.iter().position(|line| line.is_empty()).unwrap_or(sent.len());
    let headers = sent[1..blank].iter().filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_lowercase(), v.to_owned()));
    let status = text.lines().find_map(|line| line.strip_prefix("< HTTP/1.1 ")).unwrap();
    let answer = text.lines().skip_while(|line| !line.starts_with("< ")).find(|line| line.starts_with('{'));
    let headers: Vec<_> = headers.collect();
    Recording {
        name: path.file_stem().unwrap().to_string_lossy().into_owned(),
        method: first.next().unwrap().to_owned(),
        path: first.next().unwrap().to_owned(),
        to: headers.iter().find(|(k, _)| k == "host").unwrap().1.clone(),
        headers: headers.into_iter().filter(|(k, _)| matches!(k.as_str(), "ais-node-id" | "authorization")).collect(),
        body: sent.get(blank + 1).map(|line| (*line).to_owned()),
        status: status[..3].parse().unwrap(),
        answer: answer.map(str::to_owned),
    }
}

/// Sets the state of the real cluster at the time of the recording.
fn scene(ais: &Ais, name: &str) {
    let number: String = name.chars().take_while(char::is_ascii_digit).collect();
    let mut cluster = ais.cluster();
    match number.as_str() {
        "70" => cluster.phase = Phase::Election,
        "80" => {
            cluster.auth = true;
            cluster.uuid = "Q11RrnqqC8".into();
            let token = match name {
                n if n.contains("-ro-") => Some(Token::BucketsOnly),
                n if n.contains("expired") => Some(Token::Expired),
                n if n.contains("admin") => Some(Token::Admin),
                _ => None,
            };
            cluster.tokens.extend(token.map(|token| ("<JWT>".to_owned(), token)));
        }
        _ => {}
    }
    drop(cluster);
    match number.as_str() {
        "73" => ais.set("target-t2", Life::Hung),
        "74" => ais.set("target-t2", Life::Dead),
        _ if name.contains("maint") && !name.ends_with("-maintenance") => ais.maintain("target-t2", true),
        _ => {}
    }
    match name {
        // In the recordings these requests followed manual changes.
        "28e-idle-conns-less-than-per-host" | "27-per-host-129" => ais.set_http("idle_conns_per_host", &32.into()),
        _ => {}
    }
}

/// Removes values that also differ between two runs of the real server.
fn comparable(answer: &Json) -> Json {
    let mut answer = answer.clone();
    if let Some(map) = answer.as_object_mut() {
        for volatile in [
            "remote_addr",
            "lastupdate_time",
            "config_version",
            "version",
            "creation_time",
            "uuid",
            "tracker",
            "sys_info",
            "capacity",
            "cluster",
            "smap_version",
            "snode",
        ] {
            if let Some(value) = map.get_mut(volatile) {
                *value = kind(value).into();
            }
        }
        if let Some(Json::String(message)) = map.get_mut("message") {
            // These are the position of an error in the text, versions and remaining times.
            let plain = message.split(", error found in").next().unwrap_or_default();
            *message =
                plain.split("Smap v").next().unwrap_or_default().split("token expires").next().unwrap_or_default().to_owned();
        }
        // The test chooses the settings of a cluster; only the names and the types of the settings are compared.
        if let Some(net) = map.get_mut("net") {
            for value in net["http"].as_object_mut().unwrap().values_mut() {
                *value = kind(value).into();
            }
        }
        // The addresses of the fake's nodes are not compared.
        for members in ["pmap", "tmap"] {
            for member in map.get_mut(members).and_then(Json::as_object_mut).into_iter().flat_map(|all| all.values_mut()) {
                member["public_net"]["direct_url"] = "a url".into();
                member.as_object_mut().unwrap().remove("verifying_key");
            }
        }
        if let Some(primary) = map.get_mut("proxy_si").and_then(Json::as_object_mut) {
            primary.remove("verifying_key");
        }
        for node_local in ["fspaths", "confdir", "log_dir", "test_fspaths", "host_net", "proxy", "backend", "features", "auth"] {
            map.remove(node_local);
        }
    }
    answer
}

const fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "bool",
        Json::Number(_) => "number",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stand_in_answers_as_the_real_server_did() {
    cluster::client().await;
    let client = reqwest::Client::new();
    let all = recordings();
    assert_eq!(all.len(), 62, "recordings");
    let mut replays = tokio::task::JoinSet::new();
    for recording in all {
        let client = client.clone();
        replays.spawn(async move {
            let ais = Ais::start().await;
            scene(&ais, &recording.name);
            let proxy = usize::from(recording.to.ends_with("81"));
            let method = recording.method.parse().unwrap();
            let mut request = client.request(method, format!("{}{}", ais.proxies[proxy], recording.path));
            for (key, value) in &recording.headers {
                request = request.header(key, value);
            }
            if let Some(body) = &recording.body {
                request = request.body(body.clone());
            }
            let hung = recording.name.starts_with("73b");
            let asked = tokio::spawn(request.send());
            if hung {
                // The recorded request lasted until the node was resumed.
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                assert!(!asked.is_finished(), "a hung node does not answer");
                ais.set("target-t2", Life::Running);
            }
            let answer = asked.await.unwrap().unwrap();
            let status = answer.status().as_u16();
            let text = answer.text().await.unwrap();
            assert_eq!(status, recording.status, "{}: {text}", recording.name);
            let seen = serde_json::from_str::<Json>(&text).ok().as_ref().map(comparable);
            let recorded = recording.answer.as_deref().map(|text| comparable(&serde_json::from_str(text).unwrap()));
            assert_eq!(seen, recorded, "{}", recording.name);
        });
    }
    while let Some(replay) = replays.join_next().await {
        replay.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_is_one_version_behind_and_durations_are_respelled() {
    cluster::client().await;
    let ais = Ais::start().await;
    let client = reqwest::Client::new();
    let change = json!({"action": "set-config", "value": {"net": {"http": {"backend_idle_conn_time": "60m", "idle_conn_time": "1500ms"}}}});
    assert!(client.put(format!("{}/v1/cluster", ais.proxies[1])).json(&change).send().await.unwrap().status().is_success());
    let mut versions = Vec::new();
    for proxy in &ais.proxies {
        let config: Json =
            client.get(format!("{proxy}/v1/cluster?what=cluster_config")).send().await.unwrap().json().await.unwrap();
        assert_eq!(config["net"]["http"]["backend_idle_conn_time"], "1h0m");
        assert_eq!(config["net"]["http"]["idle_conn_time"], "1.5s");
        versions.push(config["config_version"].as_str().unwrap().parse::<u64>().unwrap());
    }
    assert_eq!(versions[0] + 1, versions[1]);
}

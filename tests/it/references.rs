//! Secrets, certificates and addresses to which a policy refers. Each possible error has its own reason.

use std::{net::SocketAddr, sync::Arc};

use idleconn_operator::api::IdleConnectionPolicyStatus;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value as Json, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};

use crate::support::{
    ais::{Ais, Token},
    caddy,
    operator::{World, find},
};

fn spec(ais: &Ais, extra: &Json) -> Json {
    let mut target = json!({"endpoint": ais.proxies[0]});
    target.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!({"target": {"type": "AIStore", "aistore": target}, "limits": {"intraCluster": {"idleConnTimeout": "20s"}}})
}

fn token() -> Json {
    json!({"tokenSecretRef": {"name": "ais-admin", "key": "token"}})
}

async fn ready(world: &World, reason: &str) -> String {
    let status = world.until_condition("prod", "Ready", "False", reason).await;
    find(&status, "Ready").unwrap().message.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_wants_a_token_or_https_is_told_apart_from_a_broken_one() {
    let (world, ais) = (World::new("wants").await, Ais::start().await);
    ais.cluster().auth = true;
    world.apply("prod", &spec(&ais, &json!({}))).await;
    let message = ready(&world, "Unauthorized").await;
    assert!(message.starts_with("The cluster requires a token (401) and the policy has none; set tokenSecretRef"), "{message}");
    ais.cluster().https = true;
    let wants = |status: &IdleConnectionPolicyStatus| {
        find(status, "Ready")
            .is_some_and(|ready| ready.message.ends_with("requires HTTPS; set scheme: https, or https:// in the endpoint"))
    };
    world.until("prod", "told what it wants", wants).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_a_token_has_its_own_reason() {
    let (world, ais) = (World::new("token").await, Ais::start().await);
    ais.cluster().auth = true;
    ais.cluster().tokens.extend([
        ("good".into(), Token::Admin),
        ("old".into(), Token::Expired),
        ("reader".into(), Token::ReadOnly),
    ]);

    world.apply("prod", &spec(&ais, &token())).await;
    let message = ready(&world, "RefNotFound").await;
    assert_eq!(message, "Secret ais-admin does not exist; create it, or correct tokenSecretRef");

    world.secret("ais-admin", &[("tokn", "good")]).await;
    let message = ready(&world, "RefKeyNotFound").await;
    assert_eq!(message, "Secret ais-admin has no key token; add it, or correct tokenSecretRef.key");

    world.secret("ais-admin", &[("token", "old")]).await;
    let message = ready(&world, "Unauthorized").await;
    assert!(message.starts_with("The cluster rejected the token (401): ") && message.contains("token expired"), "{message}");

    world.secret("ais-admin", &[("token", "reader")]).await;
    let message = ready(&world, "Forbidden").await;
    assert!(message.contains("The token lacks the permission (403)"), "{message}");
    assert_eq!(find(&world.status("prod").await, "Stalled").unwrap().reason, "Forbidden");

    world.secret("ais-admin", &[("token", "good\n")]).await;
    world.until_programmed("prod").await;
    let everything = format!("{:?}{:?}", world.status("prod").await, world.event_notes("prod").await);
    assert!(!everything.contains("good"), "a token reached the user");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_outside_the_allow_list_is_refused() {
    let world = World::new("allow").await;
    for endpoint in ["http://10.1.2.3:51080", "http://kubernetes.default.svc:443"] {
        world.apply("prod", &json!({"target": {"type": "AIStore", "aistore": {"endpoint": endpoint}}})).await;
        let message = ready(&world, "RefNotPermitted").await;
        assert!(message.contains("is not in the operator's --allow-endpoints"), "{message}");
        let status = world.status("prod").await;
        assert_eq!(find(&status, "Accepted").unwrap().reason, "RefNotPermitted");
        assert_eq!(find(&status, "Stalled").unwrap().reason, "RefNotPermitted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_selector_that_is_not_valid_is_said_in_the_status() {
    let world = World::new("selector").await;
    // The API server takes it: its schema of a label selector has no such rule.
    let selector = json!({"matchExpressions": [{"key": "app", "operator": "Matches", "values": ["gateway"]}]});
    world.apply("gw", &json!({"target": {"type": "Caddy", "caddy": {"selector": selector}}})).await;
    let status = world.until_condition("gw", "Accepted", "False", "Invalid").await;
    let message = &find(&status, "Accepted").unwrap().message;
    assert!(message.starts_with("The label selector of spec.target is not valid: "), "{message}");
    assert_eq!(find(&status, "Stalled").unwrap().reason, "Invalid");
}

/// Certificate authority, and a server certificate signed by it for an address.
struct Authority {
    pem: String,
    acceptor: TlsAcceptor,
}

fn authority(address: SocketAddr) -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::from_params(&params, &key);
    let server_key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec![address.ip().to_string()]).unwrap().signed_by(&server_key, &issuer).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![server.der().clone()], PrivateKeyDer::try_from(server_key.serialize_der()).unwrap())
        .unwrap();
    Authority { pem: ca.pem(), acceptor: TlsAcceptor::from(Arc::new(config)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_authority_that_does_not_match_is_told_apart() {
    let (world, mut ais) = (World::new("ca").await, Ais::start().await);
    let listener = TcpListener::bind((caddy::address(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (right, wrong) = (authority(address), authority(address));
    let (acceptor, plain) = (right.acceptor.clone(), ais.proxies[0].trim_start_matches("http://").to_owned());
    let tls = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, plain) = (acceptor.clone(), plain.clone());
            tokio::spawn(async move {
                let (Ok(mut stream), Ok(mut behind)) = (acceptor.accept(stream).await, TcpStream::connect(plain).await) else {
                    return;
                };
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
            });
        }
    });
    ais.proxies[0] = format!("https://{address}");

    let ca = json!({"caConfigMapRef": {"name": "ais-ca", "key": "ca.crt"}});
    world.apply("prod", &spec(&ais, &ca)).await;
    assert_eq!(ready(&world, "RefNotFound").await, "ConfigMap ais-ca does not exist; create it, or correct caConfigMapRef");
    world.config_map("ais-ca", &[("ca.crt", &wrong.pem)]).await;
    let message = ready(&world, "CertificateInvalid").await;
    assert!(message.contains("is not signed by a trusted CA"), "{message}");
    world.config_map("ais-ca", &[("ca.crt", "not a certificate")]).await;
    world.until("prod", "not PEM", |s| find(s, "Ready").is_some_and(|c| c.message == "The CA contains no PEM certificate")).await;
    world.config_map("ais-ca", &[("ca.crt", &right.pem)]).await;
    world.until_programmed("prod").await;
    tls.abort();
}

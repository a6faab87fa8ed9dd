//! The operator's API beside an operator of the tests, and its clients.

use idleconn_operator::{controller::Operator, leader::Leadership, metrics::Metrics, pool::Pool, serve};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
    rbac::v1::{Role, RoleBinding},
};
use kube::{Api as Kube, api::PostParams};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value as Json, from_value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use super::operator::{RESYNC, World};

/// Operator with its API. It ends with the test.
pub struct Api {
    pub address: String,
    client: reqwest::Client,
    tasks: Vec<JoinHandle<()>>,
}

impl Api {
    /// Starts an operator in these namespaces, without authentication as in a demonstration, or with tokens.
    pub async fn start(worlds: &[&World], open: bool) -> Self {
        Self::of(worlds, open, Leadership::always()).await
    }

    pub async fn of(worlds: &[&World], open: bool, leadership: Leadership) -> Self {
        let mut settings = worlds[0].settings(RESYNC);
        settings.namespaces = worlds.iter().map(|world| world.namespace.clone()).collect();
        let operator = Operator::new(&worlds[0].client, &Pool::default(), settings, Metrics::new().unwrap(), leadership);
        let context = operator.context.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let served = serve::api(listener, context, (!open).then(|| worlds[0].client.clone()));
        let tasks = vec![tokio::spawn(operator.run(std::future::pending())), tokio::spawn(async move { served.await.unwrap() })];
        Self { address, client: reqwest::Client::new(), tasks }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.address))
    }

    pub async fn get(&self, path: &str, token: Option<&str>) -> (StatusCode, Json) {
        let mut request = self.request(Method::GET, path);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        answer(request).await
    }

    /// Returns the data of a response, and fails on an error.
    pub async fn data(&self, path: &str) -> Json {
        let (status, body) = self.get(path, None).await;
        assert_eq!((status, &body["success"]), (StatusCode::OK, &json!(true)), "{path}: {body}");
        body["data"].clone()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Returns the HTTP status and the JSON body.
pub async fn answer(request: RequestBuilder) -> (StatusCode, Json) {
    let response = request.send().await.unwrap();
    let status = response.status();
    assert_eq!(response.headers()["content-type"], "application/json", "{status}");
    (status, response.json().await.unwrap())
}

/// Returns a token with these rights (verb and resource) on policies in the namespace of the world.
pub async fn token(world: &World, name: &str, rights: &[(&str, &str)]) -> String {
    let accounts = Kube::<ServiceAccount>::namespaced(world.client.clone(), &world.namespace);
    let account = from_value(json!({"metadata": {"name": name}})).unwrap();
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let rules: Vec<_> = rights
        .iter()
        .map(|(verb, resource)| json!({"apiGroups": ["idleconn.io"], "resources": [resource], "verbs": [verb]}))
        .collect();
    let role: Role = from_value(json!({"metadata": {"name": name}, "rules": rules})).unwrap();
    let binding: RoleBinding = from_value(json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": world.namespace}],
    }))
    .unwrap();
    Kube::namespaced(world.client.clone(), &world.namespace).create(&PostParams::default(), &role).await.unwrap();
    Kube::namespaced(world.client.clone(), &world.namespace).create(&PostParams::default(), &binding).await.unwrap();
    let request = TokenRequest { spec: TokenRequestSpec::default(), ..TokenRequest::default() };
    accounts.create_token_request(name, &PostParams::default(), &request).await.unwrap().status.unwrap().token
}

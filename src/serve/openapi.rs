//! The routes, each declared once: its handler and its description in `/api/openapi.json`.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    routing::{MethodRouter, get, post},
};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value as Json_, json};

use super::{
    Api,
    answer::{ApiResponse, Error, Refusal},
    connections, policies, stream,
};
use crate::pool::Protocol;

/// One route.
struct Route {
    path: &'static str,
    /// The route's only method.
    method: &'static str,
    handler: MethodRouter<Arc<Api>>,
    summary: &'static str,
    /// Schema of the response's data; `media` is its media type.
    schema: fn(&mut SchemaGenerator) -> Json_,
    media: &'static str,
    query: Option<Query>,
    body: Option<fn(&mut SchemaGenerator) -> Json_>,
}

/// A query parameter: its name, schema and description.
type Query = fn(&mut SchemaGenerator) -> (&'static str, Json_, &'static str);

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Json_ {
    json!(generator.subschema_for::<T>())
}

fn answers<T: JsonSchema>(path: &'static str, handler: MethodRouter<Arc<Api>>, summary: &'static str) -> Route {
    let schema = of::<ApiResponse<T>>;
    Route { path, method: "get", handler, summary, schema, media: "application/json", query: None, body: None }
}

fn streams<T: JsonSchema>(path: &'static str, handler: MethodRouter<Arc<Api>>, summary: &'static str) -> Route {
    // The schema is that of one event's data, because OpenAPI cannot describe a stream of events.
    let schema = |generator: &mut SchemaGenerator| {
        generator.subschema_for::<T>();
        let data = T::schema_name();
        json!({"type": "string", "description": format!(
            "Server-Sent Events. The data of each event snapshot is a {data}. An event missed has the number of snapshots that were \
             skipped. An event refused has an ErrorResponse and ends the stream"
        )})
    };
    Route { path, method: "get", handler, summary, schema, media: "text/event-stream", query: None, body: None }
}

fn routes() -> Vec<Route> {
    use connections::{Asked, Destroy, Destroyed, Details, Health, Provider, Providers, Stats};
    use policies::{NodeList, Policy, Summaries};
    vec![
        answers::<Stats>("/api/connections/stats", get(connections::get_stats), "Statistics of the operator's own connections"),
        Route {
            query: Some(|generator| {
                let _ = generator.subschema_for::<Asked>();
                ("protocol", of::<Protocol>(generator), "Protocol of the connections; by default the one with more requests")
            }),
            ..answers::<Provider>(
                "/api/connections/provider/{provider}",
                get(connections::get_provider),
                "Statistics of one provider",
            )
        },
        answers::<Providers>("/api/connections/providers", get(connections::get_providers), "Names of the providers"),
        answers::<Health>("/api/connections/health", get(connections::get_health), "Health of the operator's own connections"),
        answers::<Details>(
            "/api/connections/details",
            get(connections::get_details),
            "Details of the operator's own connections",
        ),
        streams::<stream::Connections>(
            "/api/connections/stream",
            get(stream::get_connections),
            "Snapshot of the operator's own connections every 2 s, as Server-Sent Events",
        ),
        Route {
            method: "post",
            body: Some(of::<Destroy>),
            ..answers::<Destroyed>(
                "/api/connections/destroy/{provider}",
                post(connections::post_destroy),
                "Closes the connections of a provider: idle ones now, active ones after their current request. Requires the verb delete on idleconnectionpolicies/connections",
            )
        },
        answers::<Summaries>("/api/policies", get(policies::get_policies), "Summaries of all policies"),
        Route {
            query: Some(|_| {
                (
                    "policy",
                    json!({"type": "string", "pattern": "^[^/]+/[^/]+$"}),
                    "Policy to include with all details, as namespace/name",
                )
            }),
            ..streams::<stream::Policies>(
                "/api/policies/stream",
                get(stream::get_policies),
                "Snapshot of the policies every 2 s, as Server-Sent Events",
            )
        },
        answers::<Policy>("/api/policies/{namespace}/{name}", get(policies::get_policy), "One policy with all details"),
        answers::<NodeList>(
            "/api/policies/{namespace}/{name}/nodes",
            get(policies::get_nodes),
            "Nodes of a policy, with the desired, programmed, in-effect and measured value of each limit",
        ),
    ]
}

/// The router with all routes.
pub fn router() -> Router<Arc<Api>> {
    let mut router = Router::new().route("/api/openapi.json", get(get_document));
    for route in routes() {
        router = router.route(route.path, route.handler);
    }
    router
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .fallback(async || Error::NotFound("This path does not exist; /api/openapi.json lists all paths".to_owned()))
}

/// GET /api/openapi.json
async fn get_document(State(_): State<Arc<Api>>) -> Json<Json_> {
    Json(document())
}

/// The content of `/api/openapi.json`, generated from the types.
#[must_use]
pub fn document() -> Json_ {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let mut paths: BTreeMap<&str, BTreeMap<&str, Json_>> = BTreeMap::new();
    for route in routes() {
        let mut parameters: Vec<_> = route
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}))
            .collect();
        if let Some(query) = route.query {
            let (name, schema, description) = query(&mut generator);
            parameters.push(json!({"name": name, "in": "query", "schema": schema, "description": description}));
        }
        let named = !parameters.is_empty();
        let of_policy = route.path.contains("{provider}") || route.path.ends_with("/nodes");
        let refusal = of::<Refusal>(&mut generator);
        let refused =
            |description: &str| json!({"description": description, "content": {"application/json": {"schema": refusal}}});
        let mut responses = json!({
            "200": {"description": route.summary, "content": {(route.media): {"schema": (route.schema)(&mut generator)}}},
            "401": refused("The request has no valid token"),
            "403": refused("The owner of the token lacks the right"),
            "503": refused("Not available: too many clients, no answer from the API server, or a standby replica"),
        });
        if of_policy {
            responses["307"] = refused("Another replica acts for this namespace; the header Location has its URL");
        }
        if named {
            responses["400"] = refused("The request is not valid");
            responses["404"] = refused("The object does not exist");
        }
        let mut operation = json!({
            "operationId": route.path.trim_start_matches("/api/").replace(['/', '{', '}'], "-").replace("--", "-").trim_matches('-'),
            "summary": route.summary,
            "parameters": parameters,
            "security": [{"token": []}],
        });
        if let Some(body) = route.body {
            operation["requestBody"] = json!({"content": {"application/json": {"schema": body(&mut generator)}}});
            responses["413"] = refused("The request body is too large");
        }
        operation["responses"] = responses;
        paths.entry(route.path).or_default().insert(route.method, operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "idleconn-operator",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "API of idleconn-operator: its own HTTP connections, and the policies for idle connections.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": plain(json!(generator.take_definitions(true))),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "Bearer token that the API server accepts"}},
        },
    })
}

/// Removes what only Kubernetes understands: its `duration` format is Go's, while JSON Schema's is ISO 8601.
fn plain(mut schema: Json_) -> Json_ {
    match &mut schema {
        Json_::Object(fields) => {
            if fields.get("format").is_some_and(|format| format == "duration") {
                fields.remove("format");
            }
            fields.retain(|name, _| !name.starts_with("x-kubernetes"));
            fields.values_mut().for_each(|field| *field = plain(field.take()));
        }
        Json_::Array(items) => items.iter_mut().for_each(|item| *item = plain(item.take())),
        _ => {}
    }
    schema
}

//! The routes, each declared once: what answers, and what is said of it in `/api/openapi.json`.

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
    answer::{Answer, Error, Refusal},
    connections, policies, stream,
};

/// One of the routes.
struct Route {
    path: &'static str,
    /// The one method that it answers to.
    method: &'static str,
    handler: MethodRouter<Arc<Api>>,
    summary: &'static str,
    /// What answers with, and which media type.
    schema: fn(&mut SchemaGenerator) -> Json_,
    media: &'static str,
    query: Option<Query>,
    body: Option<fn(&mut SchemaGenerator) -> Json_>,
}

/// A parameter: its name, its schema, and what it is for.
type Query = fn(&mut SchemaGenerator) -> (&'static str, Json_, &'static str);

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Json_ {
    json!(generator.subschema_for::<T>())
}

fn answers<T: JsonSchema>(path: &'static str, handler: MethodRouter<Arc<Api>>, summary: &'static str) -> Route {
    let schema = of::<Answer<T>>;
    Route { path, method: "get", handler, summary, schema, media: "application/json", query: None, body: None }
}

fn streams<T: JsonSchema>(path: &'static str, handler: MethodRouter<Arc<Api>>, summary: &'static str) -> Route {
    // What each event's data is; OpenAPI has no words for a stream of them.
    let schema = |generator: &mut SchemaGenerator| {
        generator.subschema_for::<T>();
        json!({"type": "string", "description": format!("events named snapshot, whose data is a {}; missed and refused", T::schema_name())})
    };
    Route { path, method: "get", handler, summary, schema, media: "text/event-stream", query: None, body: None }
}

fn routes() -> Vec<Route> {
    use connections::{Asked, Destroy, Destroyed, Details, Health, Provider, Spoken, Stats};
    use policies::{NodeList, Policy, Summary};
    vec![
        answers::<Stats>("/api/connections/stats", get(connections::get_stats), "The operator's own connections, counted"),
        Route {
            query: Some(|generator| {
                let _ = generator.subschema_for::<Asked>();
                (
                    "protocol",
                    of::<Spoken>(generator),
                    "Which of its two protocols is meant; by default the one that was asked more",
                )
            }),
            ..answers::<Provider>("/api/connections/provider/{provider}", get(connections::get_provider), "One provider")
        },
        answers::<Vec<String>>("/api/connections/providers", get(connections::get_providers), "The providers' names"),
        answers::<Health>(
            "/api/connections/health",
            get(connections::get_health),
            "Whether connections are used as they should be",
        ),
        answers::<Details>(
            "/api/connections/details",
            get(connections::get_details),
            "Everything there is to know of the connections",
        ),
        streams::<stream::Connections>(
            "/api/connections/stream",
            get(stream::get_connections),
            "A snapshot every 2 s, as Server-Sent Events",
        ),
        Route {
            method: "post",
            body: Some(of::<Destroy>),
            ..answers::<Destroyed>(
                "/api/connections/destroy/{provider}",
                post(connections::post_destroy),
                "Closes idle connections now and active ones when they are done; needs the verb delete on idleconnectionpolicies/connections",
            )
        },
        answers::<Vec<Summary>>("/api/policies", get(policies::get_policies), "The policies, each in one line"),
        Route {
            query: Some(|_| {
                ("policy", json!({"type": "string", "pattern": "^[^/]+/[^/]+$"}), "One that is wanted in full, as namespace/name")
            }),
            ..streams::<stream::Policies>(
                "/api/policies/stream",
                get(stream::get_policies),
                "A snapshot every 2 s, as Server-Sent Events",
            )
        },
        answers::<Policy>("/api/policies/{namespace}/{name}", get(policies::get_policy), "A policy in full"),
        answers::<NodeList>(
            "/api/policies/{namespace}/{name}/nodes",
            get(policies::get_nodes),
            "A policy's nodes with the three truths of each limit",
        ),
    ]
}

/// What answers to all of them.
pub fn router() -> Router<Arc<Api>> {
    let mut router = Router::new().route("/api/openapi.json", get(get_document));
    for route in routes() {
        router = router.route(route.path, route.handler);
    }
    router
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .fallback(async || Error::NotFound("there is nothing at this path; /api/openapi.json says what there is".to_owned()))
}

/// GET /api/openapi.json
async fn get_document(State(_): State<Arc<Api>>) -> Json<Json_> {
    Json(document())
}

/// The document, made from the types.
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
        let refusal = of::<Refusal>(&mut generator);
        let refused =
            |description: &str| json!({"description": description, "content": {"application/json": {"schema": refusal}}});
        let mut responses = json!({
            "200": {"description": route.summary, "content": {(route.media): {"schema": (route.schema)(&mut generator)}}},
            "401": refused("No token that the API server accepts"),
            "403": refused("The token's owner may not"),
            "503": refused("Not now: too many readers, no answer from the API server, or a replica that does not act"),
        });
        if named {
            responses["400"] = refused("What was sent makes no sense");
            responses["404"] = refused("There is no such thing");
        }
        let mut operation = json!({
            "operationId": route.path.trim_start_matches("/api/").replace(['/', '{', '}'], "-").replace("--", "-").trim_matches('-'),
            "summary": route.summary,
            "parameters": parameters,
            "security": [{"token": []}],
        });
        if let Some(body) = route.body {
            operation["requestBody"] = json!({"content": {"application/json": {"schema": body(&mut generator)}}});
            responses["413"] = refused("The body is larger than any that is expected");
        }
        operation["responses"] = responses;
        paths.entry(route.path).or_default().insert(route.method, operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "idleconn-operator",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The operator's view of HTTP connections and of the policies that govern them.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": plain(json!(generator.take_definitions(true))),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "A token that the API server accepts"}},
        },
    })
}

/// Without what Kubernetes alone understands: its `duration` is Go's, and JSON Schema's is ISO 8601's.
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

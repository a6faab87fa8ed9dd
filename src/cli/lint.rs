//! `lint`: errors that the API server would find in a file, and advice; without a cluster, for the checks of a repository.
//!
//! The schema and the rules come from the CRD itself.

use std::{cell::RefCell, collections::HashMap, fmt, path::Path, rc::Rc};

use cel::{Context, Program, Value};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::{
    api::{GoDuration, IdleConnectionPolicy, schema},
    decide::{
        self,
        advice::{self, Observed},
    },
    targets,
};

/// Error or advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// File, and name of the policy in it.
    pub at: String,
    /// Whether the API server would refuse the policy; otherwise the finding is advice.
    pub is_error: bool,
    /// Finding and fix.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.at, if self.is_error { "error" } else { "advice" }, self.message)
    }
}

/// Checker of policies by the schema and the rules of the CRD.
pub struct Linter {
    schema: &'static Json,
    validator: jsonschema::Validator,
}

impl Linter {
    /// # Errors
    /// The schema of the CRD cannot be read; a test excludes this.
    pub fn new() -> Result<Self, String> {
        let schema = schema::own();
        // The format `duration` is that of Go here, not that of JSON Schema. The pattern checks it.
        let options = jsonschema::options().should_validate_formats(false);
        let validator = options.build(schema).map_err(|fault| format!("the CRD's schema cannot be read: {fault}"))?;
        Ok(Self { schema, validator })
    }

    /// Checks a file with one or more documents. Documents of other kinds are ignored. Returns the number of policies and the findings.
    #[must_use]
    pub fn file(&self, path: &Path, text: &str, concurrency: Option<f64>) -> (usize, Vec<Finding>) {
        let at = path.display().to_string();
        let error = |at: &str, message: String| Finding { at: at.to_owned(), is_error: true, message };
        let documents: Vec<Json> = match serde_saphyr::from_multiple(text) {
            Ok(documents) => documents,
            Err(fault) => return (0, vec![error(&at, format!("not YAML: {fault}"))]),
        };
        let mut findings = Vec::new();
        let mut policies = 0;
        let documents = documents.into_iter().flat_map(items);
        for document in documents.filter(|document| document["kind"] == "IdleConnectionPolicy") {
            policies += 1;
            let name = document["metadata"]["name"].as_str().unwrap_or_default();
            let at = if name.is_empty() { at.clone() } else { format!("{at}: {name}") };
            let refused = refused(self, &document);
            if refused.is_empty() {
                match advised(&document, concurrency) {
                    Ok(all) => {
                        findings.extend(all.into_iter().map(|message| Finding { at: at.clone(), is_error: false, message }));
                    }
                    Err(message) => findings.push(error(&at, message)),
                }
            }
            findings.extend(refused.into_iter().map(|message| error(&at, message)));
        }
        (policies, findings)
    }
}

/// Returns the objects in a document: the items of a List, as `kubectl get -o yaml` writes it, or the document itself.
pub(super) fn items(mut document: Json) -> Vec<Json> {
    let is_list = document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match document.get_mut("items").filter(|_| is_list).map(Json::take) {
        Some(Json::Array(all)) => all.into_iter().flat_map(items).collect(),
        _ => vec![document],
    }
}

/// Returns the errors that the API server would report. Messages of rules are the same.
fn refused(Linter { schema, validator }: &Linter, document: &Json) -> Vec<String> {
    let mut object = document.clone();
    let mut found = Vec::new();
    let version = document["apiVersion"].as_str().unwrap_or_default();
    if version != "idleconn.io/v1alpha1" {
        found.push(format!("apiVersion is {version:?}; write idleconn.io/v1alpha1"));
    }
    if document["metadata"]["name"].as_str().is_none_or(str::is_empty) && !document["metadata"]["generateName"].is_string() {
        found.push("metadata.name is missing".into());
    }
    if let Some(object) = object.as_object_mut() {
        // The operator writes the status, and a file cannot.
        object.remove("status");
    }
    unknown(schema, &object, "", &mut found);
    defaults(schema, &mut object);
    found.extend(validator.iter_errors(&object).map(|fault| format!("{}: {fault}", path(&fault.instance_path().to_string()))));
    // As in the API server: rules are evaluated only if the schema accepts the object.
    if found.is_empty() {
        rules(schema, &object, "", &mut found);
    }
    found
}

/// Turns `/spec/limits` into `spec.limits`.
fn path(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".")
}

fn below(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// Finds unknown fields. The API server drops them with or without a warning.
fn unknown(schema: &Json, value: &Json, path: &str, found: &mut Vec<String>) {
    if let (Json::Object(fields), Json::Object(known)) = (value, &schema["properties"]) {
        for (field, value) in fields {
            let at = below(path, field);
            match known.get(field) {
                Some(schema) => unknown(schema, value, &at, found),
                None if path.is_empty() && matches!(field.as_str(), "apiVersion" | "kind" | "metadata") => {}
                None => found.push(format!(
                    "{at} is an unknown field; see kubectl explain idleconnectionpolicies{}{path}",
                    if path.is_empty() { "" } else { "." }
                )),
            }
        }
    }
    twice(schema, value, path, found);
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        unknown(&schema["items"], item, &format!("{path}[{n}]"), found);
    }
}

/// Finds duplicate items of a list, by its keys or as a whole.
fn twice(schema: &Json, value: &Json, path: &str, found: &mut Vec<String>) {
    let keys = &schema["x-kubernetes-list-map-keys"];
    let of = |item: &Json| match (schema["x-kubernetes-list-type"].as_str(), keys.as_array()) {
        (Some("map"), Some(keys)) => keys.iter().filter_map(|key| item.get(key.as_str()?).cloned()).collect(),
        (Some("set"), _) => vec![item.clone()],
        _ => Vec::new(),
    };
    let mut seen = Vec::new();
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        let key = of(item);
        if !key.is_empty() && seen.contains(&key) {
            found.push(format!("{path}[{n}]: Duplicate value"));
        }
        seen.push(key);
    }
}

fn defaults(schema: &Json, value: &mut Json) {
    if let (Json::Object(fields), Json::Object(known)) = (&mut *value, &schema["properties"]) {
        for (field, schema) in known {
            if let (None, Some(default), true) = (fields.get(field), schema.get("default"), field != "status") {
                fields.insert(field.clone(), default.clone());
            }
            if let Some(value) = fields.get_mut(field) {
                defaults(schema, value);
            }
        }
    }
    for item in value.as_array_mut().into_iter().flatten() {
        defaults(&schema["items"], item);
    }
}

/// Evaluates the rules of all present fields, from the outside in.
fn rules(schema: &Json, value: &Json, path: &str, found: &mut Vec<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let (text, message) = (rule["rule"].as_str().unwrap_or_default(), rule["message"].as_str().unwrap_or_default());
        // Rules about changes need an older object.
        if text.contains("oldSelf") {
            continue;
        }
        match holds(text, schema, value) {
            Ok(true) => {}
            Ok(false) => found.push(if path.is_empty() { message.to_owned() } else { format!("{path}: {message}") }),
            Err(fault) => found.push(format!("{path}: a rule of the CRD cannot be evaluated ({fault}): {message}")),
        }
    }
    for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(value) = value.get(field) {
            rules(schema, value, &below(path, field), found);
        }
    }
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        rules(&schema["items"], item, &format!("{path}[{n}]"), found);
    }
}

/// Compiles an expression once, because that takes much longer than its evaluation.
fn program(expression: &str) -> Result<Rc<Program>, String> {
    thread_local! {
        static COMPILED: RefCell<HashMap<String, Rc<Program>>> = RefCell::default();
    }
    COMPILED.with_borrow_mut(|compiled| {
        if let Some(program) = compiled.get(expression) {
            return Ok(program.clone());
        }
        let program = Rc::new(Program::compile(expression).map_err(|fault| fault.to_string())?);
        compiled.insert(expression.to_owned(), program.clone());
        Ok(program)
    })
}

fn holds(rule: &str, schema: &Json, value: &Json) -> Result<bool, String> {
    let mut context = Context::default();
    context.add_variable_from_value("self", of(schema, value)?);
    match program(rule)?.execute(&context) {
        Ok(Value::Bool(held)) => Ok(held),
        Ok(other) => Err(format!("the result is {other:?}")),
        Err(fault) => Err(fault.to_string()),
    }
}

/// Converts a value for rules: durations are times, numbers are signed.
fn of(schema: &Json, value: &Json) -> Result<Value, String> {
    Ok(match value {
        Json::Null => Value::Null,
        Json::Bool(value) => (*value).into(),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) if schema["format"] == "duration" => {
            let time = text.parse::<GoDuration>().map_err(|fault| fault.to_string())?;
            let mut context = Context::default();
            context.add_variable_from_value("text", time.to_string());
            program("duration(text)")?.execute(&context).map_err(|fault| fault.to_string())?
        }
        Json::String(text) => text.clone().into(),
        Json::Array(items) => items.iter().map(|item| of(&schema["items"], item)).collect::<Result<Vec<_>, _>>()?.into(),
        Json::Object(fields) => object(schema, fields)?.into(),
    })
}

fn object(schema: &Json, fields: &Map<String, Json>) -> Result<HashMap<String, Value>, String> {
    let each = |(field, value): (&String, &Json)| {
        let schema = schema["properties"].get(field).unwrap_or(&schema["additionalProperties"]);
        Ok((field.clone(), of(schema, value)?))
    };
    fields.iter().map(each).collect()
}

/// Returns advice for a policy that the API server would accept.
fn advised(document: &Json, concurrency: Option<f64>) -> Result<Vec<String>, String> {
    let policy = IdleConnectionPolicy::deserialize(document).map_err(|fault| fault.to_string())?;
    let traits = targets::traits(&policy.spec.target);
    let declared = decide::declare(&policy.spec, &traits);
    if let Some(message) = declared.invalid(&decide::floor(&policy.spec, &traits)) {
        return Err(message);
    }
    let mut said: Vec<_> = declared
        .unsupported
        .iter()
        .map(|limit| {
            let value = policy.spec.limits.as_ref().and_then(|limits| limits.settings().get(limit).copied());
            let why = value.and_then(|value| Some((value, (traits.inexpressible)(*limit, value)?)));
            let why = why.map_or_else(
                || format!("the target does not have limits.{limit}"),
                |(value, why)| format!("limits.{limit}: {value} cannot be written to this target, because {why}"),
            );
            format!("{why}; the operator does not manage it and lists it in status.unsupported (unsupported)")
        })
        .collect();
    let observed = Observed { concurrency, ..Observed::default() };
    said.extend(advice::advice(&policy.spec, &declared, &traits, observed).iter().map(ToString::to_string));
    Ok(said)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn linter() -> Linter {
        Linter::new().expect("a schema")
    }

    fn linted(text: &str) -> Vec<String> {
        linter().file(Path::new("policy.yaml"), text, None).1.iter().map(ToString::to_string).collect()
    }

    fn policy(spec: &Json) -> Vec<String> {
        let whole = json!({"apiVersion": "idleconn.io/v1alpha1", "kind": "IdleConnectionPolicy", "metadata": {"name": "gw"}, "spec": spec});
        linted(&whole.to_string())
    }

    fn caddy() -> Json {
        json!({"type": "Caddy", "caddy": {"selector": {"matchLabels": {"app": "gateway"}}}})
    }

    #[test]
    fn a_valid_policy_has_no_findings() {
        assert_eq!(policy(&json!({"target": caddy(), "limits": {"server": {"idleTimeout": "1m30s"}}})), Vec::<String>::new());
        assert_eq!(linter().file(Path::new("x"), "kind: ConfigMap\n---\nkind: Secret\n", None), (0, Vec::new()));
    }

    #[test]
    fn every_rule_of_the_crd_compiles() {
        fn all(schema: &Json, count: &mut usize) {
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                let text = rule["rule"].as_str().unwrap_or_default();
                assert!(Program::compile(text).is_ok(), "{text}");
                *count += 1;
            }
            schema["properties"].as_object().into_iter().flatten().for_each(|(_, schema)| all(schema, count));
            if schema["items"].is_object() {
                all(&schema["items"], count);
            }
        }
        let mut count = 0;
        all(schema::own(), &mut count);
        assert!(count > 30, "{count}");
    }

    #[test]
    fn a_file_that_is_not_a_policy_is_an_error() {
        assert!(linted("a: [").iter().all(|said| said.starts_with("policy.yaml: error: not YAML")));
        let said = linted("kind: IdleConnectionPolicy\nspec: {}\n");
        assert!(said.iter().any(|said| said.contains("apiVersion is")), "{said:?}");
        assert!(said.iter().any(|said| said.contains("metadata.name is missing")), "{said:?}");
        assert!(said.iter().any(|said| said.contains("target")), "{said:?}");
    }

    #[test]
    fn the_examples_follow_the_advice() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let files = std::fs::read_dir(examples).expect("examples").map(|entry| entry.expect("an entry").path());
        for path in files.filter(|path| path.extension().is_some_and(|kind| kind == "yaml")) {
            let (policies, found) = linter().file(&path, &std::fs::read_to_string(&path).expect("a file"), None);
            let refused = path.ends_with("refused.yaml");
            assert_eq!(
                (policies, found.len(), found.iter().any(|found| found.is_error)),
                (1, usize::from(refused), refused),
                "{found:?}"
            );
        }
    }

    #[test]
    fn advice_is_no_error_and_names_its_rule() {
        let said =
            policy(&json!({"target": caddy(), "limits": {"backend": {"maxIdleConns": 9}, "intraCluster": {"maxIdleConns": 9}}}));
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(
            said[0].starts_with("policy.yaml: gw: advice: the target does not have limits.intraCluster.maxIdleConns;"),
            "{said:?}"
        );
        assert!(said[1].contains("(conns-unlimited)"), "{said:?}");
    }
}

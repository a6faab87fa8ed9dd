//! Output formats, as in kubectl: `-o` and `--no-headers`.

use clap::{
    ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::Error;
use crate::api::IdleConnectionPolicy;

/// Formats of commands that print measurements or findings.
pub const ROWS: &[Output] = &[Output::Table, Output::Json, Output::Yaml];
/// Formats of `nodes`.
pub const NODES: &[Output] = &[Output::Table, Output::Wide, Output::Json, Output::Yaml];
/// Formats of commands that print policies.
pub const POLICIES: &[Output] = &[Output::Table, Output::Wide, Output::Name, Output::Json, Output::Yaml];

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Table for people.
    Table,
    /// Table with more columns.
    Wide,
    /// One line for each policy: `idleconnectionpolicy.idleconn.io/NAME`.
    Name,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Returns the parser of `-o` for a command that has only some of the formats.
pub fn formats(some: &'static [Output]) -> impl TypedValueParser<Value = Output> {
    PossibleValuesParser::new(some.iter().filter_map(ValueEnum::to_possible_value))
        .try_map(|text| <Output as ValueEnum>::from_str(&text, false))
}

impl Output {
    /// Prints the value as JSON or YAML, or the table.
    pub fn of(self, value: &impl Serialize, table: impl FnOnce() -> String) -> Result<String, Error> {
        let unprintable = |error: &dyn std::fmt::Display| Error::Other(format!("cannot be printed: {error}"));
        match self {
            Self::Table | Self::Wide | Self::Name => Ok(table()),
            Self::Json => pretty(value).map(|text| text + "\n").map_err(|error| unprintable(&error)),
            Self::Yaml => serde_saphyr::to_string(value).map_err(|error| unprintable(&error)),
        }
    }

    /// Whether this is a table, which has a message instead of an empty list.
    pub const fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// JSON with four spaces, as kubectl prints it.
fn pretty(value: &impl Serialize) -> serde_json::Result<String> {
    let mut text = Vec::new();
    let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, indented))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Policies as kubectl prints objects: one that was asked for by its name as it is, and everything else as a List.
pub fn objects(policies: &[IdleConnectionPolicy], is_one: bool) -> Json {
    match policies {
        [policy] if is_one => json!(policy),
        _ => json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": policies}),
    }
}

#[cfg(test)]
mod tests {
    use clap::builder::TypedValueParser as _;

    use super::*;

    #[test]
    fn json_is_indented_as_in_kubectl() {
        let text = Output::Json.of(&json!({"a": [1]}), String::new).expect("JSON");
        assert_eq!(text, "{\n    \"a\": [\n        1\n    ]\n}\n");
        assert_eq!(Output::Wide.of(&json!({}), || "a table".into()).expect("a table"), "a table");
    }

    #[test]
    fn one_policy_is_an_object_and_several_are_a_list() {
        let policy: IdleConnectionPolicy = serde_json::from_value(json!({
            "metadata": {"name": "gw"}, "spec": {"target": {"type": "Caddy", "caddy": {}}},
        }))
        .expect("a policy");
        let one = objects(std::slice::from_ref(&policy), true);
        assert_eq!((&one["kind"], &one["metadata"]["name"]), (&json!("IdleConnectionPolicy"), &json!("gw")));
        for (policies, is_one, count) in [(vec![policy], false, 1), (vec![], true, 0)] {
            let list = objects(&policies, is_one);
            assert_eq!((&list["kind"], list["items"].as_array().map(Vec::len)), (&json!("List"), Some(count)));
        }
    }

    #[test]
    fn a_command_accepts_its_formats_only() {
        let command = clap::Command::new("x");
        let parse = |some, text: &str| formats(some).parse_ref(&command, None, text.as_ref()).ok();
        assert_eq!(parse(POLICIES, "name"), Some(Output::Name));
        assert_eq!(
            (parse(ROWS, "yaml"), parse(ROWS, "name"), parse(NODES, "wide")),
            (Some(Output::Yaml), None, Some(Output::Wide))
        );
    }
}

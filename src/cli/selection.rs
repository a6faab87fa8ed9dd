//! The policies of a command: by their names, or by a label selector.

use kube::{Api, api::ListParams};

use super::{
    CommandResult, Error,
    cluster::{Cluster, read},
    progress::waiting,
};
use crate::api::{IdleConnectionPolicy, StoredPolicy};

/// Kind and group of policies, as kubectl writes them before a name.
pub const RESOURCE: &str = "idleconnectionpolicy.idleconn.io";
/// What a request waits for.
const API_SERVER: &str = "the API server";
/// Names of the resource that kubectl accepts before a name.
const TYPES: [&str; 3] = ["icp", "idleconnectionpolicy", "idleconnectionpolicies"];

/// Policies by name or by label.
#[derive(clap::Args, Debug)]
pub struct Selection {
    /// Names of the policies; required without -l.
    #[arg(value_name = "NAME", required_unless_present = "selector", value_parser = name)]
    pub names: Vec<String>,
    /// Label selector instead of names, such as app=gateway.
    #[arg(short = 'l', long, conflicts_with = "names")]
    pub selector: Option<String>,
}

/// Reads a name. `-o name` prints `idleconnectionpolicy.idleconn.io/NAME`, so this is also a name.
pub fn name(text: &str) -> Result<String, String> {
    let Some((type_, name)) = text.split_once('/') else { return Ok(text.to_owned()) };
    let kind = type_.split('.').next().unwrap_or_default();
    let group = type_.strip_prefix(kind).unwrap_or_default();
    if TYPES.contains(&kind) && ["", ".idleconn.io", ".v1alpha1.idleconn.io"].contains(&group) {
        Ok(name.to_owned())
    } else {
        Err(format!("{type_} is not idleconnectionpolicy"))
    }
}

/// Policies that were read, and what to report about the others.
#[derive(Default)]
pub struct Found {
    /// The policies.
    pub policies: Vec<IdleConnectionPolicy>,
    /// Lines for standard error.
    pub notice: String,
    /// Whether a policy that was named was not found or not read.
    pub is_failure: bool,
}

impl Found {
    /// The result of the command with this text.
    pub fn answer(self, text: String) -> CommandResult {
        CommandResult { text, notice: self.notice, is_failure: self.is_failure }
    }

    /// Returns what to print instead, if there are no policies.
    pub fn or_none(self, namespace: Option<&str>) -> Result<Self, CommandResult> {
        if !self.policies.is_empty() {
            return Ok(self);
        }
        Err(if self.notice.is_empty() { none_found(namespace) } else { self.answer(String::new()) })
    }

    fn fails(&mut self, error: &Error) {
        self.notice += &(error.line() + "\n");
        self.is_failure = true;
    }

    /// Adds a policy with a warning about its unknown parts. A policy of a list that cannot be read does not hide the others.
    fn add(&mut self, stored: StoredPolicy, was_named: bool) {
        match read(stored) {
            Ok((policy, warning)) => {
                self.notice.extend(warning.map(|warning| format!("Warning: {warning}\n")));
                self.policies.push(policy);
            }
            Err(error) if was_named => self.fails(&error),
            Err(error) => self.notice.extend(["Warning: ", &error.to_string(), "\n"]),
        }
    }
}

/// Reads policies: those with these names, or else those that the selector matches. As in kubectl, a policy that is not found does
/// not hide the others.
pub async fn find(api: &Api<StoredPolicy>, names: &[String], selector: Option<&str>) -> Result<Found, Error> {
    let mut found = Found::default();
    if names.is_empty() {
        for stored in waiting(API_SERVER, api.list(&params(selector))).await? {
            found.add(stored, false);
        }
    }
    for name in names {
        match waiting(API_SERVER, api.get(name)).await {
            Ok(stored) => found.add(stored, true),
            Err(error @ kube::Error::Api(_)) => found.fails(&error.into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// Reads the policies of a selection. The inner error is what to print if there are none.
pub async fn chosen(cluster: &Cluster, selection: &Selection) -> Result<Result<Found, CommandResult>, Error> {
    let (api, namespace) = cluster.policies().await?;
    Ok(find(&api, &selection.names, selection.selector.as_deref()).await?.or_none(Some(&namespace)))
}

/// Returns the names of a selection. Nothing is read of the policies that the caller names.
pub async fn names(api: &Api<StoredPolicy>, selection: &Selection) -> Result<Vec<String>, Error> {
    if selection.selector.is_none() {
        return Ok(selection.names.clone());
    }
    let params = params(selection.selector.as_deref());
    let list = waiting(API_SERVER, api.list_metadata(&params)).await?;
    Ok(list.into_iter().filter_map(|object| object.metadata.name).collect())
}

fn params(selector: Option<&str>) -> ListParams {
    ListParams { label_selector: selector.map(str::to_owned), ..ListParams::default() }
}

/// Says that there are no policies, in the words of kubectl.
pub fn none_found(namespace: Option<&str>) -> CommandResult {
    let notice = match namespace {
        Some(namespace) => format!("No resources found in {namespace} namespace.\n"),
        None => "No resources found\n".into(),
    };
    CommandResult { notice, ..CommandResult::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_its_type_as_in_kubectl() {
        for text in ["gw", "icp/gw", "idleconnectionpolicy.idleconn.io/gw", "idleconnectionpolicies.v1alpha1.idleconn.io/gw"] {
            assert_eq!(name(text).as_deref(), Ok("gw"), "{text}");
        }
        for text in ["pod/gw", "icp.example.com/gw"] {
            assert!(name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_empty_list_is_reported_as_in_kubectl() {
        assert_eq!(none_found(Some("default")).notice, "No resources found in default namespace.\n");
        assert_eq!(none_found(None), CommandResult { notice: "No resources found\n".into(), ..CommandResult::default() });
    }
}

//! Errors of the plugin, as kubectl prints them.

use std::path::PathBuf;

use kube::core::Status;

use crate::simulate::trace;

/// Reason why a command failed, in one line with the fix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    /// The files contain no policy.
    #[error("no IdleConnectionPolicy was found in the files of -f")]
    NoPolicies,
    /// A file is not a policy.
    #[error("{0} is not an IdleConnectionPolicy: {1}")]
    Policy(PathBuf, String),
    /// A policy contains fields or values of a newer version.
    #[error("{name}: {foreign}: upgrade kubectl-idleconn from {version}", version = env!("CARGO_PKG_VERSION"))]
    Newer {
        /// Name of the policy.
        name: String,
        /// The unknown fields and values, as the beginning of a sentence.
        foreign: String,
    },
    /// Arguments that contradict each other, or that are not what they should be.
    #[error("{0}")]
    Usage(String),
    /// Another reason.
    #[error("{0}")]
    Other(String),
    /// A trace cannot be read.
    #[error("{0}")]
    Trace(#[from] trace::Error),
    /// The threshold is missing.
    #[error("the policy has no adaptive.signal.threshold.value, and a trace has no CPU count; give --threshold")]
    Threshold,
    /// A plot cannot be drawn.
    #[error("the plot cannot be written: {0}")]
    Plot(String),
    /// The kubeconfig cannot be used.
    #[error("no usable kubeconfig: {0}; set KUBECONFIG or give --kubeconfig")]
    Kubeconfig(String),
    /// A request to the API server failed.
    #[error("{0}")]
    Kube(#[from] kube::Error),
    /// Standard output cannot be written.
    #[error("cannot print: {0}")]
    Print(std::io::Error),
    /// The operator cannot be reached, or refuses.
    #[error("{0}")]
    Operator(String),
}

impl Error {
    /// Returns the line for standard error: `Error from server (REASON): MESSAGE` for an answer of the API server, and otherwise
    /// `error: MESSAGE`.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::Kube(kube::Error::Api(status)) => refusal(status),
            Self::Kube(error @ (kube::Error::Service(_) | kube::Error::HyperError(_))) => {
                format!("error: cannot connect to the API server: {}", deepest(error))
            }
            error => format!("error: {error}"),
        }
    }

    /// Returns the exit code: 2 for wrong arguments and 1 for everything else. kubectl exits with 1 for both. Here, 1 is also the
    /// result of a check that fails (`lint`, `probe --expect`, `path`). A script must be able to tell a failed check from a
    /// mistake in its own command line, for which clap exits with 2.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        if matches!(self, Self::Usage(_)) { 2 } else { 1 }
    }
}

/// Returns why a request to the API server failed, as a part of a sentence.
pub fn cause(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => deepest(error),
    }
}

/// Formats an answer of the API server.
fn refusal(status: &Status) -> String {
    let names_object = status.details.as_ref().is_some_and(|details| !details.name.is_empty());
    match (status.code, status.reason.as_str()) {
        // The API server answers a request for an object that does not exist with the name of the object, and a request for an
        // unknown resource without.
        (404, _) if !names_object => {
            "error: the server doesn't have a resource type \"idleconnectionpolicies\"; install the CRD of idleconn-operator"
                .into()
        }
        (401, _) => "error: You must be logged in to the server (Unauthorized)".into(),
        (_, "") => format!("Error from server: {}", status.message),
        (_, reason) => format!("Error from server ({reason}): {}", status.message),
    }
}

/// Returns the innermost cause. The outer errors of the client say only that a request failed.
fn deepest(error: &kube::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn line(status: Json) -> String {
        let status: Status = serde_json::from_value(status).expect("a status");
        Error::from(kube::Error::Api(Box::new(status))).line()
    }

    #[test]
    fn answers_of_the_api_server_read_as_in_kubectl() {
        let message = "idleconnectionpolicies.idleconn.io \"x\" not found";
        assert_eq!(
            line(json!({"code": 404, "reason": "NotFound", "message": message, "details": {"name": "x"}})),
            "Error from server (NotFound): idleconnectionpolicies.idleconn.io \"x\" not found"
        );
        assert_eq!(line(json!({"code": 403, "reason": "Forbidden", "message": "no"})), "Error from server (Forbidden): no");
        assert_eq!(line(json!({"code": 500, "message": "no"})), "Error from server: no");
        assert_eq!(
            line(json!({"code": 401, "reason": "Unauthorized", "message": "Unauthorized"})),
            "error: You must be logged in to the server (Unauthorized)"
        );
        let missing =
            line(json!({"code": 404, "reason": "NotFound", "message": "the server could not find the requested resource"}));
        assert!(missing.starts_with("error: the server doesn't have a resource type"), "{missing}");
    }

    #[test]
    fn only_wrong_arguments_exit_with_2() {
        assert_eq!((Error::Usage(String::new()).exit_code(), Error::NoPolicies.exit_code()), (2, 1));
        assert_eq!(Error::NoPolicies.line(), "error: no IdleConnectionPolicy was found in the files of -f");
    }

    #[test]
    fn a_connection_error_names_its_cause() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let line = Error::from(kube::Error::Service(Box::new(refused))).line();
        assert_eq!(line, "error: cannot connect to the API server: connection refused");
    }
}

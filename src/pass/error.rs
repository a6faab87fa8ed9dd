//! Why a pass failed, or why a target cannot be found or read.

use std::{error::Error as StdError, time::Duration};

use kube::core::ParseExpressionError;

use crate::{
    api::conditions::Reason,
    decide::{
        Cause, Fault,
        report::status::{Problem, failure},
    },
};

/// Maximum time of a pass up to its last read; a write that has begun is completed.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// Timeout of a call to the API server. The client's own retries would hold a worker for many minutes.
pub const API_TIMEOUT: Duration = Duration::from_secs(10);

/// A request to the API server that it refused, or that failed.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct ApiError {
    /// HTTP status of the refusal; `None` if there was no response, so that the request may have been carried out.
    pub code: Option<u16>,
    /// Message of the refusal; empty if there was no response.
    pub message: String,
    source: Box<dyn StdError + Send + Sync>,
}

impl ApiError {
    /// Keeps the error of the client as the source.
    pub fn new(code: Option<u16>, message: impl Into<String>, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { code, message: message.into(), source: source.into() }
    }
}

/// Reason why a pass failed. The operator retries; the status stays as it is, because nothing was observed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server rejected the request, or it failed.
    #[error("the request to the API server failed: {0}")]
    Api(#[from] ApiError),
    /// The API server did not answer.
    #[error("the API server did not answer within {API_TIMEOUT:?}")]
    TimedOut,
    /// The pods of this namespace were not listed in time.
    #[error("the pods in namespace {0} were not listed in time; check that the operator may list and watch pods there")]
    Pods(String),
    /// The operator has no right to watch pods.
    #[error("the operator lacks the right to list and watch pods; grant it in this namespace")]
    PodsForbidden,
    /// The label selector is not valid.
    #[error("the selector in spec.target is not a valid label selector")]
    Selector(#[from] ParseExpressionError),
    /// The original settings in this ControllerRevision cannot be read. The cause is left out: it quotes the content.
    #[error(
        "ControllerRevision {0} contains no readable original settings; repair or delete it, because nothing is written before that"
    )]
    Original(String),
    /// The original settings have not been read; nothing is written before that.
    #[error("the original settings of the nodes have not been read yet; nothing is written before that")]
    Unread,
    /// This version cannot read the policy, so it cannot write the status either.
    #[error("{0}")]
    Unreadable(String),
    /// The API server never sends a policy without these.
    #[error("the API server sent a policy without a namespace, uid or creation timestamp")]
    Nameless,
    /// The policy was deleted during the pass.
    #[error("the policy does not exist any more")]
    Gone,
    /// The policy is being deleted; the pass for the deletion comes next.
    #[error("the pass was cancelled because the policy is being deleted")]
    Cancelled,
    /// A pass took too long.
    #[error("reading the nodes took more than {DEADLINE:?}; the operator retries")]
    Overdue,
    /// A panic was caught.
    #[error("a pass of this policy panicked, and other policies are not affected; report the panic with the operator's log")]
    Panicked,
    /// `release` could not restore the nodes of this number of policies.
    #[error(
        "policies that keep their finalizer because nodes could not be restored: {0}; fix the errors above and run release again"
    )]
    Unreleased(usize),
}

impl Error {
    /// Returns the status with which the API server refused the request; `None` for every other error.
    #[must_use]
    pub const fn code(&self) -> Option<u16> {
        match self {
            Self::Api(error) => error.code,
            _ => None,
        }
    }

    /// Reports whether the operator has no right to do this.
    #[must_use]
    pub const fn is_forbidden(&self) -> bool {
        matches!(self.code(), Some(403))
    }

    /// Reports whether the object does not exist.
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self.code(), Some(404))
    }
}

/// Why the target cannot be found or read.
#[derive(Debug)]
pub enum Failure {
    /// The status shows it.
    Problem(Problem),
    /// A request to the API server failed; the pass is retried.
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::PodsForbidden => no_right("list and watch", "pods").into(),
            Error::Selector(error) => {
                Problem::invalid(Reason::Invalid, format!("The label selector of spec.target is not valid: {error}")).into()
            }
            error => Self::Error(error),
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// Converts a fault of the whole target.
impl From<Fault> for Failure {
    fn from(Fault { cause, message }: Fault) -> Self {
        let problem = match cause {
            Cause::NotPermitted | Cause::Conflict => Problem::invalid(failure(cause), message),
            Cause::NotFound => Problem::no_target(message),
            Cause::Forbidden => Problem::blocked(failure(cause), message),
            _ => Problem::waiting(failure(cause), message),
        };
        problem.into()
    }
}

/// Returns the problem of a missing right.
#[must_use]
pub fn no_right(verb: &str, what: &str) -> Problem {
    Problem::blocked(Reason::Forbidden, format!("The operator lacks the right to {verb} {what}; grant it in this namespace"))
}

//! The two shapes of a response: data or an error.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A successful response.
#[derive(Serialize, Deserialize, JsonSchema, Debug)]
#[schemars(rename = "{T}Response")]
pub struct Answer<T> {
    /// Always true.
    pub success: bool,
    /// The requested data.
    pub data: T,
}

impl<T> Answer<T> {
    /// A response with this data.
    pub const fn of(data: T) -> Json<Self> {
        Json(Self { success: true, data })
    }
}

/// An error response.
#[derive(Serialize, Deserialize, JsonSchema, Debug)]
#[schemars(rename = "ErrorResponse")]
pub struct Refusal {
    /// Always false.
    pub success: bool,
    /// The error.
    pub error: Wrong,
}

/// An error of the API.
#[derive(Serialize, Deserialize, JsonSchema, Debug)]
#[schemars(rename = "ErrorBody")]
pub struct Wrong {
    /// Code for programs.
    pub code: String,
    /// Message for people: what happened, and what to do.
    pub message: String,
}

/// Why a request fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token is missing, or the API server does not accept it.
    #[error("no valid token; send a Kubernetes token in the header Authorization: Bearer (create one with kubectl create token)")]
    Unauthorized,
    /// The caller is known but lacks the right.
    #[error("{user} cannot {verb} {resource} {place}; ask a cluster administrator for the permission")]
    Forbidden {
        /// Name of the caller.
        user: String,
        /// Verb.
        verb: &'static str,
        /// Resource.
        resource: &'static str,
        /// Namespace, or all namespaces.
        place: String,
    },
    /// A page of another origin sent the request.
    #[error("requests from pages of other origins are rejected")]
    Foreign,
    /// The object does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The path does not support the method.
    #[error("method not allowed for this path; see /api/openapi.json")]
    MethodNotAllowed,
    /// The request is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The body is too large.
    #[error("the request body is too large")]
    TooLarge,
    /// Too many requests or streams are in progress.
    #[error("{0}; retry in {RETRY_AFTER} seconds")]
    Busy(&'static str),
    /// The data is not available at the moment, for example because the API server did not answer.
    #[error("{0}")]
    Unavailable(&'static str),
    /// Only the leader has the data.
    #[error("this replica is a standby without node data; send the request to the leader")]
    NotLeading,
}

/// Seconds of the `Retry-After` header.
pub const RETRY_AFTER: u32 = 5;

impl Error {
    /// The HTTP status and the error code.
    #[must_use]
    pub const fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::Forbidden { .. } | Self::Foreign => (StatusCode::FORBIDDEN, "Forbidden"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "NotFound"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::Invalid(_) => (StatusCode::BAD_REQUEST, "Invalid"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "TooLarge"),
            Self::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, "Busy"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "Unavailable"),
            Self::NotLeading => (StatusCode::SERVICE_UNAVAILABLE, "NotLeading"),
        }
    }

    /// The body of the error response.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        Refusal { success: false, error: Wrong { code: self.code().1.to_owned(), message: self.to_string() } }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, _) = self.code();
        let mut response = (status, Json(self.refusal())).into_response();
        let mut set = |name, value| response.headers_mut().insert(name, value);
        match self {
            Self::Unauthorized => drop(set(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            Self::Busy(_) | Self::Unavailable(_) => drop(set(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER))),
            _ => {}
        }
        response
    }
}

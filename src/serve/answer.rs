//! The two shapes of a response: the data, or an error.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Successful response.
#[derive(Serialize, Deserialize, JsonSchema, Debug)]
#[schemars(rename = "{T}Response")]
pub struct ApiResponse<T> {
    /// Always true.
    pub success: bool,
    /// Data of the response.
    pub data: T,
}

impl<T> ApiResponse<T> {
    /// Returns a successful response with the data.
    pub const fn of(data: T) -> Json<Self> {
        Json(Self { success: true, data })
    }
}

/// Error response.
#[derive(Serialize, Deserialize, JsonSchema, Debug)]
#[schemars(rename = "ErrorResponse")]
pub struct Refusal {
    /// Always false.
    pub success: bool,
    /// Error of the request.
    pub error: Wrong,
}

/// Error of a request.
#[derive(Serialize, Deserialize, JsonSchema, Debug)]
#[schemars(rename = "ErrorBody")]
pub struct Wrong {
    /// Error code for programs, such as `NotFound`.
    pub code: String,
    /// Error message for people: the problem and the fix.
    pub message: String,
}

/// Error of a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request has no token, or one that the API server does not accept.
    #[error("A valid token is required; send the header Authorization: Bearer TOKEN with a token from kubectl create token NAME")]
    Unauthorized,
    /// The caller is known and lacks the right.
    #[error("User {user:?} cannot {verb} {resource} {place}; ask a cluster administrator for this right")]
    Forbidden {
        /// Name of the caller.
        user: String,
        /// Verb.
        verb: &'static str,
        /// Resource.
        resource: &'static str,
        /// Scope, such as a namespace.
        place: String,
    },
    /// The request comes from a page of another origin.
    #[error("Requests from pages of another origin are not allowed")]
    Foreign,
    /// The object does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The path does not support this method.
    #[error("This path does not support this method; see /api/openapi.json")]
    MethodNotAllowed,
    /// The request is not valid.
    #[error("{0}")]
    Invalid(String),
    /// The request body is too large.
    #[error("The request body is too large")]
    TooLarge,
    /// The server has reached a limit.
    #[error("{0}; retry in {RETRY_AFTER} seconds")]
    Busy(&'static str),
    /// The API server gave no answer.
    #[error("{0}")]
    Unavailable(&'static str),
    /// This replica is a standby.
    #[error("This replica is a standby and has no data of the nodes; ask the leader, which holds the Lease")]
    NotLeading,
    /// Another replica acts for the namespace; this is the URL of the same request there.
    #[error("Another replica acts for this namespace; send the request to {0}")]
    Elsewhere(String),
}

/// Time after which a client can retry, in seconds.
pub const RETRY_AFTER: u32 = 5;

impl Error {
    /// Returns the HTTP status and the error code.
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
            Self::Elsewhere(_) => (StatusCode::TEMPORARY_REDIRECT, "Elsewhere"),
        }
    }

    /// Returns the response body.
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
            Self::Busy(_) | Self::Unavailable(_) | Self::NotLeading => {
                drop(set(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER)));
            }
            Self::Elsewhere(url) => drop(HeaderValue::try_from(url).map(|url| set(header::LOCATION, url))),
            _ => {}
        }
        response
    }
}

//! The two shapes of an answer: what was asked for, or what is wrong.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What was asked for.
#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Answer<T> {
    /// Always true.
    pub success: bool,
    /// What was asked for.
    pub data: T,
}

impl<T> Answer<T> {
    /// It is there.
    pub const fn of(data: T) -> Json<Self> {
        Json(Self { success: true, data })
    }
}

/// What is wrong.
#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Refusal {
    /// Always false.
    pub success: bool,
    /// What is wrong.
    pub error: Wrong,
}

/// What is wrong.
#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Wrong {
    /// For programs.
    pub code: String,
    /// For people: what happened, and what to do.
    pub message: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No token, or one that the API server does not know.
    #[error(
        "a token that the API server accepts is needed: send Authorization: Bearer with one, such as kubectl create token prints"
    )]
    Unauthorized,
    /// A known caller without the right.
    #[error("{user} may not {verb} {resource} {place}; ask who administers the cluster for that right")]
    Forbidden {
        /// The caller.
        user: String,
        /// The verb.
        verb: &'static str,
        /// The resource.
        resource: &'static str,
        /// Where.
        place: String,
    },
    /// A page of another origin asked in this one's name.
    #[error("requests from pages of other origins are not answered")]
    Foreign,
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// Not that method.
    #[error("this path does not answer to this method; see /api/openapi.json")]
    MethodNotAllowed,
    /// The request does not make sense.
    #[error("{0}")]
    Invalid(String),
    /// A body beyond all measure.
    #[error("the body is larger than any that is expected here")]
    TooLarge,
    /// Enough others are served.
    #[error("{0}; try again in {RETRY_AFTER} seconds")]
    Busy(&'static str),
    /// The API server did not say.
    #[error("{0}")]
    Unavailable(&'static str),
    /// Another replica knows.
    #[error("this replica does not act, and has not looked at any node; ask the one that holds the lease")]
    NotLeading,
}

/// Seconds after which to try again.
pub const RETRY_AFTER: u32 = 5;

impl Error {
    /// The status and the code.
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

    /// As it is sent.
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

//! The parameter of a path.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::domain::code::Code;
use crate::error::Problem;

/// axum's extractor answers in plain text when a path is not UTF-8. Such a path names nothing, like an id of another
/// kind, so the answer is the same.
pub struct Path(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(_) => Err(Problem::of(Code::NotFound)),
        }
    }
}

//! Bodies: how many bytes, how long, and what JSON they are.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;

use crate::code::Code;
use crate::error::ApiError;
use crate::state::State;

/// How many bytes a body of JSON may have: as many as it says, or as any.
pub(crate) fn size(state: &State, headers: &HeaderMap) -> Result<usize, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|k| k.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::invalid(
            Code::UnsupportedMediaType,
            "the body is not said to be JSON: send the header `Content-Type: application/json`",
        ));
    }
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(ApiError::invalid(
            Code::UnsupportedMediaType,
            "compressed bodies are not taken: send it as it is, without `Content-Encoding`",
        ));
    }
    let most = state.options.body_bytes;
    let length = headers.get(header::CONTENT_LENGTH);
    match length.and_then(|l| l.to_str().ok()?.parse::<u64>().ok()) {
        None => Ok(most),
        Some(length) => usize::try_from(length)
            .ok()
            .filter(|l| *l <= most)
            .ok_or_else(|| too_large(most)),
    }
}

pub(crate) fn too_large(most: usize) -> ApiError {
    let message = format!("the body has more than {most} bytes");
    ApiError::invalid(Code::RequestTooLarge, message)
}

/// Room for bodies is taken in pieces of this size, as they come: whoever only says that much will come holds none.
const PIECE: usize = 64 << 10;

/// Reads a body of at most `size` bytes, into room that others have again when what comes back is dropped.
pub(crate) async fn read(
    state: &State,
    body: Body,
    size: usize,
) -> Result<(Vec<u8>, OwnedSemaphorePermit), ApiError> {
    let whole = async {
        let mut body = body;
        let mut room = state.room(size.min(PIECE)).await?;
        let mut taken = size.min(PIECE);
        let mut all = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                ApiError::invalid(Code::InvalidBody, "the body ended before it was whole")
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if all.len() + data.len() > size {
                return Err(too_large(size));
            }
            let more = (all.len() + data.len()).saturating_sub(taken);
            if more > 0 {
                let more = more.next_multiple_of(PIECE).min(size - taken);
                room.merge(state.room(more).await?);
                taken += more;
            }
            all.extend_from_slice(&data);
        }
        Ok((all, room))
    };
    let limit = state.options.body_timeout;
    tokio::time::timeout(limit, whole)
        .await
        .unwrap_or_else(|_| {
            let message = format!("the body took more than {} s", limit.as_secs_f64());
            Err(ApiError::invalid(Code::BodyTimeout, message))
        })
}

/// What a body says; its mistakes name the field.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // A list would be taken for the fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::invalid(
            Code::InvalidJson,
            "the body is not a JSON object",
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value: T = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        let inner = e.into_inner();
        let text = inner.to_string();
        let place = format!("line {}, column {}", inner.line(), inner.column());
        let what = text.rsplit_once(" at line ").map_or(&*text, |t| t.0);
        if !inner.is_data() {
            let message = format!("the body is not JSON: {what} ({place})");
            return ApiError::invalid(Code::InvalidJson, message);
        }
        // Of an unknown name, the list of all known ones helps nobody.
        let quoted = |start: &str| what.strip_prefix(start)?.split('`').next();
        if let Some(name) = quoted("unknown field `") {
            let name: String = name.chars().take(64).collect();
            return ApiError::unsupported(
                &name,
                format!("unknown field {name:?}: leave it out ({place})"),
            );
        }
        if let Some(name) = quoted("missing field `") {
            return ApiError::invalid(Code::MissingField, format!("{name} is missing ({place})"))
                .param(name);
        }
        // A text may be as long as a body.
        let what: String = what.chars().take(300).collect();
        match &*path {
            "." => ApiError::invalid(Code::InvalidValue, format!("{what} ({place})")),
            path => ApiError::value(path, format!("{path}: {what} ({place})")),
        }
    })?;
    json.end().map_err(|e| {
        ApiError::invalid(
            Code::InvalidJson,
            format!("the body goes on after its JSON: {e}"),
        )
    })?;
    Ok(value)
}

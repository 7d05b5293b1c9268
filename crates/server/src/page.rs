//! The page: files that this program holds, which load nothing from anywhere else.
//!
//! They come from `web/`, where TypeScript is compiled; a test says whether that was done. Nothing in them, nor in the page
//! that `docs.rs` writes, depends on the model, on clients or on a request, so they need no key, and no text of a stranger is
//! ever put into HTML here.

use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use sha2::{Digest as _, Sha256};

use crate::code::Code;
use crate::error::ApiError;

/// What the page may do: show what is from here, and nothing that stands in it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

const INDEX: &str = include_str!("../../../web/page/index.html");

macro_rules! assets {
    ($($name:literal, $kind:expr, $folder:literal;)*) => {
        [$(($name, $kind, include_str!(concat!("../../../web/", $folder, "/", $name)))),*]
    };
}

const ASSETS: [(&str, &str, &str); 12] = assets![
    "page.css", CSS, "page";
    "icon.svg", SVG, "page";
    "main.js", SCRIPT, "dist";
    "api.js", SCRIPT, "dist";
    "elements.js", SCRIPT, "dist";
    "hash.js", SCRIPT, "dist";
    "live.js", SCRIPT, "dist";
    "pages.js", SCRIPT, "dist";
    "chart.js", SCRIPT, "dist";
    "planner.js", SCRIPT, "dist";
    "theme.js", SCRIPT, "dist";
    "format.js", SCRIPT, "dist";
];

pub(crate) async fn index(headers: HeaderMap) -> Response {
    file(&headers, HTML, Bytes::from_static(INDEX.as_bytes()))
}

pub(crate) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match ASSETS.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => file(&headers, kind, Bytes::from_static(text.as_bytes())),
        None => ApiError::invalid(Code::UnknownUrl, "there is no such asset").into_response(),
    }
}

pub(crate) fn docs(headers: &HeaderMap, text: &Bytes) -> Response {
    file(headers, HTML, text.clone())
}

fn file(asked: &HeaderMap, kind: &'static str, text: Bytes) -> Response {
    let digest = Sha256::digest(&text);
    let tag: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
    let tag = format!("\"{tag}\"");
    let known = asked.get(header::IF_NONE_MATCH);
    let same = known.is_some_and(|k| k.as_bytes() == tag.as_bytes());
    let mut response = Response::new(if same { Body::empty() } else { text.into() });
    if same {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of the server may answer here next.
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

//! What is wrong with a request before anybody looks at what it asks for: its target, and for whom it is meant. Its
//! framing is hyper's matter.
//!
//! A page in a browser on this machine can make the browser talk to a server that listens here alone, by giving its own
//! name this machine's address (DNS rebinding). The browser then still sends that name, in Host, so a server that
//! nobody else can reach answers to its own names only. Host decides nothing else: paths come from the target.

use std::net::IpAddr;

use axum::body::Body;
use axum::http::{HeaderMap, Request, Uri, Version, header};

use crate::code::Code;
use crate::error::ApiError;
use crate::state::State;

/// The longest target.
const URI_BYTES: usize = 8 << 10;

pub(crate) fn screen(state: &State, request: &Request<Body>) -> Result<(), ApiError> {
    let uri = request.uri();
    if uri.path().len() + uri.query().map_or(0, str::len) > URI_BYTES {
        let message = format!("the target of the request has more than {URI_BYTES} bytes");
        return Err(ApiError::invalid(Code::UriTooLong, message));
    }
    host(state, request.version(), uri, request.headers())
}

fn host(state: &State, version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let bad = |what: &str| Err(ApiError::invalid(Code::InvalidHost, what));
    let mut all = headers.get_all(header::HOST).iter();
    let given = match (all.next(), all.next()) {
        (None, _) if version >= Version::HTTP_11 => return bad("the header Host is missing"),
        (None, _) => None,
        (Some(_), Some(_)) => return bad("there are two headers Host"),
        (Some(one), None) => match one.to_str().ok().and_then(name) {
            Some(name) => Some(name),
            None => return bad("the header Host is no name or address, with or without a port"),
        },
    };
    // The target's own has precedence where it has one; neither may be a stranger's.
    let target = match uri.authority() {
        None => None,
        Some(a) => match name(a.as_str()) {
            Some(name) => Some(name),
            None => return bad("the target's host is no name or address, with or without a port"),
        },
    };
    let Some(allowed) = &state.options.hosts else {
        return Ok(());
    };
    for name in [given, target].into_iter().flatten() {
        if !is_local(name) && !allowed.iter().any(|a| a.eq_ignore_ascii_case(name)) {
            let message = format!(
                "this server does not answer to the name {name:?}: start it with `--allowed-host {name}` if it should"
            );
            return Err(ApiError::invalid(Code::HostNotAllowed, message));
        }
    }
    Ok(())
}

/// The name or address in `host[:port]`, without the brackets of IPv6.
fn name(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (name, port) = rest.split_once(']')?;
            name.parse::<std::net::Ipv6Addr>().ok()?;
            (name, port)
        }
        None => {
            let at = host.find(':').unwrap_or(host.len());
            let (name, port) = host.split_at(at);
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            if name.is_empty() || name.len() > 253 || !name.bytes().all(plain) {
                return None;
            }
            (name, port)
        }
    };
    let digits = |p: &str| p.len() <= 5 && p.bytes().all(|b| b.is_ascii_digit());
    let fine = port.is_empty() || port.strip_prefix(':').is_some_and(digits);
    fine.then_some(name)
}

/// Names of this machine that nobody else can give themselves.
fn is_local(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses() {
        for (host, want) in [
            ("localhost", Some("localhost")),
            ("localhost:8000", Some("localhost")),
            ("127.0.0.1:8000", Some("127.0.0.1")),
            ("[::1]:8000", Some("::1")),
            ("[::1]", Some("::1")),
            ("a_b.example", Some("a_b.example")),
            ("", None),
            (":80", None),
            ("x/v1/../health", None),
            ("a@b", None),
            ("a b", None),
            ("a:b", None),
            ("a:123456", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[x]", None),
            ("a?b", None),
            ("a#b", None),
        ] {
            assert_eq!(name(host), want, "{host:?}");
        }
        assert!(is_local("LocalHost") && is_local("127.9.9.9") && is_local("::1"));
        assert!(!is_local("localhost.evil.example") && !is_local("127.0.0.1.evil.example"));
        assert!(!is_local("0.0.0.0") && !is_local("192.168.0.1"));
    }
}

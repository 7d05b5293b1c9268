//! Bodies that are no requests. Group B of docs/reliability.md.

use std::time::{Duration, Instant};

use crate::canary::Canary;
use crate::server::*;

#[test]
fn bodies_that_are_no_requests() {
    let server = Server::start(&["--max-body", "4MiB"]);
    let canary = Canary::new(&server);
    let c = "/v1/completions";
    let json = "Content-Type: application/json\r\n";
    let post = |body: &[u8]| {
        let head = format!(
            "POST {c} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{json}Content-Length: {}\r\n\r\n",
            body.len()
        );
        let raw = server.raw(&[head.as_bytes(), body].concat());
        let error = raw.split_once("\r\n\r\n").map(|t| t.1.to_owned());
        let error: serde_json::Value =
            serde_json::from_str(&error.unwrap_or_default()).unwrap_or_default();
        (statuses(&raw), error["error"].clone())
    };
    let x = |more: &str| format!("{{\"prompt\":\"x\",\"max_tokens\":1,{more}}}").into_bytes();
    let many = |open: &str, one: &str, n: usize, close: &str| {
        let mut text = open.to_owned();
        text.push_str(&vec![one; n].join(","));
        text.push_str(close);
        text.into_bytes()
    };
    let deep = |n: usize| x(&format!("\"stop\":{}{}", "[".repeat(n), "]".repeat(n)));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("B1 empty", b"".to_vec()),
        ("B1 null", b"null".to_vec()),
        ("B1 list", b"[]".to_vec()),
        ("B1 text", b"\"x\"".to_vec()),
        ("B1 truncated", b"{\"prompt\":\"x".to_vec()),
        ("B1 trailing", b"{\"prompt\":\"x\"}}".to_vec()),
        (
            "B1 byte order mark",
            b"\xef\xbb\xbf{\"prompt\":\"x\"}".to_vec(),
        ),
        ("B1 NUL", b"{\"prompt\":\"x\"}\0".to_vec()),
        ("B1 no UTF-8", b"{\"prompt\":\"\xff\xfe\"}".to_vec()),
        ("B1 UTF-16", b"{\0}\0".to_vec()),
        ("B1 lone surrogate", b"{\"prompt\":\"\\ud800\"}".to_vec()),
        ("B2 65 deep", deep(65)),
        ("B2 100,000 deep", deep(100_000)),
        ("B3 twice", x("\"n\":1,\"n\":1000000000")),
        ("B4 1e400", x("\"temperature\":1e400")),
        ("B4 text", x("\"n\":\"5\"")),
        ("B4 2^63", x("\"n\":9223372036854775808")),
        ("B4 2^64", x("\"seed\":18446744073709551616")),
        ("B4 -1", x("\"n\":-1")),
        ("B4 1.5", x("\"n\":1.5")),
        (
            "B4 40 digits",
            x("\"n\":1234567890123456789012345678901234567890"),
        ),
        ("B5 NaN", x("\"temperature\":NaN")),
        ("B5 Infinity", x("\"temperature\":Infinity")),
        ("B6 unknown", x("\"no_such_field\":1")),
        ("B7 audio", x("\"audio\":{}")),
        ("B7 modalities", x("\"modalities\":[\"audio\"]")),
        ("B7 web search", x("\"web_search_options\":{}")),
        ("B8 prompts", many("{\"prompt\":[", "\"\"", 1_000_000, "]}")),
        ("B8 ids", many("{\"prompt\":[", "1", 1_000_000, "]}")),
        (
            "B8 stops",
            many("{\"prompt\":\"x\",\"stop\":[", "\"\"", 1_000_000, "]}"),
        ),
        (
            "B8 stop ids",
            many(
                "{\"prompt\":\"x\",\"stop_token_ids\":[",
                "1",
                1_000_000,
                "]}",
            ),
        ),
        (
            "B8 biases",
            many(
                "{\"prompt\":\"x\",\"logit_bias\":{",
                "\"1\":1",
                500_000,
                "}}",
            ),
        ),
        (
            "B9 NULs",
            format!("{{\"prompt\":\"{}\"}}", "\\u0000".repeat(690_000)).into_bytes(),
        ),
        (
            "B9 emoji",
            format!("{{\"prompt\":\"{}\"}}", "\u{1f600}".repeat(1_000_000)).into_bytes(),
        ),
        (
            "B9 joiners",
            format!("{{\"prompt\":\"{}\"}}", "\u{200d}".repeat(1_300_000)).into_bytes(),
        ),
        ("B10", x(&format!("\"{}\":1", "k".repeat(1 << 20)))),
    ];
    for (case, body) in cases {
        let began = Instant::now();
        let (all, error) = post(&body);
        assert_eq!(all, [400], "{case}: {error}");
        // Whoever reads it is told where or which.
        let message = error["message"].as_str().unwrap();
        assert!(message.len() < 1000, "{case}: {message}");
        let told =
            message.contains("column") || message.contains("body") || !error["param"].is_null();
        assert!(told, "{case}: {error}");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(10), "{case}: {took:?}");
        canary.check(&server, case);
    }
    // B4: what is a whole number may be written as one that is not.
    for body in [x("\"n\":1.0"), x("\"presence_penalty\":-0"), x("\"n\":1e0")] {
        assert_eq!(post(&body).0, [200], "{}", String::from_utf8_lossy(&body));
    }
    canary.check(&server, "B4");
}

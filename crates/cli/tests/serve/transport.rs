//! HTTP itself: framing, limits, hosts, connections. Group A of docs/reliability.md.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::canary::Canary;
use crate::server::*;

const C: &str = "/v1/completions";
const JSON: &str = "Content-Type: application/json\r\n";

/// A request that closes its connection.
fn request(line: &str, headers: &str, body: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n{body}")
}

#[test]
fn limits_of_requests() {
    let server = Server::start(&[]);
    let canary = Canary::new(&server);
    let check = |case: &str| canary.check(&server, case);

    // A1.
    let answer = server.get("/nowhere");
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["error"]["code"], "unknown_url");
    let answer = server.get(C);
    assert_eq!(answer.status, 405);
    assert!(answer.headers.contains("allow: post"), "{}", answer.headers);
    let answer = server.ask("POST", C, "Content-Type: text/xml\r\n", "{}");
    assert_eq!(answer.status, 415);
    check("A1");

    // A2.
    let many: String = (0..101).map(|i| format!("X-{i}: a\r\n")).collect();
    assert_eq!(
        statuses(&server.raw(request("GET /health", &many, "").as_bytes())),
        [431]
    );
    for bytes in [64 << 10, 1 << 20] {
        let large = format!("X: {}\r\n", "a".repeat(bytes));
        let raw = server.raw(request("GET /health", &large, "").as_bytes());
        // A megabyte may still be on its way when the connection closes.
        assert!(statuses(&raw).iter().all(|s| *s == 431), "{raw}");
        assert!(!raw.contains(" 200 "));
    }
    check("A2");

    // A3.
    let long = format!("GET /health?{}", "a".repeat(9 << 10));
    assert_eq!(
        statuses(&server.raw(request(&long, "", "").as_bytes())),
        [414]
    );
    let keys: String = (0..100_000).map(|i| format!("{i}=&")).collect();
    let raw = server.raw(request(&format!("GET /health?{keys}"), "", "").as_bytes());
    assert!(
        statuses(&raw).iter().all(|s| [414, 431].contains(s)),
        "{raw}"
    );
    let few = "GET /health?a=1&a=2";
    assert_eq!(
        statuses(&server.raw(request(few, "", "").as_bytes())),
        [200]
    );
    check("A3");

    // A4, A14.
    let most = 1 << 20;
    let head = |more: &str| request(&format!("POST {C}"), &format!("{JSON}{more}"), "");
    let raw = server.raw(head(&format!("Content-Length: {}\r\n", most + 1)).as_bytes());
    assert_eq!(statuses(&raw), [413], "before any of it is sent");
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 16, " ".repeat(1 << 16));
    let mut chunked = head("Transfer-Encoding: chunked\r\n");
    for _ in 0..17 {
        chunked.push_str(&chunk);
    }
    // It never ends: what is too much is refused when it comes.
    assert_eq!(statuses(&server.raw(chunked.as_bytes())), [413]);
    let expects = format!("Expect: 100-continue\r\nContent-Length: {}\r\n", most + 1);
    assert_eq!(
        statuses(&server.raw(head(&expects).as_bytes())),
        [413],
        "without a 100"
    );
    let body = json!({ "prompt": "a", "max_tokens": 1 }).to_string();
    let expects = format!("Expect: 100-continue\r\nContent-Length: {}\r\n", body.len());
    let raw = server.raw(format!("{}{body}", head(&expects)).as_bytes());
    assert!(
        [&[100, 200][..], &[200]].contains(&&*statuses(&raw)),
        "{raw}"
    );
    check("A4, A14");

    // A7.
    let gzip = format!("{JSON}Content-Encoding: gzip\r\n");
    assert_eq!(server.ask("POST", C, &gzip, "\u{1f}").status, 415);
    check("A7");
}

#[test]
fn framing_that_could_hide_a_request() {
    let server = Server::start(&[]);
    let canary = Canary::new(&server);
    let steps = || {
        server.get("/v1/memory").json()["engine_steps"]
            .as_u64()
            .unwrap()
    };
    let body = json!({ "prompt": "a", "max_tokens": 1 }).to_string();
    let head = |more: &str| request(&format!("POST {C}"), &format!("{JSON}{more}"), "");
    let keep = |more: &str| head(more).replace("Connection: close\r\n", "");

    // A5: a body that ends early makes no request; what follows one is a request of its own, and no part of it.
    let before = steps();
    let mut socket = TcpStream::connect(&server.address).unwrap();
    write!(socket, "{}{body}", head("Content-Length: 500\r\n")).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut raw = String::new();
    let _ = socket.read_to_string(&mut raw);
    assert!(statuses(&raw).iter().all(|s| *s == 400), "{raw}");
    assert_eq!(steps(), before, "no request came of it");
    let short = format!("{}{body}trailing", keep("Content-Length: 5\r\n"));
    let all = statuses(&server.raw(short.as_bytes()));
    assert!(all.iter().all(|s| *s == 400), "{all:?}");
    assert_eq!(steps(), before);
    canary.check(&server, "A5");

    // A6.
    let before = steps();
    let n = body.len();
    let chunked = "Transfer-Encoding: chunked\r\n";
    for (case, text) in [
        (
            "two lengths",
            format!(
                "{}{body}",
                keep(&format!(
                    "Content-Length: {n}\r\nContent-Length: {}\r\n",
                    n - 1
                ))
            ),
        ),
        (
            "a list of lengths",
            format!("{}{body}", keep(&format!("Content-Length: {n}, {n}\r\n"))),
        ),
        (
            "a length with a sign",
            format!("{}{body}", keep(&format!("Content-Length: +{n}\r\n"))),
        ),
        (
            "a negative length",
            format!("{}{body}", keep("Content-Length: -1\r\n")),
        ),
        (
            "another coding",
            format!("{}{body}", keep("Transfer-Encoding: gzip\r\n")),
        ),
        (
            "chunked, but not last",
            format!("{}{body}", keep("Transfer-Encoding: chunked, gzip\r\n")),
        ),
        (
            "a folded header",
            format!(
                "{}{body}",
                keep(&format!("X: a\r\n b\r\nContent-Length: {n}\r\n"))
            ),
        ),
        (
            "a space before the colon",
            format!("{}{body}", keep(&format!("Content-Length : {n}\r\n"))),
        ),
        (
            "a chunk that wraps",
            format!("{}fffffffffffffffff\r\n{body}\r\n0\r\n\r\n", keep(chunked)),
        ),
        (
            "a negative chunk",
            format!("{}-1\r\n{body}\r\n0\r\n\r\n", keep(chunked)),
        ),
        (
            "a chunk that is no number",
            format!("{}zz\r\n{body}\r\n0\r\n\r\n", keep(chunked)),
        ),
        (
            "NUL in a header",
            format!(
                "{}{body}",
                keep(&format!("X: a\0b\r\nContent-Length: {n}\r\n"))
            ),
        ),
    ] {
        let raw = server.raw(text.as_bytes());
        let all = statuses(&raw);
        assert!(
            all.len() <= 1 && all.iter().all(|s| (400..500).contains(s)),
            "{case}: {raw}"
        );
        canary.check(&server, case);
    }
    // Both lengths: the chunks are the body (RFC 9112, 6.3), and nothing that follows is read.
    for lengths in [
        format!("{chunked}Content-Length: 3\r\n"),
        format!("Content-Length: 3\r\n{chunked}"),
    ] {
        let text = format!("{}{n:x}\r\n{body}\r\n0\r\n\r\n{}", keep(&lengths), keep(""));
        let raw = server.raw(text.as_bytes());
        assert_eq!(statuses(&raw).len(), 1, "{raw}");
        assert!(raw.contains("connection: close"), "{raw}");
        canary.check(&server, "both lengths");
    }
    // Of all these none was a request.
    let running = || server.get("/v1/memory").json()["requests"]["running"].clone();
    // Whoever was answered last may be counted a moment longer.
    let began = std::time::Instant::now();
    while running() != 0 && began.elapsed() < std::time::Duration::from_secs(5) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(running(), 0);
    assert!(steps() > before, "only the canary's");

    // A10: another protocol.
    let raw = server.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    assert!(!raw.contains(" 200 "), "{raw}");
    canary.check(&server, "A10");

    // A11: one after the other; nobody has more than one at once by a connection.
    let one = format!("{}{body}", keep(&format!("Content-Length: {n}\r\n")));
    let mut socket = TcpStream::connect(&server.address).unwrap();
    let _ = socket.write_all(one.repeat(1000).as_bytes());
    socket.read_exact(&mut [0; 64]).unwrap();
    let requests = server.get("/v1/memory").json()["requests"].clone();
    let count = |name: &str| requests[name].as_u64().unwrap();
    assert!(count("running") + count("waiting") <= 1, "{requests}");
    drop(socket);
    canary.check(&server, "A11");

    // A15.
    let mut hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    hello.extend((0..500_u32).map(|i| (i * 37 % 256) as u8));
    for bytes in [&hello[..], &hello[7..], b"\0", b"{}\r\n\r\n"] {
        let raw = server.raw(&[bytes, b"\r\n\r\n"].concat());
        assert!(!raw.contains(" 200 "), "{raw}");
    }
    for _ in 0..50 {
        drop(TcpStream::connect(&server.address).unwrap());
    }
    canary.check(&server, "A15");
}

#[test]
fn hosts_and_paths_open_no_back_door() {
    let server = Server::start(&["--allowed-host", "models.example"]);
    let canary = Canary::new(&server);
    let with = |target: &str, headers: &str| {
        let text = format!("GET {target} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
        statuses(&server.raw(text.as_bytes()))
    };
    // A12, A20.
    for (host, want) in [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("models.example:80", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("0.0.0.0", 403),
        ("x/v1/../health", 400),
        ("a@localhost", 400),
        ("", 400),
        ("local host", 400),
    ] {
        let headers = format!("Host: {host}\r\n");
        assert_eq!(with("/v1/models", &headers), [want], "{host}");
        // Nor does a path in it make the request another one.
        assert_eq!(
            with("/nowhere", &headers)[0],
            if want == 200 { 404 } else { want }
        );
    }
    assert_eq!(with("/v1/models", ""), [400], "no Host");
    assert_eq!(
        with("/v1/models", "Host: localhost\r\nHost: localhost\r\n"),
        [400]
    );
    let local = "Host: localhost\r\n";
    assert_eq!(with("http://localhost/v1/models", local), [200]);
    assert_eq!(with("http://evil.example/v1/models", local), [403]);
    assert_eq!(with("http://a@localhost/v1/models", local), [400]);
    canary.check(&server, "A12");

    // A19, A20: what a page of another site can have a browser send.
    let origin = "Origin: https://evil.example\r\n";
    let preflight = format!(
        "{origin}Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n"
    );
    let body = json!({ "prompt": "a", "max_tokens": 1 }).to_string();
    for (method, headers, want) in [
        ("OPTIONS", &preflight[..], 405),
        ("POST", &format!("{origin}{JSON}"), 200),
        (
            "POST",
            &format!("{origin}Content-Type: text/plain\r\n"),
            415,
        ),
        (
            "POST",
            &format!("{origin}Content-Type: application/x-www-form-urlencoded\r\n"),
            415,
        ),
        ("POST", origin, 415),
    ] {
        let answer = server.ask(method, C, headers, &body);
        assert_eq!(answer.status, want, "{method} {headers}: {}", answer.body);
        assert!(
            !answer.headers.contains("access-control-"),
            "{}",
            answer.headers
        );
    }
    canary.check(&server, "A19, A20");

    // A13: one decision, whatever the path looks like.
    let server = Server::start(&["--api-key", "open-sesame"]);
    for path in [
        "//v1/models",
        "/v1//models",
        "/v1/../v1/models",
        "/health/../v1/models",
        "/v1/%2e%2e/v1/models",
        "/health/%2e%2e/v1/models",
        "/v1/models%00",
        "/V1/models",
        "/v1/models/",
        "/v1/models;x",
        "/%76%31/models",
        "/v1/models",
    ] {
        for key in ["", "Authorization: Bearer open-sesame\r\n"] {
            let answer = server.ask("GET", path, key, "");
            let want: &[u16] = match (path, key) {
                ("/v1/models", "") => &[401],
                ("/v1/models", _) => &[200],
                _ => &[401, 404],
            };
            assert!(
                want.contains(&answer.status),
                "{path} {key}: {}",
                answer.status
            );
        }
    }
}

#[test]
fn connections_have_limits() {
    // A16.
    let server = Server::start(&["--max-connections", "8"]);
    let idle: Vec<TcpStream> = (0..8)
        .map(|_| TcpStream::connect(&server.address).unwrap())
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    let mut ninth = TcpStream::connect(&server.address).unwrap();
    write!(
        ninth,
        "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    ninth
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let mut some = [0; 12];
    assert!(ninth.read(&mut some).is_err(), "it waits");
    drop(idle);
    ninth
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    ninth.read_exact(&mut some).unwrap();
    assert_eq!(&some, b"HTTP/1.1 200");

    // A17.
    let server = Server::with_files(48, &[]);
    let canary = Canary::new(&server);
    let many: Vec<TcpStream> = (0..80)
        .map(|_| TcpStream::connect(&server.address).unwrap())
        .collect();
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.child.id())).unwrap();
        let rest: Vec<&str> = stat.rsplit_once(')').unwrap().1.split(' ').collect();
        rest[12].parse::<u64>().unwrap() + rest[13].parse::<u64>().unwrap()
    };
    std::thread::sleep(Duration::from_millis(200));
    assert!(server.open_files() >= 48, "{}", server.open_files());
    let (before, began) = (ticks(), Instant::now());
    std::thread::sleep(Duration::from_millis(500));
    // Of 100 in a second.
    let used = ticks() - before;
    assert!(
        used < 10,
        "{used} ticks in {:?}: it turns in circles",
        began.elapsed()
    );
    drop(many);
    canary.check(&server, "A17");
}

#[test]
fn streams_come_piece_by_piece() {
    // A21.
    let server = Server::start(&[]);
    let body = json!({ "prompt": PROMPT, "max_tokens": 600, "ignore_eos": true, "stream": true });
    let headers = format!("{JSON}Accept-Encoding: gzip, br\r\n");
    let mut socket = server.send("POST", C, &headers, &body.to_string());
    let mut some = vec![0; 600];
    socket.read_exact(&mut some).unwrap();
    let some = String::from_utf8_lossy(&some).to_lowercase();
    assert!(some.contains("x-accel-buffering: no") && some.contains("cache-control: no-cache"));
    assert!(!some.contains("content-encoding"), "{some}");
    assert!(some.contains("data: {"));
    assert!(
        !server.is_free(),
        "the first piece is here before the last is made"
    );
    drop(socket);
    server.wait_until("free", Server::is_free);
}

#[test]
fn the_log_says_who_asked_and_not_what() {
    // F14, O.
    let server = Server::start(&[]);
    let body = json!({ "prompt": "a secret", "max_tokens": 1, "user": "u\n\u{1b}[31mfake=1" });
    let long = "x".repeat(129);
    for (id, kept) in [
        ("abc-1", true),
        ("abc-1", true),
        ("a b", false),
        ("\u{1b}[31m", false),
        ("a\tb", false),
        (&long, false),
    ] {
        let headers = format!("{JSON}X-Request-Id: {id}\r\n");
        let answer = server.ask("POST", C, &headers, &body.to_string());
        if id.contains('\u{1b}') {
            assert_eq!(answer.status, 400, "no header has such a value");
            continue;
        }
        assert_eq!(answer.status, 200, "{id:?}: {}", answer.body);
        let own = answer
            .headers
            .lines()
            .find_map(|l| l.strip_prefix("x-request-id: "))
            .unwrap();
        assert_eq!(own == id, kept, "{id:?}: {own}");
        assert!(own.bytes().all(|b| b.is_ascii_graphic()));
        assert!(
            !answer.json()["id"].as_str().unwrap().contains("abc-1"),
            "only echoed"
        );
    }
    let _ = server.get("/nowhere%0a%1b[31m?secret=1");
    let _ = server.post(C, "{\"prompt\":");
    let long = json!({ "prompt": PROMPT, "max_tokens": 900, "ignore_eos": true, "logprobs": 20, "stream": true });
    let models = server.get("/v1/models").body.len();
    let mut socket = server.send("POST", C, JSON, &long.to_string());
    socket.read_exact(&mut [0; 400]).unwrap();
    drop(socket);
    server.wait_until("free", Server::is_free);
    server.signal("-TERM");
    let (status, said) = server.ended();
    assert!(status.success());
    let lines: Vec<&str> = said.lines().filter(|l| l.starts_with("time=")).collect();
    let whole = format!(" path=/v1/models status=200 end=whole bytes={models} ");
    assert!(lines.iter().any(|l| l.contains(&whole)), "{said}");
    let posts = lines
        .iter()
        .filter(|l| l.contains(" path=/v1/completions "));
    let ends: Vec<&str> = posts
        .map(|l| l.split(" end=").nth(1).unwrap().split(' ').next().unwrap())
        .collect();
    assert_eq!(
        ends,
        [
            "whole",
            "whole",
            "whole",
            "whole",
            "whole",
            "invalid_json",
            "left"
        ]
    );
    assert!(
        lines.iter().any(
            |l| l.contains(" path=/nowhere%0a%1b%5B31m status=404 end=unknown_url ")
                || l.contains(" path=/nowhere%0a%1b[31m status=404 end=unknown_url ")
        ),
        "{said}"
    );
    assert!(
        !said.contains("secret") && !said.contains('\u{1b}') && !said.contains("fake="),
        "{said}"
    );
}

#[test]
fn contexts_of_traces_change_nothing() {
    // O: there are no traces, so whatever these headers hold is nobody's.
    let server = Server::start(&[]);
    let body = json!({ "prompt": PROMPT, "max_tokens": 4, "temperature": 0 }).to_string();
    let plain = texts(&server.post(C, &body).json());
    let whole = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for context in [
        format!("traceparent: {whole}\r\ntracestate: a=b\r\n"),
        "traceparent: ff-zz--fake=1\r\n".to_owned(),
        "traceparent:\r\ntracestate: ,,=,=\r\n".to_owned(),
        format!("traceparent: {whole}\r\n").repeat(3),
        format!("baggage: fake={}\r\n", "x".repeat(4 << 10)),
    ] {
        let answer = server.ask("POST", C, &format!("{JSON}{context}"), &body);
        assert_eq!(answer.status, 200, "{context}: {}", answer.body);
        assert_eq!(texts(&answer.json()), plain, "{context}");
        assert!(
            !answer.headers.to_lowercase().contains("trace"),
            "{context}"
        );
    }
    server.signal("-TERM");
    let (status, said) = server.ended();
    assert!(status.success());
    assert!(
        !said.contains("4bf92f35") && !said.contains("fake="),
        "{said}"
    );
}

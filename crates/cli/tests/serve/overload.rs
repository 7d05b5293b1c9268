//! Too much at once, and too much for the pool. Groups F and G of docs/reliability.md.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::canary::Canary;
use crate::server::*;

const C: &str = "/v1/completions";
const JSON: &str = "Content-Type: application/json\r\n";

fn long() -> Value {
    json!({ "prompt": PROMPT, "max_tokens": 900, "ignore_eos": true, "stream": true })
}

#[test]
fn whoever_finds_no_place_is_told_at_once() {
    // F1: 64 clients for 2 + 8 places; more by bench/.
    let server = Server::start(&["--max-num-seqs", "2", "--max-num-queued-reqs", "8"]);
    let canary = Canary::new(&server);
    let body = json!({ "prompt": PROMPT, "max_tokens": 40, "ignore_eos": true, "temperature": 0 })
        .to_string();
    let want = texts(&server.complete(serde_json::from_str(&body).unwrap()));
    // Whoever was answered has its place for a moment more.
    server.wait_until("free", |s| s.is_free());
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..64)
            .map(|_| scope.spawn(|| server.post(C, &body)))
            .collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let served = answers.iter().filter(|a| a.status == 200);
    assert!(served.clone().count() >= 10, "those that have places");
    for answer in served {
        assert_eq!(texts(&answer.json()), want);
    }
    let refused = answers.iter().filter(|a| a.status != 200);
    for answer in refused {
        assert_eq!(answer.status, 429, "{}", answer.body);
        assert!(answer.headers.contains("retry-after: "));
        assert_eq!(answer.json()["error"]["code"], "queue_full");
    }
    canary.check(&server, "F1");

    // F11: health and memory wait for nobody.
    let _running: Vec<TcpStream> = (0..4)
        .map(|_| server.send("POST", C, JSON, &long().to_string()))
        .collect();
    server.wait_until("busy", |s| !s.is_free());
    let began = Instant::now();
    for _ in 0..50 {
        assert_eq!(server.get("/health").status, 200);
        assert_eq!(server.get("/v1/memory").status, 200);
    }
    let each = began.elapsed() / 100;
    assert!(each < Duration::from_millis(50), "{each:?} each");
}

#[test]
fn whoever_leaves_at_any_moment_leaves_nothing() {
    // F3, F4.
    let server = Server::start(&["--max-num-seqs", "2"]);
    let canary = Canary::new(&server);
    let body = long().to_string();
    let head = format!(
        "POST {C} HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: {}\r\n\r\n",
        body.len()
    );
    for (case, text, wait_bytes) in [
        ("connected", String::new(), 0),
        ("in the headers", head[..40].to_owned(), 0),
        ("before the body", head.clone(), 0),
        ("in the body", format!("{head}{}", &body[..20]), 0),
        ("after the body", format!("{head}{body}"), 0),
        (
            "after the headers of the answer",
            format!("{head}{body}"),
            1,
        ),
        ("after the first token", format!("{head}{body}"), 600),
        ("mid-stream", format!("{head}{body}"), 9000),
    ] {
        for _ in 0..5 {
            let mut socket = TcpStream::connect(&server.address).unwrap();
            socket.write_all(text.as_bytes()).unwrap();
            socket.read_exact(&mut vec![0; wait_bytes]).unwrap();
        }
        canary.check(&server, case);
    }
    // In the queue, behind those that have all places; and in the last write.
    let running: Vec<TcpStream> = (0..2)
        .map(|_| server.send("POST", C, JSON, &body))
        .collect();
    server.wait_until("busy", |s| {
        s.get("/v1/memory").json()["requests"]["running"] == 2
    });
    let queued: Vec<TcpStream> = (0..20)
        .map(|_| server.send("POST", C, JSON, &body))
        .collect();
    server.wait_until("queued", |s| {
        s.get("/v1/memory").json()["requests"]["waiting"] == 20
    });
    drop(queued);
    server.wait_until("left", |s| {
        s.get("/v1/memory").json()["requests"]["waiting"] == 0
    });
    drop(running);
    canary.check(&server, "in the queue");
    let short = json!({ "prompt": "a", "max_tokens": 2, "stream": true }).to_string();
    for _ in 0..20 {
        drop(server.send("POST", C, JSON, &short));
    }
    canary.check(&server, "at the end");

    // F10: one of many prompts is wrong, and none runs.
    let mut prompts = vec![json!(PROMPT); 127];
    prompts.push(json!(""));
    let answer = server.post(C, &json!({ "prompt": prompts }).to_string());
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(server.is_free());
    canary.check(&server, "F10");
}

#[test]
fn the_same_prefix_at_once_is_the_same_text() {
    // F9.
    let server = Server::start(&[]);
    let canary = Canary::new(&server);
    let prompt = [PROMPT; 8].join(" ");
    let body = json!({ "prompt": prompt, "max_tokens": 8, "temperature": 0 }).to_string();
    let all: Vec<Vec<String>> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..24)
            .map(|_| scope.spawn(|| texts(&server.post(C, &body).json())))
            .collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(all.iter().all(|t| *t == all[0]), "{all:?}");
    canary.check(&server, "F9");
}

#[test]
fn a_log_that_nobody_reads_stops_nobody() {
    // F15.
    let mut server = Server::start(&[]);
    let canary = Canary::new(&server);
    // More than a pipe holds, and nobody reads.
    let path = format!("/nowhere/{}", "x".repeat(180));
    for _ in 0..600 {
        assert_eq!(server.get(&path).status, 404);
    }
    canary.check(&server, "F15, full");
    let mut other = std::process::Command::new("true")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    server.errors = std::io::BufReader::new(other.stderr.take().unwrap());
    other.wait().unwrap();
    for _ in 0..20 {
        assert_eq!(server.get(&path).status, 404);
    }
    canary.check(&server, "F15, closed");
    server.signal("-TERM");
    let (status, _) = server.ended();
    assert!(status.success(), "{status:?}");
}

#[test]
fn a_pool_that_is_too_small_is_shared_or_refused() {
    let body = |i: u64, n: u64| json!({ "prompt": format!("{PROMPT} {i}"), "max_tokens": n, "ignore_eos": true, "seed": i });
    let roomy = Server::start(&[]);
    let want: Vec<Vec<String>> = (0..6)
        .map(|i| texts(&roomy.complete(body(i, 90))))
        .collect();
    for (case, flags) in [
        ("G2", "--preempt recompute"),
        ("G3", "--preempt swap --swap-space 1MiB"),
        ("G5", "--block-size 1"),
    ] {
        let flags: Vec<&str> = flags
            .split(' ')
            .chain(["--max-model-len", "256", "--kv-memory", "1MiB"])
            .collect();
        let server = Server::start(&flags);
        let canary = Canary::new(&server);
        // G1: alone it could never end.
        let pages = server.get("/v1/memory").json()["kv_pages"]["total"]
            .as_u64()
            .unwrap();
        println!("{case}: {pages} pages");
        let n = 6;
        for round in 0..if case == "G2" { 2 } else { 1 } {
            let got: Vec<Vec<String>> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..n)
                    .map(|i| {
                        scope.spawn({
                            let server = &server;
                            let body = body(i, 90);
                            move || texts(&server.complete(body))
                        })
                    })
                    .collect();
                all.into_iter().map(|t| t.join().unwrap()).collect()
            });
            assert_eq!(got, want, "{case}, round {round}");
            // G13.
            canary.check(&server, case);
        }
    }
    // G1.
    let server = Server::start(&["--kv-memory", "200KiB", "--max-model-len", "64"]);
    let canary = Canary::new(&server);
    let many =
        json!({ "prompt": PROMPT, "max_tokens": 40, "ignore_eos": true, "n": 16 }).to_string();
    let answer = server.post(C, &many);
    assert_eq!(answer.status, 400, "{}", answer.body);
    let error = answer.json()["error"].clone();
    assert_eq!(error["code"], "exceeds_kv_cache");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("needs") && message.contains("there are"),
        "{message}"
    );
    canary.check(&server, "G1");

    // G8: many prompts that nobody sends again.
    let thrice = [PROMPT; 3].join(" ");
    let hot = json!({ "prompt": thrice, "max_tokens": 1 });
    for i in 0..60 {
        let body = json!({ "prompt": format!("{i} {PROMPT} {PROMPT}"), "max_tokens": 1 });
        let _ = roomy.complete(body);
        if i % 10 == 0 {
            let _ = roomy.complete(hot.clone());
        }
    }
    let again = roomy.complete(hot);
    assert!(
        again["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
            > 0,
        "{again}"
    );
}

/// C19: whoever asks to go first by far does, for as long as he asks; whoever has to wait is told after a time.
#[test]
fn whoever_is_passed_for_too_long_is_told() {
    let server = Server::start(&["--max-num-seqs", "1", "--queue-timeout", "3"]);
    let canary = Canary::new(&server);
    let body = |max_tokens: u64, priority: i64| {
        json!({ "prompt": PROMPT, "max_tokens": max_tokens, "ignore_eos": true, "priority": priority })
            .to_string()
    };
    let most = i64::from(i32::MIN);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Some are always in the queue before the one that runs has ended.
        for _ in 0..8 {
            scope.spawn(|| {
                // Not for ever, where the test ends before it says so.
                let began = Instant::now();
                let is_over = || over.load(std::sync::atomic::Ordering::Relaxed);
                while !is_over() && began.elapsed() < Duration::from_secs(60) {
                    server.post(C, &body(20, most));
                }
            });
        }
        server.wait_until("busy", |s| {
            s.get("/v1/memory").json()["requests"]["waiting"]
                .as_u64()
                .unwrap()
                > 4
        });
        let began = Instant::now();
        let low = server.post(C, &body(1, i64::from(i32::MAX)));
        let took = began.elapsed();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(low.status, 503, "{took:?}: {}", low.body);
        assert_eq!(low.json()["error"]["code"], "queue_timeout");
        assert!(low.headers.contains("retry-after: "));
        let range = Duration::from_secs(3)..Duration::from_secs(20);
        assert!(range.contains(&took), "{took:?}");
    });
    // Without them it is served.
    let low = server.post(C, &body(1, i64::from(i32::MAX)));
    assert_eq!(low.status, 200, "{}", low.body);
    canary.check(&server, "C19");
}

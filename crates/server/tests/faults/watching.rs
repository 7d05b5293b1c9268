//! Whoever watches is answered by what was published, whatever the engine does.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use plimsoll_server::{Planner, Unanswered};
use plimsoll_units::Bytes;
use serde_json::{Value, json};

use crate::server::*;

/// The value of a sample, as it stands in the text.
fn sample(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|l| l.strip_prefix(name));
    let value = line.and_then(|l| l.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("no {name}"))
        .parse()
        .unwrap()
}

fn number(memory: &str, name: &str) -> u64 {
    let rest = memory.split(&format!("\"{name}\":")).nth(1).unwrap();
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap();
    rest[..end].parse().unwrap()
}

#[test]
fn a_step_that_hangs_holds_no_watcher_up() {
    let server = Server::start();
    let hanging = server.send(&json!({ "prompt": [HANGS], "max_tokens": 1 }));
    std::thread::sleep(Duration::from_millis(200));
    let mut ages = Vec::new();
    for _ in 0..2 {
        let began = Instant::now();
        let metrics = server.get("/metrics");
        assert!(
            began.elapsed() < Duration::from_millis(100),
            "{:?}",
            began.elapsed()
        );
        assert!(sample(&metrics, "plimsoll:step_under_way_seconds") > 0.1);
        let began = Instant::now();
        let memory = server.get("/v1/memory");
        // It waits for the step for a while, and then says how old it is.
        assert!(
            began.elapsed() < Duration::from_millis(500),
            "{:?}",
            began.elapsed()
        );
        assert!(number(&memory, "step_ms") > 100);
        ages.push(number(&memory, "age_ms"));
    }
    assert!(ages[0] >= 200 && ages[1] > ages[0], "{ages:?}");
    read(&mut { hanging });
    let memory = server.get("/v1/memory");
    assert!(number(&memory, "age_ms") < 200 && memory.contains("\"step_ms\":null"));
    server.stop();
}

#[test]
fn counters_go_on_over_a_restart() {
    let server = Server::start();
    server.ask(10, 3);
    let before = server.get("/metrics");
    let steps = sample(&before, "plimsoll:engine_steps_total");
    assert!(steps >= 3.0);
    assert!(server.ask(PANICS, 3).contains("engine_failed"));
    server.until("ready");
    server.ask(10, 3);
    let after = server.get("/metrics");
    assert!(sample(&after, "plimsoll:engine_steps_total") >= steps + 3.0);
    assert_eq!(sample(&after, "plimsoll:restarts_total"), 1.0);
    assert_eq!(sample(&after, "plimsoll:panics_total"), 1.0);
    assert_eq!(sample(&after, "plimsoll:requests_total"), 3.0);
    let ended = |reason: &str| {
        let name = format!(
            "vllm:request_success_total{{model_name=\"fake\",finished_reason=\"{reason}\"}}"
        );
        sample(&after, &name)
    };
    assert_eq!(
        ["stop", "length", "abort", "error"].map(ended),
        [0.0, 2.0, 0.0, 1.0]
    );
    assert_eq!(
        sample(&after, "vllm:generation_tokens_total{model_name=\"fake\"}"),
        6.0
    );
    server.stop();
}

/// Whether whoever is asked next for the most memory that there was makes a mistake.
static GOES_WRONG: AtomicBool = AtomicBool::new(false);

fn peak() -> Option<Bytes> {
    assert!(!GOES_WRONG.swap(false, Ordering::AcqRel), "as it was told");
    None
}

fn plan(asked: Value) -> Result<Value, Unanswered> {
    assert_ne!(asked["wrong"], true, "as it was told");
    Ok(json!({ "plan": "made" }))
}

/// What a command puts into the server makes the mistakes: one where clients are talked to, one where work is done.
#[test]
fn a_handler_that_panics_is_one_500_and_no_more() {
    let server = Server::with(|options| {
        options.peak = Some(peak);
        let planner = Planner::new(json!({}), |a, _| plan(a), |a, _| plan(a));
        options.planner = Some(planner);
    });
    let panics = |server: &Server| sample(&server.get("/metrics"), "plimsoll:panics_total");
    let mut other = under_way(&server);
    assert_eq!(panics(&server), 0.0);

    // The next request of the same connection is answered as ever.
    GOES_WRONG.store(true, Ordering::Release);
    let mut socket = server.open();
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
    let both = get("/metrics", "") + &get("/metrics", "Connection: close\r\n");
    socket.write_all(both.as_bytes()).unwrap();
    let answers = read(&mut socket);
    let (first, second) = answers.split_at(answers.rfind("HTTP/1.1 ").unwrap());
    assert!(first.starts_with("HTTP/1.1 500"), "{answers}");
    assert!(first.contains("\"internal_error\""), "{answers}");
    assert!(second.starts_with("HTTP/1.1 200"), "{answers}");
    assert!(!answers.contains("as it was told"), "{answers}");
    assert_eq!(sample(&answers, "plimsoll:panics_total"), 1.0);

    // More often than there are turns, places and threads.
    let ask = |question: &Value| {
        let body = question.to_string();
        let mut socket = server.open();
        write!(
            socket,
            "POST /api/plan HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        read(&mut socket)
    };
    for _ in 0..6 {
        let answer = ask(&json!({ "wrong": true }));
        assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
        assert!(answer.contains("\"internal_error\""), "{answer}");
        assert!(!answer.contains("as it was told"), "{answer}");
    }
    let answer = ask(&json!({}));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(panics(&server), 7.0);

    // Nobody else noticed, the engine least of all.
    other.read_exact(&mut [0; 4000]).unwrap();
    drop(other);
    assert!(server.ask(10, 3).contains(CANARY));
    assert!(server.health().starts_with("HTTP/1.1 200"));
    assert_eq!(
        sample(&server.get("/metrics"), "plimsoll:restarts_total"),
        0.0
    );
    server.stop();
}

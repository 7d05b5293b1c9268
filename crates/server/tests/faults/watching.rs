//! Whoever watches is answered by what was published, whatever the engine does.

use std::time::{Duration, Instant};

use serde_json::json;

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

//! Steps that panic, fail or hang.

use std::io::Read;
use std::time::Duration;

use plimsoll_server::ServeError;
use serde_json::json;

use crate::server::*;

#[test]
fn after_a_panic_the_engine_begins_anew_a_few_times() {
    let server = Server::start();
    let canary = server.ask(10, 3);
    assert!(canary.contains(CANARY), "{canary}");
    let mut other = under_way(&server);
    for n in 1..=3 {
        let answer = server.ask(PANICS, 1);
        assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
        assert_eq!(answer.matches("engine_failed").count(), 1, "{answer}");
        let health = server.health();
        assert!(health.starts_with("HTTP/1.1 503"), "{health}");
        assert!(health.contains("\"restarting\"") && health.contains("reason"));
        let rest = read(&mut other);
        assert_eq!(rest.matches("engine_failed").count(), 1, "{rest}");
        assert!(!rest.contains("[DONE]"));
        // It waits, and is answered as before.
        assert!(server.ask(10, 3).contains(CANARY));
        let health = server.health();
        assert!(health.starts_with("HTTP/1.1 200"), "{health}");
        other = under_way(&server);
        let restarts = server.get("/v1/memory");
        assert!(
            restarts.contains(&format!("\"engine_restarts\":{n}")),
            "{restarts}"
        );
    }
    let answer = server.ask(PANICS, 1);
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert_eq!(read(&mut other).matches("engine_failed").count(), 1);
    let (served, engine) = server.thread.join().unwrap();
    assert!(matches!(served, Err(ServeError::Engine)), "{served:?}");
    assert!(engine.is_none());
}

#[test]
fn what_lies_long_back_is_forgiven() {
    // Each wait before it begins anew is longer than this.
    let server = Server::with(|options| options.restart_window = Duration::from_millis(100));
    for n in 1..=5 {
        let answer = server.ask(PANICS, 1);
        assert!(answer.contains("engine_failed"), "{answer}");
        assert!(server.ask(10, 3).contains(CANARY));
        let memory = server.get("/v1/memory");
        let told = format!("\"engine_restarts\":{n}");
        assert!(memory.contains(&told), "{memory}");
    }
    // And all of it can be decided again.
    server.stop();
}

#[test]
fn what_a_restarted_engine_decided_can_be_decided_again() {
    let server = Server::start();
    // Blocks of it are found again, until the restart.
    let long: Vec<u32> = (0..64).collect();
    let long = json!({ "prompt": long, "max_tokens": 4 });
    let first = read(&mut server.send(&long));
    assert!(first.contains("\"cached_tokens\":0"), "{first}");
    let other = under_way(&server);
    assert!(server.ask(PANICS, 1).contains("engine_failed"));
    drop(other);
    let second = read(&mut server.send(&long));
    assert!(second.contains("\"cached_tokens\":0"), "{second}");
    let third = read(&mut server.send(&long));
    assert!(third.contains("\"cached_tokens\":48"), "{third}");
    server.stop();
}

#[test]
fn an_executor_that_cannot_go_on_is_begun_anew() {
    let server = Server::start();
    // Whoever asks meanwhile is one of those who see steps fail.
    let answer = server.ask(BREAKS, 1);
    assert!(answer.contains("engine_failed"), "{answer}");
    for _ in 0..2 {
        assert!(server.ask(10, 3).contains("engine_failed"));
    }
    assert!(server.ask(10, 3).contains(CANARY));
    let memory = server.get("/v1/memory");
    assert!(memory.contains("\"engine_restarts\":1"), "{memory}");
    server.stop();
}

#[test]
fn steps_that_fail_for_ever_give_up_whoever_is_in_them() {
    let server = Server::start();
    let answer = server.ask(FAILS, 1);
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert!(answer.contains("engine_failed"), "{answer}");
    assert!(server.ask(10, 3).contains(CANARY));
    assert!(server.health().starts_with("HTTP/1.1 200"));
    server.stop();
}

#[test]
fn no_numbers_end_one_request_and_no_other() {
    let server = Server::start();
    let mut other = under_way(&server);
    let answer = server.ask(NO_NUMBERS, 1);
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert!(answer.contains("numerical_error"), "{answer}");
    let stream = json!({ "prompt": [NO_NUMBERS], "max_tokens": 1, "stream": true });
    let answer = read(&mut server.send(&stream));
    assert!(answer.contains("numerical_error"), "{answer}");
    assert!(!answer.contains("[DONE]"), "{answer}");
    other.read_exact(&mut [0; 4000]).unwrap();
    drop(other);
    assert!(server.ask(10, 3).contains(CANARY));
    server.stop();
}

#[test]
fn health_is_red_while_a_step_hangs() {
    let server = Server::start();
    let hanging = server.send(&json!({ "prompt": [HANGS], "max_tokens": 1 }));
    server.until("\"stuck\"");
    assert!(server.health().starts_with("HTTP/1.1 503"));
    assert!(server.get("/health/live").starts_with("HTTP/1.1 200"));
    let mut hanging = hanging;
    assert!(read(&mut hanging).starts_with("HTTP/1.1 200"));
    assert!(server.health().starts_with("HTTP/1.1 200"));
    server.stop();
}

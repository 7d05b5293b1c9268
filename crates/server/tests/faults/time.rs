//! Limits in time: of each, what is just under it and what is over.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::*;

const HEAD: &str = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";

/// Health as it is asked for on a connection that stays.
fn health(socket: &mut TcpStream) -> bool {
    if write!(socket, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n").is_err() {
        return false;
    }
    let mut some = [0; 4096];
    // Small answers come in one piece.
    let read = socket.read(&mut some).unwrap_or(0);
    some[..read].starts_with(b"HTTP/1.1 200")
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn headers_have_their_time() {
    let server = Server::with(|o| o.header_timeout = ms(600));
    // Nothing at all, headers that never end, and headers of which a byte comes now and then.
    let silent = server.open();
    let mut begun = server.open();
    write!(begun, "GET /health HTTP/1.1\r\nHost: x\r\n").unwrap();
    let mut slow = server.open();
    let began = Instant::now();
    let mut sent = 0;
    for byte in b"GET /health HTTP/1.1\r\nX-Slow: "
        .iter()
        .chain(std::iter::repeat(&b'x'))
    {
        if slow.write_all(&[*byte]).is_err() || began.elapsed() > ms(5000) {
            break;
        }
        sent += 1;
        std::thread::sleep(ms(50));
    }
    assert!((6..60).contains(&sent), "{sent} bytes were taken");
    for mut socket in [silent, begun] {
        let answer = read_some(&mut socket);
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    assert!(began.elapsed() < ms(5000));
    // Just in time.
    let mut socket = server.open();
    write!(socket, "GET /health HTTP/1.1\r\n").unwrap();
    std::thread::sleep(ms(200));
    write!(socket, "Host: x\r\nConnection: close\r\n\r\n").unwrap();
    assert!(read(&mut socket).starts_with("HTTP/1.1 200"));
    server.stop();
}

/// What comes until the connection ends, in whichever way.
fn read_some(socket: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let _ = socket.read_to_end(&mut all);
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn bodies_have_their_time() {
    let server = Server::with(|o| o.body_timeout = ms(600));
    let mut late = server.open();
    write!(late, "{HEAD}Content-Length: 10\r\n\r\n{{").unwrap();
    // A byte now and then is no excuse.
    let mut slow = server.open();
    write!(slow, "{HEAD}Content-Length: 1000\r\n\r\n").unwrap();
    let began = Instant::now();
    while began.elapsed() < ms(900) && slow.write_all(b" ").is_ok() {
        std::thread::sleep(ms(50));
    }
    for socket in [&mut late, &mut slow] {
        let answer = read_some(socket);
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("body_timeout"), "{answer}");
    }
    let body = json!({ "prompt": [10], "max_tokens": 3 }).to_string();
    let mut socket = server.open();
    let (length, half) = (body.len(), body.len() / 2);
    write!(
        socket,
        "{HEAD}Connection: close\r\nContent-Length: {length}\r\n\r\n{}",
        &body[..half]
    )
    .unwrap();
    std::thread::sleep(ms(200));
    write!(socket, "{}", &body[half..]).unwrap();
    assert!(read(&mut socket).contains(CANARY));
    server.stop();
}

#[test]
fn connections_wait_for_their_next_request_for_some_time() {
    let server = Server::with(|o| {
        o.idle_timeout = ms(900);
        // Not what ends them.
        o.header_timeout = ms(100);
    });
    let mut socket = server.open();
    assert!(health(&mut socket));
    std::thread::sleep(ms(400));
    assert!(health(&mut socket), "it waits longer than for headers");
    let began = Instant::now();
    assert_eq!(socket.read(&mut [0; 8]).unwrap(), 0);
    let took = began.elapsed();
    assert!(took > ms(600) && took < ms(5000), "{took:?}");
    server.stop();
}

#[test]
fn a_request_has_its_time() {
    let server = Server::with(|o| o.request_timeout = ms(700));
    let mut body = long();
    let began = Instant::now();
    let stream = read(&mut server.send(&body));
    assert!(stream.starts_with("HTTP/1.1 200"), "{stream}");
    assert_eq!(stream.matches("request_timeout").count(), 1, "{stream}");
    assert!(!stream.contains("[DONE]"));
    body["stream"] = false.into();
    let whole = read(&mut server.send(&body));
    assert!(whole.starts_with("HTTP/1.1 504"), "{whole}");
    assert!(whole.contains("x-should-retry: false"), "{whole}");
    assert!(began.elapsed() < ms(6000));
    server.is_free();
    assert!(server.ask(10, 3).contains(CANARY));
    server.stop();
}

#[test]
fn whoever_waits_too_long_never_runs() {
    let server = Server::with(|o| o.queue_timeout = ms(500));
    // All places are taken.
    let all: Vec<TcpStream> = (0..8).map(|_| under_way(&server)).collect();
    let mut waits = server.send(&json!({ "prompt": [10], "max_tokens": 3 }));
    let mut streams = server.send(&json!({ "prompt": [10], "max_tokens": 3, "stream": true }));
    let answer = read(&mut waits);
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("queue_timeout") && answer.contains("retry-after: "));
    assert!(read(&mut streams).contains("queue_timeout"));
    // Those that run are not meant by it, and one that waits a little is served.
    let mut waits = server.send(&json!({ "prompt": [10], "max_tokens": 3 }));
    std::thread::sleep(ms(100));
    drop(all);
    assert!(read(&mut waits).contains(CANARY));
    server.is_free();
    server.stop();
}

/// Sends requests whose answers nobody reads, and waits until none of them is in flight: what each was told.
fn unread(server: &Server, max_tokens: u32) -> Vec<String> {
    let mut body = long();
    body["max_tokens"] = max_tokens.into();
    let stalled: Vec<TcpStream> = (0..4).map(|_| server.send(&body)).collect();
    let began = Instant::now();
    while !server.get("/v1/memory").contains("\"running\":4") {
        assert!(began.elapsed() < ms(5000));
    }
    // Others are served meanwhile.
    while server.is_busy() {
        assert!(server.ask(10, 3).contains(CANARY));
        assert!(began.elapsed() < ms(20_000), "never cut off");
    }
    // As long as its last part may lie in the mailbox.
    std::thread::sleep(ms(1000));
    stalled.into_iter().map(|mut s| read_some(&mut s)).collect()
}

#[test]
fn whoever_does_not_read_is_cut_off_and_stops_nobody() {
    // More than the system holds, since what a token is told with is long; less than a mailbox.
    let server = Server::with(|o| {
        o.write_timeout = ms(500);
        o.name = "n".repeat(2000);
    });
    for told in unread(&server, 800) {
        assert!(!told.contains("[DONE]"), "it was whole");
    }
    server.stop();
}

#[test]
fn whoever_is_far_behind_is_cut_off() {
    // More than a mailbox holds too, long before the time is over.
    let server = Server::with(|o| {
        o.write_timeout = ms(60_000);
        o.name = "n".repeat(2000);
    });
    for told in unread(&server, 4000) {
        assert_eq!(told.matches("slow_client").count(), 1);
        assert!(!told.contains("[DONE]"));
    }
    server.stop();
}

#[test]
fn whoever_is_in_when_it_stops_has_some_time() {
    let server = Server::with(|o| o.drain_timeout = ms(600));
    let mut stream = under_way(&server);
    let mut whole = long();
    whole["stream"] = false.into();
    let mut whole = server.send(&whole);
    let mut short = server.send(&json!({ "prompt": [10], "max_tokens": 60 }));
    std::thread::sleep(ms(50));
    let began = Instant::now();
    server.stop.send(()).unwrap();
    let answer = read(&mut short);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let rest = read(&mut stream);
    assert_eq!(rest.matches("shutting_down").count(), 1, "{rest}");
    assert!(!rest.contains("[DONE]"));
    assert!(read(&mut whole).starts_with("HTTP/1.1 503"));
    let took = began.elapsed();
    assert!(took > ms(500) && took < ms(5000), "{took:?}");
    server.ended();
}

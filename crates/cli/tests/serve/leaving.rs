//! Clients that go away.

use std::io::Read;

use serde_json::json;

use crate::server::*;

#[test]
fn whoever_leaves_takes_all_with_him() {
    let server = Server::start(&["--max-num-seqs", "2"]);
    let body = json!({
        "prompt": PROMPT, "max_tokens": 900, "ignore_eos": true, "stream": true, "n": 2,
    });
    let long = body.to_string();
    let headers = "Content-Type: application/json\r\n";
    // Mid-stream.
    let mut socket = server.send("POST", "/v1/completions", headers, &long);
    let mut some = [0; 512];
    socket.read_exact(&mut some).unwrap();
    assert!(!server.is_free());
    // In the queue: the first has all places.
    let queued = server.send("POST", "/v1/completions", headers, &long);
    let waiting = |s: &Server| s.get("/v1/memory").json()["requests"]["waiting"].clone();
    server.wait_until("queued", |s| waiting(s) == 1);
    drop(queued);
    server.wait_until("out of the queue", |s| waiting(s) == 0);
    assert!(!server.is_free(), "the first goes on");
    drop(socket);
    server.wait_until("free", Server::is_free);
    // One that waits for a whole answer.
    let mut whole = body;
    whole["stream"] = false.into();
    let socket = server.send("POST", "/v1/completions", headers, &whole.to_string());
    server.wait_until("running", |s| !s.is_free());
    drop(socket);
    server.wait_until("free again", Server::is_free);
    // Not by having been done: it takes longer than that.
    let steps = server.get("/v1/memory").json()["engine_steps"]
        .as_u64()
        .unwrap();
    assert!(steps < 1800, "{steps}");
}

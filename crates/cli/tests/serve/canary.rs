//! The canary: what must be the same after every case, whatever the case did.
//!
//! Two fixed requests, greedy and sampled, give the very same answers; health is 200; nothing runs, waits or holds a page;
//! the process has as many open files as before, and no more memory than it may have grown by.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::*;

/// How long whatever a case left may take to be gone.
const SETTLE: Duration = Duration::from_secs(5);
/// What the process may grow by: pieces that its allocator keeps.
const GROWTH_BYTES: u64 = 32 << 20;

/// A server as it was before all cases.
pub(crate) struct Canary {
    want: [Value; 2],
    files: usize,
    resident_bytes: u64,
}

impl Canary {
    /// Takes down how `server` answers and what it holds.
    pub(crate) fn new(server: &Server) -> Self {
        // The first answers touch what all later ones use.
        let _ = sing(server);
        server.wait_until("free", Server::is_free);
        let want = sing(server);
        let began = Instant::now();
        // Connections of these answers are closed by and by.
        let mut files = server.open_files();
        while began.elapsed() < Duration::from_millis(100) {
            std::thread::sleep(Duration::from_millis(10));
            files = files.min(server.open_files());
        }
        Self {
            want,
            files,
            resident_bytes: server.resident_bytes(),
        }
    }

    /// Asserts that nothing is left of `case`.
    pub(crate) fn check(&self, server: &Server, case: &str) {
        let began = Instant::now();
        let settled = |what: &str, is: &dyn Fn() -> bool| {
            while !is() {
                assert!(began.elapsed() < SETTLE, "{case}: never {what}");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        settled("free", &|| server.is_free());
        assert_eq!(sing(server), self.want, "{case}: another answer");
        let health = server.get("/health/ready");
        assert_eq!(health.status, 200, "{case}: {}", health.body);
        settled("rid of files", &|| server.open_files() <= self.files);
        let grown = server.resident_bytes().saturating_sub(self.resident_bytes);
        assert!(grown <= GROWTH_BYTES, "{case}: {grown} bytes more");
    }
}

/// The answers to the fixed requests, less what differs by design. The prompt has no whole block, so that what
/// the prefix cache holds does not show in `usage`.
fn sing(server: &Server) -> [Value; 2] {
    let sampling = [
        json!({ "temperature": 0 }),
        json!({ "temperature": 1, "seed": 11, "top_p": 0.9 }),
    ];
    sampling.map(|sampling| {
        let mut body = json!({ "prompt": PROMPT, "max_tokens": 6, "logprobs": 3 });
        let more = sampling.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(more);
        let mut answer = server.complete(body);
        for name in ["id", "created"] {
            answer.as_object_mut().unwrap().remove(name).unwrap();
        }
        answer
    })
}

#[test]
fn the_canary_sees_what_is_left_behind() {
    let server = Server::start(&[]);
    let canary = Canary::new(&server);
    canary.check(&server, "nothing");
    // A connection that stays open is a file too many, and a request that runs holds pages.
    let long = json!({ "prompt": PROMPT, "max_tokens": 900, "ignore_eos": true, "stream": true });
    let json = "Content-Type: application/json\r\n";
    let socket = server.send("POST", "/v1/completions", json, &long.to_string());
    server.wait_until("running", |s| !s.is_free());
    assert!(server.open_files() > canary.files);
    drop(socket);
    canary.check(&server, "one that left");
}

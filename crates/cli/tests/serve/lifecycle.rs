//! Starting, being full, letting in, and stopping.

use std::io::Read;
use std::process::Command;

use serde_json::json;

use crate::server::*;

#[test]
fn a_full_queue_says_when_to_come_back() {
    let args = ["--max-num-seqs", "1", "--max-num-queued-reqs", "2"];
    let server = Server::start(&args);
    let long = json!({ "prompt": PROMPT, "max_tokens": 900, "ignore_eos": true }).to_string();
    let json = "Content-Type: application/json\r\n";
    let _running = server.send("POST", "/v1/completions", json, &long);
    let count = |s: &Server, what: &str| s.get("/v1/memory").json()["requests"][what].clone();
    server.wait_until("running", |s| count(s, "running") == 1);
    // More prompts than ever may wait: another try would not help.
    let three = json!({ "prompt": [PROMPT, PROMPT, PROMPT], "max_tokens": 1 }).to_string();
    let never = server.post("/v1/completions", &three);
    assert_eq!(never.status, 400, "{}", never.body);
    let error = never.json()["error"].clone();
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("invalid_value"), &json!("prompt"))
    );
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("--max-num-queued-reqs")
    );
    let _waits = server.send("POST", "/v1/completions", json, &long);
    server.wait_until("waiting", |s| count(s, "waiting") == 1);
    // Two prompts of one body, of which only one has a place: neither stays.
    let two = json!({ "prompt": [PROMPT, PROMPT], "max_tokens": 900 }).to_string();
    assert_eq!(server.post("/v1/completions", &two).status, 429);
    let steps = |s: &Server| s.get("/v1/memory").json()["engine_steps"].as_u64().unwrap();
    let then = steps(&server);
    server.wait_until("a step on", |s| steps(s) > then + 1);
    assert_eq!(count(&server, "waiting"), 1);
    let _waiting = server.send("POST", "/v1/completions", json, &long);
    server.wait_until("waiting", |s| count(s, "waiting") == 2);
    let refused = server.post("/v1/completions", &long);
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    assert!(refused.headers.contains("retry-after: "));
    assert!(refused.headers.contains("retry-after-ms: "));
    // Health does not wait for anybody.
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn told_to_stop_it_ends_what_it_began() {
    let server = Server::start(&[]);
    let body = json!({ "prompt": PROMPT, "max_tokens": 700, "ignore_eos": true, "stream": true });
    let json = "Content-Type: application/json\r\n";
    let mut socket = server.send("POST", "/v1/completions", json, &body.to_string());
    let mut raw = vec![0; 512];
    socket.read_exact(&mut raw).unwrap();
    server.signal("-TERM");
    server.wait_until("draining", |s| s.get("/health/ready").status == 503);
    assert_eq!(server.get("/health/live").status, 200);
    let refused = server.post("/v1/completions", "{\"prompt\":\"x\"}");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error"]["code"], "shutting_down");
    assert!(refused.headers.contains("retry-after: "));
    socket.read_to_end(&mut raw).unwrap();
    let chunks = Answer::read(&raw).chunks();
    assert_eq!(streamed(&chunks, 1).1, ["length"]);
    drop(socket);
    let (status, said) = server.ended();
    assert!(status.success(), "{status:?} {said}");
    assert!(said.contains("used at most"), "{said}");

    // Told twice, it waits for nobody.
    let server = Server::start(&[]);
    let mut socket = server.send("POST", "/v1/completions", json, &body.to_string());
    socket.read_exact(&mut [0; 512]).unwrap();
    server.signal("-INT");
    server.wait_until("draining", |s| s.get("/health/ready").status == 503);
    server.signal("-INT");
    let (status, said) = server.ended();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("E-SERVE-003"), "{said}");
}

#[test]
fn only_whoever_has_the_key_comes_in() {
    let server = Server::start(&["--api-key", "open-sesame"]);
    let with = |auth: &str| format!("Content-Type: application/json\r\n{auth}");
    let body = json!({ "prompt": PROMPT, "max_tokens": 1 }).to_string();
    let routes = [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/demo"),
        ("GET", "/v1/memory"),
        ("GET", "/version"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
    ];
    for (method, path) in routes {
        for bad in [
            "",
            "Authorization: Bearer wrong-sesame\r\n",
            "Authorization: Bearer open-sesam\r\n",
            "Authorization: Bearer open-sesame2\r\n",
            "Authorization: Basic open-sesame\r\n",
            "Authorization: open-sesame\r\n",
            "Authorization: Bearer\r\n",
            "Authorization: Bearer open-sesame\r\nAuthorization: Bearer x\r\n",
        ] {
            let answer = server.ask(method, path, &with(bad), &body);
            assert_eq!(answer.status, 401, "{path} {bad}: {}", answer.body);
            assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
            assert!(answer.headers.contains("www-authenticate: bearer"));
        }
    }
    for open in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(server.get(open).status, 200);
    }
    let key = with("Authorization: Bearer open-sesame\r\n");
    assert_eq!(
        server.ask("POST", "/v1/completions", &key, &body).status,
        200
    );
    assert!(!server.card.contains("open-sesame"));
}

#[test]
fn it_does_not_start_where_it_must_not() {
    let run = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
            .arg("serve")
            .args(args)
            .env_remove("PLIMSOLL_API_KEY")
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, said) = run(&["--host", "0.0.0.0", "--port", "0"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("E-SERVE-001") && said.contains("--allow-anonymous"));
    let (code, said) = run(&["--api-key", ""]);
    assert_eq!(code, Some(2), "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, said) = run(&["--port", &port]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("E-SERVE-002"), "{said}");
    let missing = std::env::temp_dir().join("plimsoll-no-such-tenants.toml");
    let (code, said) = run(&["--tenants", missing.to_str().unwrap()]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("E-TENANT-001"), "{said}");
}

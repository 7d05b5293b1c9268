//! The memory of a server under load is what was planned.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use serde_json::{Value, json};

use crate::server::*;

/// Bytes of each term of the plan, in all and of the HTTP side.
fn planned(flags: &[&str]) -> (u64, u64) {
    let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["serve", "--dry-run", "--json", "--threads", "1"])
        .args(flags)
        .output()
        .unwrap();
    let map: Value = serde_json::from_slice(&out.stdout).unwrap();
    let sum = |start: &str| {
        let terms = map["terms"].as_array().unwrap().iter();
        let terms = terms.filter(|t| t["name"].as_str().unwrap().starts_with(start));
        terms.map(|t| t["bytes"].as_u64().unwrap()).sum()
    };
    (sum(""), sum("HTTP"))
}

#[test]
fn plan_prints_what_serve_commits() {
    let flags = "--max-model-len 512 --max-num-seqs 4 --threads 3 --memory 4GiB";
    let flags: Vec<&str> = flags.split(' ').collect();
    let run = |first: &[&str], last: &[&str]| -> Value {
        let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
            .args(first)
            .args(&flags)
            .args(last)
            .output()
            .unwrap();
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let serve = run(&["serve", "llama-3.2-1b"], &["--dry-run", "--json"]);
    let question = [
        "--engine",
        "plimsoll",
        "--gpu",
        "cpu",
        "--context",
        "512",
        "--json",
    ];
    let plan = run(&["plan", "llama-3.2-1b"], &question);
    let terms = |all: &Value| -> Vec<(String, u64)> {
        let all = all.as_array().unwrap().iter();
        let term = |t: &Value| {
            (
                t["name"].as_str().unwrap().to_owned(),
                t["bytes"].as_u64().unwrap(),
            )
        };
        let mut all: Vec<_> = all.map(term).collect();
        all.sort();
        all
    };
    let (serve, plan) = (terms(&serve["terms"]), terms(&plan["ranks"][0]["terms"]));
    assert_eq!(serve, plan);
    assert!(serve.iter().filter(|t| t.0.starts_with("HTTP ")).count() == 5);
}

#[test]
fn a_loaded_server_has_what_was_planned() {
    let flags = ["--max-connections", "400"];
    let (all, http) = planned(&flags);
    let server = Server::start(&flags);
    let ready = server.resident_bytes();
    // Headers that almost end, on many connections.
    let half: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut socket = TcpStream::connect(&server.address).unwrap();
            let filler = "x".repeat(12 << 10);
            write!(socket, "GET / HTTP/1.1\r\nHost: localhost\r\nX: {filler}").unwrap();
            socket
        })
        .collect();
    // Streams that nobody reads, whole answers with all log probabilities, and bodies as large as they may be.
    let c = "/v1/completions";
    let json = "Content-Type: application/json\r\n";
    let long =
        |n: u64| json!({ "prompt": "a", "max_tokens": 900, "ignore_eos": true, "logprobs": n });
    let mut stream = long(20);
    stream["stream"] = true.into();
    let unread: Vec<TcpStream> = (0..8)
        .map(|_| server.send("POST", c, json, &stream.to_string()))
        .collect();
    // Whoever watches and does not read, and a plan of a large model.
    let watching: Vec<TcpStream> = (0..4)
        .map(|_| server.send("GET", "/v1/memory/stream", "", ""))
        .collect();
    let config = json!({
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 4096,
        "num_hidden_layers": 1024, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14_336, "vocab_size": 32_000, "num_local_experts": 1024,
        "num_experts_per_tok": 2, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5,
    });
    let plan = json!({ "config": config.to_string(), "gpu": "h100", "users": 10, "context": 500 });
    let plan = plan.to_string();
    let ids = format!("{{\"tokens\":[{}]}}", vec!["1"; 520_000].join(","));
    let lists = format!(
        "{{\"prompt\":\"x\",\"tools\":[{}]}}",
        vec!["[]"; 340_000].join(",")
    );
    let text = json!({ "prompt": "a ".repeat(32_000) }).to_string();
    let told = long(20).to_string();
    let empty = String::new();
    let bodies = [
        ("/api/plan", &plan),
        ("/v1/memory", &empty),
        ("/detokenize", &ids),
        (c, &lists),
        ("/tokenize", &text),
        (c, &told),
    ];
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..24)
            .map(|i| {
                let (path, body) = bodies[i % bodies.len()];
                let server = &server;
                scope.spawn(move || {
                    let mut raw = Vec::new();
                    let method = if body.is_empty() { "GET" } else { "POST" };
                    let mut socket = server.send(method, path, json, body);
                    let _ = socket.read_to_end(&mut raw);
                    Answer::read(&raw).status
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let peak = server.peak_bytes();
    println!(
        "ready {ready}, at most {peak}, planned {all}, of it {http} for HTTP, {} used",
        peak.saturating_sub(ready)
    );
    assert!(
        statuses.iter().all(|s| [200, 400, 429, 503].contains(s)),
        "{statuses:?}"
    );
    assert!(
        statuses.iter().filter(|s| **s == 200).count() >= 8,
        "{statuses:?}"
    );
    assert!(peak <= all, "{peak} of {all}");
    assert!(peak.saturating_sub(ready) <= http);
    drop((half, unread, watching));
    server.wait_until("free", Server::is_free);
}

#[test]
fn an_answer_that_nobody_reads_keeps_its_room() {
    // Room for four answers with so many log probabilities.
    let server = Server::start(&["--max-connections", "16"]);
    let body = json!({
        "prompt": "a", "max_tokens": 900, "ignore_eos": true, "logprobs": 20, "temperature": 0,
    });
    let (path, json) = ("/v1/completions", "Content-Type: application/json\r\n");
    let ask = || server.post(path, &body.to_string());
    let unread: Vec<TcpStream> = (0..4)
        .map(|_| server.send("POST", path, json, &body.to_string()))
        .collect();
    server.wait_until("busy", |s| !s.is_free());
    server.wait_until("free", Server::is_free);
    // The engine is done with them, and all of them lie here.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let refused = ask();
    assert_eq!(refused.status, 429, "{}", refused.headers);
    assert!(
        refused.body.contains("take all the memory"),
        "{}",
        refused.body
    );
    for mut socket in unread {
        let mut raw = Vec::new();
        socket.read_to_end(&mut raw).unwrap();
        let answer = Answer::read(&raw).json();
        let told = answer["choices"][0]["logprobs"]["tokens"]
            .as_array()
            .unwrap()
            .len();
        assert_eq!(told, 900);
    }
    server.wait_until("let in again", |_| ask().status == 200);
}

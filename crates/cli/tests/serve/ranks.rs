//! A server of several ranks, on processors and on what stands in for GPUs.

use std::io::Read;

use serde_json::{Value, json};

use crate::generating::{Dir, generate, words};
use crate::server::{Answer, Server, texts};

/// Requests at once, each with a prompt and a seed of its own.
fn asked() -> Vec<(String, u64)> {
    (0..4).map(|i| (words(i, 8 + 3 * i), i as u64)).collect()
}

fn answers(server: &Server) -> Vec<Vec<String>> {
    let json = "Content-Type: application/json\r\n";
    let sockets: Vec<_> = asked()
        .into_iter()
        .map(|(prompt, seed)| {
            let body = json!({ "prompt": prompt, "max_tokens": 12, "n": 2, "seed": seed, "temperature": 0.9, "ignore_eos": true });
            server.send("POST", "/v1/completions", json, &body.to_string())
        })
        .collect();
    let answer = |mut socket: std::net::TcpStream| {
        let mut raw = Vec::new();
        socket.read_to_end(&mut raw).unwrap();
        texts(&Answer::read(&raw).json())
    };
    sockets.into_iter().map(answer).collect()
}

#[test]
fn ranks_answer_over_http_what_generate_says() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let generated: Vec<Vec<String>> = asked()
        .into_iter()
        .map(|(prompt, seed)| {
            let asked = [
                &model,
                "-p",
                &prompt,
                "-n",
                "12",
                "--samples",
                "2",
                "--ignore-eos",
            ];
            let seed = seed.to_string();
            let how = [
                "--temperature",
                "0.9",
                "--seed",
                &seed,
                "--json",
                "--tp",
                "2",
                "--device",
                "cpu",
            ];
            let out = generate(&[&asked[..], &how, &["--inputs", "f32"]].concat());
            texts(&serde_json::from_str::<Value>(&out).unwrap())
        })
        .collect();
    for (device, card) in [
        (
            &["--device", "cpu", "--inputs", "f32"][..],
            "device: 2 ranks on cpu (asked for); ranks meet in this process's memory",
        ),
        (
            &["--device", "fibers", "--batch-invariant"],
            "device: 2 ranks on fibers on this machine's processors (asked for); ranks meet through the host's memory: ",
        ),
    ] {
        let flags = [&[&model[..], "--tp", "2", "--max-num-seqs", "8"], device].concat();
        let mut server = Server::start(&flags);
        assert!(server.card.contains(card), "{}", server.card);
        assert_eq!(answers(&server), generated);
        server.wait_until("free", Server::is_free);
        // Killed, it starts again.
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        let server = Server::start(&flags);
        assert_eq!(answers(&server), generated);
        server.signal("-TERM");
        let (status, said) = server.ended();
        assert!(status.success(), "{said}");
        assert!(said.contains("memory of 2 ranks together"), "{said}");
    }
}

//! Ends that nobody asked for, and pauses. Group H of docs/reliability.md.

use std::io::Read;
use std::time::Duration;

use serde_json::json;

use crate::canary::Canary;
use crate::server::*;

#[test]
fn after_a_kill_it_starts_again_at_once() {
    // H1, H2: in a stream, with swap space in a folder.
    let folder = std::env::temp_dir().join(format!("plimsoll-crash-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let dir = folder.to_str().unwrap();
    let mut port = "0".to_owned();
    let mut sung = Vec::new();
    for _ in 0..3 {
        let flags = ["--swap-space", "1MiB", "--swap-dir", dir, "--port", &port];
        let mut server = Server::start(&flags);
        port = server.address.rsplit_once(':').unwrap().1.to_owned();
        sung.push(server.complete(json!({ "prompt": PROMPT, "max_tokens": 8, "temperature": 0 }))["choices"].clone());
        let long =
            json!({ "prompt": PROMPT, "max_tokens": 900, "ignore_eos": true, "stream": true });
        let json = "Content-Type: application/json\r\n";
        let mut socket = server.send("POST", "/v1/completions", json, &long.to_string());
        socket.read_exact(&mut [0; 512]).unwrap();
        // SIGKILL.
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        let left = std::fs::read_dir(&folder).unwrap().count();
        assert_eq!(left, 0, "its swap file had no name");
        drop(socket);
    }
    assert!(sung.iter().all(|s| *s == sung[0]));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn after_a_pause_it_goes_on() {
    // H12.
    let server = Server::start(&[]);
    let canary = Canary::new(&server);
    let body = json!({ "prompt": PROMPT, "max_tokens": 300, "ignore_eos": true, "temperature": 0 });
    let want = texts(&server.complete(body.clone()));
    let json = "Content-Type: application/json\r\n";
    let mut socket = server.send("POST", "/v1/completions", json, &body.to_string());
    server.signal("-STOP");
    std::thread::sleep(Duration::from_secs(1));
    server.signal("-CONT");
    let mut raw = Vec::new();
    socket.read_to_end(&mut raw).unwrap();
    assert_eq!(texts(&Answer::read(&raw).json()), want);
    canary.check(&server, "H12");
}

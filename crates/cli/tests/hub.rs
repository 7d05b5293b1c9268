//! `plimsoll generate org/name`, against a hub of our own on this machine that has the demo model.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

#[path = "../../host/tests/server/mod.rs"]
mod server;
#[path = "../../model/tests/support/mod.rs"]
mod support;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use server::{Answer, Files, Home, Seen, Server, repository};

const WEIGHTS: &str = "model.safetensors";

fn demo() -> Server {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let read = |name| (name, std::fs::read(folder.join(name)).unwrap());
    let names = ["config.json", "generation_config.json", "tokenizer.json"];
    let files: Files = names.into_iter().chain([WEIGHTS]).map(read).collect();
    Server::new(move |seen| {
        let mut answer = repository(&files, seen);
        // One content, one tag.
        let tag = format!("tag{}", seen.path.bytes().map(u32::from).sum::<u32>());
        answer.headers.retain(|(n, _)| n != "etag");
        answer = answer.with("etag", tag);
        answer
    })
}

fn plimsoll(home: &Home, server: &Server, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(args)
        .env("HF_HOME", &home.0)
        .env("HF_ENDPOINT", &server.address)
        .env("HF_HUB_DOWNLOAD_TIMEOUT", "1")
        .env("NO_COLOR", "1")
        .env_remove("HF_TOKEN")
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap()
}

fn of_weights(server: &Server) -> Vec<Seen> {
    let all = server.requests().into_iter();
    all.filter(|s| s.path.ends_with(WEIGHTS)).collect()
}

const PROMPT: [&str; 6] = ["-p", "She was", "-n", "12", "--temperature", "0"];

#[test]
fn a_model_of_the_hub_runs_and_then_runs_offline() {
    let (home, server) = (Home::new(), demo());
    let run = |args: &[&str]| {
        let out = plimsoll(&home, &server, &[args, &PROMPT].concat());
        assert!(out.status.success(), "{out:?}");
        out.stdout
    };
    let text = run(&["generate", "org/name"]);
    assert_eq!(text, run(&["generate", "demo"]));
    assert!(String::from_utf8_lossy(&text).starts_with("She was"));
    let n = server.requests().len();
    assert_eq!(text, run(&["generate", "org/name", "--offline"]));
    assert_eq!(text, run(&["generate", "org/name"]));
    assert_eq!(server.requests().len(), n);
}

#[test]
fn what_does_not_fit_is_refused_before_a_byte_of_weights() {
    let (home, server) = (Home::new(), demo());
    let begin = Instant::now();
    let args = ["generate", "org/name", "--memory", "70MiB"];
    let out = plimsoll(&home, &server, &[&args, &PROMPT[..]].concat());
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(3), "{text}");
    assert!(
        text.contains("E-FIT-001") && text.contains("try: "),
        "{text}"
    );
    // The header, of which 64 KiB are guessed, and nothing after it.
    let asked = of_weights(&server);
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].range.unwrap().1 < 64 << 10, "{asked:?}");
    // What it names fits, and only then the weights come.
    let hint = text.split('`').nth(1).unwrap().to_owned();
    let hint: Vec<&str> = hint.split_whitespace().collect();
    let out = plimsoll(&home, &server, &[&args, &PROMPT[..], &hint].concat());
    assert!(out.status.success(), "{hint:?} {out:?}");
    assert!(of_weights(&server).len() > 1);
}

#[test]
fn what_cannot_be_had_is_one_clear_error() {
    let fails = |server: &Server, args: &[&str], code: i32, says: &str| {
        let out = plimsoll(&Home::new(), server, &[args, &PROMPT].concat());
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{err}");
        assert!(err.contains(says) && err.contains("try: "), "{err}");
        assert!(!err.contains("panicked") && out.stdout.is_empty(), "{err}");
    };
    let server = demo();
    fails(
        &server,
        &["generate", "org/name", "--offline"],
        5,
        "not cached",
    );
    assert!(server.requests().is_empty());
    let gated = Server::new(|_| Answer::new("403 Forbidden").with("x-error-code", "GatedRepo"));
    fails(&gated, &["generate", "org/name"], 4, "HF_TOKEN");
    // Names of the catalogue that are hub ids, too, are asked for.
    fails(
        &gated,
        &["generate", "openai-community/gpt2"],
        4,
        "HF_TOKEN",
    );
    fails(&gated, &["generate", "gpt2"], 4, "openai-community/gpt2");
}

//! `plan --gpu a,b,c`, `--html`, `--csv`, `explain` and `man`, as a user types them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::process::{Command, Output};

use serde_json::Value;

fn run(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(line.split_whitespace())
        .env_remove("PLIMSOLL_GPU")
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

fn json(line: &str) -> Value {
    let out = run(line);
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{line}: {e}: {out:?}"))
}

/// What each card's plan says is what the plan of that card alone says.
#[test]
fn cards_compared_are_the_plans_of_each() {
    let load = "--users 64 --context 8k --json";
    let all = json(&format!("plan llama-3.1-70b --gpu h100,l40s,a10 {load}"));
    assert_eq!(all["schema"], "plimsoll.cards/1");
    let cards = all["cards"].as_array().unwrap();
    assert_eq!(cards.len(), 3);
    for card in cards {
        let name = card["device"].as_str().unwrap();
        let alone = json(&format!("plan llama-3.1-70b --gpu {name} {load}"));
        assert_eq!(card["plan"], alone, "{name}");
    }
}

#[test]
fn prices_name_the_cheapest_and_a_name_twice_is_one_card() {
    let out = run(
        "plan llama-3.1-8b --users 16 --context 4k --gpu h100,l40s,h100 --price h100=3/h --price l40s=1/h",
    );
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{text}");
    assert!(
        text.contains("Cheapest: 1 x l40s-48g at 1.00 per hour."),
        "{text}"
    );
    assert_eq!(
        text.matches("h100-80g-sxm").count(),
        1 + text.matches("note: h100").count(),
        "{text}"
    );
}

#[test]
fn a_load_that_no_card_carries_ends_with_3() {
    let out = run("plan llama-3.1-70b --users 4000 --context 128k --gpu t4,l4 --gpus 1");
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    let one = run("plan llama-3.1-8b --users 1 --context 2k --gpu t4,h100 --gpus 1");
    assert_eq!(
        one.status.code(),
        Some(0),
        "one that does is enough: {one:?}"
    );
}

#[test]
fn what_does_not_go_with_several_cards_is_said() {
    for (flags, said) in [
        ("--context 4k --gpu h100,any", "stands alone"),
        ("--context 4k --gpu ,", "names no card"),
        ("--context 4k --gpu h100,l40s --explain", "names several"),
        ("--workload azure-conv --gpu h100,l40s", "names several"),
        (
            "--context 4k --gpu h100,nosuch",
            "no device is called `nosuch`",
        ),
        (
            "--context 4k --method rule-of-thumb --html x.html",
            "no map",
        ),
    ] {
        let out = run(&format!("plan llama-3.1-8b {flags}"));
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(2), "{flags}: {text}");
        assert!(text.contains(said), "{flags}: {text}");
    }
}

#[test]
fn pages_and_tables_are_written_where_they_were_asked_for() {
    let dir = std::env::temp_dir().join(format!("plimsoll-cards-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (html, csv) = (dir.join("a.html"), dir.join("a.csv"));
    for gpu in ["h100", "h100,l40s"] {
        let line = format!(
            "plan qwen3-8b --users 8 --context 4k --gpu {gpu} --html {} --csv {}",
            html.display(),
            csv.display()
        );
        let out = run(&line);
        assert!(out.status.success(), "{line}: {out:?}");
        let page = std::fs::read_to_string(&html).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>") && page.contains("class=\"heat\""));
        assert_eq!(page.contains("<h2>Cards</h2>"), gpu.contains(','));
        let lines = std::fs::read_to_string(&csv).unwrap().lines().count();
        assert!(lines > 2, "{lines}");
    }
    let out = run("plan qwen3-8b --context 4k --gpu h100 --html /no/such/folder/a.html");
    assert_eq!(out.status.code(), Some(1));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn codes_are_explained_however_they_are_written() {
    for code in [
        "E-DEVICE-001",
        "e-device-001",
        "error[E-DEVICE-001]:",
        "queue_full",
    ] {
        let out = run(&format!("explain {code}"));
        assert!(out.status.success(), "{code}: {out:?}");
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(text.lines().count() >= 3, "{code}: {text}");
    }
    let out = run("explain E-NOSUCH-001");
    assert_eq!(out.status.code(), Some(4));
}

#[test]
fn every_command_has_a_manual_page() {
    let help = String::from_utf8(run("--help").stdout).unwrap();
    let commands = help
        .split("Commands:")
        .nth(1)
        .unwrap()
        .split("\n\n")
        .next()
        .unwrap();
    for line in commands
        .lines()
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
    {
        let name = line.split_whitespace().next().unwrap();
        if name == "help" {
            continue;
        }
        let out = run(&format!("man {name}"));
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(
            text.contains(&format!(".TH plimsoll-{name} 1")),
            "{name}: {text}"
        );
    }
    assert!(
        String::from_utf8(run("man").stdout)
            .unwrap()
            .contains(".TH plimsoll 1")
    );
    assert_eq!(run("man nosuch").status.code(), Some(2));
}

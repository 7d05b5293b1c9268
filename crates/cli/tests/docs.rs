//! Every command in README.md and docs/ is run, and prints what the page says it prints.
//!
//! In a fenced `console` block, a line `$ plimsoll ...` is a command, which may end in `| head -N`,
//! `| tail -N` or `| grep TEXT`; the lines after it are its output, stdout and stderr together. Run with
//! `UPDATE_DOCS=1` to write today's output into the pages, and read the difference.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs one command line of a page.
fn output_of(line: &str) -> Vec<String> {
    let mut parts = line.split(" | ");
    let command = parts.next().unwrap_or_default();
    // Quotes are for a reader's shell; no argument holds a space.
    let words: Vec<&str> = command
        .split_whitespace()
        .map(|w| w.trim_matches('\''))
        .collect();
    assert_eq!(
        words.first(),
        Some(&"plimsoll"),
        "only plimsoll is run from a page: {line}"
    );
    let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(&words[1..])
        .current_dir(root())
        .env_remove("PLIMSOLL_GPU")
        .env("NO_COLOR", "1")
        .output()
        .expect("the binary runs");
    let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&out.stderr));
    let mut lines: Vec<String> = text.lines().map(|l| l.trim_end().to_owned()).collect();
    for filter in parts {
        let words: Vec<&str> = filter.split_whitespace().collect();
        let count = |w: &str| {
            w.trim_start_matches('-')
                .parse::<usize>()
                .expect("a number of lines")
        };
        match words.as_slice() {
            ["head", n] => lines.truncate(count(n)),
            ["tail", n] => lines = lines.split_off(lines.len().saturating_sub(count(n))),
            ["grep", rest @ ..] => {
                let wanted = rest.join(" ");
                let wanted = wanted.trim_matches('\'');
                lines.retain(|l| l.contains(wanted));
            }
            _ => panic!("unknown filter `{filter}` in: {line}"),
        }
    }
    lines
}

/// The page with every block's output as it is today.
fn refreshed(page: &str) -> (String, usize) {
    let (mut out, mut commands, mut inside) = (Vec::new(), 0, false);
    for line in page.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
            out.push(line.to_owned());
        } else if inside {
            if let Some(command) = line.strip_prefix("$ ") {
                out.push(line.to_owned());
                out.extend(output_of(command));
                commands += 1;
            }
        } else {
            out.push(line.to_owned());
        }
    }
    (out.join("\n") + "\n", commands)
}

fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md")];
    for entry in std::fs::read_dir(root().join("docs")).expect("docs/ exists") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|e| e == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    pages
}

#[test]
fn pages_show_what_the_program_prints() {
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let mut commands = 0;
    for path in pages() {
        let page = std::fs::read_to_string(&path).expect("a page");
        let (fresh, n) = refreshed(&page);
        commands += n;
        if update {
            std::fs::write(&path, &fresh).expect("the page is writable");
        } else if page != fresh {
            let differing = page.lines().zip(fresh.lines()).find(|(a, b)| a != b);
            panic!(
                "{} is out of date: run `UPDATE_DOCS=1 cargo test --test docs` and read the difference; first: {differing:?}",
                path.display()
            );
        }
    }
    assert!(commands >= 10, "the pages run only {commands} commands");
}

/// The Rust sources under a folder, in one text.
fn sources(folder: &Path, all: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder of ours") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push_str(&std::fs::read_to_string(&path).expect("a source"));
        }
    }
}

/// docs/reliability.md has every case, and each test that it names exists.
#[test]
fn every_case_of_reliability_has_a_test_or_a_reason() {
    let page = std::fs::read_to_string(root().join("docs/reliability.md")).expect("the page");
    let mut code = String::new();
    sources(&root().join("crates"), &mut code);
    let is_test = |name: &str| {
        let at = code.find(&format!("\nfn {name}()"));
        let at = at.or_else(|| code.find(&format!("\n    fn {name}()")));
        at.is_some_and(|at| code[..at].trim_end().ends_with("#[test]"))
    };
    let mut cases = Vec::new();
    for line in page.lines().filter(|l| l.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{line}");
        let (case, holds, shown) = (cells[0], cells[2], cells[3]);
        if ["case", "---"].contains(&case) {
            continue;
        }
        let names: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        for name in &names {
            // A script with what it is to do, or a test.
            let script = name.split(' ').next().filter(|s| s.contains('/'));
            let there = script.map_or_else(|| is_test(name), |s| root().join(s).is_file());
            assert!(there, "{case}: there is no test {name}");
        }
        if names.is_empty() {
            let why = shown.strip_prefix("not applicable: ").unwrap_or("");
            assert!(shown.starts_with("not yet") || why.len() > 10, "{line}");
        } else {
            assert!(!holds.is_empty(), "{line}");
        }
        assert!(!cases.contains(&case.to_owned()), "{case} is there twice");
        cases.push(case.to_owned());
    }
    let groups = [
        ("A", 21),
        ("B", 10),
        ("C", 21),
        ("D", 13),
        ("E", 8),
        ("F", 15),
        ("G", 14),
        ("H", 12),
        ("M", 10),
        ("N", 10),
    ];
    let numbered = groups
        .iter()
        .flat_map(|(group, n)| (1..=*n).map(move |i| format!("{group}{i}")));
    let limits = [
        "header", "body", "queue", "total", "write", "drain", "idle", "step", "prefill",
        "template", "grammar", "tokenise", "hub",
    ];
    let limits = limits.iter().map(|l| format!("L {l}"));
    for case in numbered.chain(limits).chain(["O".to_owned()]) {
        assert!(cases.contains(&case), "{case} is missing");
    }
}

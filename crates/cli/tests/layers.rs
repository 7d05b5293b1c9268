//! The rules of the house, executed: crates are floors, a crate uses only floors below its own,
//! rooms on one floor do not know each other, and the pure crates touch nothing outside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Floor of each crate, as ARCHITECTURE.md draws them.
const FLOORS: &[(&str, u32)] = &[
    ("plimsoll-units", 0),
    ("plimsoll-model", 1),
    ("plimsoll-device", 1),
    ("plimsoll-program", 2),
    ("plimsoll-host", 2),
    ("plimsoll-kv", 3),
    ("plimsoll-kernels", 3),
    ("plimsoll-cuda", 3),
    ("plimsoll-plan", 4),
    ("plimsoll-schedule", 4),
    ("plimsoll-report", 5),
    ("plimsoll-runtime", 5),
    ("plimsoll-simulate", 6),
    ("plimsoll-server", 6),
    ("plimsoll", 7),
];

/// Crates without clock, thread, file, socket or hash order.
const PURE: &[&str] = &[
    "units", "model", "device", "program", "plan", "kv", "schedule", "simulate",
];

/// What a pure crate must not name in its sources (tests excepted), and why.
const FORBIDDEN: &[(&str, &str)] = &[
    ("std::fs", "files belong to plimsoll-host"),
    ("std::net", "sockets belong to plimsoll-host"),
    (
        "std::env",
        "the environment belongs to plimsoll-host and the binary",
    ),
    ("std::process", "processes belong to plimsoll-host"),
    ("std::thread", "pure crates are single-threaded"),
    ("std::time", "clocks are passed in"),
    ("HashMap", "its order differs from run to run: use BTreeMap"),
    ("HashSet", "its order differs from run to run: use BTreeSet"),
];

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("crates/cli has a parent")
        .to_owned()
}

/// The name and the normal dependencies of a manifest, read line by line.
fn manifest(path: &Path) -> (String, Vec<String>) {
    let text = std::fs::read_to_string(path).expect("a crate has a manifest");
    let (mut section, mut name, mut dependencies) = (String::new(), String::new(), Vec::new());
    for line in text.lines() {
        if let Some(s) = line.strip_prefix('[') {
            section = s.trim_end_matches(']').to_owned();
        } else if section == "package" && line.starts_with("name = ") {
            name = line.split('"').nth(1).unwrap_or_default().to_owned();
        } else if section == "dependencies" && line.starts_with("plimsoll") {
            let end = line.find(['.', ' ', '=']).unwrap_or(line.len());
            dependencies.push(line[..end].to_owned());
        }
    }
    (name, dependencies)
}

#[test]
fn a_crate_uses_only_floors_below_its_own() {
    let floors: BTreeMap<&str, u32> = FLOORS.iter().copied().collect();
    let mut seen = 0;
    for entry in std::fs::read_dir(crates()).expect("crates/ exists") {
        let path = entry.expect("readable").path().join("Cargo.toml");
        if !path.exists() {
            continue;
        }
        let (name, dependencies) = manifest(&path);
        let floor = floors.get(name.as_str()).unwrap_or_else(|| {
            panic!("{name} has no floor: add it to FLOORS here and to the map in ARCHITECTURE.md")
        });
        for d in dependencies {
            let below = floors
                .get(d.as_str())
                .unwrap_or_else(|| panic!("{name} uses unknown {d}"));
            assert!(
                below < floor,
                "{name} (floor {floor}) must not use {d} (floor {below})"
            );
        }
        seen += 1;
    }
    assert_eq!(seen, FLOORS.len(), "a crate of the table is missing");
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a source folder") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn pure_crates_touch_nothing_outside() {
    for krate in PURE {
        let mut files = Vec::new();
        sources(&crates().join(krate).join("src"), &mut files);
        assert!(!files.is_empty(), "{krate} has sources");
        for file in files {
            let text = std::fs::read_to_string(&file).expect("a source file");
            // Unit tests stand at the foot of a file and may do what they like.
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for line in code.lines().filter(|l| !l.trim_start().starts_with("//")) {
                for (word, why) in FORBIDDEN {
                    // Asking whether a panic unwinds is no threading.
                    let line = line.replace("std::thread::panicking", "");
                    assert!(!line.contains(word), "{}: `{word}`: {why}", file.display());
                }
            }
        }
    }
}

//! One set of flags in four places: typed, in the environment, in a file, and by default.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

/// A configuration that is gone after the test.
struct Config(PathBuf);

impl Config {
    fn new(text: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("plimsoll-config-{}-{n}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Exit code, standard output and standard error.
fn serve(args: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .arg("serve")
        .args(args)
        .env("NO_COLOR", "1")
        .env_remove("PLIMSOLL_API_KEY")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

/// What a value is and where it is from.
fn setting(printed: &str, key: &str) -> (String, String) {
    let begins = format!("{key} =");
    let mut lines = printed.lines();
    let line = lines.find(|l| l.trim_start_matches("# ").starts_with(&begins));
    let line = line.unwrap_or_else(|| panic!("no {key} in {printed}"));
    let (set, origin) = line.rsplit_once(" # ").unwrap();
    let value = set.trim_start_matches("# ").split_once('=').unwrap().1;
    (value.trim().to_owned(), origin.to_owned())
}

const FILE: &str = "model = 'demo'\nport = 0\nmax_num_seqs = 8\nweights = 'int8'\nno-enable-prefix-caching = true\nmax-model-len = '1k'\noffline = false\n";

#[test]
fn every_value_says_where_it_is_from() {
    let file = Config::new(FILE);
    let (code, printed, said) = serve(
        &[
            "--config",
            file.path(),
            "--print-config",
            "--max-num-seqs",
            "4",
        ],
        &[
            ("PLIMSOLL_PORT", "9001"),
            ("PLIMSOLL_OFFLINE", "1"),
            ("PLIMSOLL_API_KEY", "sk-secret"),
        ],
    );
    assert_eq!(code, Some(0), "{said}");
    let is = |key: &str, value: &str, origin: &str| {
        assert_eq!(
            setting(&printed, key),
            (value.to_owned(), origin.to_owned())
        );
    };
    is("max-num-seqs", "4", "command line");
    is("port", "9001", "PLIMSOLL_PORT");
    is("offline", "true", "PLIMSOLL_OFFLINE");
    is("weights", "\"int8\"", file.path());
    is("model", "\"demo\"", file.path());
    is("max-model-len", "\"1k\"", file.path());
    is("no-enable-prefix-caching", "true", file.path());
    is("block-size", "16", "default");
    is("threads", "", "not set");
    is("api-key", "\"...\"", "PLIMSOLL_API_KEY");
    assert!(!printed.contains("sk-secret"));

    // What is printed is a file that means the same.
    let (_, first, _) = serve(&["--config", file.path(), "--print-config"], &[]);
    let again = Config::new(&first);
    let (code, second, said) = serve(&["--config", again.path(), "--print-config"], &[]);
    assert_eq!(code, Some(0), "{said}");
    let values = |text: &str| -> Vec<String> {
        let line = |l: &str| l.rsplit_once(" # ").unwrap().0.trim_end().to_owned();
        text.lines().map(line).collect()
    };
    assert_eq!(values(&first), values(&second));
    let map = |file: &Config| serve(&["--config", file.path(), "--dry-run", "--json"], &[]).1;
    assert_eq!(map(&file), map(&again));
}

#[test]
fn a_file_that_makes_no_sense_is_one_error() {
    let wrong = |text: &str, says: &[&str]| {
        let file = Config::new(text);
        let (code, out, said) = serve(&["--config", file.path()], &[]);
        assert_eq!(code, Some(78), "{text}: {said}");
        assert_eq!(out, "");
        assert!(
            said.starts_with("error[E-CONFIG-001]") && said.contains(file.path()),
            "{said}"
        );
        assert!(says.iter().all(|s| said.contains(s)), "{text}: {said}");
    };
    wrong("prot = 3", &["'--prot'", "'--port'"]);
    wrong("port = 'x'", &["'x'", "--port"]);
    wrong("max-num-seqs = 5000", &["5000", "--max-num-seqs"]);
    wrong("port = [", &["line 1"]);
    wrong("a = 1\na = 2", &["line 2", "duplicate"]);
    wrong("[port]\nx = 1", &["port is no string"]);
    wrong("offline = 'yes'", &["offline is true or false"]);
    wrong("model = '--port'", &["is no model"]);
    wrong("swap-dir = '/tmp'", &["--swap-space"]);
    for key in ["config", "dry-run", "print-config", "json"] {
        wrong(&format!("{key} = true"), &["for the command line"]);
    }
    let (code, _, said) = serve(&["--config", "/no/such/file"], &[]);
    assert_eq!(code, Some(78), "{said}");
    // What is wrong elsewhere is not the file's fault.
    let file = Config::new("port = 0");
    let (code, _, said) = serve(&["--config", file.path(), "--prot", "1"], &[]);
    assert_eq!(code, Some(2), "{said}");
    let (code, _, said) = serve(&["--dry-run"], &[("PLIMSOLL_MAX_NUM_SEQS", "x")]);
    assert_eq!(code, Some(2), "{said}");
    // What is needed may stand in the other place.
    let file = Config::new("swap-space = '8MiB'");
    let (code, _, said) = serve(
        &["--config", file.path(), "--swap-dir", "/tmp", "--dry-run"],
        &[],
    );
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_dry_run_plans_and_ends() {
    let (code, out, _) = serve(&["--dry-run", "--json"], &[]);
    assert_eq!(code, Some(0));
    let map: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(map["schema"], "plimsoll.memory-map/1");
    // The very same that is committed.
    let server = crate::server::Server::start(&[]);
    let planned = |name: &str| {
        let all = map["regions"].as_array().unwrap();
        let region = all.iter().find(|r| r["region"] == name).unwrap();
        region["planned_bytes"].as_u64().unwrap()
    };
    let kv = server
        .card
        .lines()
        .find(|l| l.trim_start().starts_with("kv cache"))
        .unwrap();
    let mib = format!("{:.1} MiB", planned("kv_cache") as f64 / 1_048_576.0);
    assert_eq!(kv.matches(&mib).count(), 2, "planned and committed: {kv}");
    // A model of which there is only a shape, and one that does not fit.
    let (code, _, said) = serve(&["llama-13b", "--memory", "100GiB", "--dry-run"], &[]);
    assert_eq!(code, Some(0), "{said}");
    let (code, _, said) = serve(&["llama-13b", "--memory", "10GiB", "--dry-run"], &[]);
    assert_eq!(code, Some(3), "{said}");
}

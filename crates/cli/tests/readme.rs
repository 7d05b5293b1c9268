//! Every block of README.md that a reader may paste is run as it stands there, but for four things: `cargo run
//! --release --` is this program, a server gets a free port, models that would be downloaded are the demo model under
//! their names, and nothing asks the network. Blocks with output (`console`) are the matter of `docs.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What README.md says that it is.
const DEFAULT_URL: &str = "http://127.0.0.1:8000";
/// The model that README.md takes from the hub, and its folder.
const HUB_ID: &str = "HuggingFaceTB/SmolLM2-135M";
const FOLDER: &str = "SmolLM2-135M";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A block: its language, which indented ones have none of, its first line's number, and its lines.
#[derive(Debug)]
struct Block {
    language: String,
    at: usize,
    lines: Vec<String>,
}

/// The blocks of a page: fenced, or indented by four after an empty line.
fn blocks(page: &str) -> Vec<Block> {
    let mut all: Vec<Block> = Vec::new();
    let (mut fenced, mut indented, mut empty) = (false, false, true);
    for (i, line) in page.lines().enumerate() {
        let begins = |language: &str| Block {
            language: language.to_owned(),
            at: i + 2,
            lines: Vec::new(),
        };
        if let Some(language) = line.strip_prefix("```") {
            if !fenced {
                all.push(begins(language));
            }
            fenced = !fenced;
            indented = false;
        } else if fenced {
            all.last_mut().unwrap().lines.push(line.to_owned());
        } else if let Some(code) = line.strip_prefix("    ")
            && (indented || empty)
        {
            if !indented {
                all.push(Block {
                    at: i + 1,
                    ..begins("")
                });
            }
            all.last_mut().unwrap().lines.push(code.to_owned());
            indented = true;
        } else {
            indented = false;
        }
        empty = line.is_empty();
    }
    assert!(!fenced, "a block has no end");
    all
}

/// Where blocks are run: a folder that is gone afterwards, with the models that README.md names.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("plimsoll-readme-{}", std::process::id()));
        let place = Self(path);
        let bin = place.0.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        symlink(env!("CARGO_BIN_EXE_plimsoll"), bin.join("plimsoll")).unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        let cached = place
            .0
            .join("hub")
            .join(format!("models--{}", HUB_ID.replace('/', "--")));
        let revision = "0".repeat(40);
        let snapshot = cached.join("snapshots").join(&revision);
        for folder in [place.0.join(FOLDER), snapshot] {
            std::fs::create_dir_all(&folder).unwrap();
            for name in [
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "model.safetensors",
            ] {
                std::fs::copy(demo.join(name), folder.join(name)).unwrap();
            }
        }
        std::fs::create_dir_all(cached.join("refs")).unwrap();
        std::fs::write(cached.join("refs/main"), revision).unwrap();
        place
    }

    /// A shell with this line, in this place.
    fn shell(&self, line: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", line])
            .current_dir(&self.0)
            .env("PATH", format!("{}:{path}", self.0.join("bin").display()))
            .env("HF_HUB_CACHE", self.0.join("hub"))
            .env("HF_HUB_OFFLINE", "1")
            .env("NO_COLOR", "1")
            .env("PLIMSOLL_PORT", "0")
            .env_remove("PLIMSOLL_GPU")
            .env_remove("PLIMSOLL_API_KEY")
            .stdin(Stdio::null());
        shell
    }

    /// Runs a line to its end, which must be a good one.
    fn run(&self, line: &str, what: &str) {
        let out = self.shell(line).output().unwrap();
        let said = [&out.stdout, &out.stderr].map(|s| String::from_utf8_lossy(s).into_owned());
        assert!(
            out.status.success(),
            "{what}: {}\n{}",
            out.status,
            said.join("\n")
        );
        assert!(!said[0].is_empty(), "{what} says nothing");
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server that a block started, until its block ends.
struct Serving {
    child: Child,
    url: String,
}

impl Serving {
    fn start(place: &Place, line: &str, what: &str) -> Self {
        // The shell makes way for it, so that it is what is ended.
        let mut shell = place.shell(&format!("exec {line}"));
        let mut child = shell
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let url = loop {
            let before = said.len();
            let n = errors.read_line(&mut said).unwrap();
            assert!(n > 0, "{what} ended: {said}");
            if let Some((_, rest)) = said[before..].split_once("curl http://") {
                break format!("http://{}", rest.split('/').next().unwrap());
            }
        };
        // Whatever it says later is read, so that it does not wait.
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
        Self { child, url }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a block of commands; how many it was.
fn run(place: &Place, block: &Block) -> usize {
    let mut serving: Option<Serving> = None;
    for (i, line) in block.lines.iter().enumerate() {
        let what = format!("README.md:{}: {line}", block.at + i);
        let own = line.replacen("cargo run --release --", "plimsoll", 1);
        if line == "cargo test --workspace" {
            let gate = std::fs::read_to_string(root().join(".ci/run")).unwrap();
            assert!(gate.contains("\ncargo test --workspace"), "{what}: not run");
        } else if own == "plimsoll serve" || own.starts_with("plimsoll serve ") {
            serving = Some(Serving::start(place, &own, &what));
        } else if own.starts_with("plimsoll ") {
            place.run(&own, &what);
        } else if let Some(rest) = line.strip_prefix("curl ") {
            let url = &serving.as_ref().expect("a server is started before").url;
            assert!(rest.contains(DEFAULT_URL), "{what}: asks somebody else");
            let rest = rest.replace(DEFAULT_URL, url);
            place.run(
                &format!("curl --silent --show-error --fail-with-body --max-time 120 {rest}"),
                &what,
            );
        } else {
            panic!("{what}: what is this?");
        }
    }
    block.lines.len()
}

#[test]
fn every_block_of_the_readme_runs() {
    let page = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = blocks(&page);
    let place = Place::new();
    // Files first: commands name them.
    let mut commands = Vec::new();
    for block in &blocks {
        let text = block.lines.join("\n");
        let at = format!("README.md:{}", block.at);
        match &*block.language {
            // `docs.rs` runs the first; the second are no commands.
            "console" | "text" => {}
            "toml" => {
                let file = place.write("tenants.toml", &text);
                let owner = std::fs::Permissions::from_mode(0o600);
                std::fs::set_permissions(&file, owner).unwrap();
                place.run("plimsoll serve --tenants tenants.toml --dry-run 2>&1", &at);
            }
            "" if text.starts_with('{') => {
                place.write("prompts.jsonl", &text);
            }
            "" => commands.push(block),
            other => panic!("{at}: nobody runs blocks of {other:?}"),
        }
    }
    let ran: usize = commands.iter().map(|block| run(&place, block)).sum();
    let written = page.lines().filter(|l| {
        l.starts_with("    cargo ") || l.starts_with("    plimsoll ") || l.starts_with("    curl ")
    });
    assert_eq!(ran, written.count());
    assert!(ran > 8, "only {ran} commands were run");
}

//! The page, and the plans that it asks for. What it does in a browser is tested by `web/test/page.mjs`.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::server::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// The names of files in a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let all = std::fs::read_dir(folder).unwrap();
    let name =
        |e: std::io::Result<std::fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    let mut all: Vec<String> = all.map(name).collect();
    all.sort();
    all
}

/// What the command line plans.
fn plan(flags: &[&str]) -> Value {
    let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .arg("plan")
        .args(flags)
        .arg("--json")
        .env_remove("PLIMSOLL_GPU")
        .output()
        .unwrap();
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn the_page_loads_nothing_but_its_own_files() {
    let server = Server::start(&["--api-key", "right"]);
    let index = server.get("/");
    let policy = "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; \
                  connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let mut files = vec![(
        "/".to_owned(),
        "text/html; charset=utf-8",
        index.body.clone(),
    )];
    for folder in ["web/dist", "web/page"] {
        for name in names(&root().join(folder)) {
            let kind = match name.rsplit('.').next().unwrap() {
                "js" => "text/javascript; charset=utf-8",
                "css" => "text/css; charset=utf-8",
                "svg" => "image/svg+xml",
                _ => continue,
            };
            files.push((
                format!("/assets/{name}"),
                kind,
                read(&format!("{folder}/{name}")),
            ));
        }
    }
    assert!(files.len() > 10);
    for (path, kind, text) in &files {
        let answer = server.get(path);
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(&answer.body, text, "{path}");
        assert!(
            answer
                .headers
                .contains(&format!("content-type: {kind}\r\n")),
            "{path}"
        );
        assert!(
            answer.headers.contains(policy),
            "{path}: {}",
            answer.headers
        );
        for header in [
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
        ] {
            assert!(answer.headers.contains(header), "{path}");
        }
        // A browser that has it already is told so.
        let tag = answer
            .headers
            .lines()
            .find_map(|l| l.strip_prefix("etag: "))
            .unwrap();
        let again = server.ask("GET", path, &format!("If-None-Match: {tag}\r\n"), "");
        assert_eq!((again.status, again.body.as_str()), (304, ""), "{path}");
    }
    // Nothing inline, and no name of another host.
    for part in [
        "<style", "style=", "onclick", "onload", "<script>", "http://", "https://",
    ] {
        assert!(!index.body.contains(part), "{part}");
    }
    for path in [
        "/assets/",
        "/assets/none.js",
        "/assets/../page/index.html",
        "/assets/%2e%2e%2fpackage.json",
        "/assets/main.js/x",
        "/index.html",
    ] {
        let answer = server.get(path);
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.json()["error"]["code"], "unknown_url", "{path}");
    }
    assert_eq!(server.post("/", "{}").status, 405);
    // Files are for everybody; figures and plans are not.
    for (method, path) in [
        ("GET", "/api/choices"),
        ("POST", "/api/plan"),
        ("POST", "/api/plan/grid"),
    ] {
        let asked = |headers: &str| {
            let headers = format!("Content-Type: application/json\r\n{headers}");
            server
                .ask(method, path, &headers, "{\"model\":\"gpt2\"}")
                .status
        };
        assert_eq!(asked(""), 401, "{path}");
        assert_eq!(asked("Authorization: Bearer right\r\n"), 200, "{path}");
    }
}

#[test]
fn a_plan_of_the_page_is_the_commands() {
    let server = Server::start(&[]);
    let ask = |asked: &Value| {
        let answer = server.post("/api/plan", &asked.to_string());
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    };
    let cases = [
        (
            json!({ "model": "llama-3.1-8b", "gpu": "h100", "users": 16, "context": "8k" }),
            "llama-3.1-8b --gpu h100 --users 16 --context 8k",
        ),
        (json!({ "model": "gpt2" }), "gpt2"),
        (
            json!({ "model": "meta-llama/Llama-3.1-8B", "gpu": "l4", "gpus": 2, "kv_cache_dtype": "fp8" }),
            "meta-llama/Llama-3.1-8B --gpu l4 --gpus 2 --kv-cache-dtype fp8",
        ),
        (
            json!({ "model": "llama-3.1-70b", "gpu": "any", "users": 4, "context": 4096, "quantization": "int4" }),
            "llama-3.1-70b --gpu any --users 4 --context 4096 --quantization int4",
        ),
        (
            json!({ "model": "gpt2", "engine": "plimsoll", "weights": "int8", "users": "3" }),
            "gpt2 --engine plimsoll --weights int8 --users 3",
        ),
        (
            json!({ "model": "llama-3.1-405b", "gpu": "l4", "gpus": 1, "engine": "llama.cpp" }),
            "llama-3.1-405b --gpu l4 --gpus 1 --engine llama.cpp",
        ),
    ];
    for (asked, flags) in cases {
        let flags: Vec<&str> = flags.split(' ').collect();
        assert_eq!(ask(&asked), plan(&flags), "{asked}");
    }
    // A pasted config is planned as the name whose config it is.
    let config = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["models", "show", "gpt2", "--config"])
        .output()
        .unwrap();
    let config = String::from_utf8(config.stdout).unwrap();
    let mut pasted = ask(&json!({ "config": config, "gpu": "l4", "users": 2 }));
    let mut named = ask(&json!({ "model": "gpt2", "gpu": "l4", "users": 2 }));
    assert_eq!(pasted["ranks"], named["ranks"]);
    assert_eq!(pasted["kv"].take(), named["kv"].take());
    assert_eq!(pasted["model"]["name"], "config.json");
    // Each cell of a grid is the plan of its load alone.
    let asked = json!({ "model": "llama-3.1-8b", "gpu": "l4", "users": 3, "context": 6000 });
    let grid = server.post("/api/plan/grid", &asked.to_string()).json();
    let cells = grid["cells"].as_array().unwrap();
    let sides = [&grid["users"], &grid["contexts"]].map(|s| s.as_array().unwrap().len());
    assert_eq!(cells.len(), sides[0] * sides[1]);
    assert!(cells.len() <= 121);
    assert!(
        cells
            .iter()
            .any(|c| c["users"] == 3 && c["context"] == 6000)
    );
    for cell in cells.iter().step_by(17) {
        let mut alone = asked.clone();
        alone["users"] = cell["users"].clone();
        alone["context"] = cell["context"].clone();
        let alone = ask(&alone);
        assert_eq!(cell["text"], alone["answer"]["text"]);
        assert_eq!(cell["verdict"], alone["answer"]["verdict"]);
        assert_eq!(cell["devices"], alone["answer"]["devices"]);
        assert_eq!(cell["kv_need_bytes"], alone["kv"]["need"]["pool_bytes"]);
    }
    let verdicts: Vec<&Value> = cells.iter().map(|c| &c["verdict"]).collect();
    assert!(verdicts.contains(&&json!("yes")));
}

#[test]
fn a_question_that_makes_no_sense_is_one_error_and_reads_nothing() {
    let server = Server::start(&[]);
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let layers = json!({ "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 16_000, "hidden_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 64, "vocab_size": 100,
        "max_position_embeddings": 1024 });
    let m = |more: Value| {
        let mut asked = json!({ "model": "gpt2" });
        asked
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        asked.to_string()
    };
    let cases: Vec<(String, u16, &str, Value)> = vec![
        ("".into(), 400, "invalid_json", json!(null)),
        ("[]".into(), 400, "invalid_json", json!(null)),
        ("{}".into(), 400, "cannot_plan", json!("model")),
        (
            m(json!({ "config": "{}" })),
            400,
            "cannot_plan",
            json!("model"),
        ),
        (
            json!({ "model": "no-such" }).to_string(),
            400,
            "cannot_plan",
            json!("model"),
        ),
        // Neither files nor the hub: nobody looks.
        (
            json!({ "model": "/etc/passwd" }).to_string(),
            400,
            "cannot_plan",
            json!("model"),
        ),
        (
            json!({ "model": "." }).to_string(),
            400,
            "cannot_plan",
            json!("model"),
        ),
        (
            json!({ "model": "org/none" }).to_string(),
            400,
            "cannot_plan",
            json!("model"),
        ),
        (
            json!({ "model": "--help" }).to_string(),
            400,
            "cannot_plan",
            json!("model"),
        ),
        (
            m(json!({ "gpu": "auto" })),
            400,
            "cannot_plan",
            json!("gpu"),
        ),
        (m(json!({ "gpu": "cpu" })), 400, "cannot_plan", json!("gpu")),
        (
            m(json!({ "gpu": "\u{1b}[31m" })),
            400,
            "cannot_plan",
            json!("gpu"),
        ),
        (m(json!({ "users": 0 })), 400, "cannot_plan", json!("users")),
        (
            m(json!({ "users": -1 })),
            400,
            "invalid_value",
            json!("users"),
        ),
        (
            m(json!({ "users": "1 --gpu auto" })),
            400,
            "cannot_plan",
            json!("users"),
        ),
        (
            m(json!({ "context": "9999999999999999999" })),
            400,
            "cannot_plan",
            json!("context"),
        ),
        (
            m(json!({ "engine": "x".repeat(101) })),
            400,
            "cannot_plan",
            json!("engine"),
        ),
        (
            m(json!({ "engine": "trt" })),
            400,
            "cannot_plan",
            json!("engine"),
        ),
        (
            m(json!({ "weights": "int2" })),
            400,
            "cannot_plan",
            json!("weights"),
        ),
        (
            m(json!({ "kv_cache_dtype": "<b>" })),
            400,
            "cannot_plan",
            json!("kv_cache_dtype"),
        ),
        (m(json!({ "gpus": 2 })), 400, "cannot_plan", json!(null)),
        (
            m(json!({ "speculative_model": "/etc/passwd" })),
            400,
            "unsupported_parameter",
            json!("speculative_model"),
        ),
        (
            json!({ "config": "x" }).to_string(),
            400,
            "cannot_plan",
            json!("config"),
        ),
        (
            json!({ "config": deep }).to_string(),
            400,
            "cannot_plan",
            json!("config"),
        ),
        (
            json!({ "config": layers.to_string() }).to_string(),
            400,
            "cannot_plan",
            json!("config"),
        ),
        (
            json!({ "config": " ".repeat(200_000) }).to_string(),
            413,
            "request_too_large",
            json!(null),
        ),
    ];
    for path in ["/api/plan", "/api/plan/grid"] {
        for (body, status, code, param) in &cases {
            let answer = server.post(path, body);
            let short: String = body.chars().take(80).collect();
            assert_eq!(answer.status, *status, "{path} {short}: {}", answer.body);
            let error = &answer.json()["error"];
            assert_eq!(error["code"], *code, "{path} {short}: {error}");
            assert_eq!(error["param"], *param, "{path} {short}: {error}");
            let message = error["message"].as_str().unwrap();
            assert!(
                !message.contains('\u{1b}') && message.len() < 600,
                "{short}: {message}"
            );
        }
        assert_eq!(server.ask("POST", path, "", "{}").status, 415);
        assert_eq!(server.get(path).status, 405);
    }
}

/// Where node's packages are there: what is committed is what the compiler makes of the sources.
#[test]
fn the_committed_scripts_are_those_of_the_sources() {
    let web = root().join("web");
    let sources = names(&web.join("src"));
    let scripts: Vec<String> = sources.iter().map(|n| n.replace(".ts", ".js")).collect();
    assert_eq!(names(&web.join("dist")), scripts);
    let compiler = web.join("node_modules/.bin/tsc");
    if !compiler.exists() {
        println!("skipped: `npm ci` in web/ brings the compiler");
        return;
    }
    let fresh = std::env::temp_dir().join(format!("plimsoll-page-{}", std::process::id()));
    let made = Command::new(compiler)
        .args(["-p", ".", "--outDir"])
        .arg(&fresh)
        .current_dir(&web)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stdout)
    );
    for name in &scripts {
        let committed = read(&format!("web/dist/{name}"));
        let made = std::fs::read_to_string(fresh.join(name)).unwrap();
        assert!(
            made == committed,
            "{name} is old: run `npm run build` in web/"
        );
    }
    std::fs::remove_dir_all(fresh).unwrap();
}

/// Where packages come from is the matter of whoever installs them; what they are is that of their digests.
#[test]
fn lock_files_name_no_registry() {
    for lock in ["web/package-lock.json", "clients/js/package-lock.json"] {
        let lock: Value = serde_json::from_str(&read(lock)).unwrap();
        let packages = lock["packages"].as_object().unwrap();
        assert!(packages.len() > 1);
        for (name, package) in packages.iter().filter(|(name, _)| !name.is_empty()) {
            assert!(package["integrity"].is_string(), "{name}");
            assert_eq!(package["resolved"], json!(null), "{name}");
        }
    }
}

/// The same words have the same colours as in the page of `simulate --html`.
#[test]
fn colours_are_those_of_the_charts() {
    let charts = read("crates/report/src/page/chart.css");
    let page = read("web/page/page.css");
    let (light, dark) = charts
        .split_once("@media (prefers-color-scheme: dark)")
        .unwrap();
    let of = |text: &str, name: &str| {
        let start = text.find(&format!("--{name}: "))? + name.len() + 4;
        Some(text[start..].split(';').next()?.to_owned())
    };
    for name in [
        "paper",
        "ink",
        "quiet",
        "grid",
        "axis",
        "blue",
        "orange",
        "vermilion",
        "purple",
        "green",
        "sky",
        "free",
        "bar",
    ] {
        let light = of(light, name).unwrap();
        let want = match of(dark.split('}').next().unwrap(), name) {
            Some(dark) => format!("light-dark({light}, {dark})"),
            None => light,
        };
        assert_eq!(of(&page, name).unwrap(), want, "{name}");
    }
}

//! Memory of `plimsoll generate`: its map is the one that `plimsoll plan` prints, what does not fit is refused before
//! weights are read, and the system says that the process has what was planned.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A folder of its own, removed in the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

const VOCAB: u64 = 256;

/// One word per token.
fn tokenizer(vocab: u64) -> Vec<u8> {
    let vocab: BTreeMap<String, u64> = (0..vocab).map(|i| (format!("w{i}"), i)).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    tokenizer.to_string().into_bytes()
}

/// A checkpoint whose layers keep states of f32 beside keys and values of bfloat16.
fn hybrid(name: &str) -> Folder {
    copied("fixtures/granite_hybrid", name)
}

/// A checkpoint of the runtime's tests, with a tokenizer.
fn copied(from: &str, name: &str) -> Folder {
    let path = std::env::temp_dir().join(format!("plimsoll-memory-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(root.join(from).join(file), path.join(file)).expect("a copy");
    }
    let config = std::fs::read(path.join("config.json")).expect("a config");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    let vocab = config["vocab_size"].as_u64().expect("a size");
    std::fs::write(path.join("tokenizer.json"), tokenizer(vocab)).expect("written");
    Folder(path)
}

/// A LLaMA of random weights, with a tokenizer of one word per token.
fn model(name: &str, layers: u64, hidden: u64) -> Folder {
    let path = std::env::temp_dir().join(format!("plimsoll-memory-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a folder");
    let write = |file: &str, text: Vec<u8>| std::fs::write(path.join(file), text).expect("written");
    let wide = 4 * hidden;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": hidden / 8, "vocab_size": VOCAB, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "bos_token_id": 0, "eos_token_id": 1,
    });
    write("config.json", config.to_string().into_bytes());
    write("tokenizer.json", tokenizer(VOCAB));
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        ("lm_head.weight".to_owned(), vec![VOCAB, hidden]),
    ];
    for i in 0..layers {
        let mut add = |name: &str, shape: Vec<u64>| {
            shapes.push((format!("model.layers.{i}.{name}.weight"), shape));
        };
        add("input_layernorm", vec![hidden]);
        add("post_attention_layernorm", vec![hidden]);
        add("self_attn.q_proj", vec![hidden, hidden]);
        add("self_attn.k_proj", vec![hidden / 2, hidden]);
        add("self_attn.v_proj", vec![hidden / 2, hidden]);
        add("self_attn.o_proj", vec![hidden, hidden]);
        add("mlp.gate_proj", vec![wide, hidden]);
        add("mlp.up_proj", vec![wide, hidden]);
        add("mlp.down_proj", vec![hidden, wide]);
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0_u64);
    for (name, shape) in shapes {
        let from = end;
        end += 2 * shape.iter().product::<u64>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [from, end]});
        header.insert(name, entry);
    }
    let header = serde_json::to_vec(&header).expect("a header");
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..end.div_ceil(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Four bfloat16 of either sign between 2^-7 and 2^-5.
        let some = state & 0x80ff_80ff_80ff_80ff | 0x3c00_3c00_3c00_3c00;
        file.extend(some.to_le_bytes());
    }
    write("model.safetensors", file);
    Folder(path)
}

const SETTINGS: [&str; 14] = [
    "--max-num-batched-tokens",
    "64",
    "--max-num-seqs",
    "4",
    "--max-model-len",
    "256",
    "--kv-cache-dtype",
    "bf16",
    "--block-size",
    "16",
    "--threads",
    "2",
    "--swap-space",
    "1MiB",
];

fn plimsoll(command: &str, model: &Path, flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .arg(command)
        .arg(model)
        .args(flags)
        .env_remove("PLIMSOLL_GPU")
        .env("NO_COLOR", "1")
        .output()
        .expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes by region and name of the terms of a plan or of a map.
fn terms(all: &Value) -> BTreeMap<(String, String), u64> {
    let word = |v: &Value| v.as_str().expect("a word").to_owned();
    let all = all.as_array().expect("terms").iter();
    all.map(|t| {
        let bytes = t["bytes"].as_u64().expect("bytes");
        ((word(&t["region"]), word(&t["name"])), bytes)
    })
    .collect()
}

/// Runs a prompt and returns the map of the run.
fn run(folder: &Folder, flags: &[&str]) -> Value {
    let file = folder.0.join("map.json");
    let mut all = vec!["-p", "w5 w6 w7", "--ignore-eos", "--json"];
    all.extend(["--memory-map", file.to_str().expect("a path")]);
    if !flags.contains(&"-n") {
        all.extend(["-n", "40"]);
    }
    all.extend(flags);
    let out = plimsoll("generate", &folder.0, &all);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let written = std::fs::read(&file).expect("a map");
    serde_json::from_slice(&written).expect("JSON")
}

#[test]
fn the_map_of_a_run_is_the_one_that_plan_prints() {
    for (folder, length) in [
        (model("map", 2, 64), "256"),
        (hybrid("states"), "128"),
        (copied("quantised/awq", "awq"), "64"),
    ] {
        let types = [("bf16", "f32"), ("int8", "f16"), ("int4", "int8")];
        let [a, b, c] = types.map(|types| compare_maps(&folder, length, types));
        let falls = |i: usize| a[i] > b[i] && b[i] > c[i];
        assert!(falls(0) && falls(1), "{a:?}, {b:?}, {c:?}");
    }
}

/// Groups of four bits that are kept as they are stored.
#[test]
fn the_map_of_weights_as_they_are_stored_is_the_one_that_plan_prints() {
    let folder = copied("quantised/awq", "stored");
    let [stored, _] = compare_maps(&folder, "64", ("auto", "bf16"));
    let [wide, _] = compare_maps(&folder, "64", ("bf16", "bf16"));
    assert!(stored < wide, "{stored}, {wide}");
    // Two ranks have 48 columns each: what would cut a group of 32 is widened, and the rest stays.
    let of_a_rank = |weights: &str| {
        let flags = ["--tp", "2", "--weights", weights, "--kv-memory", "3MiB"];
        let map = run(&folder, &flags);
        let regions = map["regions"].as_array().expect("regions");
        let weights = regions.iter().find(|r| r["region"] == "weights");
        weights.expect("weights")["planned_bytes"]
            .as_u64()
            .expect("a number")
    };
    assert!(of_a_rank("auto") < of_a_rank("bf16"));
}

/// Bytes of weights, and of all that the KV cache can use.
fn compare_maps(folder: &Folder, length: &str, (weights, kv): (&str, &str)) -> [u64; 2] {
    let mut bytes = [0; 2];
    for sizes in [
        &["--kv-memory", "3MiB"][..],
        &["--memory", "256MiB"],
        &["--memory", "256MiB", "--logprobs", "5"],
    ] {
        let mut flags = SETTINGS
            .map(|f| match f {
                "256" => length,
                "bf16" => kv,
                other => other,
            })
            .to_vec();
        flags.extend(sizes);
        flags.extend(["--weights", weights]);
        let map = run(folder, &flags);
        let mut question = vec![
            "--engine",
            "plimsoll",
            "--gpu",
            "cpu",
            "--generate",
            "--context",
            length,
            "--json",
        ];
        question.extend(&flags);
        let out = plimsoll("plan", &folder.0, &question);
        assert!(out.status.success(), "{}", text(&out.stderr));
        let plan: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let planned = terms(&plan["ranks"][0]["terms"]);
        assert_eq!(terms(&map["terms"]), planned, "{weights}, {kv}, {sizes:?}");
        let told = planned.keys().any(|(_, name)| name == "log probabilities");
        assert_eq!(told, sizes.contains(&"--logprobs"));
        let mut regions: BTreeMap<&str, u64> = BTreeMap::new();
        for ((region, _), bytes) in &planned {
            *regions.entry(region).or_default() += bytes;
        }
        let listed = map["regions"].as_array().expect("regions");
        assert_eq!(listed.len(), regions.len());
        for r in listed {
            let name = r["region"].as_str().expect("a name");
            assert_eq!(r["planned_bytes"], regions[name], "{name}");
            if name == "reserve" {
                assert!(r["committed_bytes"].is_null());
            } else {
                assert_eq!(r["committed_bytes"], regions[name], "{name}");
            }
        }
        bytes = [regions["weights"], regions["kv_cache"]];
    }
    bytes
}

/// Ranks commit what the plan says of each of them, and what they share once; a dry run says so before.
#[test]
fn the_map_of_ranks_is_the_one_that_plan_prints() {
    let plain = (model("ranks", 2, 64), "256");
    let quantised = (copied("quantised/gptq", "gptq-ranks"), "64");
    for ((folder, length), ranks, sizes) in [
        (&plain, "2", &["--kv-memory", "3MiB"][..]),
        (&plain, "4", &["--memory", "2GiB"]),
        (&plain, "2", &["--memory", "2GiB", "--weights", "int8"]),
        (&quantised, "2", &["--memory", "2GiB"]),
    ] {
        let of_length = |f| if f == "256" { *length } else { f };
        let mut flags = SETTINGS.map(of_length).to_vec();
        flags.extend(sizes);
        flags.extend(["--tensor-parallel-size", ranks]);
        let asked = |command: &str, more: &[&str]| -> Value {
            let mut all = flags.clone();
            all.extend(more);
            let out = plimsoll(command, &folder.0, &all);
            assert!(out.status.success(), "{}", text(&out.stderr));
            serde_json::from_slice(&out.stdout).expect("JSON")
        };
        let question = [
            "--engine",
            "plimsoll",
            "--gpu",
            "cpu",
            "--context",
            length,
            "--json",
        ];
        let plan = asked("plan", &[&question[..], &["--generate"]].concat());
        let rank = &plan["ranks"][0];
        assert_eq!(rank["copies"].to_string(), ranks);
        let (of_each, shared) = (terms(&rank["terms"]), terms(&rank["host_terms"]));
        assert!(!shared.is_empty() && of_each.keys().all(|k| !shared.contains_key(k)));
        let mut all = of_each.clone();
        all.extend(shared.clone());
        let map = run(folder, &flags);
        assert_eq!(terms(&map["terms"]), all);
        assert_eq!(map["ranks"].to_string(), ranks);
        let mut regions: BTreeMap<&str, u64> = BTreeMap::new();
        for ((region, _), bytes) in &of_each {
            *regions.entry(region).or_default() += bytes * ranks.parse::<u64>().expect("a number");
        }
        for ((region, _), bytes) in &shared {
            *regions.entry(region).or_default() += bytes;
        }
        for r in map["regions"].as_array().expect("regions") {
            let name = r["region"].as_str().expect("a name");
            assert_eq!(r["planned_bytes"], regions[name], "{name}");
            if name != "reserve" {
                assert_eq!(r["committed_bytes"], regions[name], "{name}");
            }
        }
        // A server's map, from the plan of a server.
        let plan = asked("plan", &question);
        let mut all = terms(&plan["ranks"][0]["terms"]);
        all.extend(terms(&plan["ranks"][0]["host_terms"]));
        let map = asked("serve", &["--dry-run", "--json"]);
        assert_eq!(terms(&map["terms"]), all);
        assert_eq!(map["ranks"].to_string(), ranks);
    }
}

#[test]
fn ranks_that_cannot_be_are_refused_in_one_sentence() {
    let (folder, states) = (model("no-ranks", 1, 64), hybrid("no-ranks-states"));
    let refused = |folder: &Folder, flags: &[&str], says: &str| {
        let out = plimsoll("generate", &folder.0, &[&["-p", "w5"], flags].concat());
        assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
        assert!(text(&out.stderr).contains(says), "{}", text(&out.stderr));
    };
    let heads = "4 KV heads cannot be split over TP 3";
    refused(&folder, &["--tp", "3"], heads);
    refused(
        &states,
        &["--tp", "2"],
        "recurrent layers do not run on several ranks yet",
    );
    refused(&folder, &["--tp", "0"], "--tp");
    let names = |gpus: &str, tp: &str, says: &str| {
        refused(&folder, &["--device", gpus, "--tp", tp], says);
    };
    names(
        "cuda:0",
        "2",
        "`--device cuda:0` names no GPU for each of 2 ranks",
    );
    names(
        "cuda:0,1",
        "1",
        "`--device cuda:0,1` names more GPUs than there are ranks",
    );
    names("cuda:0,", "2", "cuda:N,M");
}

#[test]
fn what_does_not_fit_is_refused_with_settings_that_do() {
    let folder = model("refused", 2, 64);
    let refused = |flags: &[&str]| -> String {
        let mut all = vec!["-p", "w5", "-n", "4"];
        all.extend(flags);
        let began = Instant::now();
        let out = plimsoll("generate", &folder.0, &all);
        assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
        assert!(began.elapsed() < Duration::from_secs(2));
        assert!(out.stdout.is_empty());
        text(&out.stderr)
    };
    // Everything but the pool, and little more: a shorter sequence fits, and one of 2,048 tokens does not.
    let map = run(&folder, &["--max-model-len", "2048", "--threads", "2"]);
    let all: u64 = map["regions"]
        .as_array()
        .expect("regions")
        .iter()
        .map(|r| {
            if r["region"] == "kv_cache" {
                0
            } else {
                r["planned_bytes"].as_u64().expect("bytes")
            }
        })
        .sum();
    let flags = |budget: &str| -> Vec<String> {
        let all = [
            "--max-model-len",
            "2048",
            "--threads",
            "2",
            "--memory",
            budget,
        ];
        all.map(str::to_owned).to_vec()
    };
    let tight = flags(&(all + 100_000).to_string());
    let as_str: Vec<&str> = tight.iter().map(String::as_str).collect();
    let e = refused(&as_str);
    let hint = e
        .lines()
        .find_map(|l| l.trim().strip_prefix("try: `--max-model-len "));
    let n = hint.and_then(|h| h.split('`').next()).expect(&e);
    let mut fits = tight.clone();
    fits[1] = n.to_owned();
    let fits: Vec<&str> = fits.iter().map(String::as_str).collect();
    run(&folder, &fits);
    let e = refused(&["--memory", "1MiB"]);
    assert!(e.contains("raise `--memory`"), "{e}");
}

#[test]
fn the_process_has_what_was_planned() {
    if !Path::new("/proc/self/status").exists() {
        println!("skipped: this system has no /proc to say what a process has in memory");
        return;
    }
    let folder = model("resident", 12, 512);
    process_has(&folder, &["--kv-memory", "512MiB"]);
    process_has(&folder, &["--kv-memory", "256MiB", "--tp", "2"]);
}

#[allow(clippy::print_stdout, reason = "a helper of a test")]
fn process_has(folder: &Folder, more: &[&str]) {
    let mut flags = SETTINGS.to_vec();
    flags.extend(more);
    let map = run(folder, &flags);
    let (mut committed, mut reserve, mut reserve_used) = (0, 0, 0);
    for r in map["regions"].as_array().expect("regions") {
        match r["committed_bytes"].as_u64() {
            Some(bytes) => committed += bytes,
            None => {
                reserve += r["planned_bytes"].as_u64().expect("bytes");
                reserve_used += r["high_water_bytes"].as_u64().expect("bytes");
            }
        }
    }
    let ready = map["resident_bytes_at_ready"].as_u64().expect("bytes");
    println!("committed {committed}, ready {ready}, reserve {reserve}, of it used {reserve_used}");
    // Pages that were only promised would be missing.
    assert!(ready >= committed, "{ready} of {committed}");
    // Within 3 % of the plan, but for what starting takes: that is over.
    let starting = terms(&map["terms"])[&("reserve".to_owned(), "starting".to_owned())];
    let plan = committed + reserve;
    assert!(ready <= plan, "{ready} of {plan}");
    let least = (plan - starting) / 100 * 97;
    assert!(ready >= least, "{ready}, and at least {least}");
    assert!(reserve_used <= reserve, "{reserve_used} of {reserve}");
}

/// They were made a tree of JSON values first, many times what is planned.
#[test]
fn log_probabilities_take_no_more_than_the_reserve() {
    if !Path::new("/proc/self/status").exists() {
        println!("skipped: this system has no /proc to say what a process has in memory");
        return;
    }
    let folder = model("told", 2, 64);
    for several in ["--samples", "--beam-width"] {
        let flags = "-n 800 --logprobs 20 --prompt-logprobs 20 --max-model-len 1024 --threads 2";
        let flags: Vec<&str> = flags.split(' ').chain([several, "8"]).collect();
        let map = run(&folder, &flags);
        let regions = map["regions"].as_array().expect("regions");
        let reserve = regions.iter().find(|r| r["region"] == "reserve");
        let bytes = |key: &str| reserve.expect("a reserve")[key].as_u64().expect("bytes");
        let (used, planned) = (bytes("high_water_bytes"), bytes("planned_bytes"));
        println!("{several}: {used} of {planned}");
        assert!(used <= planned, "{several}: {used} of {planned}");
    }
}

/// The strictest limit that needs no rights: private memory that can be written, touched or not. What is mapped beside
/// the plan are the threads' stacks, 2 MiB each, of which the plan counts what is touched.
#[cfg(target_os = "linux")]
#[test]
fn a_full_load_ends_under_a_limit_of_the_plan() {
    const STACKS_KIB: u64 = 2 * 2 * 2048;
    let folder = model("limit", 12, 512);
    let sizes = [
        "--kv-memory",
        "8MiB",
        "--swap-space",
        "8MiB",
        "--max-num-batched-tokens",
        "64",
    ];
    let map = folder.0.join("map.json");
    let mapped = ["--memory-map", map.to_str().expect("a path")];
    let (want, talk) = answers(&folder, &[&sizes[..], &mapped].concat());
    assert!(said(&talk, " times by swap") > 0, "{talk}");
    let map: Value = serde_json::from_slice(&std::fs::read(map).expect("a map")).expect("JSON");
    let sum = |key: &str| -> u64 {
        let regions = map["regions"].as_array().expect("regions").iter();
        regions.filter_map(|r| r[key].as_u64()).sum()
    };
    let under = |kib: u64| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -d {kib}; exec \"$0\" \"$@\"")]);
        command.arg(env!("CARGO_BIN_EXE_plimsoll")).arg("generate");
        command
            .arg(&folder.0)
            .args(crowded(&crowd(&folder)))
            .args(sizes);
        command.output().expect("a shell runs")
    };
    let plan = sum("planned_bytes") / 1024;
    let out = under(plan + STACKS_KIB);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(in_order(&out), want);
    // The guard: a limit that the arenas alone exceed is one clear error.
    let out = under(sum("committed_bytes") / 1024 - 1024);
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("to give"));
}

/// Twelve prompts that share their first 32 words, four answers each.
fn crowd(folder: &Folder) -> String {
    let lines: Vec<String> = (0..12)
        .map(|i| {
            let word = |j: usize| {
                let own = if j < 32 { 0 } else { 17 * i };
                format!("w{}", 2 + (j * j * 31 + own) % 250)
            };
            let prompt: Vec<String> = (0..33 + i).map(word).collect();
            json!({ "prompt": prompt.join(" "), "max_tokens": 40 }).to_string()
        })
        .collect();
    let path = folder.0.join("prompts.jsonl");
    std::fs::write(&path, lines.join("\n")).expect("written");
    path.to_str().expect("a path").to_owned()
}

/// Flags of a run of a crowd.
fn crowded(prompts: &str) -> Vec<&str> {
    let mut flags = vec!["--prompts", prompts];
    flags.extend("--samples 4 --seed 5 --ignore-eos --max-num-seqs 12".split(' '));
    flags.extend("--max-model-len 128 --threads 2".split(' '));
    flags
}

fn in_order(out: &Output) -> Vec<Value> {
    let lines = text(&out.stdout);
    let mut answers: Vec<Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).expect("a line of JSON"))
        .collect();
    answers.sort_by_key(|v| v["index"].as_u64());
    answers.iter().map(|v| v["choices"].clone()).collect()
}

/// The answers of a crowd, in order, and what the run said in the end.
fn answers(folder: &Folder, flags: &[&str]) -> (Vec<Value>, String) {
    let prompts = crowd(folder);
    let mut all = crowded(&prompts);
    all.extend(flags);
    let out = plimsoll("generate", &folder.0, &all);
    assert!(out.status.success(), "{}", text(&out.stderr));
    (in_order(&out), text(&out.stderr))
}

/// The number before `word`s in what a run said.
fn said(talk: &str, word: &str) -> u64 {
    let before = talk.split(word).next().filter(|b| b.len() < talk.len());
    let number = before
        .and_then(|b| b.split_whitespace().last())
        .unwrap_or_else(|| panic!("no `{word}` in {talk}"));
    number.replace(',', "").parse().expect("a number")
}

#[test]
fn a_run_under_pressure_replays_to_the_same_decisions_and_block_tables() {
    let folder = model("pressure", 2, 64);
    let log = folder.0.join("run.log");
    let log = log.to_str().expect("a path");
    let (want, talk) = answers(&folder, &[]);
    assert_eq!(said(&talk, " times by swap"), 0, "{talk}");
    // Little swap space: who does not fit there is computed again.
    let tight = [
        "--kv-memory",
        "140KiB",
        "--swap-space",
        "40KiB",
        "--log",
        log,
    ];
    let (got, talk) = answers(&folder, &[&tight[..], &["--preempt", "swap"]].concat());
    assert_eq!(got, want);
    for what in [
        " times by swap",
        " by recompute",
        " prompt tokens from",
        " pages copied",
    ] {
        assert!(said(&talk, what) > 0, "{what}: {talk}");
    }
    let replay = |path: &str| -> Output {
        Command::new(env!("CARGO_BIN_EXE_plimsoll"))
            .args(["simulate", "--replay", path])
            .output()
            .expect("the binary runs")
    };
    let out = replay(log);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let told = text(&out.stdout);
    assert!(told.contains("every decision is the same"), "{told}");
    assert!(told.contains("every block table is the same"), "{told}");
    // The guard: tables that the run did not compute by.
    let whole = std::fs::read_to_string(log).expect("a log");
    let (before, end) = whole
        .rsplit_once("\"tables\":\"")
        .expect("a digest of tables");
    let other = if end.starts_with('0') { "1" } else { "0" };
    let changed = format!("{before}\"tables\":\"{other}{}", &end[1..]);
    let path = folder.0.join("changed.log");
    std::fs::write(&path, changed).expect("written");
    let out = replay(path.to_str().expect("a path"));
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("other block tables"));
}

#[cfg(unix)]
#[test]
fn a_swap_file_serves_as_memory_does_and_leaves_nothing_behind() {
    let folder = model("swap-file", 2, 64);
    let disk = folder.0.join("disk");
    std::fs::create_dir(&disk).expect("a folder");
    let at = disk.to_str().expect("a path");
    let tight = [
        "--kv-memory",
        "140KiB",
        "--swap-space",
        "1MiB",
        "--preempt",
        "swap",
    ];
    let (want, talk) = answers(&folder, &tight);
    assert!(said(&talk, " times by swap") > 0, "{talk}");
    let map = folder.0.join("map.json");
    let file = [
        "--swap-dir",
        at,
        "--memory-map",
        map.to_str().expect("a path"),
    ];
    let (got, talk) = answers(&folder, &[&tight[..], &file].concat());
    assert_eq!(got, want);
    assert!(said(&talk, " times by swap") > 0, "{talk}");
    let files = || std::fs::read_dir(&disk).expect("a folder").count();
    assert_eq!(files(), 0);
    let map: Value = serde_json::from_slice(&std::fs::read(map).expect("a map")).expect("JSON");
    let regions = map["regions"].as_array().expect("regions");
    let region = |name: &str| regions.iter().find(|r| r["region"] == name);
    let swap = region("swap_file").expect("the file is in the map");
    assert!(region("swap").is_none());
    assert_eq!(swap["planned_bytes"], swap["committed_bytes"]);
    assert!(swap["high_water_bytes"].as_u64() > Some(0));
    // A process that is killed leaves nothing either: the file has no name while it runs.
    let mut child = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .arg("generate")
        .arg(&folder.0)
        .args(["-p", "w5 w6 w7", "-n", "100000", "--ignore-eos"])
        .args([
            "--max-model-len",
            "200000",
            "--swap-space",
            "1MiB",
            "--swap-dir",
            at,
        ])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the binary runs");
    let mut first = [0; 16];
    let mut out = child.stdout.take().expect("piped");
    std::io::Read::read_exact(&mut out, &mut first).expect("it has begun to answer");
    child.kill().expect("killed");
    child.wait().expect("over");
    assert_eq!(files(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_swap_file_that_cannot_be_is_one_clear_error_at_the_start() {
    let folder = model("no-swap-file", 2, 64);
    let refused = |limit: &str, at: &str| {
        let out = Command::new("sh")
            .args(["-c", &format!("ulimit -f {limit}; exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_plimsoll"))
            .arg("generate")
            .arg(&folder.0)
            .args([
                "-p",
                "w5",
                "-n",
                "4",
                "--swap-space",
                "1MiB",
                "--swap-dir",
                at,
            ])
            .output()
            .expect("a shell runs");
        assert_eq!(out.status.code(), Some(1), "{out:?}");
        assert!(out.stdout.is_empty());
        let e = text(&out.stderr);
        assert!(e.contains("a swap file of 1.0 MiB"), "{e}");
        e
    };
    let here = folder.0.to_str().expect("a path");
    let e = refused("100", here);
    assert!(e.contains("ulimit -f"), "{e}");
    let e = refused("unlimited", &format!("{here}/none"));
    assert!(e.contains("No such file"), "{e}");
}

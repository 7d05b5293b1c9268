//! Golden plans: per published model, one file with every term of the plan of each engine, so that a
//! changed formula shows as a reviewed diff; and figures published elsewhere, asserted one by one.
//!
//! `UPDATE_GOLDEN=1 cargo test -p plimsoll --test golden` rewrites the files. They record what the
//! program says, not what is true: what is true is asserted below, each with its source.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

const GIB: u64 = 1 << 30;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(args)
        .env_remove("PLIMSOLL_GPU")
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

/// The plan as JSON; a plan that says no is still a plan.
fn plan(line: &str) -> Value {
    let args: Vec<&str> = ["plan", "--json"]
        .into_iter()
        .chain(line.split_whitespace())
        .collect();
    let out = run(&args);
    let text = String::from_utf8(out.stdout).unwrap();
    let value: Value = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("plan {line}: {e}: {text}{:?}", out.stderr));
    assert!(value.get("error").is_none(), "plan {line}: {text}");
    value
}

fn text(line: &str) -> String {
    let args: Vec<&str> = line.split_whitespace().collect();
    let out = run(&args);
    assert!(out.status.success(), "{line}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn n(v: &Value) -> u64 {
    v.as_u64().unwrap_or_else(|| panic!("no number: {v}"))
}

/// `n`, printed with two decimals as GiB.
fn gib(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "two decimals are kept")]
    let gib = bytes as f64 / GIB as f64;
    format!("{gib:.2}")
}

/// Whole numbers and what JSON holds otherwise, without quotes.
fn show(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Null => "-".to_owned(),
        Value::Number(x) if x.is_f64() => format!("{:.4}", x.as_f64().unwrap()),
        other => other.to_string(),
    }
}

/// Every figure of a plan, one per line.
fn listing(v: &Value) -> String {
    let mut out = String::new();
    let mut line = |s: String| writeln!(out, "{s}").unwrap();
    let a = &v["answer"];
    line(format!("answer   {}", show(&a["text"])));
    line(format!(
        "         {}, {} devices, tp {} pp {} dp {} ep {}, users {}, context {}",
        show(&a["verdict"]),
        a["devices"],
        a["parallel"]["tp"],
        a["parallel"]["pp"],
        a["parallel"]["dp"],
        a["parallel"]["ep"],
        a["max_users"],
        a["max_context"],
    ));
    for r in v["ranks"].as_array().unwrap() {
        line(format!(
            "rank     stage {} x {}, layers {}..{}, budget {}, total {}",
            r["stage"],
            r["copies"],
            r["layers"][0],
            r["layers"][1],
            show(&r["budget_bytes"]),
            r["total_bytes"]
        ));
        for t in r["terms"].as_array().unwrap() {
            let interval = match &t["interval"] {
                Value::Null => String::new(),
                i => format!(" {}..{}", i["low"], i["high"]),
            };
            let outside = if t["inside"] == true { "" } else { ", outside" };
            line(format!(
                "  {:<12} {:<34} {:>16}  {}{interval}{outside}",
                show(&t["region"]),
                show(&t["name"]),
                show(&t["bytes"]),
                show(&t["kind"]),
            ));
        }
    }
    let kv = &v["kv"];
    line(format!(
        "kv       pool {}, blocks {} of {} tokens, {} bytes each; {} tokens; {} x {}",
        kv["pool_bytes"],
        show(&kv["blocks"]),
        kv["block_size"],
        kv["bytes_per_block"],
        kv["tokens"],
        show(&kv["max_concurrency"]),
        kv["max_model_len"],
    ));
    for g in kv["groups"].as_array().unwrap() {
        line(format!(
            "  group  {} span {}, {} layers + {} padding, block {}, page {}, blocks per request {}",
            show(&g["kind"]),
            show(&g["span"]),
            g["layers"],
            g["padding_layers"],
            g["block_size"],
            g["page_bytes"],
            g["blocks_per_request"],
        ));
    }
    let need = &kv["need"];
    line(format!(
        "  need   {}: states {}, reserved {}, internal {}, external {}",
        need["pool_bytes"],
        need["token_states_bytes"],
        need["reserved_bytes"],
        need["internal_bytes"],
        need["external_bytes"],
    ));
    if let Some(ways) = v["ways"].as_object() {
        for (name, w) in ways {
            line(format!(
                "  way    {name}: {} bytes, {} users",
                w["bytes"], w["users"]
            ));
        }
    }
    out
}

const ENGINES: [&str; 6] = [
    "ideal",
    "contiguous",
    "vllm@0.19",
    "vllm",
    "llama.cpp",
    "plimsoll",
];

/// The file of a model: its plans under each engine for one load on one kind of device.
fn golden(model: &str, load: &str) {
    let mut now = String::new();
    for engine in ENGINES {
        let line = format!("{model} {load} --engine {engine}");
        writeln!(now, "$ plimsoll plan {line}").unwrap();
        let args: Vec<&str> = ["plan", "--json"]
            .into_iter()
            .chain(line.split_whitespace())
            .collect();
        let out = run(&args);
        let value: Value = serde_json::from_slice(&out.stdout)
            .unwrap_or_else(|e| panic!("plan {line}: {e}: {out:?}"));
        match value.get("error") {
            Some(e) => writeln!(
                now,
                "exit {}: {} {}\n",
                out.status.code().unwrap(),
                show(&e["code"]),
                show(&e["message"])
            )
            .unwrap(),
            None => writeln!(now, "{}", listing(&value)).unwrap(),
        }
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("{model}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, now).unwrap();
        return;
    }
    let then = std::fs::read_to_string(&path).unwrap_or_default();
    if then == now {
        return;
    }
    panic!(
        "{} changed; review, then UPDATE_GOLDEN=1 rewrites it:\n{}",
        path.display(),
        diff(&then, &now)
    );
}

/// Lines that differ, under the plan that they belong to. Plans have a fixed order, so lines are
/// compared within their plan: those only in one of both are shown.
fn diff(then: &str, now: &str) -> String {
    let sections = |s: &str| -> Vec<(String, Vec<String>)> {
        s.split("$ ")
            .skip(1)
            .map(|part| {
                let mut lines = part.lines().map(str::to_owned);
                (lines.next().unwrap_or_default(), lines.collect())
            })
            .collect()
    };
    let (old, new) = (sections(then), sections(now));
    let mut out = String::new();
    for (title, lines) in &new {
        let before = old.iter().find(|(t, _)| t == title);
        let before = before.map(|(_, l)| l.as_slice()).unwrap_or_default();
        let gone = before.iter().filter(|l| !lines.contains(l));
        let come = lines.iter().filter(|l| !before.contains(l));
        let changed: Vec<String> = gone
            .map(|l| format!("- {l}"))
            .chain(come.map(|l| format!("+ {l}")))
            .collect();
        if !changed.is_empty() {
            writeln!(out, "$ {title}\n{}", changed.join("\n")).unwrap();
        }
    }
    for (title, _) in old.iter().filter(|(t, _)| new.iter().all(|(u, _)| t != u)) {
        writeln!(out, "- $ {title}").unwrap();
    }
    out
}

macro_rules! golden {
    ($($test:ident: $model:literal, $load:literal;)*) => {
        mod plans {
            $(#[test]
            fn $test() {
                super::golden($model, $load);
            })*

            /// A file without a test would never be compared.
            #[test]
            fn every_file_has_its_test() {
                let known = [$(concat!($model, ".txt")),*];
                let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
                for entry in std::fs::read_dir(folder).unwrap() {
                    let name = entry.unwrap().file_name();
                    let name = name.to_str().unwrap();
                    assert!(known.contains(&name), "{name} belongs to no test");
                }
            }
        }
    };
}

golden! {
    llama_13b: "llama-13b", "--gpu a100-40g --users 10 --context 2000";
    opt_13b: "opt-13b", "--gpu a100-40g --users 10 --context 2000";
    opt_66b: "opt-66b", "--gpu a100-40g --users 10 --context 2000";
    opt_175b: "opt-175b", "--gpu a100-80g --users 10 --context 2000";
    gpt2_345m: "gpt2-345m", "--gpu t4 --users 10 --context 1000";
    gpt3_175b: "gpt3-175b", "--gpu h200 --users 10 --context 2000";
    llama_3_1_8b: "llama-3.1-8b", "--gpu l4 --users 2 --context 8000";
    llama_3_1_70b: "llama-3.1-70b", "--gpu h100 --users 10 --context 8000";
    mistral_7b: "mistral-7b-v0.1", "--gpu a10g --users 4 --context 16000";
    mixtral_8x7b: "mixtral-8x7b", "--gpu a100-80g --users 10 --context 8000";
    qwen2_5_7b: "qwen2.5-7b", "--gpu rtx-4090 --users 10 --context 4000";
    qwen3_8b: "qwen3-8b", "--gpu rtx-4090 --users 4 --context 4000";
    qwen3_30b_a3b: "qwen3-30b-a3b", "--gpu h100 --users 10 --context 8000";
    qwen3_next: "qwen3-next-80b-a3b", "--gpu h200 --users 10 --context 32768";
    gemma_2_9b: "gemma-2-9b", "--gpu l40s --users 4 --context 8000";
    gemma_3_27b: "gemma-3-27b", "--gpu h100 --users 2 --context 8192";
    phi_4: "phi-4", "--gpu a6000 --users 4 --context 8000";
    granite_3_1_8b: "granite-3.1-8b", "--gpu rtx-5090 --users 4 --context 8000";
    deepseek_v2_lite: "deepseek-v2-lite", "--gpu a100-40g --users 10 --context 8000";
    deepseek_v3: "deepseek-v3", "--gpu h200 --gpus 8 --users 10 --context 8000";
    gpt_oss_20b: "gpt-oss-20b", "--gpu rtx-5090 --users 4 --context 32768";
    gpt_oss_120b: "gpt-oss-120b", "--gpu h100 --gpus 2 --users 4 --context 131072";
    qwen2_5_vl_7b: "qwen2.5-vl-7b", "--gpu l40s --users 4 --context 8000";
}

/// Kwon et al., SOSP 2023, table 1: KV slots. It prints GB and means GiB; the middle row, 9.7K
/// slots in "21 GB", is 21.3 GiB rounded down: 21 GiB give 9,557.
#[test]
fn paged_attention_table_1() {
    let tokens = |line: &str| n(&plan(line)["kv"]["tokens"]);
    for engine in ["contiguous", "ideal"] {
        let at = |model: &str, size: &str| {
            tokens(&format!("{model} --engine {engine} --kv-memory {size}"))
        };
        assert_eq!(at("opt-13b", "12GiB"), 15_728);
        assert_eq!(at("opt-66b", "21GiB"), 9_557);
        assert_eq!(at("opt-66b", "21.32GiB") / 100, 97);
        assert_eq!(at("opt-175b", "264GiB"), 60_074);
    }
    // Blocks of 16 divide the first row and round the last one down.
    assert_eq!(
        tokens("opt-13b --engine plimsoll --kv-memory 12GiB"),
        15_728
    );
    assert_eq!(
        tokens("opt-175b --engine vllm --kv-memory 264GiB"),
        60_074 / 16 * 16
    );
}

/// The same paper, section 6.2 and figure 13a: the contiguous server of the longest length runs 7
/// requests, and 8.9 % of the memory is lost between them.
#[test]
fn contiguous_servers_of_the_paper() {
    let base = "opt-13b --kv-memory 12GiB --context 2048";
    let max = format!("{base} --engine contiguous --reserve max");
    let v = plan(&max);
    assert_eq!(n(&v["answer"]["max_users"]), 7);
    assert_eq!(show(&v["kv"]["max_concurrency"]), "7.0000");
    let shown = text(&format!("plan {max}"));
    let full = "Full: 7 sequences of 2,048 slots, 8.85 % external fragmentation";
    assert!(shown.contains(full), "{shown}");
    // At the full length all of them are alike; at 500 tokens each reserves its own way.
    for (reserve, run) in [("max", 2048_u64), ("pow2", 512), ("oracle", 500)] {
        let long = plan(&format!("{base} --engine contiguous --reserve {reserve}"));
        assert_eq!(n(&long["answer"]["max_users"]), 7, "{reserve}");
        let v = plan(&format!(
            "opt-13b --kv-memory 12GiB --context 500 --max-model-len 2048 --engine contiguous \
             --reserve {reserve}"
        ));
        assert_eq!(n(&v["kv"]["block_size"]), run, "{reserve}");
        assert_eq!(n(&v["answer"]["max_users"]), 15_728 / run, "{reserve}");
    }
    // Paged: 983 blocks, 32 for each.
    let v = plan("opt-13b --kv-memory 12GiB --context 500 --engine plimsoll");
    assert_eq!(n(&v["kv"]["blocks"]), 983);
    assert_eq!(n(&v["answer"]["max_users"]), 983 / 32);
}

/// bf16 KV bytes of one token, whole model, from published configs.
#[test]
fn kv_bytes_per_token() {
    for (model, kib) in [
        ("llama-2-7b", 512_u64),
        ("llama-2-13b", 800),
        ("llama-13b", 800),
        ("llama-2-70b", 320),
        ("llama-3.1-70b", 320),
        ("llama-3.1-8b", 128),
        ("llama-3.1-405b", 504),
        ("mistral-7b-v0.1", 128),
        ("mixtral-8x7b", 128),
        ("qwen2.5-7b", 56),
        ("qwen3-8b", 144),
        ("qwen3-32b", 256),
        ("qwen3-30b-a3b", 96),
        ("qwen3-235b-a22b", 188),
        ("opt-13b", 800),
        ("gpt2-xl", 300),
        ("gpt-neox-20b", 1056),
        ("gpt3-175b", 4608),
        ("gpt-oss-120b", 72),
    ] {
        assert_eq!(per_token(model), kib * 1024, "{model}");
    }
    // One latent vector of 512 + 64 per layer.
    assert_eq!(per_token("deepseek-v3"), 61 * 576 * 2);
    assert_eq!(per_token("deepseek-r1"), 61 * 576 * 2);
}

fn per_token(model: &str) -> u64 {
    let v = plan(&format!(
        "{model} --engine ideal --kv-cache-dtype bf16 --users 1 --context 1"
    ));
    n(&v["kv"]["need"]["pool_bytes"])
}

fn request(line: &str) -> String {
    gib(n(
        &plan(&format!("{line} --users 1"))["kv"]["need"]["pool_bytes"],
    ))
}

/// Gemma 3 27B: 10 full layers of 62, window 1,024. vLLM holds windows by T tokens more, in six
/// groups of window layers padded to ten.
#[test]
fn gemma_3_27b_per_request() {
    assert_eq!(request("gemma-3-27b --engine ideal --context 8k"), "1.03");
    assert_eq!(
        request("gemma-3-27b --engine ideal --context 128k"),
        "10.41"
    );
    let full = "gemma-3-27b --engine contiguous --reserve oracle";
    assert_eq!(request(&format!("{full} --context 8k")), "3.88");
    assert_eq!(request(&format!("{full} --context 128k")), "62.00");
    let vllm = "gemma-3-27b --engine vllm@0.32 --max-num-batched-tokens 8192";
    assert_eq!(request(&format!("{vllm} --context 8k")), "4.38");
    assert_eq!(request(&format!("{vllm} --context 128k")), "17.98");
}

/// gpt-oss-120b at its full context: 8,192 blocks of the full group and 1,033 of the window group,
/// 589,824 bytes each, where T is 8,192 and scheduling runs one step ahead.
#[test]
fn gpt_oss_120b_per_request() {
    let at = |more: &str| request(&format!("gpt-oss-120b --context 131072 {more}"));
    let vllm = "--engine vllm@0.32 --async-scheduling true --max-num-batched-tokens";
    assert_eq!(at(&format!("{vllm} 8192")), "5.07");
    assert_eq!(at(&format!("{vllm} 2048")), "4.65");
    assert_eq!(at("--engine ideal"), "4.50");
    assert_eq!(at("--engine contiguous --reserve oracle"), "9.00");
}

/// Qwen3-Next: attention pages grow to hold a recurrent state, which takes blocks of 544 tokens.
/// 32K tokens hold 61 of them, and two for each of three groups of states.
#[test]
fn qwen3_next_block() {
    let v = plan(
        "qwen3-next-80b-a3b --engine vllm@0.32 --enable-prefix-caching --context 32k --users 1",
    );
    let kv = &v["kv"];
    assert_eq!(n(&kv["block_size"]), 544);
    let blocks = n(&kv["need"]["pool_bytes"]) / n(&kv["bytes_per_block"]);
    assert_eq!(blocks, 68, "67 and the null block");
    assert_eq!(32_768_u64.div_ceil(544) + 3 * 2, 67);
}

/// Pools and tokens that start-up logs printed: vllm#33263, vllm#34076.
#[test]
fn pools_of_published_logs() {
    for (model, printed, tokens, each) in [
        ("qwen3-1.7b", "18.78", 175_856_u64, 114_688_u64),
        ("qwen3-coder-30b-a3b", "3.18", 34_736, 98_304),
    ] {
        assert_eq!(per_token(model), each);
        let bytes = tokens * each;
        assert_eq!(gib(bytes), printed, "{model}");
        let v = plan(&format!("{model} --engine vllm@0.19 --kv-memory {bytes}"));
        assert_eq!(n(&v["kv"]["tokens"]), tokens, "{model}");
        let v = plan(&format!(
            "{model} --engine vllm@0.19 --kv-memory {}",
            bytes - 1
        ));
        assert_eq!(n(&v["kv"]["tokens"]), tokens - 16, "{model}");
    }
    // The same log: 262,144 tokens need 24.0 GiB.
    let whole = request("qwen3-coder-30b-a3b --engine ideal --context 262144");
    assert_eq!(whole, "24.00");
}

/// The classic hand calculation, and the weights as an engine loads them.
#[test]
fn weights_of_the_classic_examples() {
    for (what, shown) in [
        ("345M", "690 MB"),
        ("13B", "26.0 GB"),
        ("175B", "350.0 GB"),
        ("llama-13b --users 10 --context 2000", "46.7 GB"),
        ("llama-13b --users 10 --context 8192", "102.5 GB"),
    ] {
        let t = text(&format!("plan {what} --method rule-of-thumb"));
        assert!(t.contains(shown), "{what}: {t}");
    }
    let weights = |line: &str| -> u64 {
        plan(line)["ranks"][0]["terms"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|t| t["region"] == "weights")
            .map(|t| n(&t["bytes"]))
            .sum()
    };
    let llama = weights("llama-13b --engine ideal --users 1 --context 1");
    // Touvron et al. 2023: 13,015,864,320 parameters in two bytes.
    assert_eq!(llama, 13_015_864_320 * 2);
    assert_eq!(gib(llama), "24.24");
}

/// A card that other processes fill: vLLM compares what is free with its share and does not start.
#[test]
fn memory_in_use_is_not_planned_twice() {
    let at = |more: &str| plan(&format!("llama-13b --gpu h100 --gpus 1 {more}"));
    assert_eq!(at("--in-use 6GiB")["answer"]["verdict"], "yes");
    // The default share is lowered to what is free, and the command says so; a share asked for is not.
    let beside = at("--in-use 7GiB");
    assert_eq!(beside["answer"]["verdict"], "yes");
    let vllm = beside["flags"][0]["command"].as_str().unwrap_or_default();
    assert!(vllm.contains("--gpu-memory-utilization 0.9"), "{vllm}");
    for more in [
        "--in-use 7GiB --gpu-memory-utilization 0.92",
        "--in-use 90GiB",
        "--in-use 60GiB --kv-memory 4GiB",
        "--in-use 90GiB --engine ideal",
        "--in-use 90GiB --engine llama.cpp",
        "--in-use 90GiB --engine plimsoll",
        "--in-use 90GiB --engine contiguous",
    ] {
        assert_eq!(at(more)["answer"]["verdict"], "no", "{more}");
    }
    // The smallest card is one that has the room beside them.
    let any = plan("llama-13b --gpu any --in-use 10GiB --users 1 --context 2000");
    assert_eq!(any["answer"]["verdict"], "yes");
    let lower = at("--in-use 7GiB --gpu-memory-utilization 0.9");
    assert_eq!(lower["answer"]["verdict"], "yes");
}

/// What is planned is what the printed commands ask for: `serve` has a type of its own to begin with.
#[test]
fn commands_to_paste_name_the_type_of_the_cache_and_that_nothing_is_recorded() {
    for (kv, own, vllm) in [
        ("int8", "int8", "int8_per_token_head"),
        ("f16", "f16", "float16"),
    ] {
        let shown = text(&format!(
            "plan llama-3.1-8b --engine plimsoll --gpu h100 --context 8k --users 2 --kv-cache-dtype {kv} --enforce-eager"
        ));
        let line = |start: &str| {
            let mut lines = shown.lines().map(str::trim);
            lines
                .find(|l| l.starts_with(start))
                .expect("a command")
                .to_owned()
        };
        let (serve, other) = (line("plimsoll serve"), line("vllm serve"));
        assert!(
            serve.contains(&format!("--kv-cache-dtype {own} ")),
            "{serve}"
        );
        for command in [&serve, &other] {
            assert!(command.contains(" --enforce-eager"), "{command}");
        }
        assert!(
            other.contains(&format!("--kv-cache-dtype {vllm}")),
            "{other}"
        );
    }
}

/// Published fp8 stays as it is stored unless `--weights` says otherwise: a byte for each element, and an f32 for each row and
/// 128 columns.
#[test]
fn fp8_as_it_is_stored_fits_where_bf16_does_not() {
    let at = |more: &str| {
        plan(&format!(
            "deepseek-v3 --gpu h200 --gpus 8 --engine plimsoll {more}"
        ))
    };
    let (stored, wide) = (at(""), at("--weights bf16"));
    let verdict = |v: &Value| v["answer"]["verdict"].clone();
    assert_eq!([verdict(&stored), verdict(&wide)], ["yes", "no"]);
    let experts = |v: &Value| {
        let terms = v["ranks"][0]["terms"].as_array().expect("terms");
        let experts = terms.iter().find(|t| t["name"] == "experts");
        n(&experts.expect("a term")["bytes"])
    };
    // 58 layers of 256 experts, three matrices of 7168 by an eighth of 2048.
    let elements = 58 * 256 * 3 * 7168 * (2048 / 8);
    assert_eq!(experts(&stored), elements + elements / 128 * 4);
    assert_eq!(experts(&wide), 2 * elements);
    let changes = wide["changes"].to_string();
    assert!(changes.contains("--weights auto"), "{changes}");
}

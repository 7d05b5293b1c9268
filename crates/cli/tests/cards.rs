//! `plan --gpu a,b,c` and `2xa+b`, `--beside`, `--emit`, `--html`, `--csv`, `explain` and `man`, as a user types them.

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

/// Each stage has the memory of its own kind, and layers by it; the command says which.
#[test]
fn devices_of_several_kinds_make_one_plan() {
    let load = "plan llama-3.1-70b --users 16 --context 8k --gpu 2xh100+4xl40s";
    let plan = json(&format!("{load} --json"));
    let ranks = plan["ranks"].as_array().unwrap();
    let kinds: Vec<&str> = ranks
        .iter()
        .map(|r| r["device"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["h100-80g-sxm", "l40s-48g", "l40s-48g"]);
    let layers: Vec<u64> = ranks
        .iter()
        .map(|r| r["layers"][1].as_u64().unwrap() - r["layers"][0].as_u64().unwrap())
        .collect();
    assert_eq!(layers.iter().sum::<u64>(), 80);
    assert!(layers[0] > layers[1], "{layers:?}");
    for r in ranks {
        assert!(
            r["total_bytes"].as_u64() <= r["usable_bytes"].as_u64(),
            "{r}"
        );
    }
    let out = run(&format!("{load} --emit vllm"));
    let command = String::from_utf8(out.stdout).unwrap();
    let each: Vec<String> = layers.iter().map(u64::to_string).collect();
    let partition = format!("VLLM_PP_LAYER_PARTITION={} vllm serve ", each.join(","));
    assert!(command.starts_with(&partition), "{command}");
    assert!(
        command.contains("--tensor-parallel-size 2 --pipeline-parallel-size 3"),
        "{command}"
    );
    for (flags, said) in [
        ("--gpu h100+l40s --gpus 2", "says it too"),
        ("--gpu h100+l40s,a10", "says it too"),
        ("--gpu 2xh100+4xl40s --tp 4", "does not divide"),
        ("--gpu h100+l40s --engine plimsoll", "needs pipeline stages"),
        ("--gpu h100+l40s --engine sglang", "has least free"),
        ("--gpu h100+", "no sum of devices"),
        ("--gpu h100+nosuch", "no device is called `nosuch`"),
        ("--gpu h100+l40s --emit kubernetes", "several kinds"),
    ] {
        let out = run(&format!("plan llama-3.1-8b --context 4k {flags}"));
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(2), "{flags}: {text}");
        assert!(text.contains(said), "{flags}: {text}");
    }
}

/// Two of the same kind are what the engine makes of its own division.
#[test]
fn kinds_that_are_alike_are_no_other_plan() {
    let users = |gpu: &str| {
        let p = json(&format!(
            "plan llama-3.1-70b --users 16 --context 8k --json {gpu}"
        ));
        p["answer"]["max_users"].as_u64().unwrap()
    };
    assert!(users("--gpu 2xh100+2xh100") >= users("--gpu h100 --tp 2 --pp 2"));
}

#[test]
fn an_engine_beside_another_has_what_it_leaves() {
    let file = std::env::temp_dir().join(format!("plimsoll-beside-{}.json", std::process::id()));
    let first =
        run("plan llama-3.1-8b --gpu h100 --context 4k --gpu-memory-utilization 0.4 --json");
    std::fs::write(&file, &first.stdout).unwrap();
    let taken = serde_json::from_slice::<Value>(&first.stdout).unwrap()["ranks"][0]["total_bytes"]
        .as_u64()
        .unwrap();
    let second = "plan qwen3-8b --gpu h100 --gpus 1 --context 4k --json";
    let plan = json(&format!(
        "{second} --in-use 1GiB --beside {}",
        file.display()
    ));
    assert_eq!(plan["device"]["in_use_bytes"], taken + (1 << 30));
    let usable = plan["device"]["usable_bytes"].as_u64().unwrap();
    assert!(plan["ranks"][0]["budget_bytes"].as_u64().unwrap() + taken + (1 << 30) <= usable);
    for (flags, code) in [
        ("--gpu a100 --beside FILE", 2),
        ("--gpu h100 --beside /no/such/plan.json", 4),
        ("--gpu h100 --beside Cargo.toml", 65),
    ] {
        let flags = flags.replace("FILE", &file.display().to_string());
        let out = run(&format!("plan qwen3-8b --context 4k {flags}"));
        assert_eq!(out.status.code(), Some(code), "{flags}: {out:?}");
    }
    std::fs::remove_file(&file).unwrap();
}

/// What is emitted is what the plan prints below its table, and nothing where it does not fit.
#[test]
fn a_plan_is_emitted_as_its_command() {
    for engine in ["vllm", "sglang", "llama.cpp", "plimsoll"] {
        let plan = format!("plan llama-3.1-8b --gpu h100 --users 8 --context 4k --engine {engine}");
        let flags = json(&format!("{plan} --json"))["flags"].clone();
        let printed = flags
            .as_array()
            .unwrap()
            .iter()
            .find(|f| f["engine"] == engine)
            .unwrap()["command"]
            .as_str()
            .unwrap()
            .to_owned();
        let out = run(&format!("{plan} --emit {engine}"));
        assert_eq!(String::from_utf8(out.stdout).unwrap().trim_end(), printed);
    }
    let out = run("plan llama-3.1-70b --gpu t4 --gpus 1 --users 8 --context 4k --emit vllm");
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    assert!(out.stdout.is_empty());
    for (flags, said) in [
        ("--engine vllm --emit llama.cpp", "other rules"),
        ("--engine ideal --emit kubernetes", "no server"),
        ("--engine plimsoll --emit kubernetes", "--image"),
        ("--emit vllm --json", "leave one"),
        ("--gpu h100,l40s --emit vllm", "names several"),
        ("--tp 8 --pp 2 --emit kubernetes", "spans nodes"),
        ("--tp 2 --pp 2 --emit plimsoll", "pipeline stages"),
        (
            "--emit vllm --speculative-model qwen3-0.6b",
            "no flags of speculation",
        ),
        (
            "--emit llama.cpp --speculative-model qwen3-0.6b",
            "not modelled",
        ),
        ("--emit llama.cpp --max-loras 2", "no slots for adapters"),
        ("--emit vllm --quantization int4", "quantises nothing to"),
        ("--emit sglang --kv-cache-dtype f16", "the model's type"),
        (
            "--emit sglang --engine sglang@0.5.3 --dtype f16 --kv-cache-dtype bf16",
            "from 0.5.4 on bf16",
        ),
    ] {
        let gpu = if flags.contains("--gpu") {
            ""
        } else {
            "--gpu h100"
        };
        let out = run(&format!("plan llama-3.1-8b {gpu} --context 4k {flags}"));
        // With `--json` the error is an object on stdout.
        let text = String::from_utf8([out.stderr, out.stdout].concat()).unwrap();
        assert_eq!(out.status.code(), Some(2), "{flags}: {text}");
        assert!(text.contains(said), "{flags}: {text}");
    }
}

/// Every setting that a plan rests on is a flag of the engine, in the words that the release's own parser reads
/// (`tools/oracles/emitted.py`); one that the release does not know is left out, or the plan is refused.
#[test]
fn what_is_emitted_says_all_that_was_planned() {
    let model = "plan llama-3.1-8b --gpu h100 --users 3 --context 4k";
    for (flags, words, not) in [
        ("--emit llama.cpp", "-c 12288 -np 3 -ngl 999", "-ct"),
        (
            "--emit llama.cpp --max-model-len 8k --max-num-seqs 4",
            "-c 32768 -np 4",
            "",
        ),
        ("--emit llama.cpp --cache-type-v q8_0", "-ctv q8_0", "-ctk"),
        (
            "--emit llama.cpp --cache-type-k q8_0",
            "-ctk q8_0 -ctv q8_0",
            "",
        ),
        (
            "--emit llama.cpp --max-num-batched-tokens 4096 --ubatch 1024",
            "-b 4096 -ub 1024",
            "",
        ),
        (
            "--emit llama.cpp --flash-attn false --kv-unified --swa-full",
            "-fa off --kv-unified --swa-full",
            "",
        ),
        // The flag took no value before August 2025, and there was one buffer for all before July.
        (
            "--emit llama.cpp --engine llama.cpp@b5000 --flash-attn true --kv-unified",
            "-fa",
            "-fa on",
        ),
        (
            "--emit llama.cpp --engine llama.cpp@b5000 --flash-attn false --kv-unified",
            "-np 3",
            "-fa",
        ),
        (
            "--emit llama.cpp --engine llama.cpp@b5000 --kv-unified",
            "-np 3",
            "unified",
        ),
        ("--emit vllm --max-model-len 8k", "--max-model-len 8192", ""),
        ("--emit vllm --quantization fp8", "--quantization fp8", ""),
        (
            "--emit vllm --quantization bitsandbytes",
            "--quantization bitsandbytes",
            "",
        ),
        (
            "--emit vllm --no-enable-prefix-caching",
            "--no-enable-prefix-caching",
            "",
        ),
        (
            "--emit vllm --async-scheduling false",
            "--no-async-scheduling",
            "",
        ),
        (
            "--emit sglang --max-model-len 8k",
            "--context-length 8192",
            "",
        ),
        ("--emit sglang --quantization fp8", "--quantization fp8", ""),
        (
            "--emit sglang --no-enable-prefix-caching",
            "--disable-radix-cache",
            "",
        ),
        (
            "--emit sglang --kv-cache-dtype bf16",
            "--kv-cache-dtype bf16",
            "",
        ),
        // Named from 0.5.4 on; before, the pool of a bf16 model has that type by itself.
        (
            "--emit sglang --engine sglang@0.5.3 --kv-cache-dtype bf16",
            "--context-length 4096",
            "--kv-cache-dtype",
        ),
        (
            "--emit sglang --max-loras 2",
            "--max-loras-per-batch 2 --enable-lora --max-lora-rank 16",
            "",
        ),
        (
            "--emit sglang --kv-memory 8GiB",
            "--max-total-tokens 65536",
            "",
        ),
        (
            "--emit sglang --engine sglang@0.4.6 --max-loras 2",
            "--max-loras-per-batch 2",
            "-lora-rank",
        ),
    ] {
        let out = run(&format!("{model} {flags}"));
        let text = String::from_utf8(out.stdout).unwrap();
        assert_eq!(out.status.code(), Some(0), "{flags}: {text}");
        assert!(text.contains(words), "{flags}: {text}");
        assert!(not.is_empty() || !text.contains(not), "{flags}: {text}");
    }
}

/// On processors llama-server keeps no finished prompts, which the plan does not count; one slot has one buffer anyway.
#[test]
fn what_is_emitted_for_processors_takes_nothing_beside_the_plan() {
    let plan =
        "plan llama-3.1-8b --gpu cpu --memory 32GiB --users 1 --context 4k --engine llama.cpp";
    let out = run(&format!("{plan} --kv-unified --threads 2 --emit llama.cpp"));
    let words = "llama-server -m MODEL.gguf -c 4096 -np 1 --device none -t 2 --cache-ram 0";
    assert_eq!(String::from_utf8(out.stdout).unwrap().trim(), words);
}

/// What is stored quantised is loaded as it is, and a server told otherwise would not start.
#[test]
fn a_stored_quantisation_is_no_flag() {
    let plan = "plan gpt-oss-20b --gpu h100 --users 3 --context 4k --quantization fp8";
    let command = String::from_utf8(run(&format!("{plan} --emit vllm")).stdout).unwrap();
    assert!(
        command.starts_with("vllm serve") && !command.contains("--quantization"),
        "{command}"
    );
    let notes = json(&format!("{plan} --json"))["notes"].to_string();
    assert!(notes.contains("--quantization changes nothing"), "{notes}");
}

/// A pod for each replica, with its devices, and the whole process' memory on processors.
#[test]
fn a_manifest_asks_for_what_the_plan_takes() {
    let out =
        run("plan llama-3.1-70b --gpu h100 --users 8 --context 4k --tp 4 --dp 2 --emit kubernetes");
    let text = String::from_utf8(out.stdout).unwrap();
    for line in [
        "kind: \"Deployment\"",
        "replicas: 2",
        "nvidia.com/gpu: 4",
        "- \"meta-llama/Llama-3.1-70B\"",
        "kind: \"Service\"",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(
        !text.contains("data-parallel"),
        "a pod is a replica: {text}"
    );
    let out =
        run("plan demo --gpu cpu --memory 2GiB --engine plimsoll --image a/b:1 --emit kubernetes");
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(text.matches("memory: \"2147483648\"").count(), 2, "{text}");
    assert!(
        text.contains("PLIMSOLL_API_KEY") && text.contains("/health/live"),
        "{text}"
    );
}

//! The demo model: it runs with no MODEL and no download, and it is what long runs are tried with.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod generating;

use std::process::Command;

use generating::{Dir, demo};
use serde_json::{Value, json};

#[test]
fn with_no_model_the_demo_runs_and_its_cached_copy_is_mended() {
    let home = Dir::new();
    let (text, talk) = demo(&home, &["generate"]);
    assert!(
        talk.contains("Jane Austen") && talk.contains("hub id"),
        "{talk}"
    );
    let greedy = ["generate", "--temperature", "0", "-n", "24"];
    let (first, _) = demo(&home, &greedy);
    // Both go on from the same prompt.
    let same = text.bytes().zip(first.bytes()).take_while(|(a, b)| a == b);
    let prompt = same.count();
    assert!(prompt > 20 && first.len() > prompt + 60, "{text} {first}");
    // Cut and changed files, and one that is gone.
    let folder = home
        .0
        .join(concat!("hf/plimsoll/demo-", env!("CARGO_PKG_VERSION")));
    let weights = folder.join("model.safetensors");
    let good = std::fs::read(&weights).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 0x40;
    std::fs::write(&weights, bad).unwrap();
    std::fs::write(folder.join("tokenizer.json"), "{").unwrap();
    std::fs::remove_file(folder.join("config.json")).unwrap();
    assert_eq!(demo(&home, &greedy).0, first);
    assert_eq!(std::fs::read(&weights).unwrap(), good);
    // A prompt of one's own, the same model by its name, and what it takes.
    let (named, _) = demo(
        &home,
        &[
            "generate", "demo", "-p", "She was", "-n", "8", "--seed", "1",
        ],
    );
    let (unnamed, _) = demo(
        &home,
        &["generate", "-p", "She was", "-n", "8", "--seed", "1"],
    );
    assert!(
        named.starts_with("She was") && named == unnamed,
        "{named} {unnamed}"
    );
    let (plan, _) = demo(
        &home,
        &[
            "plan", "demo", "--engine", "plimsoll", "--gpu", "cpu", "--memory", "1GiB",
        ],
    );
    assert!(plan.starts_with("demo on 1 x cpu"), "{plan}");
    assert!(demo(&home, &["models", "list"]).0.contains("\ndemo "));
    assert!(
        demo(&home, &["models", "show", "demo"])
            .0
            .contains("LlamaForCausalLM")
    );
}

#[test]
fn without_a_cache_the_demo_leaves_nothing_behind() {
    let home = Dir::new();
    home.write("hf", "no folder");
    let temporary = home.0.join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args([
            "bench",
            "--repeats",
            "1",
            "--concurrency",
            "1",
            "--prefill",
            "8",
            "--output-len",
            "2",
        ])
        .env("HF_HOME", home.path("hf"))
        .env("TMPDIR", &temporary)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
}

/// Draws, searches and single answers that begin alike, in a pool that has too few pages for them.
#[test]
fn a_run_under_every_pressure_answers_as_one_without_and_is_decided_again() {
    let home = Dir::new();
    let lines: Vec<String> = (0..12)
        .map(|i| {
            let name = ["Elizabeth", "Emma", "Anne", "Fanny", "Elinor", "Marianne"][i % 6];
            let verb = ["looked", "said"][i / 6];
            let prompt = format!(
                "It is a truth universally acknowledged, that a young lady of good fortune, who had been \
                 brought up at her uncle's house, {name} {verb}"
            );
            let mut line = match i % 3 {
                0 => json!({ "n": 4, "temperature": 0.8, "seed": i }),
                1 => json!({ "beam_width": 4 }),
                _ => json!({ "temperature": 0 }),
            };
            line["prompt"] = prompt.into();
            line["max_tokens"] = 40.into();
            line.to_string()
        })
        .collect();
    let file = home.write("prompts.jsonl", lines.join("\n"));
    let log = home.path("run.log");
    let run = |memory: &[&str]| {
        let mut args = vec!["generate", "demo", "--prompts", &file, "--ignore-eos"];
        args.extend(["--max-model-len", "96", "--max-num-seqs", "24"]);
        args.extend(memory);
        let (out, talk) = demo(&home, &args);
        let mut texts: Vec<(u64, Vec<Value>)> = out
            .lines()
            .map(|l| {
                let v: Value = serde_json::from_str(l).unwrap();
                let choices = v["choices"].as_array().unwrap();
                let of = choices.iter().map(|c| c["text"].clone()).collect();
                (v["index"].as_u64().unwrap(), of)
            })
            .collect();
        texts.sort_by_key(|t| t.0);
        (texts, talk)
    };
    let (want, roomy) = run(&[]);
    assert!(!roomy.contains("by recompute (believed"), "{roomy}");
    let tight = ["--kv-memory", "896KiB", "--swap-space", "150KiB"];
    let (texts, talk) = run(&[&tight[..], &["--log", &log]].concat());
    assert_eq!(texts, want, "{talk}");
    // Each kind of pressure was there.
    let count = |before: &str, after: &str| -> u64 {
        let at = talk
            .find(after)
            .unwrap_or_else(|| panic!("{after}: {talk}"));
        let from = talk[..at].rfind(before).unwrap() + before.len();
        talk[from..at].trim().replace(',', "").parse().unwrap()
    };
    assert!(count("preempted", " times by swap") > 0, "{talk}");
    assert!(count(", ", " by recompute") > 0, "{talk}");
    assert!(
        count("\n", " prompt tokens from the prefix cache") > 0,
        "{talk}"
    );
    assert!(count("cache,", " pages copied") > 0, "{talk}");
    let (replayed, _) = demo(&home, &["simulate", "--replay", &log]);
    assert!(
        replayed.contains("every decision is the same")
            && replayed.contains("every block table is the same"),
        "{replayed}"
    );
}

/// They show in every log probability, and are the same with all instructions.
#[test]
fn inputs_of_weights_are_rounded_where_that_is_asked_for() {
    let home = Dir::new();
    let told = |more: &[&str]| {
        let mut args = vec!["generate", "-p", "She was not", "-n", "6"];
        args.extend(["--temperature", "0", "--logprobs", "0", "--json"]);
        args.extend(more);
        let value: Value = serde_json::from_str(&demo(&home, &args).0).unwrap();
        value["choices"][0]["logprobs"].clone()
    };
    let [f32, bf16] = ["f32", "bf16"].map(|i| told(&["--inputs", i]));
    let first = |v: &Value| v[0]["logprob"].as_f64().unwrap();
    let off = (first(&f32) - first(&bf16)).abs();
    assert!(off > 0.0 && off < 0.1, "{f32} {bf16}");
    assert_eq!(told(&["--inputs", "bf16", "--cpu-level", "scalar"]), bf16);
    assert_eq!(told(&["--inputs", "f32", "--cpu-level", "scalar"]), f32);
    let auto = told(&[]);
    assert!(auto == f32 || auto == bf16, "{auto}");
}

#[test]
fn bench_times_what_it_says_and_tells_of_sequences_past_training() {
    let home = Dir::new();
    let bench = |more: &[&str]| {
        let mut args = vec![
            "bench",
            "--repeats",
            "2",
            "--prefill",
            "40",
            "--output-len",
            "6",
        ];
        args.extend(["--prompt-len", "5", "--concurrency", "1,3", "--json"]);
        args.extend(more);
        let (out, talk) = demo(&home, &args);
        (serde_json::from_str::<Value>(&out).unwrap(), talk)
    };
    let (all, talk) = bench(&[]);
    assert!(!talk.contains("trained for"), "{talk}");
    let cases = all["cases"].as_array().unwrap();
    let shape = |c: &Value| {
        let n = |key: &str| c[key].as_u64().unwrap();
        [n("requests"), n("prompt_tokens"), n("output_tokens")]
    };
    let shapes: Vec<[u64; 3]> = cases.iter().map(shape).collect();
    assert_eq!(shapes, [[1, 32, 6], [1, 40, 1], [1, 5, 6], [3, 5, 6]]);
    for c in cases {
        let runs = c["runs_tokens_per_s"].as_array().unwrap();
        assert_eq!(runs.len(), 2, "{c}");
        assert!(
            runs.iter().all(|r| r.as_f64().is_some_and(|r| r > 0.0)),
            "{c}"
        );
    }
    let inputs = |more: &[&str]| bench(more).0["inputs"].clone();
    assert_eq!(inputs(&["--inputs", "f32"]), "f32");
    assert_eq!(inputs(&["--inputs", "bf16"]), "bf16");
    // Neither is known better than to be there: bounds of other types of inputs are not f32 arithmetic's.
    assert!(cases[0]["share_of_bound"].as_f64().is_some_and(|s| s > 0.0));
    assert!(bench(&["--weights", "int8"]).0["cases"][1]["share_of_bound"].is_null());
    let (_, talk) = bench(&["--max-model-len", "2000"]);
    assert!(
        talk.contains("2000 tokens, and the model was trained for 1024"),
        "{talk}"
    );
}

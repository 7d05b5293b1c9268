//! `plimsoll generate` as users meet it, on a tiny checkpoint: the same text however it is computed, its log
//! replayed by the simulator, and one clear error for what cannot be run.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod generating;

use generating::{Dir, answers, generate, plimsoll, words};
use serde_json::{Value, json};
#[test]
fn text_does_not_depend_on_how_it_is_computed() {
    for family in ["llama", "granite_hybrid"] {
        one_text(family);
    }
}

fn one_text(family: &str) {
    let dir = Dir::new();
    let model = dir.model(family);
    let prompt = words(1, 30);
    let run = |more: &[&str]| {
        let all = [
            &[&model[..], "-p", &prompt, "-n", "20", "--ignore-eos"],
            more,
        ]
        .concat();
        generate(&all)
    };
    let text = run(&["--temperature", "0"]);
    assert!(
        text.starts_with(&prompt) && text.len() > prompt.len() + 20,
        "{text}"
    );
    for more in [
        ["--cpu-level", "scalar"],
        ["--threads", "1"],
        ["--max-num-batched-tokens", "17"],
        ["--block-size", "5"],
    ] {
        assert_eq!(
            run(&[&["--temperature", "0"], &more[..]].concat()),
            text,
            "{more:?}"
        );
    }
    // Draws depend on the seed, and on nothing else.
    let one = run(&["--seed", "7"]);
    assert_eq!(run(&["--seed", "7", "--cpu-level", "scalar"]), one);
    assert_ne!(run(&["--seed", "8"]), one);
}

#[test]
fn a_run_under_pressure_says_the_same_and_its_log_replays() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let lines: Vec<String> = (0..12)
        .map(|i| json!({ "prompt": words(i, 12 + i), "max_tokens": 60 }).to_string())
        .collect();
    let prompts = dir.write("prompts.jsonl", lines.join("\n"));
    let log = dir.path("run.log");
    let run = |more: &[&str]| -> Vec<Value> {
        let args = [
            &[
                &model[..],
                "--prompts",
                &prompts,
                "--ignore-eos",
                "--seed",
                "3",
            ],
            more,
        ]
        .concat();
        let text = generate(&args);
        let mut all: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        all.sort_by_key(|v| v["index"].as_u64());
        all
    };
    let roomy = run(&[]);
    let tight = run(&[
        "--kv-memory",
        "128KiB",
        "--swap-space",
        "1MiB",
        "--log",
        &log,
    ]);
    assert_eq!(roomy.len(), 12);
    let preempted: u64 = tight
        .iter()
        .map(|v| v["preemptions"].as_u64().unwrap())
        .sum();
    assert!(preempted > 0, "{tight:?}");
    for (a, b) in roomy.iter().zip(&tight) {
        assert_eq!(a["choices"], b["choices"]);
        assert_eq!(a["output_tokens"], json!(60));
    }
    let replay = plimsoll(&["simulate", "--replay", &log]);
    assert!(replay.status.success(), "{replay:?}");
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let prompt = words(5, 10);
    let args = [
        &model[..],
        "-p",
        &prompt,
        "-n",
        "40",
        "--temperature",
        "0",
        "--ignore-eos",
    ];
    let whole = generate(&args);
    let answer: Vec<&str> = whole[prompt.len()..].split_whitespace().collect();
    // The first words of the answer, up to one that comes again nowhere before it.
    let at = (3..answer.len())
        .find(|&i| !answer[..i].contains(&answer[i]))
        .unwrap();
    let stop = format!("{} ", answer[at]);
    let cut = generate(&[&args[..], &["--stop", &stop]].concat());
    let shown: Vec<&str> = cut[prompt.len()..].split_whitespace().collect();
    assert_eq!(shown, answer[..at]);
}

/// Each answer of several is a text of its own, by the same rules as one that is shown as it comes.
#[test]
fn the_first_of_several_answers_is_the_only_one_of_one() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let prompt = words(2, 8);
    let base = [
        &model[..],
        "-p",
        &prompt,
        "-n",
        "30",
        "--ignore-eos",
        "--seed",
        "5",
    ];
    let several = |more: &[&str]| -> Vec<String> {
        let text = generate(&[&base[..], &["--samples", "3"], more].concat());
        let answers = text.split("\n---\n").filter(|a| !a.is_empty());
        answers.map(str::to_owned).collect()
    };
    let all = several(&[]);
    assert_eq!(all.len(), 3);
    assert_eq!(all[0], generate(&base).trim_end_matches('\n'));
    assert!(all[0] != all[1] && all[1] != all[2]);
    // A word in the middle of the second ends it there, and the others where they have it.
    let word = all[1][prompt.len()..].split_whitespace().nth(9).unwrap();
    let stop = format!("{word} ");
    let cut = |text: &String| -> String {
        let answer = &text[prompt.len()..];
        let end = answer.find(&stop).unwrap_or(answer.len());
        text[..prompt.len() + end].to_owned()
    };
    let stopped = several(&["--stop", &stop]);
    assert_eq!(stopped, all.iter().map(cut).collect::<Vec<_>>());
    assert_ne!(stopped[1], all[1]);
    // And nothing is generated behind it: the space in the stop comes with the word after.
    let until = |text: &String| {
        let words: Vec<&str> = text[prompt.len()..].split_whitespace().collect();
        let at = words[..words.len() - 1].iter().position(|w| *w == word);
        at.map_or(30, |i| i as u64 + 2)
    };
    let line = json!({ "prompt": prompt, "max_tokens": 30 }).to_string();
    let file = dir.write("one.jsonl", line);
    let args = [
        "--prompts",
        &file,
        "--samples",
        "3",
        "--ignore-eos",
        "--seed",
        "5",
    ];
    let out = generate(&[&[&model[..]], &args[..], &["--stop", &stop]].concat());
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        out["output_tokens"],
        json!(all.iter().map(until).sum::<u64>())
    );
}

/// The embedding of one token is no number: prompts that have it end, and nobody else does.
#[test]
fn damaged_weights_end_whom_they_concern_and_are_named() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let file = dir.path("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let n = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let tensor = &header["model.embed_tokens.weight"];
    let width = 2 * usize::try_from(tensor["shape"][1].as_u64().unwrap()).unwrap();
    let from = 8 + n + usize::try_from(tensor["data_offsets"][0].as_u64().unwrap()).unwrap();
    bytes[from + 77 * width..][..width].fill(0xff);
    std::fs::write(&file, bytes).unwrap();
    let checked = ["generate", &model, "-p", "w5", "-n", "1", "--check-weights"];
    let out = plimsoll(&checked);
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(65), "{err}");
    let nan = format!("`model.embed_tokens.weight` has {} NaN", width / 2);
    assert!(err.contains(&nan) && out.stdout.is_empty(), "{err}");

    let line = |text: &str| json!({ "prompt": text, "max_tokens": 8, "seed": 1 }).to_string();
    // The last one fails at a position of its prompt.
    let told = json!({ "prompt": "w5 w77 w6 w7", "prompt_logprobs": 1, "seed": 1 }).to_string();
    let lines = [line("w5 w6"), line("w5 w77"), line("w8 w9 w10"), told];
    let prompts = dir.write("prompts.jsonl", lines.join("\n"));
    let log = dir.path("run.log");
    // One that forbids the token, so that it is not drawn.
    let args = ["--logit-bias", "77:-100", "--ignore-eos", "--log", &log];
    let out = plimsoll(&[&["generate", &model, "--prompts", &prompts], &args[..]].concat());
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(65), "{err}");
    assert!(
        err.contains("2 of 4 prompts") && err.contains("not a number"),
        "{err}"
    );
    let out = String::from_utf8(out.stdout).unwrap();
    let mut all: Vec<Value> = out
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    all.sort_by_key(|v| v["index"].as_u64());
    for (i, v) in all.iter().enumerate() {
        let (reason, tokens) = if i % 2 == 1 {
            ("error", 0)
        } else {
            ("length", 8)
        };
        assert_eq!(v["choices"][0]["finish_reason"], reason);
        assert_eq!(v["output_tokens"], json!(tokens));
        assert_eq!(v.get("error").is_some(), i % 2 == 1);
    }
    let replay = plimsoll(&["simulate", "--replay", &log]);
    assert!(replay.status.success(), "{replay:?}");
}

#[test]
fn a_run_of_beams_and_told_prompts_replays() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let line = |i: usize| {
        let mut l = json!({ "prompt": words(1, 20 + i), "max_tokens": 30, "ignore_eos": true });
        match i % 3 {
            0 => l["beam_width"] = json!(4),
            1 => l["prompt_logprobs"] = json!(1),
            _ => l["n"] = json!(4),
        }
        l
    };
    let lines: Vec<Value> = (0..9).map(line).collect();
    let log = dir.path("run.log");
    let roomy = answers(&dir, &model, &lines, &["--seed", "3"]);
    let tight = ["--seed", "3", "--kv-memory", "160KiB", "--log", &log];
    let tight = answers(&dir, &model, &lines, &tight);
    let gave_way = tight.iter().filter(|v| v["preemptions"] != json!(0));
    assert!(gave_way.count() > 0);
    for (a, b) in roomy.iter().zip(&tight) {
        assert_eq!(a["choices"], b["choices"]);
        assert_eq!(a.get("prompt_logprobs"), b.get("prompt_logprobs"));
    }
    let replay = plimsoll(&["simulate", "--replay", &log]);
    assert!(replay.status.success(), "{replay:?}");
}

#[test]
fn weights_that_are_rounded_are_told() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let args = [
        "generate",
        &model[..],
        "-p",
        "w7 w9",
        "-n",
        "12",
        "--temperature",
        "0",
    ];
    let before = plimsoll(&args);
    assert!(!String::from_utf8_lossy(&before.stderr).contains("note:"));
    for weights in ["int8", "int4"] {
        let out = plimsoll(&[&args[..], &["--weights", weights]].concat());
        assert!(out.status.success());
        let note = format!("matrices stored as bf16 are quantised to {weights}");
        assert!(String::from_utf8_lossy(&out.stderr).contains(&note));
    }
    // The same numbers, stored as float32.
    let file = dir.path("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let n = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header = String::from_utf8(bytes[8..8 + n].to_vec()).unwrap();
    let mut header: serde_json::Map<String, Value> = serde_json::from_str(&header).unwrap();
    for (_, t) in header.iter_mut().filter(|(k, _)| *k != "__metadata__") {
        t["dtype"] = json!("F32");
        for i in 0..2 {
            t["data_offsets"][i] = json!(2 * t["data_offsets"][i].as_u64().unwrap());
        }
    }
    let header = Value::Object(header).to_string();
    let mut wide = (header.len() as u64).to_le_bytes().to_vec();
    wide.extend(header.as_bytes());
    wide.extend(bytes[8 + n..].chunks(2).flat_map(|b| [0, 0, b[0], b[1]]));
    std::fs::write(&file, wide).unwrap();
    let after = plimsoll(&args);
    assert!(after.status.success(), "{after:?}");
    assert!(
        String::from_utf8_lossy(&after.stderr).contains("f32"),
        "{after:?}"
    );
    assert_eq!(before.stdout, after.stdout);
}

#[test]
fn what_cannot_be_run_is_one_clear_error() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let fails = |args: &[&str], code: i32, says: &str| {
        let out = plimsoll(&[&["generate"], args].concat());
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{err}");
        assert!(err.contains(says), "{says} is not in {err}");
        assert!(!err.contains("panicked") && out.stdout.is_empty(), "{err}");
    };
    fails(&["llama-13b", "-p", "x"], 4, "weights");
    fails(&[&model], 2, "no prompt");
    fails(&["/nowhere/at/all", "-p", "x"], 4, "nowhere");
    let empty = dir.write("empty.jsonl", "");
    fails(&[&model, "--prompts", &empty], 65, "no prompt");
    let bad = dir.write("bad.jsonl", "{\"prompt\": \"w5\"}\n{\"text\": 1}\n");
    fails(&[&model, "--prompts", &bad], 65, "line 2");
    let odd = dir.write(
        "odd.jsonl",
        "{\"prompt\": \"w5\"}\n\n{\"prompt\": \"w5\", \"temprature\": 1}\n",
    );
    fails(&[&model, "--prompts", &odd], 65, "line 3");
    fails(&[&model, "--prompts", &odd], 65, "`temprature`");
    let range = "{\"prompt\": \"w5\"}\n{\"prompt\": \"w5\", \"top_p\": 7}";
    let range = dir.write("range.jsonl", range);
    fails(&[&model, "--prompts", &range], 2, "line 2: top_p is 7");
    let one = |more: &[&str], says: &str| {
        fails(&[&[&model[..], "-p", "w5"], more].concat(), 2, says);
    };
    one(&["--logprobs", "2"], "--json");
    one(&["--logprobs", "21"], "21");
    one(&["--samples", "3", "--best-of", "2"], "best_of");
    one(&["--beam-width", "2", "--temperature", "1"], "temperature");
    one(&["--length-penalty", "2"], "beam_width");
    one(&["--logit-bias", "w5"], "50256:-100");
    one(&["--logit-bias", "900:1"], "logit_bias names token 900");
    one(&["--min-tokens", "200"], "min_tokens");
    fails(
        &[&model, "-p", "w5", "--temperature", "9"],
        2,
        "temperature",
    );
    fails(
        &[&model, "-p", "w5", "--kv-memory", "1KiB"],
        3,
        "do not fit",
    );
    fails(
        &[&model, "-p", &words(0, 300)],
        2,
        "300 tokens leave no room",
    );
    fails(&[&model, "-p", ""], 2, "something to go on from");
    let narrow = ["--samples", "4", "--max-num-seqs", "1"];
    fails(
        &[&[&model[..], "-p", "w5"], &narrow[..]].concat(),
        2,
        "--max-num-seqs",
    );
    fails(
        &[&model, "-p", "w5", "--kv-cache-dtype", "fp8_e5m2"],
        2,
        "choose bf16, f16, f32, fp8 or int8",
    );
    let file = dir.path("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
    fails(&[&model, "-p", "w5"], 65, "model.safetensors");
    std::fs::write(&file, &bytes).unwrap();
    dir.write("tokenizer.json", "{\"version\": \"1.0\"");
    fails(&[&model, "-p", "w5"], 65, "tokenizer.json");
    // What nobody has lowered yet can be planned, not run.
    let other = Dir::new();
    let mamba = other.model("llama");
    let config = other.path("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        text.replace("LlamaForCausalLM", "NoSuchForCausalLM")
            .replace("\"llama\"", "\"no_such\""),
    )
    .unwrap();
    fails(&[&mamba, "-p", "w5"], 65, "no_such");
}

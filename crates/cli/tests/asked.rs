//! What prompts ask of `plimsoll generate`, by flags and by lines, and what they are told: answers, log probabilities, seeds.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod generating;

use generating::{Dir, answers, generate, plimsoll, words};
use serde_json::{Value, json};
#[test]
fn log_probabilities_and_ends_are_told() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let prompt = words(3, 9);
    let args = [
        &model[..],
        "-p",
        &prompt,
        "-n",
        "12",
        "--temperature",
        "0",
        "--ignore-eos",
    ];
    let map = dir.path("map.json");
    let told = [
        "--json",
        "--logprobs",
        "3",
        "--prompt-logprobs",
        "2",
        "--memory-map",
        &map,
    ];
    let one: Value = serde_json::from_str(&generate(&[&args[..], &told].concat())).unwrap();
    let text = generate(&args);
    // R x longest sequence x (1 + 3) x 8 bytes.
    let map: Value = serde_json::from_slice(&std::fs::read(&map).unwrap()).unwrap();
    let terms = map["terms"].as_array().unwrap();
    let term = terms.iter().find(|t| t["name"] == "log probabilities");
    assert_eq!(term.unwrap()["bytes"], json!(128 * 4 * 8));
    let choice = &one["choices"][0];
    assert_eq!(
        format!("{prompt}{}\n", choice["text"].as_str().unwrap()),
        text
    );
    assert_eq!(choice["finish_reason"], "length");
    assert!(one.get("seed").is_none(), "nothing was drawn");
    let tokens = choice["logprobs"].as_array().unwrap();
    assert_eq!((tokens.len(), choice["tokens"].as_u64()), (12, Some(12)));
    let mut sum = 0.0;
    for t in tokens {
        let top = t["top"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // The likeliest was taken.
        assert_eq!(
            (&top[0]["id"], &top[0]["logprob"], &top[0]["token"]),
            (&t["id"], &t["logprob"], &t["token"])
        );
        assert!(top[1]["logprob"].as_f64() <= top[0]["logprob"].as_f64());
        sum += t["logprob"].as_f64().unwrap();
    }
    assert!((sum - choice["cumulative_logprob"].as_f64().unwrap()).abs() < 1e-9);
    let told = one["prompt_logprobs"].as_array().unwrap();
    let spelled: Vec<&str> = told.iter().map(|t| t["token"].as_str().unwrap()).collect();
    assert_eq!(spelled.join(" "), prompt);
    assert!(told[0]["logprob"].is_null());
    for t in &told[1..] {
        assert!(t["logprob"].as_f64().unwrap() < 0.0);
        assert_eq!(t["top"].as_array().unwrap().len(), 2);
    }
    // A token that comes ends it, unless it must not yet.
    let end = &tokens[4]["id"];
    let id = end.to_string();
    let first = tokens.iter().position(|t| &t["id"] == end);
    let stop = |more: &[&str]| -> Value {
        let stop = ["--json", "--stop-token-id", &id];
        let out = generate(&[&args[..], &stop, more].concat());
        serde_json::from_str(&out).unwrap()
    };
    let stopped = stop(&[]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        stopped["output_tokens"].as_u64().unwrap(),
        first.unwrap() as u64 + 1
    );
    let later = stop(&["--min-tokens", "12"]);
    assert_eq!(later["choices"][0]["finish_reason"], "length");
    // One that is forbidden does not come.
    let bias = format!("{id}:-100");
    let without = ["--json", "--logprobs", "0", "--logit-bias", &bias];
    let without = generate(&[&args[..], &without].concat());
    let without: Value = serde_json::from_str(&without).unwrap();
    let tokens = without["choices"][0]["logprobs"].as_array().unwrap();
    assert!(tokens.iter().all(|t| &t["id"] != end));
}

#[test]
fn each_prompt_is_asked_in_its_own_way() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let prompt = words(4, 10);
    let ask = |more: Value| {
        let mut line = json!({ "prompt": prompt, "max_tokens": 10, "ignore_eos": true });
        let more = more.as_object().unwrap().clone();
        line.as_object_mut().unwrap().extend(more);
        line
    };
    let lines = [
        ask(json!({ "temperature": 0, "logprobs": 1 })),
        ask(json!({ "seed": 5, "n": 2, "best_of": 4 })),
        ask(json!({ "seed": 5, "n": 4 })),
        ask(json!({ "beam_width": 3, "length_penalty": 0.5, "max_tokens": 6 })),
        ask(
            json!({ "temperature": 0, "presence_penalty": 2, "frequency_penalty": 2.0, "logit_bias": {"7": 5.5} }),
        ),
        ask(
            json!({ "top_k": 1, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.0, "min_tokens": 2, "stop": "w1 ", "stop_token_ids": [] }),
        ),
    ];
    let all = answers(&dir, &model, &lines, &["--samples", "1"]);
    let texts = |v: &Value| -> Vec<String> {
        let choices = v["choices"].as_array().unwrap().iter();
        choices
            .map(|c| c["text"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(texts(&all[0]).len(), 1);
    // Two of those that are drawn with the same seed, the likeliest first.
    let mut drawn: Vec<(f64, String)> = all[2]["choices"]
        .as_array()
        .unwrap()
        .iter()
        .zip(texts(&all[2]))
        .map(|(c, t)| (c["cumulative_logprob"].as_f64().unwrap(), t))
        .collect();
    drawn.sort_by(|a, b| b.0.total_cmp(&a.0));
    let best: Vec<String> = drawn.into_iter().take(2).map(|d| d.1).collect();
    assert_eq!(texts(&all[1]), best);
    assert_eq!(texts(&all[3]).len(), 3);
    let sums: Vec<f64> = all[3]["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["cumulative_logprob"].as_f64().unwrap())
        .collect();
    assert!(sums.is_sorted_by(|a, b| a >= b), "{sums:?}");
    assert_ne!(texts(&all[4]), texts(&all[0]), "penalties and a bias");
    // Alone, by flags, each is the same.
    let alone = generate(&[
        &model,
        "-p",
        &prompt,
        "-n",
        "6",
        "--ignore-eos",
        "--beam-width",
        "3",
        "--length-penalty",
        "0.5",
        "--json",
    ]);
    let alone: Value = serde_json::from_str(&alone).unwrap();
    assert_eq!(alone["choices"], all[3]["choices"]);
    let lines = [json!({ "prompt": prompt, "beam_width": 3, "max_tokens": 6, "logprobs": 2 })];
    let told = &answers(&dir, &model, &lines, &["--ignore-eos"])[0];
    for choice in told["choices"].as_array().unwrap() {
        let tokens = choice["logprobs"].as_array().unwrap();
        let sum: f64 = tokens.iter().map(|t| t["logprob"].as_f64().unwrap()).sum();
        assert!((sum - choice["cumulative_logprob"].as_f64().unwrap()).abs() < 1e-9);
        let spelled: Vec<&str> = tokens
            .iter()
            .map(|t| t["token"].as_str().unwrap())
            .collect();
        assert_eq!(spelled.join(" "), choice["text"].as_str().unwrap().trim());
        assert!(
            tokens
                .iter()
                .all(|t| t["top"].as_array().unwrap().len() == 2)
        );
    }
}

#[test]
fn a_seed_that_is_drawn_is_told_and_draws_again() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let lines = vec![json!({ "prompt": words(6, 8), "max_tokens": 12, "ignore_eos": true }); 2];
    let first = answers(&dir, &model, &lines, &[]);
    assert_ne!(first[0]["choices"], first[1]["choices"]);
    assert_ne!(
        first[0]["choices"],
        answers(&dir, &model, &lines, &[])[0]["choices"]
    );
    let seeds: Vec<u64> = first.iter().map(|v| v["seed"].as_u64().unwrap()).collect();
    let again: Vec<Value> = lines
        .iter()
        .zip(&seeds)
        .map(|(l, seed)| {
            let mut l = l.clone();
            l["seed"] = json!(seed);
            l
        })
        .collect();
    assert_eq!(answers(&dir, &model, &again, &[]), first);
    let file = dir.path("lines.jsonl");
    let out = plimsoll(&["generate", &model, "--prompts", &file, "--seed", "9"]);
    assert!(!String::from_utf8_lossy(&out.stderr).contains("seed"));
    let out = plimsoll(&["generate", &model, "-p", "w5", "-n", "2"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("seed "));
}

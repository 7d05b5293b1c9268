//! `plimsoll plan` for a workload: its lengths, its replay, and the fewest devices that keep a service level.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// Runs one command line, of which `plimsoll` is the first word.
fn run(line: &str) -> Output {
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), Some("plimsoll"));
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(words)
        .env_remove("PLIMSOLL_GPU")
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

fn text(line: &str) -> String {
    let out = run(line);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{line}: {error}");
    String::from_utf8(out.stdout).unwrap()
}

fn json(line: &str) -> Value {
    serde_json::from_str(&text(&format!("{line} --json"))).unwrap()
}

/// A plan, whose JSON is what its types say.
fn the_plan(line: &str) -> Value {
    let plan = json(line);
    let typed: plimsoll_report::PlanReport = serde_json::from_value(plan.clone()).unwrap();
    assert_eq!(serde_json::to_value(typed).unwrap(), plan);
    plan
}

/// A file that is gone after the test.
struct Trace(PathBuf);

impl Trace {
    fn new(name: &str, content: &str) -> Self {
        let name = format!("plimsoll-plan-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The run of the paged server under `command` and `more`.
fn simulated(command: &Value, more: &str) -> Value {
    json(&format!("{} {more}", command.as_str().unwrap()))["runs"][0].clone()
}

const SHAREGPT: &str =
    "plimsoll plan llama-13b --workload sharegpt --requests 200 --gpu a100-40g --engine plimsoll";

#[test]
fn the_lengths_of_a_trace_are_planned_as_the_same_mix_is() {
    let trace = Trace::new(
        "mix.csv",
        "prompt_len,output_len\n500,12\n2000,48\n12,500\n256,256\n",
    );
    let from = |load: &str| the_plan(&format!("plimsoll plan llama-13b --gpu a100-80g {load}"));
    let mix = from("--lengths 512:0.75,2048:0.25");
    let plan = from(&format!("--trace {}", trace.path()));
    assert_eq!(plan["load"], mix["load"]);
    assert_eq!(plan["answer"], mix["answer"]);
    assert_eq!(plan["kv"], mix["kv"]);
    assert_eq!(mix["workload"], Value::Null);
    let w = &plan["workload"];
    assert_eq!(w["requests"], 4);
    assert_eq!(w["prompt_tokens_mean"], 692.0);
    assert_eq!(w["output_tokens_mean"], 204.0);
    assert_eq!(w["longest_tokens"], 2048);
    assert!(!plan["notes"].to_string().contains("were cut"), "{plan}");
    let cut = from(&format!("--trace {} --max-model-len 512", trace.path()));
    assert_eq!(cut["workload"]["longest_tokens"], 512);
    let notes = cut["notes"].to_string();
    assert!(notes.contains("were cut to the longest"), "{notes}");
    // The trace has no times and no more requests: all come at once.
    assert_eq!(w["replay"]["requests"], 4);
    assert_eq!(w["replay"]["finished"], 4);
    assert_eq!(w["replay"]["rate_per_s"], Value::Null);
}

#[test]
fn the_lengths_of_a_workload_have_its_mean_in_few_classes() {
    let plan = the_plan(SHAREGPT);
    let w = &plan["workload"];
    let mean = |name: &str| w[name].as_f64().unwrap();
    let lengths = plan["load"]["lengths"].as_array().unwrap();
    assert!(lengths.len() <= 40, "{}", lengths.len());
    let sum = |of: fn(&Value) -> f64| lengths.iter().map(of).sum::<f64>();
    let share = |l: &Value| l["share"].as_f64().unwrap();
    assert!((sum(share) - 1.0).abs() < 1e-9);
    let tokens = sum(|l| l["tokens"].as_f64().unwrap() * l["share"].as_f64().unwrap());
    let expected = mean("prompt_tokens_mean") + mean("output_tokens_mean");
    assert!((tokens - expected).abs() < 1e-6, "{tokens} {expected}");
    assert_eq!(plan["load"]["context"], w["longest_tokens"]);
}

#[test]
fn a_plan_is_the_same_twice_and_another_from_another_seed() {
    let line = format!("{SHAREGPT} --rate 20/s --slo ttft=1s,itl=50ms");
    assert_eq!(text(&line), text(&line));
    let replay =
        |seed: u64| the_plan(&format!("{SHAREGPT} --seed {seed}"))["workload"]["replay"].clone();
    assert_eq!(replay(0), the_plan(SHAREGPT)["workload"]["replay"]);
    assert_ne!(replay(0)["running_mean"], replay(1)["running_mean"]);
}

#[test]
fn a_replay_is_the_simulation_that_its_command_runs() {
    for more in [
        "",
        "--rate 600/min --dp 2",
        "--tp 2 --seed 7 --swap-space 1GiB --block-size 32 --max-num-seqs 64 --kv-cache-dtype fp8 \
         --no-enable-prefix-caching --max-num-batched-tokens 512",
    ] {
        let plan = the_plan(&format!("{SHAREGPT} {more}"));
        let replay = &plan["workload"]["replay"];
        let run = simulated(&replay["command"], "--servers paged");
        for name in ["requests_per_s", "output_tokens_per_s"] {
            assert_eq!(replay[name], run[name], "{more}: {name}");
        }
        for name in ["ttft", "inter_token"] {
            assert_eq!(replay[name], run["latency"][name], "{more}: {name}");
        }
        let per_request = |name: &str| run["preemptions"][name].as_f64().unwrap() / 200.0;
        assert_eq!(replay["finished"], 200);
        assert_eq!(replay["swaps_per_request"], per_request("swap"));
        assert_eq!(replay["recomputes_per_request"], per_request("recompute"));
        let live = &run["kv"]["live_share_at_saturation"];
        if let Some(live) = live.as_f64() {
            assert!((replay["live_share"].as_f64().unwrap() - live).abs() < 1e-9);
        }
    }
}

#[test]
fn a_full_pool_shows_what_preemption_costs() {
    let plan = the_plan(&format!("{SHAREGPT} --kv-memory 4GiB"));
    let r = &plan["workload"]["replay"];
    let f = |name: &str| r[name].as_f64().unwrap();
    assert!(f("saturated_share") > 0.8 && f("live_share") > 0.8, "{r}");
    assert!(
        f("recomputes_per_request") > 0.0 && f("recomputed_share") > 0.0,
        "{r}"
    );
    assert_eq!(r["swaps_per_request"], 0.0);
    let swapped = the_plan(&format!("{SHAREGPT} --kv-memory 4GiB --swap-space 8GiB"));
    assert!(swapped["workload"]["replay"]["swaps_per_request"].as_f64() > Some(0.0));
}

#[test]
fn the_chosen_fleet_keeps_the_service_level_and_one_replica_fewer_does_not() {
    let slo = "ttft=1s,itl=60ms";
    let plan = the_plan(&format!(
        "{SHAREGPT} --rate 30/s --slo {slo} --tp 1 --price a100-40g=1/h --price h100=5/h"
    ));
    let fleets = &plan["workload"]["fleets"];
    assert_eq!(fleets["rate_per_s"], 30.0);
    assert_eq!(fleets["slo"]["attain"], 0.99);
    let tried = fleets["tried"].as_array().unwrap();
    let mut several = 0;
    for fleet in tried {
        let more = format!("--servers paged --slo {slo}");
        let run = simulated(&fleet["command"], &more);
        assert_eq!(run["goodput"]["attained"], true, "{fleet}");
        assert_eq!(run["latency"]["ttft"]["p99_s"], fleet["ttft_p99_s"]);
        let n = fleet["replicas"].as_u64().unwrap();
        assert_eq!(fleet["devices"], n * fleet["tp"].as_u64().unwrap());
        if n > 1 {
            several += 1;
            let command = fleet["command"].as_str().unwrap();
            let fewer = command.replace(
                &format!("--replicas {n} "),
                &format!("--replicas {} ", n - 1),
            );
            assert_ne!(command, fewer);
            let run = simulated(&fewer.into(), &more);
            assert_eq!(run["goodput"]["attained"], false, "{fleet}");
        }
    }
    assert!(several > 0, "some degree needs several replicas: {fleets}");
    // The cheapest is the one that is planned.
    let price = |f: &Value| f["price_per_hour"].as_f64().unwrap();
    let least = tried.iter().map(price).fold(f64::INFINITY, f64::min);
    let chosen: Vec<_> = tried.iter().filter(|f| f["chosen"] == true).collect();
    assert_eq!(chosen.len(), 1);
    assert_eq!(price(chosen[0]), least);
    assert_eq!(plan["answer"]["chosen"], true);
    assert_eq!(plan["answer"]["devices"], chosen[0]["devices"]);
    assert_eq!(plan["answer"]["parallel"]["tp"], chosen[0]["tp"]);
    assert_eq!(plan["answer"]["parallel"]["dp"], chosen[0]["replicas"]);
    assert_eq!(plan["device"]["name"], chosen[0]["device"]);
    assert_eq!(
        plan["workload"]["replay"]["ttft"]["p99_s"],
        chosen[0]["ttft_p99_s"]
    );
}

#[test]
fn the_fewest_devices_are_chosen_without_prices_and_the_command_says_so() {
    let line = format!("{SHAREGPT} --rate 30/s --slo ttft=1s,itl=60ms");
    let plan = the_plan(&line);
    let tried = plan["workload"]["fleets"]["tried"].as_array().unwrap();
    let devices = |f: &Value| f["devices"].as_u64().unwrap();
    let least = tried.iter().map(devices).min();
    assert_eq!(plan["answer"]["devices"].as_u64(), least);
    let (tp, dp) = (
        plan["answer"]["parallel"]["tp"].as_u64().unwrap(),
        plan["answer"]["parallel"]["dp"].as_u64().unwrap(),
    );
    let table = text(&line);
    for (flag, n) in [("tensor", tp), ("data", dp)] {
        let given = table.contains(&format!("--{flag}-parallel-size {n}"));
        assert_eq!(given, n > 1, "{table}");
    }
    for part in [
        "the first token within 1 s, later tokens within 60 ms each, for 99 % of the requests, at 30 requests per second",
        "\n >  a100-40g-sxm",
        "collectives between tensor-parallel devices take none",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    // A degree that the user fixes is the only one.
    let fixed = the_plan(&format!("{line} --tp 4"));
    let tried = fixed["workload"]["fleets"]["tried"].as_array().unwrap();
    assert_eq!(tried.len(), 1);
    assert_eq!(tried[0]["tp"], 4);
}

#[test]
fn a_service_level_that_nothing_keeps_is_code_3() {
    let out = run(&format!("{SHAREGPT} --rate 20 --slo ttft=1ms --json"));
    assert_eq!(out.status.code(), Some(3));
    let plan: Value = serde_json::from_slice(&out.stdout).unwrap();
    for fleet in plan["workload"]["fleets"]["tried"].as_array().unwrap() {
        assert_eq!(
            (&fleet["attained"], &fleet["chosen"]),
            (&false.into(), &false.into())
        );
        assert_eq!(fleet["devices"], 64, "{fleet}");
    }
    // A model that does not fit at any degree has no fleet at all.
    let huge = "plimsoll plan llama-3.1-405b --workload sharegpt --requests 20 --gpu a100-40g --rate 1 --slo ttft=9s";
    let out = run(huge);
    assert_eq!(out.status.code(), Some(3));
    let table = String::from_utf8(out.stdout).unwrap();
    assert!(table.contains("one replica fits at no degree"), "{table}");
}

#[test]
fn what_cannot_be_replayed_is_planned_and_says_why() {
    let of = |flags: &str| {
        the_plan(&format!(
            "plimsoll plan llama-13b --workload sharegpt {flags}"
        ))
    };
    for (flags, why) in [
        ("", "nothing is replayed without a device"),
        (
            "--gpu a100-40g --pp 2",
            "pipeline stages and expert ranks are not simulated",
        ),
        ("--memory 80GiB", "no rates are known"),
    ] {
        let plan = of(flags);
        assert_eq!(plan["workload"]["replay"], Value::Null, "{flags}");
        assert_eq!(plan["workload"]["requests"], 20_000);
        let notes = plan["notes"].to_string();
        assert!(notes.contains(why), "{flags}: {notes}");
    }
    // Another engine's pool under our scheduler.
    let vllm = of("--requests 20 --gpu a100-40g");
    let notes = vllm["notes"].to_string();
    assert!(
        notes.contains("of Plimsoll's scheduler with the pool that vllm"),
        "{notes}"
    );
    // What `simulate` has no flag for has no command.
    let quantised = of("--requests 20 --gpu a100-40g --quantization int4");
    assert_eq!(quantised["workload"]["replay"]["command"], Value::Null);
    assert_eq!(quantised["workload"]["replay"]["finished"], 20);
}

/// OLMo 2 7B is published in 32 bits, which vLLM halves and Plimsoll does not: what is replayed is what is served, its
/// weights and its blocks.
#[test]
fn a_checkpoint_of_32_bits_is_replayed_as_it_is_served() {
    let config = |dtype: &str| {
        format!(
            r#"{{"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "hidden_size": 4096, "num_hidden_layers": 32,
            "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100352,
            "max_position_embeddings": 4096, "tie_word_embeddings": false, "torch_dtype": "{dtype}"}}"#
        )
    };
    let wide = Trace::new("olmo-f32.json", &config("float32"));
    let half = Trace::new("olmo-f16.json", &config("float16"));
    let replayed = |model: &Trace, more: &str| {
        let load = "--workload sharegpt --requests 100 --gpu h200";
        let plan = the_plan(&format!("plimsoll plan {} {load} {more}", model.path()));
        let mut replay = plan["workload"]["replay"].clone();
        let command = replay.as_object_mut().unwrap().remove("command").unwrap();
        assert_eq!(replay["finished"], 100, "{more}");
        (replay, command != Value::Null)
    };
    for engine in [
        "--engine vllm",
        "--engine sglang",
        "--engine vllm --dtype f16",
    ] {
        let (served, same) = (replayed(&wide, engine), replayed(&half, engine));
        assert_eq!(served.0, same.0, "{engine}");
        // `simulate` would take the checkpoint's own type.
        assert_eq!((served.1, same.1), (false, true), "{engine}");
    }
    // What is asked for is kept.
    for engine in ["--engine vllm --dtype f32", "--engine plimsoll"] {
        let kept = replayed(&wide, engine);
        assert_ne!(kept.0, replayed(&half, "--engine vllm").0, "{engine}");
        assert!(kept.1, "{engine}");
    }
}

#[test]
fn bad_inputs_have_their_codes() {
    let bad = Trace::new("bad.csv", "prompt_len,output_len\n12,x\n");
    let empty = Trace::new("empty.csv", "prompt_len,output_len\n");
    let slo = "--workload sharegpt --rate 2 --slo ttft=1s";
    for (flags, code, says) in [
        ("--rate 20", 2, "--workload <TEXT>|--trace <FILE>"),
        ("--requests 20", 2, "--workload <TEXT>|--trace <FILE>"),
        ("--workload sharegpt --slo ttft=1s", 2, "--rate <RATE>"),
        ("--workload sharegpt --trace x", 2, "cannot be used with"),
        ("--workload sharegpt --context 8k", 2, "cannot be used with"),
        ("--trace x --lengths 8k", 2, "cannot be used with"),
        ("--workload nothing", 2, "write sharegpt"),
        ("--workload sharegpt --rate 0", 2, "out of range"),
        ("--workload sharegpt --rate 20/day", 2, "has no known unit"),
        ("--workload sharegpt --rate 2 --slo 1s", 2, "is no bound"),
        (
            "--workload sharegpt --method rule-of-thumb",
            2,
            "knows one length",
        ),
        (slo, 2, "--slo says nothing without a device"),
        (
            &format!("{slo} --gpu any"),
            2,
            "--gpu any says something else",
        ),
        (
            &format!("{slo} --gpu h100 --dp 2"),
            2,
            "--dp says something else",
        ),
        (
            &format!("{slo} --gpu h100 --gpus 2"),
            2,
            "--gpus says something else",
        ),
        (
            &format!("{slo} --gpu h100 --users 2"),
            2,
            "--users says something else",
        ),
        (&format!("{slo} --memory 80GiB"), 2, "no rates are known"),
        (
            &format!("{slo} --price nothing=1"),
            2,
            "no device is called",
        ),
        ("--trace no/such.csv", 4, "cannot open the trace"),
        (
            &format!("--trace {}", std::env::temp_dir().display()),
            4,
            "it is a folder",
        ),
        (
            &format!("--trace {}", bad.path()),
            65,
            "generated tokens is `x`",
        ),
        (
            &format!("--trace {}", empty.path()),
            65,
            "at least one request",
        ),
    ] {
        let out = run(&format!("plimsoll plan llama-13b {flags}"));
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{flags}: {error}");
        assert!(error.contains(says), "{flags}: {error}");
    }
}

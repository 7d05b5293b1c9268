//! Devices as users meet them: CUDA's kernels on fibers say what the processors say, `doctor --gpu` tries each of them,
//! and a GPU that is not there is one clear error. The catalogue's devices, slices of cards among them, are listed
//! and planned for.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod generating;

use std::process::{Command, Output};

use generating::{Dir, answers, generate, plimsoll, words};
use serde_json::{Value, json};

// With the processors' own arithmetic.
const FIBERS: [&str; 3] = ["--device", "fibers", "--batch-invariant"];
/// What kernels of a GPU compute.
const PROCESSORS: [&str; 4] = ["--device", "cpu", "--inputs", "f32"];

/// The command with no driver and no compiler of CUDA's to be found, whatever this machine has.
fn without_gpu(args: &[&str]) -> Output {
    let empty = Dir::new();
    // Libraries of the system cannot be hidden: where there is a driver, no device of its is to be seen.
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(args)
        .env("NO_COLOR", "1")
        .env("CUDA_VISIBLE_DEVICES", "")
        .env("LD_LIBRARY_PATH", &empty.0)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_device_says_what_the_processors_say() {
    for family in ["llama", "granite_hybrid"] {
        let dir = Dir::new();
        let model = dir.model(family);
        let prompt = words(1, 20);
        let begin = [
            &model[..],
            "-p",
            &prompt,
            "-n",
            "12",
            "--ignore-eos",
            "--seed",
            "1",
            "--json",
        ];
        for how in [
            &["--temperature", "0"][..],
            &["--temperature", "0.9"],
            &["--samples", "3"],
            &["--beam-width", "3"],
            &["--weights", "int8", "--kv-cache-dtype", "f16"],
        ] {
            let said = |device: &[&str]| -> Value {
                let out = generate(&[&begin[..], how, device].concat());
                let answer: Value = serde_json::from_str(&out).unwrap();
                answer["choices"].clone()
            };
            let there = said(&FIBERS);
            assert_eq!(there, said(&PROCESSORS), "{family}, {how:?}");
            assert!(there[0]["text"].as_str().unwrap().len() > 20, "{there}");
        }
    }
}

#[test]
fn ranks_on_devices_say_what_ranks_on_processors_say() {
    for (family, tp) in [("llama", "2"), ("mixtral", "4"), ("deepseek_v3", "2")] {
        let dir = Dir::new();
        let model = dir.model(family);
        let prompt = words(1, 20);
        let asked = [&model, "-p", &prompt, "-n", "12", "--ignore-eos", "--json"];
        let how = ["--samples", "2", "--seed", "1", "--tp", tp, "--threads", tp];
        let said = |device: &[&str]| -> Value {
            let out = generate(&[&asked[..], &how, device].concat());
            let answer: Value = serde_json::from_str(&out).unwrap();
            answer["choices"].clone()
        };
        assert_eq!(said(&FIBERS), said(&PROCESSORS), "{family}");
    }
}

#[test]
fn pages_that_leave_a_device_come_back_as_they_were() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let lines: Vec<Value> = (0..6)
        .map(|i| json!({ "prompt": words(i, 12 + i), "max_tokens": 40, "n": 1 + i % 2 }))
        .collect();
    let run = |device: &[&str], more: &[&str]| {
        let all = [&["--ignore-eos", "--seed", "3"][..], device, more].concat();
        answers(&dir, &model, &lines, &all)
    };
    // Of two ranks each has half of a page.
    for (tp, pool) in [("1", "96KiB"), ("2", "48KiB")] {
        let tight = ["--kv-memory", pool, "--swap-space", "1MiB"];
        let tight = [&["--tp", tp, "--preempt", "swap"][..], &tight].concat();
        let roomy = run(&PROCESSORS, &["--tp", tp]);
        let swapped = run(&FIBERS, &tight);
        let preempted: u64 = swapped
            .iter()
            .map(|v| v["preemptions"].as_u64().unwrap())
            .sum();
        assert!(preempted > 0, "{swapped:?}");
        for (a, b) in roomy.iter().zip(&swapped) {
            assert_eq!(a["choices"], b["choices"]);
        }
    }
}

#[test]
fn every_region_of_a_device_is_committed_as_planned() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let map = dir.path("map.json");
    for (tp, regions) in [("1", 5), ("2", 6), ("4", 6)] {
        let flags = ["--swap-space", "1MiB", "--max-num-seqs", "4", "--tp", tp];
        let run = ["-p", "w5 w6", "-n", "3", "--memory-map", &map];
        generate(&[&[&model[..]], &run[..], &flags, &FIBERS].concat());
        let map: Value = serde_json::from_slice(&std::fs::read(&map).unwrap()).unwrap();
        assert_eq!(map["ranks"].to_string(), tp);
        let mut committed = 0;
        for r in map["regions"].as_array().unwrap() {
            // What a driver and a process take beside their arenas is bounded, and nobody commits it.
            if ["reserve", "driver", "graphs"].contains(&r["region"].as_str().unwrap()) {
                assert!(r["committed_bytes"].is_null(), "{r}");
                continue;
            }
            assert_eq!(r["planned_bytes"], r["committed_bytes"], "{tp} ranks: {r}");
            assert!(r["high_water_bytes"].as_u64() <= r["committed_bytes"].as_u64());
            committed += 1;
        }
        assert_eq!(committed, regions, "{map}");
    }
}

#[test]
fn doctor_tries_every_operation() {
    let out = plimsoll(&["doctor", "--gpu", "fibers", "--json"]);
    assert!(out.status.success(), "{out:?}");
    let found: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(found["schema"], "plimsoll.doctor_gpu/1");
    let operations = found["operations"].as_array().unwrap();
    assert_eq!(operations.len(), 24);
    for o in operations {
        assert_eq!(o["equal"], true, "{o}");
        assert!(o["cases"].as_u64() > Some(0) && o["elements"].as_u64() > Some(0));
    }
    let speeds = found["speeds"].as_array().unwrap();
    assert!(found["speeds_error"].is_null() && speeds.len() >= 10);
    for s in speeds {
        let rate = s["bytes_per_s"].as_u64().or(s["flops_per_s"].as_u64());
        assert!(rate > Some(0), "{s}");
    }
}

#[test]
fn every_listed_device_can_be_planned_for() {
    let out = plimsoll(&["devices", "--json"]);
    assert!(out.status.success(), "{out:?}");
    let lines = text(&out.stdout);
    let listed: Vec<Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let named = |name: &str| listed.iter().find(|d| d["name"] == name).unwrap();
    let slices = listed
        .iter()
        .filter(|d| d["name"].as_str().unwrap().contains(':'));
    assert!(listed.len() - slices.count() >= 80);
    assert_eq!(named("gb10-128g")["unified"], true);
    assert_eq!(named("gh200-96g")["unified"], false);

    // As users and as CUDA's driver name the same: half of the card, which holds two.
    for name in ["h100:3g.40gb", "NVIDIA H100 80GB HBM3 MIG 3g.40gb"] {
        let out = plimsoll(&["plan", "qwen3-8b", "--gpu", name, "--gpus", "1", "--json"]);
        assert!(out.status.success(), "{out:?}");
        let plan: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(plan["device"]["name"], "h100-80g-sxm:3g.40gb");
        let usable = &named("h100-80g-sxm:3g.40gb")["usable_bytes"];
        assert_eq!(&plan["device"]["usable_bytes"], usable);
    }
    let out = plimsoll(&["plan", "qwen3-8b", "--gpu", "h100:3g.41gb"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("E-DEVICE-001"), "{out:?}");

    // What is bought by `any` is a card, not a machine whose memory is shared.
    let out = plimsoll(&["plan", "qwen2.5-72b", "--gpu", "any", "--json"]);
    let plan: Value = serde_json::from_slice(&out.stdout).unwrap();
    let card = named(plan["device"]["name"].as_str().unwrap());
    assert_eq!(card["unified"], false, "{card}");
}

#[test]
fn slices_of_a_card_run_whole_replicas_only() {
    let begin = ["plan", "llama-3.1-8b", "--gpu", "h100:3g.40gb", "--json"];
    let load = ["--users", "64", "--context", "4k"];
    let out = plimsoll(&[&begin[..], &load].concat());
    let plan: Value = serde_json::from_slice(&out.stdout).unwrap();
    let division = &plan["answer"]["parallel"];
    assert_eq!(out.status.code(), Some(0), "{plan}");
    for degree in ["tp", "pp", "ep"] {
        assert_eq!(division[degree], 1, "{division}");
    }
    assert!(division["dp"].as_u64() > Some(1), "{division}");

    for (degrees, said) in [
        (&["--tp", "2"][..], "TP 2"),
        (&["--pp", "2", "--dp", "2"], "PP 2"),
    ] {
        let out = plimsoll(&[&begin[..], degrees].concat());
        let error = text(&out.stderr) + &text(&out.stdout);
        assert_eq!(out.status.code(), Some(2), "{error}");
        for part in ["E-PLAN-006", said, "h100-80g-sxm:3g.40gb", "--dp"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
    // Nor may a slice be a stage beside other cards.
    let kinds = ["plan", "llama-3.1-8b", "--gpu", "l40s+h100:3g.40gb"];
    let out = plimsoll(&kinds);
    assert!(text(&out.stderr).contains("E-PLAN-006"), "{out:?}");
}

#[test]
fn a_gpu_that_is_not_there_is_one_error() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let generating = ["generate", &model, "-p", "w5", "--device", "cuda:7"];
    for args in [&generating[..], &["doctor", "--gpu", "7"]] {
        let out = without_gpu(args);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{said}");
        assert_eq!(said.matches("error[").count(), 1, "{said}");
        let named = said.contains("libcuda.so.1") || said.contains("CUDA_VISIBLE_DEVICES");
        assert!(said.contains("E-DEVICE-006") && named, "{said}");
        assert!(said.contains("try:"), "{said}");
    }
    for wrong in ["gpu", "cuda:", "cuda:-1", "rocm"] {
        let out = plimsoll(&["generate", &model, "-p", "w5", "--device", wrong]);
        assert_eq!(out.status.code(), Some(2), "{wrong}");
    }
    let out = plimsoll(&["doctor", "--gpu", "first"]);
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn auto_says_what_it_took_and_why() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let out = without_gpu(&["generate", &model, "-p", "w5", "-n", "2"]);
    let said = text(&out.stderr);
    assert!(out.status.success(), "{said}");
    let line = said.lines().find(|l| l.starts_with("device: cpu ("));
    assert!(line.is_some_and(|l| l.contains("driver")), "{said}");
}

#[test]
fn doctor_runs_a_model_on_both() {
    for flags in [&[][..], &["--", "--weights", "fp8"]] {
        let args = [
            "doctor",
            "--gpu",
            "fibers",
            "--model",
            "demo",
            "--positions",
            "12",
            "--json",
        ];
        let out = plimsoll(&[&args[..], flags].concat());
        assert!(out.status.success(), "{out:?}");
        let found: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(found["schema"], "plimsoll.doctor_model/1");
        let exact = json!({ "tokens": 12, "tokens_equal": true, "positions_equal_to_the_bit": 12 });
        assert_eq!(found["batch_invariant"], exact);
        let forced = &found["teacher_forced"];
        let count = |name: &str| forced[name].as_u64().unwrap();
        assert_eq!(count("positions"), 12);
        assert!(
            count("argmax_equal") >= count("sure_argmax_equal"),
            "{forced}"
        );
        assert_eq!(count("sure_argmax_equal"), count("sure"), "{forced}");
        let number = |name: &str| forced[name].as_f64().unwrap();
        let most = number("tolerance") * number("largest_logit");
        let largest = number("largest_difference");
        assert!(largest > 0.0 && largest <= most, "{forced}");
    }
    for wrong in [&["--weights", "int3"][..], &["--device", "cpu"]] {
        let args = ["doctor", "--gpu", "fibers", "--model", "demo", "--"];
        let out = plimsoll(&[&args[..], wrong].concat());
        assert_eq!(out.status.code(), Some(2), "{out:?}");
        assert!(text(&out.stderr).contains("E-DEVICE-008"), "{out:?}");
    }
    // Without a GPU there is nothing to compare.
    let out = plimsoll(&["doctor", "--model", "demo"]);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
}

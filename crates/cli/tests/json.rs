//! `--json`: valid against its own schema for a thousand random configs; a thousand mutated ones give
//! errors, never panics.

use std::path::PathBuf;
use std::process::{Command, Output};

use plimsoll_model::{Assume, from_config};
use plimsoll_plan::{Engine, Load, Question, Settings, answer};
use plimsoll_report::{ModelFacts, build, plan_schema};
use plimsoll_units::Bytes;
use serde_json::{Value, json};

/// A small generator (Knuth's MMIX constants), so that a failure can be repeated by its number.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).expect("an index")]
    }
}

fn random_config(r: &mut Lcg) -> Value {
    let kv = r.pick(&[1_u64, 2, 4, 8]);
    let heads = kv * r.pick(&[1_u64, 2, 4, 8]);
    let dim = r.pick(&[64_u64, 80, 96, 128]);
    let layers = 1 + r.below(80);
    let mut c = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": heads * dim, "intermediate_size": 64 * (1 + r.below(400)),
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "head_dim": dim, "vocab_size": 1000 + r.below(250_000),
        "max_position_embeddings": 512 << r.below(9), "tie_word_embeddings": r.below(2) == 0,
        "torch_dtype": r.pick(&["bfloat16", "float16", "float32"]),
    });
    if r.below(4) == 0 {
        c["architectures"] = json!(["MistralForCausalLM"]);
        c["model_type"] = json!("mistral");
        c["sliding_window"] = json!(128 << r.below(6));
    }
    c
}

fn random_question(r: &mut Lcg) -> Question {
    let engine = r.pick(&["ideal", "contiguous", "vllm", "vllm@0.19", "plimsoll"]);
    let engine: Engine = engine.parse().expect("an engine");
    let context = 1 + r.below(8192);
    let device = (r.below(4) > 0).then(|| {
        plimsoll_device::find(r.pick(&["h100", "a100-40g", "rtx-4090", "t4"]))
            .expect("a device")
            .clone()
    });
    Question {
        parallel: device.is_none().then(Default::default),
        device,
        devices: None,
        kinds: None,
        in_use: Bytes::new(r.below(2) << 30),
        settings: Settings::new(engine),
        load: Load {
            sequences: 1 + r.below(4),
            prompt: context / 2,
            shared_prefix: r.below(context + 1),
            ..Load::plain(1 + r.below(64), context)
        },
    }
}

#[test]
fn a_thousand_random_plans_validate() {
    let schema = plan_schema();
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    let mut r = Lcg(1);
    let mut planned = 0;
    for case in 0..1000 {
        let config = random_config(&mut r);
        let spec = from_config(&config, Assume::Nothing)
            .unwrap_or_else(|e| panic!("case {case}: {e}: {config}"));
        let question = random_question(&mut r);
        let facts = ModelFacts {
            hub: None,
            name: format!("case {case}"),
            read_from: "a test".to_owned(),
            users_given: r.below(2) == 0,
        };
        let Ok(answered) = answer(&spec, &question) else {
            continue;
        };
        let report = build(&facts, &spec, &question, &answered).expect("it builds");
        let value = serde_json::to_value(&report).expect("it serialises");
        if let Err(e) = validator.validate(&value) {
            panic!("case {case}: {e}");
        }
        planned += 1;
    }
    assert!(planned >= 990, "only {planned} of 1000 were planned");
    // The validator can say no.
    assert!(
        validator
            .validate(&json!({"schema": "plimsoll.plan/1"}))
            .is_err()
    );
}

#[test]
fn a_thousand_mutated_configs_give_errors_or_plans_but_no_panic() {
    let mut r = Lcg(2);
    let nonsense = [
        json!(null),
        json!(-1),
        json!(0),
        json!(1e300),
        json!("x"),
        json!([]),
        json!({}),
        json!(true),
        json!(u64::MAX),
        json!(4096.5),
        json!([1, 2, 3]),
        json!({"a": 1}),
        json!(1_u64 << 31),
        json!("bfloat17"),
    ];
    let mut errors = 0;
    for _ in 0..1000 {
        let mut config = random_config(&mut r);
        for _ in 0..=r.below(3) {
            let keys: Vec<String> = config
                .as_object()
                .expect("an object")
                .keys()
                .cloned()
                .collect();
            let key = &keys[usize::try_from(r.below(keys.len() as u64)).expect("an index")];
            let n = usize::try_from(r.below(nonsense.len() as u64)).expect("an index");
            config[key.as_str()] = nonsense[n].clone();
        }
        match from_config(&config, Assume::Nothing) {
            Ok(spec) => {
                if answer(&spec, &random_question(&mut r)).is_err() {
                    errors += 1;
                }
            }
            Err(_) => errors += 1,
        }
    }
    assert!(errors > 300, "only {errors} of 1000 mutations were refused");
}

fn plimsoll(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(args)
        .env_remove("PLIMSOLL_GPU")
        .output()
        .expect("the binary runs")
}

#[test]
fn a_shown_config_plans_as_its_name_also_without_names() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    for model in ["llama-13b", "opt-13b", "gpt2-345m", "gpt3-175b"] {
        let shown = plimsoll(&["models", "show", model, "--config"]);
        assert!(shown.status.success());
        let mut config: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
        let by_name = plan(model);
        for (i, key) in ["", "_name_or_path", "name", "model_name", "_commit_hash"]
            .iter()
            .enumerate()
        {
            config.as_object_mut().expect("an object").remove(*key);
            let path = dir.join(format!("{model}-{i}.json"));
            std::fs::write(&path, config.to_string()).expect("a temporary file");
            assert_eq!(
                plan(path.to_str().expect("UTF-8")),
                by_name,
                "{model} without {key:?}"
            );
        }
    }
}

/// A plan without what names its model.
fn plan(model: &str) -> Value {
    let out = plimsoll(&[
        "plan",
        model,
        "--gpu",
        "a100-40g",
        "--users",
        "3",
        "--context",
        "1024",
        "--json",
    ]);
    let mut v: Value = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{model}: {e}: {}", String::from_utf8_lossy(&out.stderr)));
    for key in ["name", "read_from"] {
        v["model"][key].take();
    }
    v["answer"]["text"].take();
    v["flags"].take();
    v
}

#[test]
fn errors_are_objects_too() {
    let out = plimsoll(&["plan", "gpt-4", "--json"]);
    assert_eq!(out.status.code(), Some(4));
    let v: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(v["error"]["code"], "E-MODEL-003");
}

#[test]
fn exit_codes_are_an_interface() {
    let code = |args: &[&str]| plimsoll(args).status.code();
    let base = [
        "plan",
        "llama-13b",
        "--users",
        "10",
        "--context",
        "2000",
        "--gpu",
        "a100-40g",
    ];
    assert_eq!(code(&base), Some(0));
    assert_eq!(code(&[&base[..], &["--gpus", "1"]].concat()), Some(3));
    assert_eq!(code(&[&base[..], &["--tp", "3"]].concat()), Some(2));
    assert_eq!(code(&["plan"]), Some(2));
    assert_eq!(code(&["plan", "no-such-model-anywhere"]), Some(4));
    assert_eq!(code(&["plan", "llama-13b", "--gpu", "h1000"]), Some(2));
}

#[test]
fn piped_output_has_no_colour() {
    let out = plimsoll(&[
        "plan",
        "llama-13b",
        "--gpu",
        "a100-40g",
        "--context",
        "2000",
    ]);
    assert!(!out.stdout.contains(&0x1b));
    let out = plimsoll(&[
        "plan",
        "llama-13b",
        "--gpu",
        "a100-40g",
        "--context",
        "2000",
        "--color",
        "always",
    ]);
    assert!(out.stdout.contains(&0x1b));
}

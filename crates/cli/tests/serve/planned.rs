//! The `serve` line that `plan` prints commits the very map that `plan` shows.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

/// Draws that are the same each time.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: u64) -> u64 {
        // Knuth's generator; its high bits are good.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()].clone()
    }
}

/// A model of any of some families, as its configuration says it.
fn config(draws: &mut Draws) -> Value {
    let heads = draws.of(&[4, 8, 12, 32]);
    let kv = draws.of(&[1, 2, 4]);
    let hidden = heads * draws.of(&[32, 64, 128]);
    let layers = 1 + draws.below(40);
    let mut c = json!({
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": hidden * 3,
        "vocab_size": draws.of(&[2048, 32_000, 128_256]),
        "max_position_embeddings": draws.of(&[512, 2048, 40_960]),
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": draws.below(2) == 0,
        "torch_dtype": "bfloat16",
    });
    let more = match draws.below(5) {
        0 => json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama" }),
        1 => json!({ "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2" }),
        2 => {
            json!({ "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128 })
        }
        3 => {
            json!({ "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 256 })
        }
        _ => json!({
            "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
            "num_local_experts": 4, "num_experts_per_tok": 2,
        }),
    };
    c.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    c
}

fn run(args: &[String]) -> (Option<i32>, Value) {
    let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(args)
        .env_remove("PLIMSOLL_API_KEY")
        .output()
        .unwrap();
    let value = serde_json::from_slice(&out.stdout);
    let value = value.unwrap_or_else(|_| panic!("{args:?}: {out:?}"));
    (out.status.code(), value)
}

/// Region, name and bytes of every term, in an order of their own.
fn terms(map: &Value) -> Vec<(String, String, u64)> {
    let term = |t: &Value| {
        let text = |key: &str| t[key].as_str().unwrap().to_owned();
        (text("region"), text("name"), t["bytes"].as_u64().unwrap())
    };
    let mut all: Vec<_> = map["terms"].as_array().unwrap().iter().map(term).collect();
    all.sort();
    all
}

/// Those of the device, and those of its host.
fn planned_terms(rank: &Value) -> Vec<(String, String, u64)> {
    let mut all = terms(rank);
    if rank["host_terms"].is_array() {
        all.extend(terms(&json!({ "terms": rank["host_terms"] })));
    }
    all.sort();
    all
}

#[test]
fn the_line_that_plan_prints_commits_what_plan_shows() {
    committed("cpu");
}

#[test]
fn so_does_the_line_for_a_gpu() {
    committed("cuda");
}

fn committed(device: &str) {
    let folder: PathBuf =
        std::env::temp_dir().join(format!("plimsoll-planned-{device}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut draws = Draws(11);
    let mut fitted = 0;
    for i in 0..50 {
        let path = folder.join(format!("{i}.json"));
        std::fs::write(&path, config(&mut draws).to_string()).unwrap();
        let mut flags: Vec<(&str, String)> = vec![
            ("--context", draws.of(&["64", "512"]).to_owned()),
            ("--users", (1 + draws.below(20)).to_string()),
            (
                "--memory",
                draws.of(&["2GiB", "16GiB", "200GiB"]).to_owned(),
            ),
        ];
        let mut maybe = |flag: &'static str, values: &[&str]| {
            if draws.below(2) == 0 {
                flags.push((flag, draws.of(values).to_owned()));
            }
        };
        maybe("--max-num-seqs", &["1", "16", "300"]);
        maybe("--max-num-batched-tokens", &["64", "2048"]);
        maybe("--max-model-len", &["512", "777"]);
        maybe("--kv-cache-dtype", &["bf16", "f16", "f32", "int8"]);
        maybe("--weights", &["bf16", "fp8", "int8", "int4", "auto"]);
        maybe("--block-size", &["16", "32"]);
        if device == "cpu" {
            // Elsewhere it says nothing, and a plan refuses it.
            maybe("--threads", &["1", "7"]);
        }
        maybe("--kv-memory", &["300MiB"]);
        maybe("--swap-space", &["64MiB"]);
        let ranks = draws.of(&["1", "2", "4"]);
        let path = path.to_str().unwrap().to_owned();
        let mut plan: Vec<String> = [
            "plan", &path, "--engine", "plimsoll", "--tp", ranks, "--json",
        ]
        .map(str::to_owned)
        .to_vec();
        if device == "cpu" {
            plan.extend(["--gpu", "cpu"].map(str::to_owned));
        }
        plan.extend(flags.iter().flat_map(|(f, v)| [(*f).to_owned(), v.clone()]));
        let (code, planned) = run(&plan);
        if planned["answer"]["verdict"] != "yes" {
            assert!(matches!(code, Some(2 | 3) | Some(0)), "{plan:?}: {planned}");
            continue;
        }
        fitted += 1;
        let all = planned["flags"].as_array().unwrap();
        let own = all.iter().find(|f| f["engine"] == "plimsoll").unwrap();
        let line = own["command"].as_str().unwrap();
        assert!(line.contains(&format!("--device {device} ")), "{line}");
        // What stands in for a GPU here: its size is what the line says.
        let line = &line.replace("--device cuda ", "--device fibers ");
        let words = line.strip_prefix("plimsoll ").unwrap().split(' ');
        let mut serve: Vec<String> = words.map(str::to_owned).collect();
        serve.extend(["--dry-run", "--json"].map(str::to_owned));
        let (code, committed) = run(&serve);
        assert_eq!(code, Some(0), "{line}: {committed}");
        assert_eq!(
            terms(&committed),
            planned_terms(&planned["ranks"][0]),
            "{plan:?}\n{line}"
        );
    }
    assert!(fitted >= 25, "{fitted} of 50 fit");
    std::fs::remove_dir_all(&folder).unwrap();
}

//! Hostile logs and records: whatever the text, an answer or an error, never a panic.

use std::path::Path;

use plimsoll_plan::log::{advice, read};
use plimsoll_plan::measured::{
    Configs, Figure, Model, judge, parse_records, predict, predict_on, tokens_given_pool,
};
use serde_json::json;

/// A small generator: the same run on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % below.max(1) as u64).unwrap_or(0)
    }
}

/// Numbers that break arithmetic, and words that break parsers.
const ODD: &[&str] = &[
    "0",
    "-1",
    "18446744073709551615",
    "1e308",
    "NaN",
    "inf",
    "1099511627776",
    "None",
    "''",
    "(",
    ")",
    "=",
    "\u{1b}[",
    "\0",
    "é",
    "GiB",
    ",",
    "99999999999999999999999",
    "0.0",
    "--",
];

fn mutated(text: &str, r: &mut Random) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for _ in 0..=r.next(4) {
        if lines.is_empty() {
            break;
        }
        let i = r.next(lines.len());
        match r.next(6) {
            0 => {
                lines.remove(i);
            }
            1 => {
                let j = r.next(lines.len());
                lines.swap(i, j);
            }
            2 => {
                // One number replaced.
                let odd = ODD[r.next(ODD.len())];
                let line = lines[i].clone();
                if let Some(at) = line.find(|c: char| c.is_ascii_digit()) {
                    let from = at + r.next(line.len() - at);
                    if line.is_char_boundary(from) {
                        let end = line[from..]
                            .find(|c: char| !c.is_ascii_digit())
                            .map_or(line.len(), |n| from + n);
                        lines[i] = format!("{}{odd}{}", &line[..from], &line[end..]);
                    }
                }
            }
            3 => {
                let mut cut = r.next(lines[i].len() + 1);
                while !lines[i].is_char_boundary(cut) {
                    cut -= 1;
                }
                lines[i].truncate(cut);
            }
            4 => {
                let copy = lines[i].clone();
                lines.push(copy);
            }
            _ => lines[i].push_str(ODD[r.next(ODD.len())]),
        }
    }
    lines.join("\n")
}

fn data() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/tests/data")
}

#[test]
fn tokens_of_compressed_caches_need_a_stated_length() {
    let tokens = |model: &str, length: Option<u64>| {
        let record = json!({
            "engine": "vllm", "engine_version": "0.24.0", "gpu": "h200", "gpu_count": 8, "tensor_parallel": 8,
            "model": model, "max_model_len": length, "kv_available_gib": 60.0, "kv_tokens": 1_000_000
        });
        let records = parse_records(&record.to_string()).expect("a record");
        let entry = plimsoll_model::catalogue::find(model).expect("a built-in model");
        let p = predict_on(
            &records[0].setup,
            Ok(Model::Config(entry.config.clone())),
            plimsoll_plan::measured::device(&records[0].setup),
        );
        let figure = p.figures.iter().find(|(f, _)| *f == Figure::KvTokens);
        let predicted = figure.expect("a figure of vLLM's").1.clone();
        let given = tokens_given_pool(&p, &records[0].reported).and_then(|j| j.predicted.ok());
        (predicted, given.is_some())
    };
    let (open, given) = tokens("deepseek-v4-flash", None);
    assert!(open.expect_err("no length").contains("no `max_model_len`"));
    assert!(!given);
    let (stated, given) = tokens("deepseek-v4-flash", Some(131_072));
    assert!(stated.is_ok() && given);
    // Where every token takes the same, any length will do.
    let (full, given) = tokens("llama-3.1-70b", None);
    assert!(full.is_ok() && given);
}

#[test]
fn mutated_logs_never_panic() {
    let model = json!({
        "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "intermediate_size": 512, "vocab_size": 1000,
        "max_position_embeddings": 4096, "torch_dtype": "bfloat16"
    });
    let mut r = Random(0x9e37_79b9_7f4a_7c15);
    let mut read_some = 0;
    for entry in std::fs::read_dir(data().join("logs")).expect("test logs") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a log");
        for _ in 0..60 {
            let Ok(log) = read(&mutated(&text, &mut r)) else {
                continue;
            };
            read_some += 1;
            let mut p = predict_on(&log.setup, Ok(Model::Config(model.clone())), log.device());
            let judged = judge(&p, &log.reported);
            assert!(
                judged
                    .iter()
                    .all(|j| j.predicted.is_ok() || j.predicted.is_err())
            );
            for a in advice(&log, &mut p) {
                assert!(!a.flag.is_empty() && !a.effect.is_empty());
            }
            if let Some(Ok(config)) = log.config.clone() {
                let _ = predict_on(&log.setup, Ok(Model::Config(config)), log.device());
            }
        }
    }
    assert!(read_some > 300, "{read_some}");
}

#[test]
fn mutated_records_never_panic() {
    let records = std::fs::read_to_string(data().join("measurements.jsonl")).expect("test data");
    let configs = std::fs::read_to_string(data().join("configs.jsonl")).expect("test data");
    let mut r = Random(42);
    let (mut good, mut bad) = (0, 0);
    for line in records.lines() {
        for _ in 0..20 {
            match parse_records(&mutated(line, &mut r)) {
                Ok(all) => {
                    good += 1;
                    let configs = Configs::parse(&configs).expect("test data");
                    for record in all {
                        let p = predict(&record.setup, &configs);
                        let _ = judge(&p, &record.reported);
                    }
                }
                Err(e) => {
                    bad += 1;
                    assert!(e.line >= 1 && !e.reason.is_empty());
                }
            }
        }
    }
    assert!(good > 20 && bad > 20, "{good} {bad}");
}

/// What llama-server prints of a mapped file whose matrices were laid out anew for the processor: 820 MiB mapped and 633 beside
/// it, of a file of 915; of one in 16 bits, and by the ik fork, the file alone.
#[test]
fn a_quantised_file_on_processors_may_lie_there_twice() {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "torch_dtype": "float16", "hidden_size": 4096, "num_hidden_layers": 3,
        "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
    });
    for (quantization, version, mib, kind) in [
        (
            "GGUF Q4_K - Medium",
            "mainline build 9849",
            820.23 + 632.81,
            "bound",
        ),
        ("GGUF F16", "mainline build 9849", 914.73, "derived"),
        (
            "GGUF Q4_K - Medium",
            "ik_llama.cpp fork, build = 3597",
            914.73,
            "derived",
        ),
    ] {
        let line = json!({
            "engine": "llama.cpp", "engine_version": version, "model": "m", "gpu_count": 0, "max_model_len": 4096,
            "quantization": quantization, "model_file_size": "0.893 GiB", "weights_buffer_mib": mib,
        });
        let record = &parse_records(&line.to_string()).unwrap()[0];
        let model = Ok(Model::Config(config.clone()));
        let p = predict_on(&record.setup, model, Err("none".to_owned()));
        let weights = &judge(&p, &record.reported)[0];
        assert_eq!(
            weights.predicted.as_ref().map(|e| e.kind),
            Ok(kind),
            "{line}"
        );
        assert_eq!(weights.inside, Some(true), "{line}");
    }
}

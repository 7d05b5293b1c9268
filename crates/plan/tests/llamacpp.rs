//! llama.cpp's own accounting, to the byte.
//!
//! The golden rows are what llama.cpp itself reports for GGUF files with true headers and no
//! weights (`tools/oracles/llamacpp_memory.py`), on the CPU alone and with pretend devices: published
//! shapes with chosen flags, and random shapes with random flags, drawn after the rules were written.

#[path = "support/gguf.rs"]
mod gguf;

use std::collections::{BTreeMap, BTreeSet};

use gguf::Meta;
use plimsoll_model::{Assume, ModelError, ModelSpec, from_config};
use plimsoll_plan::engine::llamacpp::{
    Net, Placement, Run, Split, compute_buffer_bytes, compute_without_shortcut, kv_buffer_bytes,
    upper_bound, weight_bytes,
};
use plimsoll_units::Bytes;
use serde_json::Value;

const GOLDEN: &str = include_str!("golden/llamacpp.jsonl");
const RANDOM: &str = include_str!("golden/llamacpp_random.jsonl");

#[derive(Clone)]
struct Row {
    case: String,
    value: Value,
    spec: ModelSpec,
    config: Option<Value>,
}

/// All rows of a file, each with the model of its first mention.
fn rows(text: &str) -> Vec<Row> {
    let mut models: BTreeMap<String, (Value, Value)> = BTreeMap::new();
    text.lines()
        .map(|line| {
            let value: Value = serde_json::from_str(line).expect("a JSON line");
            let name = value["model"].as_str().expect("a model").to_owned();
            if value.get("gguf_metadata").is_some() {
                let head = (value["gguf_metadata"].clone(), value["tensors"].clone());
                models.insert(name.clone(), head);
            }
            let (meta, tensors) = &models[&name];
            let meta = Meta::new(meta);
            let spec = meta.spec(tensors);
            let config = meta.config(spec.tied_embeddings);
            Row {
                case: value["case"].as_str().expect("a case").to_owned(),
                spec,
                config,
                value,
            }
        })
        .collect()
}

impl Row {
    fn number(&self, key: &str) -> u64 {
        self.value[key].as_u64().unwrap_or_else(|| panic!("{key}"))
    }

    fn flag(&self, key: &str) -> bool {
        self.value[key].as_bool().unwrap_or_else(|| panic!("{key}"))
    }

    fn run(&self) -> Run {
        let ty = |key: &str| {
            let name = self.value[key].as_str().expect("a type");
            name.parse().expect("a known type")
        };
        let outputs = self.number("n_outputs_max");
        Run {
            n_parallel: self.number("n_parallel"),
            kv_unified: self.flag("kv_unified"),
            n_batch: self.number("n_batch"),
            n_ubatch: self.number("n_ubatch"),
            flash_attention: self.flag("flash_attn"),
            type_k: ty("type_k"),
            type_v: ty("type_v"),
            swa_full: self.flag("swa_full"),
            n_outputs_max: (outputs > 0).then_some(outputs),
            f16_copies: self.flag("fa_f16_copy"),
            ..Run::new(self.number("n_ctx"))
        }
    }

    /// Some layers stay on the host: not modelled.
    fn partial(&self) -> bool {
        self.value["n_gpu_layers"].as_i64() != Some(-1)
    }

    fn expected(&self, place: &str, key: &str, part: &str) -> u64 {
        self.value[place][key][part].as_u64().unwrap_or(0)
    }
}

/// Compute and cache bytes of a row on the host and on its devices; the number of figures compared.
fn check(row: &Row, net: &Net) -> (usize, usize) {
    let run = row.run();
    let compute = |placement| {
        compute_buffer_bytes(net, &run, placement)
            .expect("it fits 64 bits")
            .unwrap_or_else(|| panic!("{}: {:?}", row.case, net.uncovered))
    };
    let (mut compared, mut caches) = (0, 0);
    let mut kv = |place: &str, placement: Placement, devices: u64| {
        let mut sums = [Bytes::ZERO; 3];
        for d in 0..devices {
            let one = kv_buffer_bytes(net, &run, placement, d).expect("it fits 64 bits");
            for (sum, part) in sums.iter_mut().zip([one.attention, one.window, one.state]) {
                *sum = sum.add(part).expect("it fits 64 bits");
            }
        }
        for (sum, part) in sums.iter().zip(["attention", "swa", "recurrent"]) {
            let want = row.expected(place, "kv_bytes", part);
            assert_eq!(sum.get(), want, "{} {place} {part}", row.case);
            caches += 1;
        }
    };
    kv("cpu", Placement::Host, 1);
    let host = compute(Placement::Host);
    let want = row.expected("cpu", "compute_bytes", "CPU");
    assert_eq!(host.host.get(), want, "{} on the CPU", row.case);
    compared += 1;
    if row.partial() {
        return (compared, caches);
    }
    let devices = row.number("n_gpus");
    let placement = Placement::equal(devices);
    kv("gpu", placement, devices);
    let c = compute(placement);
    let want = row.expected("gpu", "compute_bytes", "GPU_Host");
    assert_eq!(c.host.get(), want, "{} host part", row.case);
    for (d, bytes) in c.devices.iter().enumerate() {
        let want = row.expected("gpu", "compute_bytes", &format!("GPU{d}"));
        assert_eq!(bytes.get(), want, "{} device {d}", row.case);
    }
    (compared + 1, caches)
}

#[test]
fn caches_and_compute_buffers_are_exact() {
    let (mut compared, mut caches, mut partial) = (0, 0, 0);
    for row in rows(GOLDEN) {
        let (n, k) = check(&row, &Net::new(&row.spec));
        compared += n;
        caches += k;
        partial += usize::from(row.partial());
    }
    // 92 rows, each on the CPU, and all but the partly offloaded ones on devices.
    assert_eq!((compared, partial), (181, 3));
    assert_eq!(caches, 181 * 3);
}

#[test]
fn random_shapes_with_random_flags_are_exact() {
    let mut compared = 0;
    let mut architectures = BTreeSet::new();
    for row in rows(RANDOM) {
        compared += check(&row, &Net::new(&row.spec)).0;
        architectures.insert(row.spec.architecture);
    }
    assert_eq!((compared, architectures.len()), (2 * 139, 14));
}

#[test]
fn weights_are_exact() {
    let all = [rows(GOLDEN), rows(RANDOM)].concat();
    for row in all.iter().filter(|r| !r.partial()) {
        let devices = row.number("n_gpus");
        let w = weight_bytes(&row.spec, None, Split::Equal(devices)).expect("it fits 64 bits");
        let want = row.expected("gpu", "model_bytes_by_buffer", "GPU_Host");
        assert_eq!(w.host.get(), want, "{} host", row.case);
        for (d, roles) in w.devices.iter().enumerate() {
            let sum = Bytes::sum(roles.iter().map(|r| r.1)).expect("it fits 64 bits");
            let want = row.expected("gpu", "model_bytes_by_buffer", &format!("GPU{d}"));
            assert_eq!(sum.get(), want, "{} device {d}", row.case);
        }
    }
}

/// The same rows from a `config.json` in place of a GGUF header, for families that are lowered.
#[test]
fn a_config_gives_the_same_as_a_header() {
    let (mut same, mut unknown) = (0, BTreeSet::new());
    for row in rows(GOLDEN) {
        let Some(config) = &row.config else {
            unknown.insert(row.spec.architecture.clone());
            continue;
        };
        match from_config(config, Assume::Nothing) {
            Ok(spec) => {
                check(&row, &Net::new(&spec));
                same += 1;
            }
            Err(ModelError::UnknownArchitecture { .. }) => {
                unknown.insert(row.spec.architecture.clone());
            }
            Err(e) => panic!("{}: {e}", row.case),
        }
    }
    println!("{same} rows from configs; not lowered yet: {unknown:?}");
    assert!(same >= 86, "{same} rows; not lowered: {unknown:?}");
}

#[test]
fn the_bound_for_unknown_graphs_is_above_every_known_one() {
    let all = [rows(GOLDEN), rows(RANDOM)].concat();
    for row in all
        .iter()
        .filter(|r| !r.partial() && r.number("n_gpus") == 1)
    {
        let net = Net::new(&row.spec);
        let run = row.run();
        let bound = upper_bound(&net, &run).expect("it fits 64 bits");
        let exact = compute_buffer_bytes(&net, &run, Placement::equal(1))
            .expect("it fits 64 bits")
            .expect("a known graph");
        assert!(
            bound >= exact.devices[0],
            "{}: {bound} < {}",
            row.case,
            exact.devices[0]
        );
    }
}

/// A long row of like layers is replayed in part; the answer is that of all layers.
#[test]
fn leaving_out_layers_changes_nothing() {
    let all = [rows(GOLDEN), rows(RANDOM)].concat();
    for row in all
        .iter()
        .filter(|r| !r.partial() && r.number("n_gpus") == 1)
    {
        let run = row.run();
        let short = &row.spec;
        for repeat in [10, 11, 25] {
            let mut long = short.clone();
            long.layers = (0..repeat)
                .flat_map(|_| short.layers.iter().copied())
                .collect();
            let net = Net::new(&long);
            let placement = Placement::equal(1);
            let part = compute_buffer_bytes(&net, &run, placement).expect("it fits 64 bits");
            let all = compute_without_shortcut(&net, &run, placement).expect("it fits 64 bits");
            assert_eq!(part, all, "{} x {repeat}", row.case);
        }
    }
}

#[test]
fn devices_get_layers_by_share() {
    let split: Vec<u64> = (0..=4).map(|i| Split::Equal(2).device_of(i, 4)).collect();
    assert_eq!(split, [0, 0, 0, 1, 1]);
}

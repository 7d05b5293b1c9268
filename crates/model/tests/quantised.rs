//! Quantised checkpoints: names, shapes and types against the libraries that define the layouts.
//!
//! The golden files are written by `tools/oracles/quant_shapes.py`.

mod inventory;

use inventory::{Inventory, differences, expected, golden_files, inventory, read};
use plimsoll_model::{Assume, catalogue, from_config};
use serde_json::{Value, json};

/// bitsandbytes stores a JSON text beside each matrix, in which the offset of a nested scale has as
/// many digits as it needs: such a tensor's length is compared to a few bytes, and then made equal.
fn level_texts(want: &Inventory, have: &mut Inventory) {
    for (name, (shape, _)) in have.iter_mut() {
        if let (true, Some((w, _))) = (name.contains("quant_state"), want.get(name))
            && shape[0].abs_diff(w[0]) <= if name.contains("nf4") { 4 } else { 0 }
        {
            shape.clone_from(w);
        }
    }
}

#[test]
fn layouts_equal_their_libraries() {
    let files = golden_files("quantised");
    assert!(files.len() >= 28, "{} layouts", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let golden = read(&path);
        let want = expected(&golden["tensors"]);
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        match from_config(&golden["config"], Assume::Nothing) {
            Ok(spec) => {
                let mut have = inventory(&spec);
                level_texts(&want, &mut have);
                let found = differences(&want, &have);
                if !found.is_empty() {
                    wrong.push(format!("{name}:\n    {}", found.join("\n    ")));
                }
            }
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Sums of what published safetensors headers state, which people read off them: the whole
/// checkpoint's size from its config, to the byte.
#[test]
fn published_totals_are_met() {
    let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": true});
    let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false, "sym": true});
    let group = |weights: Value, input: Value| {
        json!({
            "quant_method": "compressed-tensors", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": input}},
        })
    };
    let dynamic = group(
        json!({"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true, "dynamic": false}),
        json!({"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true}),
    );
    let packed = group(
        json!({
            "num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": true,
            "actorder": "group",
        }),
        Value::Null,
    );
    let nvfp4 = json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]});
    // AutoGPTQ stored a bias of zeros for every linear layer, also where the model has none: 16 bits
    // for each of a layer's outputs.
    let zeros = 32 * 2 * (2 * 4096 + 2 * 1024 + 2 * 14_336 + 4096);
    for (model, format, total) in [
        ("qwen3-32b", &awq, 19_325_298_688_u64),
        ("llama-3.1-70b", &awq, 39_767_785_472),
        ("llama-3.1-8b", &gptq, 5_735_587_840 - zeros),
        ("llama-3.1-8b", &dynamic, 9_083_953_152),
        ("llama-3.3-70b", &packed, 39_525_311_232),
        ("llama-3.3-70b", &nvfp4, 42_709_045_632),
    ] {
        let mut config = catalogue::find(model).unwrap().config.clone();
        config["quantization_config"] = format.clone();
        let spec = from_config(&config, Assume::Nothing).unwrap();
        let method = format["quant_method"].as_str().unwrap();
        assert_eq!(
            spec.stored_bytes().unwrap().get(),
            total,
            "{model} {method}"
        );
    }
}

/// What a quantised matrix stands for is counted, not what it is packed into.
#[test]
fn parameters_do_not_depend_on_the_format() {
    let plain = catalogue::find("llama-3.1-8b").unwrap();
    let want = from_config(&plain.config, Assume::Nothing)
        .unwrap()
        .parameters()
        .unwrap();
    for path in golden_files("quantised") {
        let golden = read(&path);
        let mut config = plain.config.clone();
        config["quantization_config"] = golden["config"]["quantization_config"].clone();
        let spec = from_config(&config, Assume::Nothing).unwrap();
        assert_eq!(spec.parameters().unwrap(), want, "{}", path.display());
    }
}

#[test]
fn some_layouts_are_refused_not_guessed() {
    let plain = catalogue::find("llama-3.1-8b").unwrap();
    for format in [
        json!({"quant_method": "aqlm"}),
        json!({"quant_method": "gptq"}),
        json!({"quant_method": "gptq", "bits": 5}),
        json!({"quant_method": "awq", "bits": 4, "group_size": 0}),
        json!({"quant_method": "fp8", "weight_block_size": [128]}),
        json!({"quant_method": "fp8", "weight_block_size": [0, 128]}),
        json!({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}),
        json!({"quant_algo": "MIXED_PRECISION", "quantized_layers": {}}),
        json!({"quant_algo": "MIXED_PRECISION", "quantized_layers": {"lm_head": {"quant_algo": "W4A8_AWQ"}}}),
        json!({"quant_algo": "MIXED_PRECISION", "quantized_layers": {"lm_head": {}}}),
        json!({"quant_algo": "MIXED_PRECISION", "quantized_layers": {
            "a.experts.0.up": {"quant_algo": "FP8"}, "a.experts.1.up": {"quant_algo": "NVFP4"}}}),
        json!({"quant_algo": "MIXED_PRECISION", "quantized_layers": {
            "a.mlp": {"quant_algo": "FP8"}, "b.mlp": {"quant_algo": "NVFP4"}}}),
        json!({"quant_method": "compressed-tensors", "kv_cache_scheme": "static", "config_groups": {}}),
        json!({"quant_method": "compressed-tensors"}),
        json!({"quant_method": "compressed-tensors", "config_groups": {}}),
        json!({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 64}}}}),
        json!({"quant_method": "compressed-tensors", "ignore": ["re:("], "config_groups": {"g": {"weights":
            {"num_bits": 8, "type": "float", "strategy": "tensor"}}}}),
        json!(7),
    ] {
        let mut config = plain.config.clone();
        config["quantization_config"] = format.clone();
        let err = from_config(&config, Assume::Nothing).expect_err(&format.to_string());
        assert!(err.to_string().contains("quantization_config"), "{err}");
    }
}

/// Where modules are not all stored alike, each has what it has where all are stored as it is.
#[test]
fn modules_of_several_layouts_are_each_stored_by_their_own() {
    let plain = catalogue::find("qwen3-30b-a3b").unwrap().config.clone();
    let with = |format: Value| {
        let mut config = plain.clone();
        config["quantization_config"] = format;
        inventory(&from_config(&config, Assume::Nothing).unwrap())
    };
    let one = |algo: &str| {
        with(json!({"quant_method": "modelopt", "quant_algo": algo, "ignore": ["nothing"]}))
    };
    let (fp8, nvfp4) = (one("FP8"), one("NVFP4"));
    // As published: attention by matrix, experts by layer or by number, and a head that nobody else quantises.
    let mut layers = serde_json::Map::new();
    for i in 0..48 {
        for m in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            layers.insert(
                format!("model.layers.{i}.self_attn.{m}"),
                json!({"quant_algo": "FP8"}),
            );
        }
        let experts = if i % 2 == 0 { "experts" } else { "experts.7" };
        let algo = json!({"quant_algo": "NVFP4", "group_size": 16});
        layers.insert(format!("model.layers.{i}.mlp.{experts}"), algo.clone());
        if i % 2 == 1 {
            layers.insert(format!("model.layers.{i}.mlp.experts.8"), algo);
        }
    }
    layers.insert("lm_head".to_owned(), json!({"quant_algo": "W4A16_NVFP4"}));
    let mixed = with(json!({"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}));
    let mut head = 0;
    for (name, have) in &mixed {
        if name.starts_with("lm_head") {
            head += 1;
            continue;
        }
        let whole = if name.contains("self_attn") {
            &fp8
        } else {
            &nvfp4
        };
        assert_eq!(Some(have), whole.get(name), "{name}");
    }
    // Packed, scales and the scale of scales; inputs are not quantised.
    assert_eq!(head, 3);
    assert_eq!(mixed.len(), nvfp4.len() - 1 - 48 * 4 + 3);

    // The same by compressed-tensors' groups: what is named comes before what is left.
    let group = |bits: u64, group: Value, targets: Value| {
        json!({"targets": targets, "input_activations": null, "weights": {
            "num_bits": bits, "type": "float", "strategy": if bits == 4 { "group" } else { "channel" },
            "group_size": group, "symmetric": true, "dynamic": false}})
    };
    let all = |groups: Value| {
        with(
            json!({"quant_method": "compressed-tensors", "ignore": ["lm_head"], "config_groups": groups}),
        )
    };
    let rest = |bits, size| all(json!({"a": group(bits, size, json!(["Linear"]))}));
    let (rows, small) = (rest(8, Value::Null), rest(4, json!(16)));
    let attention = json!(["re:.*self_attn.*"]);
    let both = all(json!({
        "a": group(4, json!(16), json!(["Linear"])), "b": group(8, Value::Null, attention),
    }));
    for (name, have) in &both {
        let whole = if name.contains("self_attn") {
            &rows
        } else {
            &small
        };
        assert_eq!(Some(have), whole.get(name), "{name}");
    }
    assert_eq!(both.len(), small.len() - 48 * 4);
}

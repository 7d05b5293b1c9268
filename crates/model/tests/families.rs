//! What families say of their layers beside what the golden inventories hold: whose caches there are.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod inventory;

use inventory::{golden_files, read};
use plimsoll_model::{Assume, Mixer, ModelSpec, Reach, Role, from_config};
use serde_json::{Value, json};

/// The config of a golden file.
fn golden(name: &str) -> Value {
    let path = golden_files("shapes")
        .into_iter()
        .find(|p| p.file_stem().unwrap() == name);
    read(&path.unwrap())["config"].clone()
}

fn spec(config: &Value) -> ModelSpec {
    from_config(config, Assume::Nothing).unwrap()
}

/// Whether the inventory has a tensor of this name, in each layer.
fn layers_with(spec: &ModelSpec, part: &str) -> Vec<bool> {
    let has = |layer: usize| {
        spec.tensors.iter().any(|t| {
            t.layer
                .is_some_and(|l| usize::try_from(l).unwrap() == layer)
                && t.name.contains(part)
        })
    };
    (0..spec.layers.len()).map(has).collect()
}

#[test]
fn indexers_have_a_cache_where_they_have_weights() {
    for (name, own) in [("deepseek_v32-small", 5), ("glm_moe_dsa-small", 3)] {
        let spec = spec(&golden(name));
        let keys: Vec<bool> = spec
            .layers
            .iter()
            .map(|l| matches!(l.mixer, Mixer::Latent(a) if a.indexer.is_some()))
            .collect();
        assert_eq!(keys, layers_with(&spec, "indexer.wk"), "{name}");
        assert_eq!(keys.iter().filter(|k| **k).count(), own, "{name}");
    }
    // Listed, by letters, or by a period: the same layers.
    let config = golden("glm_moe_dsa-small");
    for (key, value) in [
        ("index_topk_pattern", json!("FFSSFSS")),
        (
            "indexer_types",
            json!([
                "full", "full", "shared", "shared", "full", "shared", "shared"
            ]),
        ),
    ] {
        let mut other = config.clone();
        other
            .as_object_mut()
            .unwrap()
            .shift_remove("index_topk_freq");
        other[key] = value;
        assert_eq!(spec(&other), spec(&config), "{key}");
        other[key] = json!("FFX");
        let err = from_config(&other, Assume::Nothing).unwrap_err();
        assert!(err.to_string().contains(key), "{err}");
    }
    // One e4m3 byte for each of 128 elements, and one f32 scale.
    let mut config = golden("deepseek_v32-small");
    config["index_head_dim"] = json!(128);
    let Mixer::Latent(a) = spec(&config).layers[0].mixer else {
        panic!("no latent attention");
    };
    assert_eq!(a.indexer.unwrap().key_bytes().get(), 132);
}

/// Kimi-VL has K2.5's tensors under one other name: its projector's.
#[test]
fn kimi_vl_is_kimi_k25_with_another_projector() {
    let config = golden("kimi_k25-small");
    let mut other = config.clone();
    other["architectures"] = json!(["KimiVLForConditionalGeneration"]);
    other["model_type"] = json!("kimi_vl");
    let renamed = |name: &str| {
        name.replace("mm_projector.proj.0", "multi_modal_projector.linear_1")
            .replace("mm_projector.proj.2", "multi_modal_projector.linear_2")
            .replace("mm_projector.pre_norm", "multi_modal_projector.pre_norm")
    };
    let names = |s: &ModelSpec| s.tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    let (k25, vl) = (spec(&config), spec(&other));
    let want: Vec<String> = names(&k25).iter().map(|n| renamed(n)).collect();
    assert_eq!(names(&vl), want);
    assert_eq!(vl.stored_bytes().unwrap(), k25.stored_bytes().unwrap());
}

/// Layers that read another's keys and values allocate none; those with heads of another size cache that.
#[test]
fn gemma_3n_and_4_share_caches() {
    for (name, shared) in [
        ("gemma3n_text-small", 5),
        ("gemma3n-small", 5),
        ("gemma4_text-small", 3),
        ("gemma4_text-experts", 0),
    ] {
        let spec = spec(&golden(name));
        let own: Vec<bool> = spec
            .layers
            .iter()
            .map(|l| matches!(l.mixer, Mixer::Attention(a) if !a.shared))
            .collect();
        assert_eq!(own, layers_with(&spec, "self_attn.k_proj"), "{name}");
        assert_eq!(own.iter().filter(|o| !**o).count(), shared, "{name}");
    }
    // Keys' rows of the projection are what the cache holds of a token.
    let experts = spec(&golden("gemma4_text-experts"));
    for (i, layer) in experts.layers.iter().enumerate() {
        let Mixer::Attention(a) = layer.mixer else {
            panic!("no attention")
        };
        let name = format!("model.layers.{i}.self_attn.k_proj.weight");
        let keys = experts.tensors.iter().find(|t| t.name == name).unwrap();
        assert_eq!(keys.shape[0], a.kv_heads * a.k_dim, "{name}");
        assert_eq!(a.k_dim == 32, a.reach == Reach::Full, "{name}");
    }
}

/// The header of google/flan-t5-base has 247,577,856 parameters: T5 1.1's output head is its own.
#[test]
fn t5_1_1_has_a_head() {
    let config = json!({
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 2048,
        "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12, "vocab_size": 32128, "n_positions": 512,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false, "torch_dtype": "float32",
    });
    assert_eq!(spec(&config).parameters().unwrap(), 247_577_856);
}

/// The published class of InternVL has the converted one's tensors, queries, keys and values of the tower in one.
#[test]
fn internvl_weighs_the_same_in_either_class() {
    for name in ["internvl-small", "internvl-qk-norm"] {
        let config = golden(name);
        let mut other = config.clone();
        let map = other.as_object_mut().unwrap();
        map.insert("architectures".into(), json!(["InternVLChatModel"]));
        map.insert("model_type".into(), json!("internvl_chat"));
        let text = map.shift_remove("text_config").unwrap();
        map.insert("llm_config".into(), text);
        let vision = map["vision_config"].as_object_mut().unwrap();
        for (old, new) in [
            ("attention_bias", "qkv_bias"),
            ("use_qk_norm", "qk_normalization"),
        ] {
            let flag = vision.shift_remove(old).unwrap_or(json!(false));
            vision.insert(new.into(), flag);
        }
        vision.insert("use_mean_pooling".into(), json!(true));
        let (hf, chat) = (spec(&config), spec(&other));
        let names: Vec<&str> = chat.tensors.iter().map(|t| t.name.as_str()).collect();
        for want in [
            "vision_model.encoder.layers.2.attn.qkv.weight",
            "vision_model.encoder.layers.0.ls1",
            "mlp1.3.bias",
            "language_model.model.layers.3.self_attn.q_proj.weight",
        ] {
            assert!(names.contains(&want), "{name}: {want}");
        }
        // What is left of a tower without mean pooling is one norm.
        let pooled = config["vision_config"]["use_mean_pooling"] != json!(false);
        let norm = if pooled { 0 } else { 2 * 48 };
        assert_eq!(
            hf.parameters().unwrap() - norm,
            chat.parameters().unwrap(),
            "{name}"
        );
    }
}

/// What a class does not know is refused by its field, never guessed.
#[test]
fn what_a_family_does_not_know_is_refused_by_name() {
    for (name, field, value) in [
        ("bart-small", "decoder_attention_heads", json!(5)),
        ("dbrx-small", "ffn_config", Value::Null),
        ("deepseek_v32-small", "q_lora_rank", Value::Null),
        ("exaone_moe-small", "mlp_layer_types", json!(["dense"])),
        ("gemma3n_text-small", "intermediate_size", json!([160, 160])),
        ("gemma3n_text-small", "num_kv_shared_layers", json!(10)),
        (
            "gemma3n-small",
            "vision_config.architecture",
            json!("resnet"),
        ),
        (
            "gemma4_text-experts",
            "num_global_key_value_heads",
            json!(4),
        ),
        ("glm_moe_dsa-small", "mlp_layer_types", json!(["sparse"])),
        ("internvl-small", "downsample_ratio", json!(0.25)),
        (
            "internvl-small",
            "vision_config.image_size",
            json!([56, 28]),
        ),
        ("kimi_k25-small", "vision_config", Value::Null),
        ("lfm2-small", "layer_types", json!(["conv", "nobody"])),
        ("mimo_v2_flash-small", "swa_head_dim", json!(48)),
        ("minimax-defaults", "attn_type_list", json!([0, 1, 2, 0])),
        ("minimax-defaults", "shared_intermediate_size", json!(64)),
        ("mllama-small", "vision_config", Value::Null),
        (
            "mpt-small",
            "attn_config",
            json!({"attn_type": "multiquery_attention"}),
        ),
        ("mpt-small", "no_bias", json!(false)),
        ("qwen2_audio-small", "audio_config", Value::Null),
        (
            "qwen3_omni_moe-small",
            "vision_config.deepstack_visual_indexes",
            json!([0, 1, 2, 3, 4]),
        ),
        ("t5-small", "feed_forward_proj", json!("twice-gated-gelu")),
        ("whisper-small", "encoder_layers", json!("three")),
        ("zamba2-small", "layers_block_type", json!(["hybrid"])),
    ] {
        let mut config = golden(name);
        let (at, key) = match field.split_once('.') {
            Some((outer, key)) => (&mut config[outer], key),
            None => (&mut config, field),
        };
        at[key] = value;
        let err = from_config(&config, Assume::Nothing).unwrap_err();
        assert!(err.to_string().contains(key), "{name} {field}: {err}");
    }
}

/// MiMo is Qwen 2 with prediction layers: each is one of the model's own layers behind a joint of two.
#[test]
fn mimo_is_qwen2_with_prediction_layers() {
    let mut config = golden("qwen2-small");
    let qwen = spec(&config);
    config["architectures"] = json!(["MiMoForCausalLM"]);
    config["model_type"] = json!("mimo");
    config["num_nextn_predict_layers"] = json!(2);
    let mimo = spec(&config);
    let (own, predicting): (Vec<_>, Vec<_>) =
        mimo.tensors.iter().partition(|t| t.role != Role::Mtp);
    assert!(
        own.iter()
            .map(|t| &t.name)
            .eq(qwen.tensors.iter().map(|t| &t.name))
    );
    assert_eq!((mimo.mtp_layers, mimo.layers.len()), (2, qwen.layers.len()));
    let last = format!("model.layers.{}.", qwen.layers.len() - 1);
    for i in 0..2 {
        let at = format!("model.mtp_layers.{i}.");
        let parts: Vec<_> = predicting
            .iter()
            .filter(|t| t.name.starts_with(&at))
            .collect();
        for t in qwen.tensors.iter().filter(|t| t.name.starts_with(&last)) {
            let name = t.name.replace(&last, &at);
            let twin = parts.iter().find(|p| p.name == name).unwrap();
            assert_eq!(twin.shape, t.shape, "{name}");
        }
        let joint = parts.iter().find(|p| p.name.ends_with("input_proj.weight"));
        assert_eq!(joint.unwrap().shape, [qwen.hidden, 2 * qwen.hidden]);
    }
}

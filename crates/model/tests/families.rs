//! What families say of their layers beside what the golden inventories hold: whose caches there are.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod inventory;

use inventory::{golden_files, read};
use plimsoll_model::{Assume, Ffn, Mixer, ModelSpec, Reach, Role, from_config};
use plimsoll_units::DType;
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
        ("phi4_multimodal-small", "audio_config", Value::Null),
        (
            "phi4_multimodal-small",
            "vision_config.image_size",
            json!(7),
        ),
        (
            "phi4_multimodal-small",
            "audio_config.num_attention_heads",
            json!(3),
        ),
        ("qwen2_5_omni-small", "audio_config", Value::Null),
        ("qwen2_5_omni-small", "text_config", Value::Null),
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

/// The published class of Phi-4-multimodal has the converted one's tensors under other names. Its checkpoint's headers hold
/// 5,574,460,384 parameters: what is left out is the adapters, a matrix of `r` rows and one of `r` columns beside each of
/// the decoder's four (its config: ranks of 256 for images, 320 for sound).
#[test]
fn phi_4_multimodal_is_published_under_other_names() {
    let config = json!({
        "architectures": ["Phi4MMForCausalLM"], "model_type": "phi4mm", "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 200_064,
        "max_position_embeddings": 131_072, "partial_rotary_factor": 0.75, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "embd_layer": {"audio_embd_layer": {"downsample_rate": 1}},
        "audio_processor": {"name": "cascades", "config": {
            "attention_dim": 1024, "attention_heads": 16, "linear_units": 1536, "num_blocks": 24, "kernel_size": 3,
            "depthwise_multiplier": 1, "depthwise_seperable_out_channel": 1024, "ext_pw_out_channel": 1024,
            "input_size": 80, "time_reduction": 8, "nemo_conv_settings": {"conv_channels": 1024},
            "relative_attention_bias_args": {"t5_bias_max_distance": 500, "type": "t5"},
        }},
    });
    let published = spec(&config);
    let (h, inner) = (3072_u64, 8192_u64);
    let per_rank = 32 * ((h + 5120) + (h + h) + (h + 2 * inner) + (inner + h));
    let adapters = per_rank * (256 + 320);
    assert_eq!(
        published.parameters().unwrap() + adapters,
        5_574_460_384,
        "{per_rank}"
    );
    let names: Vec<&str> = published.tensors.iter().map(|t| t.name.as_str()).collect();
    let audio = "model.embed_tokens_extend.audio_embed";
    for want in [
        "model.layers.31.self_attn.qkv_proj.base_layer.weight".to_owned(),
        "model.layers.0.input_layernorm.weight".to_owned(),
        "model.embed_tokens_extend.image_embed.sub_GN".to_owned(),
        format!("{audio}.audio_projection.vision.2.bias"),
        format!("{audio}.encoder.encoders.23.feed_forward_out.net.0.linear.weight"),
        format!("{audio}.encoder.encoders.0.self_attn.linear_out.weight"),
        format!("{audio}.encoder.embed.conv.6.weight"),
    ] {
        assert!(names.contains(&want.as_str()), "{want}");
    }
    assert!(
        published.notes.iter().any(|n| n.contains("vision_lora")),
        "{:?}",
        published.notes
    );
    // How many positions of sound become one is stated elsewhere.
    let mut joined = config.clone();
    joined["embd_layer"]["audio_embd_layer"]["downsample_rate"] = json!(2);
    let more = spec(&joined).parameters().unwrap() - published.parameters().unwrap();
    assert_eq!(more, 2 * 1024 * h);
}

/// What a checkpoint of Qwen2.5-Omni says of its other parts changes nothing but a note.
#[test]
fn qwen_2_5_omni_is_what_thinks() {
    let thinker = golden("qwen2_5_omni-small");
    let whole = json!({
        "architectures": ["Qwen2_5OmniModel"], "model_type": "qwen2_5_omni", "torch_dtype": "bfloat16",
        "thinker_config": thinker, "talker_config": {"hidden_size": 896}, "token2wav_config": {},
    });
    let (part, all) = (spec(&thinker), spec(&whole));
    assert_eq!(part.tensors, all.tensors);
    assert_eq!(all.encoder.unwrap().hidden, 48);
    assert!(all.encoder.unwrap().patches.is_none(), "what images pass");
    let note = |s: &ModelSpec| s.notes.iter().any(|n| n.contains("`token2wav_config`"));
    assert_eq!((note(&part), note(&all)), (false, true));
}

/// Arctic: every second layer has experts where nothing is said, and what is dense beside them only where that is said.
#[test]
fn arctic_has_a_dense_part_beside_its_experts() {
    let mut config = json!({
        "architectures": ["ArcticForCausalLM"], "model_type": "arctic", "hidden_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "num_local_experts": 8,
        "num_experts_per_tok": 2, "use_residual": true, "torch_dtype": "bfloat16",
    });
    let plain = spec(&config);
    assert_eq!(
        layers_with(&plain, "residual_mlp.w3"),
        [false, true, false, true]
    );
    assert_eq!(
        layers_with(&plain, "block_sparse_moe.mlp.w1"),
        [true, false, true, false]
    );
    assert_eq!(plain.max_context, Some(4096));
    let dense = plain
        .tensors
        .iter()
        .find(|t| t.name.ends_with("layers.1.residual_mlp.w1.weight"));
    assert_eq!(dense.unwrap().shape, [64, 64]);
    assert!(matches!(plain.layers[1].ffn, Ffn::Moe(m) if m.shared == 64));
    config["moe_layer_frequency"] = json!(1);
    config["use_residual"] = json!(false);
    let every = spec(&config);
    assert_eq!(layers_with(&every, "experts.{e}.w2"), [true; 4]);
    assert_eq!(layers_with(&every, "residual"), [false; 4]);
}

/// DeepSeek V4's experts are in 4-bit floats beside 8-bit blocks, unless its config says otherwise.
#[test]
fn deepseek_v4s_experts_have_a_type_of_their_own() {
    let experts = |more: &[(&str, Value)]| {
        let mut config = golden("deepseek_v4-small");
        for (key, value) in more {
            config[*key] = value.clone();
        }
        let spec = spec(&config);
        let types = spec.tensors.iter().filter(|t| t.role == Role::Experts);
        let mut types: Vec<DType> = types
            .filter(|t| t.linear.is_some())
            .map(|t| t.dtype)
            .collect();
        types.dedup();
        types
    };
    let blocks = json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]});
    let quantised = ("quantization_config", blocks);
    assert_eq!(experts(&[]), [DType::F32]);
    assert_ne!(experts(std::slice::from_ref(&quantised)), [DType::F8E4m3]);
    assert_eq!(
        experts(&[quantised, ("expert_dtype", json!("fp8"))]),
        [DType::F8E4m3]
    );
}

//! What a GGUF file's keys say, as the fields of the config that a checkpoint of the same model has.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use plimsoll_model::gguf::{self, Header, to_config};
use plimsoll_model::{Assume, Norm, Positions, RopeScaling, from_config};
use support::Gguf;

fn read(g: &Gguf) -> Result<Header, gguf::GgufError> {
    Header::read(g.file().as_slice())
}

#[test]
fn every_architecture_gives_the_fields_of_its_config() {
    let arch = |name: &str, f: &dyn Fn(Gguf) -> Gguf| {
        let g = f(Gguf::decoder(name, 4, 64, 4, 2, 128).u32(&format!("{name}.vocab_size"), 96));
        to_config(&read(&g).unwrap(), Assume::Nothing).unwrap()
    };
    let moe = |name: &'static str| {
        move |g: Gguf| {
            g.u32(&format!("{name}.expert_count"), 8)
                .u32(&format!("{name}.expert_used_count"), 2)
                .u32(&format!("{name}.expert_feed_forward_length"), 32)
                .u32(&format!("{name}.expert_shared_feed_forward_length"), 48)
        }
    };
    let plain = |g: Gguf| g;
    for (name, architecture) in [
        ("llama", "LlamaForCausalLM"),
        ("qwen2", "Qwen2ForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
        ("gemma", "GemmaForCausalLM"),
        ("phi2", "PhiForCausalLM"),
        ("phi3", "Phi3ForCausalLM"),
        ("gptneox", "GPTNeoXForCausalLM"),
        ("granite", "GraniteForCausalLM"),
        ("glm4", "Glm4ForCausalLM"),
        ("ernie4_5", "Ernie4_5ForCausalLM"),
        ("hunyuan-dense", "HunYuanDenseV1ForCausalLM"),
        ("olmo2", "Olmo2ForCausalLM"),
        ("seed_oss", "SeedOssForCausalLM"),
        ("smollm3", "SmolLM3ForCausalLM"),
        ("command-r", "CohereForCausalLM"),
        ("starcoder2", "Starcoder2ForCausalLM"),
        ("nemotron", "NemotronForCausalLM"),
        ("gpt2", "GPT2LMHeadModel"),
    ] {
        let c = arch(name, &plain);
        assert_eq!(c["architectures"][0], architecture);
        plimsoll_model::from_config(&c, Assume::Nothing).unwrap_or_else(|e| panic!("{name}: {e}"));
        let key = if name == "gpt2" {
            "n_layer"
        } else {
            "num_hidden_layers"
        };
        assert_eq!(c[key], 4);
    }
    // Biases are where the file has them.
    assert_eq!(arch("glm4", &plain)["attention_bias"], false);
    let biased = arch("glm4", &|g| g.tensor("blk.3.attn_q.bias", &[64], 0));
    assert_eq!(biased["attention_bias"], true);
    let c = arch("llama", &moe("llama"));
    assert_eq!(
        (&c["architectures"][0], &c["num_local_experts"]),
        (&"MixtralForCausalLM".into(), &8.into())
    );
    for name in ["qwen2moe", "qwen3moe"] {
        let c = arch(name, &moe(name));
        assert_eq!(
            (&c["num_experts"], &c["moe_intermediate_size"]),
            (&8.into(), &32.into())
        );
        assert_eq!(c["shared_expert_intermediate_size"], 48);
    }
    let c = arch("granitemoe", &moe("granitemoe"));
    assert_eq!(c["shared_intermediate_size"], 48);

    let c = arch("gemma2", &plain);
    assert_eq!(c["layer_types"][0], "sliding_attention");
    assert_eq!(c["layer_types"][1], "full_attention");
    assert_eq!(
        (&c["sliding_window"], &c["final_logit_softcapping"]),
        (&4096.into(), &30.0.into())
    );
    let c = arch("gemma3", &|g| g.u32("gemma3.attention.sliding_window", 512));
    assert!(
        c["layer_types"]
            .as_array()
            .unwrap()
            .iter()
            .all(|t| t == "sliding_attention")
    );
    let c = arch("gemma3", &plain);
    assert_eq!(c["layer_types"][0], "full_attention");
    let c = arch("gpt-oss", &|g| {
        moe("gpt-oss")(g)
            .u32("gpt-oss.attention.sliding_window", 128)
            .u32s("gpt-oss.attention.sliding_window_pattern", &[1, 0, 0, 1])
    });
    assert_eq!(c["layer_types"][3], "sliding_attention");
    assert_eq!(c["layer_types"][2], "full_attention");
    assert_eq!(c["intermediate_size"], 32);

    let c = arch("qwen3next", &|g| {
        moe("qwen3next")(g)
            .u32("qwen3next.ssm.conv_kernel", 4)
            .u32("qwen3next.ssm.inner_size", 64)
            .u32("qwen3next.ssm.state_size", 8)
            .u32("qwen3next.ssm.time_step_rank", 4)
            .u32("qwen3next.ssm.group_count", 2)
    });
    assert_eq!(
        (&c["linear_value_head_dim"], &c["linear_num_key_heads"]),
        (&16.into(), &2.into())
    );
    assert_eq!(c["layer_types"][2], "linear_attention");
    assert_eq!(c["layer_types"][3], "full_attention");

    let c = arch("deepseek2", &|g| {
        moe("deepseek2")(g)
            .u32("deepseek2.attention.kv_lora_rank", 16)
            .u32("deepseek2.rope.dimension_count", 8)
            .u32("deepseek2.attention.key_length", 24)
            .u32("deepseek2.attention.value_length", 16)
            .u32("deepseek2.attention.key_length_mla", 20)
            .u32("deepseek2.attention.value_length_mla", 12)
            .u32("deepseek2.leading_dense_block_count", 1)
            .u32("deepseek2.nextn_predict_layers", 1)
    });
    assert_eq!(
        (&c["qk_nope_head_dim"], &c["v_head_dim"]),
        (&12.into(), &12.into())
    );
    assert_eq!(
        (&c["num_hidden_layers"], &c["num_nextn_predict_layers"]),
        (&3.into(), &1.into())
    );
    assert_eq!(
        (&c["num_key_value_heads"], &c["q_lora_rank"]),
        (&4.into(), &serde_json::Value::Null)
    );
}

#[test]
fn what_a_model_computes_arrives() {
    let g = Gguf::llama()
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 500_000.0)
        .u32("llama.rope.dimension_count", 8)
        .str("llama.rope.scaling.type", "yarn")
        .f32("llama.rope.scaling.factor", 4.0)
        .u32("llama.rope.scaling.original_context_length", 32);
    let (_, spec) = gguf::spec(&read(&g).unwrap(), Assume::Nothing).unwrap();
    let a = spec.arithmetic.unwrap();
    let Norm::Rms { eps, plus_one } = a.norm else {
        panic!("{:?}", a.norm);
    };
    assert!((eps - 1e-5).abs() < 1e-11 && !plus_one);
    let Positions::Rotary {
        full, interleaved, ..
    } = a.positions
    else {
        panic!("{:?}", a.positions);
    };
    assert!(interleaved);
    assert_eq!((full.theta, full.dim), (500_000.0, 8));
    let RopeScaling::Yarn {
        factor, original, ..
    } = full.scaling
    else {
        panic!("{:?}", full.scaling);
    };
    assert_eq!((factor, original), (4.0, 32));

    // Divisors of LongRoPE are tensors.
    let g = Gguf::llama()
        .tensor("rope_factors_long.weight", &[8], 0)
        .tensor("rope_factors_short.weight", &[8], 0)
        .f32("llama.rope.scaling.attn_factor", 1.25);
    let (_, spec) = gguf::spec(&read(&g).unwrap(), Assume::Nothing).unwrap();
    let Positions::Rotary { full, .. } = spec.arithmetic.unwrap().positions else {
        panic!("no rotation");
    };
    let RopeScaling::LongRope {
        divisors: None,
        attention,
        ..
    } = full.scaling
    else {
        panic!("{:?}", full.scaling);
    };
    assert_eq!(attention, 1.25);

    let g = Gguf::decoder("granite", 4, 64, 4, 2, 128)
        .u32("granite.vocab_size", 96)
        .f32("granite.attention.scale", 0.5)
        .f32("granite.embedding_scale", 12.0)
        .f32("granite.residual_scale", 0.25)
        .f32("granite.logit_scale", 16.0);
    let c = to_config(&read(&g).unwrap(), Assume::Nothing).unwrap();
    let a = from_config(&c, Assume::Nothing)
        .unwrap()
        .arithmetic
        .unwrap();
    assert_eq!((a.attention_scale, a.embedding_scale), (0.5, 12.0));
    assert_eq!((a.residual_scale, a.logit_scale), (0.25, 1.0 / 16.0));
}

#[test]
fn a_file_of_layers_that_differ_says_what_each_has() {
    let of = |heads: &[u32], kv_heads: &[u32], inner: &[u32]| {
        Gguf::default()
            .str("general.architecture", "deci")
            .u32("deci.block_count", 4)
            .u32("deci.context_length", 128)
            .u32("deci.embedding_length", 64)
            .u32("deci.vocab_size", 96)
            .u32s("deci.attention.head_count", heads)
            .u32s("deci.attention.head_count_kv", kv_heads)
            .u32s("deci.feed_forward_length", inner)
    };
    let g = of(&[8, 0, 8, 0], &[2, 0, 0, 0], &[128, 256, 512, 0]);
    let c = to_config(&read(&g).unwrap(), Assume::Nothing).unwrap();
    let spec = plimsoll_model::from_config(&c, Assume::Nothing).unwrap();
    let kinds: Vec<(bool, bool)> = spec
        .layers
        .iter()
        .map(|l| {
            let attends = matches!(l.mixer, plimsoll_model::Mixer::Attention(a) if a.kv_heads == 2);
            (attends, l.ffn != plimsoll_model::Ffn::None)
        })
        .collect();
    // The third has a matrix in place of attention, the last nothing.
    assert_eq!(
        kinds,
        [(true, true), (false, true), (false, true), (false, false)]
    );
    let has = |name: &str| spec.tensors.iter().any(|t| t.name == name);
    assert!(has("model.layers.2.self_attn.linear_attn.weight"));
    let inner: Vec<u64> = spec
        .layers
        .iter()
        .filter_map(|l| match l.ffn {
            plimsoll_model::Ffn::Dense { intermediate, .. } => Some(intermediate),
            _ => None,
        })
        .collect();
    assert_eq!(inner, [128, 256, 512]);
    assert!(!has("model.layers.3.input_layernorm.weight"));
    let odd = of(&[4; 4], &[3; 4], &[128; 4]);
    assert!(to_config(&read(&odd).unwrap(), Assume::Nothing).is_err());
}

#[test]
fn files_with_routed_experts_say_where_they_are() {
    let spec = |arch: &str, more: &dyn Fn(Gguf) -> Gguf| {
        let key = |k: &str| format!("{arch}.{k}");
        let g = Gguf::decoder(arch, 8, 64, 4, 2, 128)
            .u32(&key("vocab_size"), 96)
            .u32(&key("attention.key_length"), 16)
            .u32(&key("attention.value_length"), 16)
            .u32(&key("expert_count"), 8)
            .u32(&key("expert_used_count"), 2)
            .u32(&key("expert_feed_forward_length"), 32);
        let c = to_config(&read(&more(g)).unwrap(), Assume::Nothing).unwrap();
        plimsoll_model::from_config(&c, Assume::Nothing).unwrap_or_else(|e| panic!("{arch}: {e}"))
    };
    let routed = |spec: &plimsoll_model::ModelSpec| {
        let moe = spec.layers.iter().filter_map(|l| match l.ffn {
            plimsoll_model::Ffn::Moe(m) => Some((m.experts, m.top_k, m.intermediate, m.shared)),
            _ => None,
        });
        let all: Vec<_> = moe.collect();
        (all.len(), all.first().copied())
    };
    let dense_first = |arch: &'static str| {
        move |g: Gguf| {
            g.u32(&format!("{arch}.expert_shared_count"), 2)
                .u32(&format!("{arch}.leading_dense_block_count"), 3)
        }
    };
    for arch in ["glm4moe", "dots1", "ernie4_5-moe"] {
        let s = spec(arch, &dense_first(arch));
        assert_eq!(routed(&s), (5, Some((8, 2, 32, 64))), "{arch}");
        assert_eq!(s.mtp_layers, 0, "{arch}");
    }
    let s = spec("hunyuan-moe", &|g| {
        g.u32("hunyuan-moe.expert_shared_feed_forward_length", 32)
    });
    assert_eq!(routed(&s), (8, Some((8, 2, 32, 32))));
    for arch in ["minimax-m2", "olmoe"] {
        assert_eq!(
            routed(&spec(arch, &|g| g)),
            (8, Some((8, 2, 32, 0))),
            "{arch}"
        );
    }
    let s = spec("llama4", &|g| g.u32("llama4.interleave_moe_layer_step", 2));
    assert_eq!(routed(&s), (4, Some((8, 2, 32, 32))));
    let chunked = |l: &plimsoll_model::LayerSpec| match l.mixer {
        plimsoll_model::Mixer::Attention(a) => a.reach == plimsoll_model::Reach::Chunk(8192),
        _ => false,
    };
    assert_eq!(s.layers.iter().filter(|l| chunked(l)).count(), 6);
    let odd = Gguf::decoder("hunyuan-moe", 8, 64, 4, 2, 128)
        .u32("hunyuan-moe.vocab_size", 96)
        .u32("hunyuan-moe.expert_count", 8)
        .u32("hunyuan-moe.expert_used_count", 2)
        .u32("hunyuan-moe.expert_feed_forward_length", 32)
        .u32("hunyuan-moe.expert_shared_feed_forward_length", 48);
    assert!(to_config(&read(&odd).unwrap(), Assume::Nothing).is_err());
}

#[test]
fn recurrent_layers_of_qwen35_are_where_the_file_says() {
    let spec = |arch: &str| {
        let key = |k: &str| format!("{arch}.{k}");
        let g = Gguf::decoder(arch, 8, 64, 4, 2, 128)
            .u32(&key("vocab_size"), 96)
            .u32(&key("attention.key_length"), 16)
            .u32(&key("attention.value_length"), 16)
            .u32(&key("ssm.state_size"), 16)
            .u32(&key("ssm.inner_size"), 64)
            .u32(&key("ssm.time_step_rank"), 4)
            .u32(&key("ssm.group_count"), 2)
            .u32(&key("ssm.conv_kernel"), 4);
        let g = match arch {
            "qwen35" => g,
            _ => g
                .u32(&key("expert_count"), 8)
                .u32(&key("expert_used_count"), 2)
                .u32(&key("expert_feed_forward_length"), 32)
                .u32(&key("expert_shared_feed_forward_length"), 32),
        };
        let c = to_config(&read(&g).unwrap(), Assume::Nothing).unwrap();
        plimsoll_model::from_config(&c, Assume::Nothing).unwrap_or_else(|e| panic!("{arch}: {e}"))
    };
    for arch in ["qwen35", "qwen35moe"] {
        let spec = spec(arch);
        let recurrent =
            |l: &plimsoll_model::LayerSpec| matches!(l.mixer, plimsoll_model::Mixer::State(_));
        let at: Vec<bool> = spec.layers.iter().map(recurrent).collect();
        let three = [true, true, true, false];
        assert_eq!(at, [three, three].concat(), "{arch}");
        assert_eq!(spec.mtp_layers, 0, "{arch}");
        let routed = matches!(spec.layers[0].ffn, plimsoll_model::Ffn::Moe(_));
        assert_eq!(routed, arch == "qwen35moe");
    }
}

#[test]
fn gemma4_has_heads_of_two_sizes_and_layers_that_share() {
    let g = |kv: &[u32]| {
        Gguf::default()
            .str("general.architecture", "gemma4")
            .u32("gemma4.block_count", 4)
            .u32("gemma4.context_length", 128)
            .u32("gemma4.embedding_length", 64)
            .u32("gemma4.vocab_size", 96)
            .u32("gemma4.attention.head_count", 4)
            .u32s("gemma4.attention.head_count_kv", kv)
            .u32("gemma4.attention.key_length", 32)
            .u32("gemma4.attention.value_length", 32)
            .u32("gemma4.attention.key_length_swa", 16)
            .u32("gemma4.attention.sliding_window", 8)
            .u32s("gemma4.attention.sliding_window_pattern", &[1, 0, 1, 0])
            .u32("gemma4.attention.shared_kv_layers", 2)
            .u32s("gemma4.feed_forward_length", &[128, 128, 256, 256])
    };
    let c = to_config(&read(&g(&[2, 1, 2, 1])).unwrap(), Assume::Nothing).unwrap();
    let spec = plimsoll_model::from_config(&c, Assume::Nothing).unwrap();
    let heads: Vec<_> = spec
        .layers
        .iter()
        .map(|l| match l.mixer {
            plimsoll_model::Mixer::Attention(a) => (a.kv_heads, a.k_dim, a.shared),
            _ => (0, 0, false),
        })
        .collect();
    assert_eq!(
        heads,
        [(2, 16, false), (1, 32, false), (2, 16, true), (1, 32, true)]
    );
    let inner = |l: &plimsoll_model::LayerSpec| match l.ffn {
        plimsoll_model::Ffn::Dense { intermediate, .. } => intermediate,
        _ => 0,
    };
    let inner: Vec<u64> = spec.layers.iter().map(inner).collect();
    assert_eq!(inner, [128, 128, 256, 256]);
    assert!(to_config(&read(&g(&[2, 1, 4, 1])).unwrap(), Assume::Nothing).is_err());
}

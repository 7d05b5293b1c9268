//! What a config may and may not decide: names decide nothing, every layer counts, the unknown is
//! refused, and nonsense gives an error, never a panic.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod inventory;

use inventory::{golden_files, read};
use plimsoll_model::json::parse_config;
use plimsoll_model::{
    Assume, Mixer, ModelError, ModelSpec, Positions, Reach, RopeScaling, catalogue, from_config,
};
use serde_json::{Map, Value, json};

fn spec(config: &Value) -> ModelSpec {
    from_config(config, Assume::Nothing).unwrap()
}

/// All configs at hand: the catalogue's, and those made for the golden inventories.
fn configs() -> Vec<(String, Value)> {
    let golden = golden_files("shapes").into_iter().map(|p| {
        let name = p.file_stem().unwrap().to_string_lossy().into_owned();
        (name, read(&p)["config"].clone())
    });
    let built_in = catalogue::entries()
        .iter()
        .map(|e| (e.name.clone(), e.config.clone()));
    golden.chain(built_in).collect()
}

fn text_mut(config: &mut Value) -> &mut Map<String, Value> {
    let nested = config.get("text_config").is_some();
    let text = if nested {
        &mut config["text_config"]
    } else {
        config
    };
    text.as_object_mut().unwrap()
}

#[test]
fn a_size_that_is_no_finite_number_is_refused_with_its_field() {
    let text = |key: &str, word: &str| {
        let mut config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 2816,
            "num_hidden_layers": 2, "num_attention_heads": 16, "vocab_size": 32000,
        });
        config[key] = json!("@");
        let text = config.to_string().replace("\"@\"", word);
        parse_config(text.as_bytes()).unwrap()
    };
    for word in ["Infinity", "-Infinity", "NaN"] {
        // Absent, each has a default or is an error of its own.
        for key in [
            "hidden_size",
            "num_hidden_layers",
            "num_key_value_heads",
            "max_position_embeddings",
        ] {
            let e = from_config(&text(key, word), Assume::Nothing).unwrap_err();
            let ModelError::Invalid { field, value, .. } = &e else {
                panic!("{key} = {word}: {e}");
            };
            assert_eq!((field.as_str(), value.as_str()), (key, word));
        }
        // What nobody reads may be anything.
        assert!(from_config(&text("time_step_limit", word), Assume::Nothing).is_ok());
    }
}

#[test]
fn names_change_nothing() {
    for (name, config) in configs() {
        let want = spec(&config);
        let mut other = config.clone();
        let map = other.as_object_mut().unwrap();
        map.insert(
            "_name_or_path".into(),
            json!("somebody/gpt-4-llama-70b-awq"),
        );
        map.insert("name".into(), json!("x"));
        map.insert("transformers_version".into(), json!("0.0.1"));
        assert_eq!(spec(&other), want, "{name}");
        // Without the class, the type says what it is; only the label goes.
        let map = other.as_object_mut().unwrap();
        if map.contains_key("model_type") && map.shift_remove("architectures").is_some() {
            let mut have = spec(&other);
            have.architecture.clone_from(&want.architecture);
            assert_eq!(have, want, "{name} without architectures");
        }
    }
}

/// What fields call the number of layers; an encoder has another.
const LAYERS: &[&str] = &[
    "decoder_layers",
    "num_decoder_layers",
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
];

#[test]
fn a_layer_more_is_a_layer_more_everywhere() {
    for (name, config) in configs() {
        let want = spec(&config);
        let mut more = config.clone();
        let text = text_mut(&mut more);
        let key = LAYERS
            .iter()
            .find(|k| text.contains_key(**k))
            .copied()
            .unwrap();
        let layers = text[key].as_u64().unwrap();
        text.insert(key.into(), json!(layers + 1));
        // Lists that say something of each layer.
        for list in text.values_mut().filter_map(Value::as_array_mut) {
            if list.len() as u64 == layers {
                list.push(list.last().unwrap().clone());
            }
        }
        if let Some(Value::String(pattern)) = text.get_mut("hybrid_override_pattern") {
            let again = pattern.chars().last().unwrap();
            pattern.push(again);
        }
        let have = spec(&more);
        assert_eq!(have.layers.len(), want.layers.len() + 1, "{name}");
        assert!(
            have.stored_bytes().unwrap() > want.stored_bytes().unwrap(),
            "{name}"
        );
        assert!(
            have.parameters().unwrap() > want.parameters().unwrap(),
            "{name}"
        );
        // A list of kinds that is one short contradicts the count.
        if let Some(Value::Array(types)) = text_mut(&mut more).get_mut("layer_types") {
            types.pop();
            let err = from_config(&more, Assume::Nothing).unwrap_err();
            assert!(err.to_string().contains("layer_types"), "{name}: {err}");
        }
    }
}

#[test]
fn the_unknown_is_refused_by_what_is_missing() {
    let unknown = json!({
        "architectures": ["NobodyForCausalLM"], "model_type": "nobody", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100,
        "torch_dtype": "bfloat16",
    });
    let err = from_config(&unknown, Assume::Nothing).unwrap_err();
    assert!(
        matches!(err, ModelError::UnknownArchitecture { .. }),
        "{err}"
    );
    let text = err.to_string();
    assert!(
        text.contains("NobodyForCausalLM") && text.contains("--assume gqa"),
        "{text}"
    );
    assert!(text.contains("keep keys and values"), "{text}");

    let assumed = from_config(&unknown, Assume::Gqa).unwrap();
    assert_eq!(assumed.layers.len(), 2);
    assert!(
        assumed.notes.iter().any(|n| n.contains("as asked")),
        "{:?}",
        assumed.notes
    );

    let nameless = json!({"hidden_size": 64});
    let err = from_config(&nameless, Assume::Nothing).unwrap_err();
    assert!(matches!(err, ModelError::Missing { .. }), "{err}");
}

#[test]
fn a_wrapper_of_unknown_class_is_refused_for_its_tower() {
    let text = json!({
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "vocab_size": 100,
    });
    for wrapper in [
        json!({"architectures": ["NobodyForConditionalGeneration"], "model_type": "nobody_vl", "text_config": text,
               "vision_config": {"hidden_size": 8}}),
        json!({"architectures": ["NobodyForConditionalGeneration"], "text_config": text}),
        // A known text class does not speak for a tower.
        json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
               "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 100,
               "vision_config": {"hidden_size": 8}}),
        // Nor does a known wrapper for a tower it does not know.
        json!({"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": text,
               "vision_config": {"model_type": "nobody_vision", "hidden_size": 8}}),
    ] {
        let err = from_config(&wrapper, Assume::Nothing).unwrap_err();
        assert!(
            matches!(err, ModelError::UnknownArchitecture { .. }),
            "{err}"
        );
        assert!(err.to_string().contains("tower"), "{err}");
    }
}

/// A wrapper without its text model, or inside another, was once described without end.
#[test]
fn a_wrapper_is_not_its_own_text_model() {
    let vision = json!({"model_type": "pixtral", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                        "num_attention_heads": 1, "image_size": 8, "patch_size": 4});
    for text in [
        Value::Null,
        json!({"model_type": "llava", "vision_config": vision}),
    ] {
        let config = json!({
            "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "vision_config": vision,
            "text_config": text,
        });
        let err = from_config(&config, Assume::Nothing).unwrap_err();
        assert!(err.to_string().contains("text_config"), "{err}");
    }
}

#[test]
fn windows_soft_caps_contexts_and_towers() {
    let find = |name: &str| spec(&catalogue::find(name).unwrap().config);
    let windows = |s: &ModelSpec| {
        let of =
            |m: &Mixer| matches!(m, Mixer::Attention(a) if matches!(a.reach, Reach::Window(_)));
        s.layers.iter().filter(|l| of(&l.mixer)).count()
    };
    let gemma = find("gemma-3-27b");
    assert_eq!((gemma.layers.len(), windows(&gemma)), (62, 52));
    assert_eq!(gemma.max_context, Some(131_072));
    let tower = gemma.encoder.unwrap();
    assert_eq!(
        (tower.patches, tower.tokens_per_image),
        (Some(4096), Some(256))
    );
    assert!(!gemma.final_softcap && find("gemma-2-9b").final_softcap);
    assert_eq!(gemma.rotary.len(), 2);
    let oss = find("gpt-oss-120b");
    assert_eq!((oss.layers.len(), windows(&oss)), (36, 18));
    assert_eq!(windows(&find("qwen2.5-7b")), 0);
    assert_eq!(windows(&find("mistral-7b-v0.1")), 32);
    assert_eq!(find("deepseek-v3").mtp_layers, 1);
    assert_eq!(find("qwen3-next-80b-a3b").mtp_layers, 1);
    let next = find("qwen3-next-80b-a3b");
    let states = next
        .layers
        .iter()
        .filter(|l| matches!(l.mixer, Mixer::State(_)))
        .count();
    assert_eq!((next.layers.len(), states), (48, 36));
}

/// A small generator (Steele, Lea, Flood 2014: SplitMix64), so that a failure repeats.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap()
    }
}

/// Replaces, removes or adds one value somewhere in the tree.
fn mutate(value: &mut Value, random: &mut Random, hostile: &[Value]) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            let at = random.below(map.len());
            let key = map.keys().nth(at).unwrap().clone();
            match random.below(10) {
                0 => {
                    map.shift_remove(&key);
                }
                n => {
                    let inner = &mut map[&key];
                    let nested = matches!(inner, Value::Object(_) | Value::Array(_));
                    if nested && n > 2 {
                        mutate(inner, random, hostile);
                    } else {
                        *inner = hostile[random.below(hostile.len())].clone();
                    }
                }
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = random.below(list.len());
            if random.below(4) == 0 {
                list.remove(at);
            } else {
                list[at] = hostile[random.below(hostile.len())].clone();
            }
        }
        other => *other = hostile[random.below(hostile.len())].clone(),
    }
}

#[test]
fn hostile_configs_give_errors_not_panics() {
    let hostile = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(7),
        json!(64),
        json!(-0.0),
        json!(0.5),
        json!(1e308),
        json!(-1e308),
        json!(1_u64 << 31),
        json!((1_u64 << 31) - 1),
        json!(1_u64 << 40),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("4096"),
        json!("x".repeat(5000)),
        json!("linear_attention"),
        json!("\u{0}\u{202e}"),
        json!([]),
        json!([1, 2]),
        json!(["re:("]),
        json!([[[[]]]]),
        json!({}),
        json!({"a": 1}),
    ];
    let bases = configs();
    let mut random = Random(2_024);
    let (mut refused, mut read) = (0, 0);
    for round in 0..4_000 {
        let (name, base) = &bases[random.below(bases.len())];
        let mut config = base.clone();
        for _ in 0..=random.below(3) {
            mutate(&mut config, &mut random, &hostile);
        }
        let assume = if round % 5 == 0 {
            Assume::Gqa
        } else {
            Assume::Nothing
        };
        match from_config(&config, assume) {
            Ok(spec) => {
                read += 1;
                assert!(
                    spec.stored_bytes().is_ok() && spec.parameters().is_ok(),
                    "{name}: {config}"
                );
                assert!(
                    !spec.layers.is_empty() && spec.hidden > 0 && spec.vocab > 0,
                    "{name}: {config}"
                );
                spec.bytes_by_role().unwrap();
            }
            Err(e) => {
                refused += 1;
                let text = e.to_string();
                assert!(!text.is_empty() && text.len() < 1_000, "{name}: {text}");
            }
        }
    }
    assert!(
        refused > 1_000 && read > 100,
        "{refused} refused, {read} read"
    );
    // What JSON itself does not hold never arrives here.
    assert!(serde_json::from_str::<Value>(r#"{"hidden_size": 1e400}"#).is_err());
}

#[test]
fn sizes_at_every_limit_do_not_wrap() {
    let big = json!((1_u64 << 31) - 1);
    for (name, config) in configs() {
        // Every number at once at its largest: any product that is not checked would wrap.
        let mut all = config.clone();
        fn raise(value: &mut Value, big: &Value) {
            match value {
                Value::Object(map) => map.values_mut().for_each(|v| raise(v, big)),
                Value::Array(list) => list.iter_mut().for_each(|v| raise(v, big)),
                Value::Number(_) => *value = big.clone(),
                _ => {}
            }
        }
        raise(&mut all, &big);
        for layers in [1, 2] {
            let text = text_mut(&mut all);
            for key in LAYERS.iter().chain(&["encoder_layers"]) {
                if text.contains_key(*key) {
                    text.insert((*key).into(), json!(layers));
                }
            }
            text.shift_remove("layer_types");
            for tower in ["vision_config"] {
                if let Some(Value::Object(v)) = all.get_mut(tower) {
                    for key in ["num_hidden_layers", "depth"] {
                        if v.contains_key(key) {
                            v.insert(key.into(), json!(1));
                        }
                    }
                }
            }
            assert!(from_config(&all, Assume::Nothing).is_err(), "{name}");
        }
    }
}

/// transformers rewrites a config when it saves: renamed fields, defaults written out, lists for
/// patterns. It is the same model.
#[test]
fn a_rewritten_config_is_the_same_model() {
    for path in golden_files("shapes") {
        let golden = read(&path);
        let Some(saved) = golden.get("saved_config") else {
            continue;
        };
        let (a, b) = (spec(&golden["config"]), spec(saved));
        let facts = |s: &ModelSpec| {
            (
                s.hidden,
                s.vocab,
                s.tied_embeddings,
                s.layers.clone(),
                s.encoder,
                s.mtp_layers,
                s.final_softcap,
            )
        };
        assert_eq!(facts(&a), facts(&b), "{}", path.display());
        // A limit that was left out is the class's default, which only some families need.
        if a.max_context.is_some() {
            assert_eq!(a.max_context, b.max_context, "{}", path.display());
        }
    }
}

#[test]
fn models_without_rotation_have_no_table() {
    let files = golden_files("shapes");
    let named = |name: &str| {
        let path = files.iter().find(|p| p.file_stem().unwrap() == name);
        let spec = spec(&read(path.unwrap())["config"]);
        spec.rotary.len()
    };
    for name in [
        "bloom-small",
        "falcon-alibi",
        "jamba-small",
        "kimi_linear-small",
        "mamba2-small",
        "nemotron_h-small",
    ] {
        assert_eq!(named(name), 0, "{name}");
    }
    assert_eq!(named("glm4_moe_lite-small"), 1);
    assert_eq!(named("falcon-multi-query"), 1);
}

/// Both spellings of rotary parameters mean the same, and what is silent has its class's default.
#[test]
fn rotary_parameters_read_in_either_spelling() {
    let base = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 96, "vocab_size": 256, "max_position_embeddings": 128,
    });
    let with = |class: &str, more: Value| {
        let mut c = base.clone();
        c["architectures"] = json!([class]);
        c.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        spec(&c).arithmetic
    };
    let llama = |more| with("LlamaForCausalLM", more);
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    });
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(500_000.0);
    let old = llama(json!({"rope_theta": 500_000.0, "rope_scaling": scaling})).unwrap();
    assert_eq!(llama(json!({"rope_parameters": parameters})).unwrap(), old);
    assert_ne!(llama(json!({"rope_theta": 500_000.0})).unwrap(), old);
    // `type` is the older name of `rope_type`.
    assert_eq!(
        llama(json!({"rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap(),
        llama(json!({"rope_scaling": {"rope_type": "linear", "factor": 2}})).unwrap()
    );

    let gemma = |more| with("Gemma3ForCausalLM", more);
    let silent = gemma(json!({})).unwrap();
    let Positions::Rotary { full, window, .. } = &silent.positions else {
        panic!("{:?}", silent.positions);
    };
    assert_eq!((full.theta, window.theta), (1_000_000.0, 10_000.0));
    // What stretches a context stretches the full layers alone.
    let a = gemma(json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}})).unwrap();
    let b = gemma(json!({"rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_type": "default"},
    }}))
    .unwrap();
    assert_eq!(a, b);
    let Positions::Rotary { full, window, .. } = a.positions else {
        panic!("no rotation");
    };
    assert_eq!(full.scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(window.scaling, RopeScaling::None);
}

/// A config that asks for what we do not compute still plans, and says what it was.
#[test]
fn what_is_not_computed_is_no_reason_not_to_plan() {
    let mut c = json!({
        "architectures": ["OPTForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "ffn_dim": 96, "vocab_size": 256, "max_position_embeddings": 128, "word_embed_proj_dim": 32,
    });
    let why = |c: &Value| spec(c).arithmetic.unwrap_err().to_string();
    assert!(
        why(&c).contains("`word_embed_proj_dim` is 32"),
        "{}",
        why(&c)
    );
    c["do_layer_norm_before"] = json!(false);
    assert!(why(&c).contains("`do_layer_norm_before`"), "{}", why(&c));
    c["do_layer_norm_before"] = json!(true);
    c["word_embed_proj_dim"] = json!(64);
    assert!(spec(&c).arithmetic.is_ok());
}

/// Granite 4: what its states cannot be is refused with the field, and models of attention alone need none of it.
#[test]
fn hybrid_configs_are_checked_where_they_have_states() {
    let base = json!({
        "architectures": ["GraniteMoeHybridForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 256, "num_local_experts": 0, "shared_intermediate_size": 96,
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "position_embedding_type": "nope",
    });
    let with = |key: &str, value: Value| {
        let mut c = base.clone();
        c[key] = value;
        c
    };
    let states = |c: &Value| {
        let layers = spec(c).layers;
        layers
            .iter()
            .filter(|l| matches!(l.mixer, Mixer::State(_)))
            .count()
    };
    assert_eq!(states(&base), 1);
    assert!(spec(&base).rotary.is_empty());
    for (key, value) in [
        ("mamba_n_heads", json!(7)),
        ("mamba_d_head", json!(20)),
        ("mamba_n_groups", json!(3)),
        ("layer_types", json!(["mamba", "sliding_attention"])),
    ] {
        let e = from_config(&with(key, value), Assume::Nothing).unwrap_err();
        let named = if key == "mamba_d_head" {
            "mamba_n_heads"
        } else {
            key
        };
        assert!(e.to_string().contains(named), "{key}: {e}");
    }
    for (key, value) in [
        ("position_embedding_type", json!("alibi")),
        ("time_step_limit", json!([0.5, 0.1])),
        ("time_step_limit", json!("none")),
    ] {
        let e = spec(&with(key, value)).arithmetic.unwrap_err();
        assert!(e.to_string().contains(key), "{key}: {e}");
    }
    let limits = parse_config(b"[0.01, Infinity]").unwrap();
    let read = spec(&with("time_step_limit", limits)).arithmetic.unwrap();
    assert_eq!(read.step_limits, [0.01, f64::INFINITY]);
    let mut attention = with("layer_types", json!(["attention", "attention"]));
    attention["mamba_n_heads"] = json!(7);
    attention["position_embedding_type"] = json!("rope");
    assert_eq!(states(&attention), 0);
    assert_eq!(spec(&attention).rotary.len(), 1);
}

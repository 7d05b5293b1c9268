//! GGUF headers: what is read, and every way to be broken that group J of the reliability notes
//! lists.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use plimsoll_model::gguf::{
    self, GgufProblem, Header, Split, SplitError, ValueType, join, sibling_names, to_config,
};
use plimsoll_model::read_at::{ReadAt, ReadError};
use plimsoll_model::{Assume, Mixer, ModelError, Role, Shard};
use plimsoll_units::DType;
use support::{Gguf, string};

fn read(g: &Gguf) -> Result<Header, gguf::GgufError> {
    Header::read(g.file().as_slice())
}

fn problem(g: &Gguf) -> GgufProblem {
    let err = read(g).unwrap_err();
    assert!(!err.next_step().is_empty());
    assert!(err.to_string().starts_with("at byte "), "{err}");
    err.problem
}

#[test]
fn reads_a_model_of_both_versions() {
    for version in [2, 3] {
        let mut g = Gguf::llama();
        g.version = version;
        let h = read(&g).unwrap();
        assert_eq!(h.version, version);
        assert_eq!(h.tensors.len(), 21);
        let t = h.tensor("blk.1.ffn_down.weight").unwrap();
        assert_eq!((t.shape.as_slice(), t.dtype), (&[64, 128][..], DType::Q4_0));
        let words = h.get("tokenizer.ggml.tokens").unwrap().as_array().unwrap();
        assert_eq!((words.len, words.element), (96, ValueType::String));
    }
}

#[test]
fn a_model_comes_out_with_its_stored_weights() {
    let h = read(&Gguf::llama()).unwrap();
    let (config, spec) = gguf::spec(&h, Assume::Nothing).unwrap();
    assert_eq!(config["num_key_value_heads"], 2);
    assert_eq!(config["vocab_size"], 96);
    assert_eq!(spec.layers.len(), 2);
    assert!(spec.from_headers && !spec.tied_embeddings);
    let stored: u64 = h.tensors.iter().map(|t| t.end - t.begin).sum();
    assert_eq!(spec.stored_bytes().unwrap().get(), stored);
    let q = spec
        .tensors
        .iter()
        .find(|t| t.name == "blk.0.attn_q.weight")
        .unwrap();
    assert_eq!((q.role, q.layer), (Role::Attention, Some(0)));
    assert!(matches!(q.shard, Shard::Split { units: 4, .. }));
    let k = spec
        .tensors
        .iter()
        .find(|t| t.name == "blk.0.attn_k.weight")
        .unwrap();
    assert_eq!(k.shard, Shard::KvHeads { heads: 2 });
    let by_role = spec.bytes_by_role().unwrap();
    assert!(
        by_role.iter().all(|(role, _)| *role != Role::Other),
        "{by_role:?}"
    );
    // 64 x 96 + 2 x (64 x 64 x 2 + 64 x 32 x 2 + 3 x 64 x 128 + 2 x 64) + 64, and the head.
    assert_eq!(
        spec.parameters().unwrap(),
        2 * 64 * 96 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 128) + 64
    );
}

#[test]
fn j_preamble() {
    let file = Gguf::llama().file();
    let with = |at: usize, bytes: &[u8]| {
        let mut f = file.clone();
        f[at..at + bytes.len()].copy_from_slice(bytes);
        Header::read(f.as_slice()).unwrap_err().problem
    };
    assert!(matches!(with(0, b"GGML"), GgufProblem::Magic { .. }));
    assert!(matches!(with(0, b"<html>"), GgufProblem::NotAModel(_)));
    assert_eq!(with(4, &[0; 4]), GgufProblem::Version(0));
    assert_eq!(with(4, &1_u32.to_le_bytes()), GgufProblem::Version1);
    assert_eq!(with(4, &4_u32.to_le_bytes()), GgufProblem::Version(4));
    assert_eq!(
        with(4, &3_u32.to_be_bytes()),
        GgufProblem::BigEndian(0x0300_0000)
    );
    for count in [u64::MAX, u64::MAX / 38, 1 << 60, file.len() as u64] {
        assert!(matches!(
            with(8, &count.to_le_bytes()),
            GgufProblem::PastEnd { .. }
        ));
        assert!(matches!(
            with(16, &count.to_le_bytes()),
            GgufProblem::PastEnd { .. }
        ));
    }
    for cut in 0..Gguf::llama().header().len() {
        assert!(Header::read(&file[..cut]).is_err(), "cut at {cut}");
    }
    assert!(matches!(
        Header::read(&file[..file.len() - 40]).unwrap_err().problem,
        GgufProblem::Truncated { .. }
    ));
}

#[test]
fn j_keys() {
    let g = Gguf::llama;
    assert!(matches!(
        problem(&g().u32("", 1)),
        GgufProblem::BadName {
            reason: "is empty",
            ..
        }
    ));
    assert!(matches!(
        problem(&g().u32("a\0b", 1)),
        GgufProblem::BadName { .. }
    ));
    assert!(matches!(
        problem(&g().raw(b"\xff\xfe", 4, &[0; 4])),
        GgufProblem::BadName {
            reason: "is not UTF-8",
            ..
        }
    ));
    let long = "k".repeat(65_536);
    let mut big = g().u32(&long, 1);
    assert!(matches!(
        problem(&big),
        GgufProblem::TooMany { max: 65_535, .. }
    ));
    big = g().u32(&long[1..], 1);
    assert!(read(&big).is_ok());
    assert_eq!(
        problem(&g().u32("a.b", 1).u32("a.b", 1)),
        GgufProblem::DuplicateKey("a.b".into())
    );
    assert_eq!(
        problem(&g().str("a.b", "x").u32("a.b", 1)),
        GgufProblem::DuplicateKey("a.b".into())
    );
    for kind in [13, 255, u32::MAX] {
        assert!(
            matches!(problem(&g().raw(b"x", kind, &[0; 8])), GgufProblem::ValueType { found, .. } if found == kind)
        );
    }
    for len in [u64::MAX, 1 << 63, 1 << 40] {
        assert!(matches!(
            problem(&g().raw(b"x", 8, &len.to_le_bytes())),
            GgufProblem::PastEnd { .. }
        ));
    }
    assert_eq!(
        problem(&g().raw(b"x", 7, &[2])),
        GgufProblem::Bool {
            key: "x".into(),
            found: 2
        }
    );
    // A key's length past the end of the file.
    let mut count = g();
    count.key_count = Some(10);
    assert!(read(&count).is_err());
}

#[test]
fn j_arrays() {
    let g = Gguf::llama;
    for len in [1 << 60, u64::MAX, u64::MAX / 4 + 1] {
        for element in [0, 4, 8, 9, 12] {
            assert!(matches!(
                problem(&g().array("x", element, len, &[])),
                GgufProblem::PastEnd { .. }
            ));
        }
    }
    assert!(matches!(
        problem(&g().array("x", 13, 1, &[0; 8])),
        GgufProblem::ValueType { .. }
    ));
    // An array of arrays a thousand deep.
    let mut nested = Vec::new();
    for _ in 0..1000 {
        nested.extend(9_u32.to_le_bytes());
        nested.extend(1_u64.to_le_bytes());
    }
    assert_eq!(
        problem(&g().raw(b"x", 9, &nested)),
        GgufProblem::Depth("x".into())
    );
    let two = [
        &4_u32.to_le_bytes()[..],
        &1_u64.to_le_bytes(),
        &[1, 0, 0, 0],
    ]
    .concat();
    let read_two = read(&g().array("x", 9, 2, &two.repeat(2))).unwrap();
    assert_eq!(read_two.get("x").unwrap().as_array().unwrap().len, 2);
    // The tokenizer's arrays are indexed blindly by others: their types must be right.
    for (key, element, size) in [
        ("tokenizer.ggml.scores", 0, 1),
        ("tokenizer.ggml.scores", 1, 1),
        ("tokenizer.ggml.token_type", 6, 4),
        ("tokenizer.ggml.merges", 4, 4),
    ] {
        let p = problem(&g().array(key, element, 4, &vec![0; 4 * size]));
        assert!(matches!(p, GgufProblem::WrongType { .. }), "{p}");
    }
    assert!(matches!(
        problem(&g().u32("tokenizer.ggml.scores", 1)),
        GgufProblem::WrongType { .. }
    ));
    assert!(read(&g().array("tokenizer.ggml.scores", 6, 2, &[0; 8])).is_ok());
}

#[test]
fn j_alignment() {
    let g = || Gguf::decoder("llama", 1, 64, 4, 2, 128);
    for bad in [0, 1, 3, 4, 13, 1 << 21, 1 << 31, u32::MAX] {
        assert_eq!(
            problem(&g().u32("general.alignment", bad)),
            GgufProblem::Alignment(bad)
        );
    }
    assert!(matches!(
        problem(&g().str("general.alignment", "32")),
        GgufProblem::WrongType { .. }
    ));
    assert!(matches!(
        problem(&g().raw(b"general.alignment", 10, &64_u64.to_le_bytes())),
        GgufProblem::WrongType { .. }
    ));
    let mut wide = g().u32("general.alignment", 4096);
    wide.alignment = 4096;
    wide = wide.tensor("a", &[32], 2).tensor("b", &[32], 2);
    let h = read(&wide).unwrap();
    assert_eq!((h.alignment, h.tensors[1].begin), (4096, 4096));
    assert_eq!(h.data_start % 4096, 0);
}

#[test]
fn j_tensors() {
    let g = || Gguf::decoder("llama", 1, 64, 4, 2, 128).tensor("first", &[64], 0);
    let entry = |dims: u32, shape: &[u64]| {
        let mut e = string(b"t");
        e.extend(dims.to_le_bytes());
        e.extend(shape.iter().flat_map(|d| d.to_le_bytes()));
        e.extend(0_u32.to_le_bytes());
        e.extend(256_u64.to_le_bytes());
        e
    };
    for dims in [0, 5, u32::MAX] {
        assert!(matches!(
            problem(&g().raw_entry(&entry(dims, &[1; 5]), 64)),
            GgufProblem::Dims { .. }
        ));
    }
    for shape in [&[0][..], &[4, 0], &[u64::MAX], &[1 << 63]] {
        assert!(matches!(
            problem(&g().raw_tensor(b"t", shape, 0, 256)),
            GgufProblem::EmptyDim { .. }
        ));
    }
    // The product of the shape at 2^63 and above; then shapes that fit but whose bytes do not, for
    // every type of a size above one.
    for shape in [&[1 << 32, 1 << 31][..], &[1 << 40, 1 << 40], &[1 << 62, 2]] {
        assert!(matches!(
            problem(&g().raw_tensor(b"t", shape, 24, 256)),
            GgufProblem::ShapeOverflow { .. }
        ));
    }
    for kind in
        (0..43).filter(|&k| gguf::dtype(k).is_ok_and(|d| d.is_scalar() && d.block_bytes() > 1))
    {
        let p = problem(&g().raw_tensor(b"t", &[1 << 31, 1 << 31], kind, 256));
        assert!(
            matches!(p, GgufProblem::ShapeOverflow { .. }),
            "type {kind}: {p}"
        );
    }
    for kind in (0..43).filter(|&k| gguf::dtype(k).is_ok_and(|d| !d.is_scalar())) {
        // (2^63 − 256) elements are legal, and their bytes end far outside the file.
        let p = problem(&g().raw_tensor(b"t", &[256, (1 << 55) - 1], kind, 256));
        assert!(
            matches!(
                p,
                GgufProblem::Truncated { .. } | GgufProblem::ShapeOverflow { .. }
            ),
            "type {kind}: {p}"
        );
        let p = problem(&g().raw_tensor(b"t", &[u64::from(kind) + 1, 4], kind, 256));
        assert!(
            matches!(p, GgufProblem::PartialBlock { .. }),
            "type {kind}: {p}"
        );
    }
    for kind in [4, 5, 31, 32, 33, 36, 37, 38, 43, 1000, u32::MAX] {
        let p = problem(&g().raw_tensor(b"t", &[256], kind, 256));
        assert!(
            matches!(p, GgufProblem::TensorType { found, .. } if found == kind),
            "{p}"
        );
    }
    assert!(matches!(
        problem(&g().raw_tensor(b"t", &[64], 0, 260)),
        GgufProblem::Unaligned { .. }
    ));
    assert!(matches!(
        problem(&g().raw_tensor(b"t", &[64], 0, 1 << 40)),
        GgufProblem::Truncated { .. }
    ));
    let wrap = u64::MAX - 31;
    assert!(matches!(
        problem(&g().raw_tensor(b"t", &[64], 0, wrap)),
        GgufProblem::ShapeOverflow { .. }
    ));
    assert!(matches!(
        problem(&g().tensor("u", &[64], 0).raw_tensor(b"t", &[64], 0, 32)),
        GgufProblem::Overlap { .. }
    ));
    assert!(matches!(
        problem(&g().tensor("first", &[64], 0)),
        GgufProblem::DuplicateTensor(_)
    ));
    let long = "n".repeat(64);
    assert!(matches!(
        problem(&g().tensor(&long, &[64], 0)),
        GgufProblem::TooMany { max: 63, .. }
    ));
    assert!(read(&g().tensor(&long[1..], &[64], 0)).is_ok());
    assert!(matches!(
        problem(&g().tensor("a\0", &[64], 0)),
        GgufProblem::BadName { .. }
    ));
}

#[test]
fn j_metadata_that_describes_no_model() {
    let config = |g: Gguf| to_config(&read(&g).unwrap(), Assume::Nothing);
    let text = |g: Gguf| config(g).unwrap_err().to_string();
    assert!(text(Gguf::default()).contains("general.architecture"));
    let refused = text(Gguf::decoder("plamo", 2, 64, 4, 2, 128));
    assert!(
        refused.contains("plamo") && refused.contains("qwen3next"),
        "{refused}"
    );
    let command_r = read(&Gguf::decoder("plamo", 2, 64, 4, 2, 128).u32("plamo.vocab_size", 96));
    let assumed = to_config(&command_r.unwrap(), Assume::Gqa).unwrap();
    assert_eq!(assumed["architectures"][0], "LlamaForCausalLM");
    let adapter = Gguf::decoder("llama", 2, 64, 4, 2, 128).str("general.type", "adapter");
    assert!(text(adapter).contains("adapter"));
    let with = |key: &str, value: u32| {
        let mut all = vec![
            ("block_count", 2),
            ("context_length", 128),
            ("embedding_length", 64),
            ("feed_forward_length", 128),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("vocab_size", 96),
        ];
        all.retain(|(k, _)| *k != key);
        let base = Gguf::default().str("general.architecture", "llama");
        let g = all
            .iter()
            .fold(base, |g, (k, v)| g.u32(&format!("llama.{k}"), *v));
        if value == 12_345 {
            g
        } else {
            g.u32(&format!("llama.{key}"), value)
        }
    };
    for bad in [0, u32::MAX, 20_000, 12_345] {
        assert!(
            text(with("block_count", bad)).contains("block_count"),
            "{bad}"
        );
    }
    for bad in [0, 12_345] {
        assert!(text(with("attention.head_count", bad)).contains("attention.head_count"));
        assert!(text(with("embedding_length", bad)).contains("embedding_length"));
    }
    // What the config says is then judged by the family: more KV heads than heads, for one.
    let json = config(with("attention.head_count_kv", 8)).unwrap();
    let err = plimsoll_model::from_config(&json, Assume::Nothing).unwrap_err();
    assert!(matches!(err, ModelError::Invalid { .. }), "{err}");
    assert_eq!(
        config(with("context_length", 0))
            .unwrap()
            .get("max_position_embeddings"),
        None
    );
    assert_eq!(
        config(with("attention.head_count_kv", 12_345)).unwrap()["num_key_value_heads"],
        4
    );
    let nan = Gguf::llama().f32("llama.rope.scaling.factor", f32::NAN);
    assert!(gguf::spec(&read(&nan).unwrap(), Assume::Nothing).is_ok());
}

#[test]
fn layers_that_differ_are_refused_where_the_config_cannot_say_so() {
    let base = |kv: &[u32]| {
        Gguf::default()
            .str("general.architecture", "llama")
            .u32("llama.block_count", 2)
            .u32("llama.embedding_length", 64)
            .u32("llama.attention.head_count", 4)
            .u32s("llama.attention.head_count_kv", kv)
            .u32("llama.vocab_size", 96)
    };
    let config = |kv: &[u32]| to_config(&read(&base(kv)).unwrap(), Assume::Nothing);
    assert_eq!(config(&[2, 2]).unwrap()["num_key_value_heads"], 2);
    let err = config(&[2, 4]).unwrap_err().to_string();
    assert!(
        err.contains("llama.attention.head_count_kv") && err.contains("differs"),
        "{err}"
    );
    assert!(config(&[2]).is_err() && config(&[2; 5]).is_err());
}

#[test]
fn j_tensors_and_metadata_of_different_models() {
    let err = |g: &Gguf| {
        gguf::spec(&read(g).unwrap(), Assume::Nothing)
            .unwrap_err()
            .to_string()
    };
    let no_layer =
        Gguf::decoder("llama", 1, 64, 4, 2, 128).tensor("token_embd.weight", &[64, 96], 0);
    assert!(err(&no_layer).contains("layer 0 of 1 has no tensors"));
    let no_embedding = Gguf::decoder("llama", 1, 64, 4, 2, 128)
        .u32("llama.vocab_size", 96)
        .tensor("output_norm.weight", &[64], 0);
    assert!(err(&no_embedding).contains("token_embd.weight"));
    let width = Gguf::decoder("llama", 1, 64, 4, 2, 128).tensor("token_embd.weight", &[32, 96], 0);
    assert!(err(&width).contains("[96, 32]"));
    let kv = Gguf::decoder("llama", 1, 64, 4, 2, 128)
        .tensor("token_embd.weight", &[64, 96], 0)
        .tensor("blk.0.attn_k.weight", &[64, 64], 0);
    assert!(err(&kv).contains("2 KV heads of 16 give 32 rows"));
    // The vocabulary of the tokenizer may differ from the embedding: rows count, and it is said.
    let g = Gguf::decoder("llama", 1, 64, 4, 2, 128)
        .strings("tokenizer.ggml.tokens", 90, |i| i.to_string())
        .tensor("token_embd.weight", &[64, 96], 0)
        .tensor("blk.0.attn_k.weight", &[64, 32], 0);
    let (_, spec) = gguf::spec(&read(&g).unwrap(), Assume::Nothing).unwrap();
    assert_eq!(spec.vocab, 96);
    assert!(spec.tied_embeddings, "there is no output.weight");
    assert!(
        spec.notes.iter().any(|n| n.contains("90 words")),
        "{:?}",
        spec.notes
    );
}

#[test]
fn roles_of_names() {
    for (name, role, layer) in [
        ("token_embd.weight", Role::Embedding, None),
        ("output.weight", Role::Head, None),
        ("output_norm.weight", Role::Norm, None),
        ("position_embd.weight", Role::Position, None),
        ("rope_freqs.weight", Role::Position, None),
        ("blk.7.attn_q.weight", Role::Attention, Some(7)),
        ("blk.7.attn_q_norm.weight", Role::Norm, Some(7)),
        ("blk.7.attn_kv_a_mqa.weight", Role::Attention, Some(7)),
        ("blk.7.attn_sinks.weight", Role::Attention, Some(7)),
        ("blk.7.ffn_gate.weight", Role::Mlp, Some(7)),
        ("blk.7.ffn_gate.3.weight", Role::Experts, Some(7)),
        ("blk.7.ffn_gate_exps.weight", Role::Experts, Some(7)),
        ("blk.7.ffn_gate_up_exps.weight", Role::Experts, Some(7)),
        ("blk.7.ffn_gate_shexp.weight", Role::SharedExperts, Some(7)),
        ("blk.7.ffn_gate_inp.weight", Role::Router, Some(7)),
        ("blk.7.exp_probs_b.bias", Role::Router, Some(7)),
        ("blk.7.ssm_conv1d.weight", Role::State, Some(7)),
        ("blk.7.nextn.eh_proj.weight", Role::Mtp, Some(7)),
        ("v.blk.0.attn_q.weight", Role::Encoder, None),
        ("mm.0.weight", Role::Encoder, None),
        ("something", Role::Other, None),
        ("blk.99999999999.attn_q.weight", Role::Other, None),
    ] {
        assert_eq!(gguf::role_of(name), (role, layer), "{name}");
    }
}

#[test]
fn fused_experts_keep_their_count() {
    let mut g = Gguf::decoder("llama", 1, 64, 4, 2, 128)
        .u32("llama.expert_count", 4)
        .u32("llama.expert_used_count", 2)
        .tensor("token_embd.weight", &[64, 96], 0);
    g = g
        .tensor("blk.0.ffn_gate_exps.weight", &[64, 128, 4], 2)
        .tensor("blk.0.attn_k.weight", &[64, 32], 2);
    let h = read(&g).unwrap();
    let layer = plimsoll_model::LayerSpec {
        mixer: Mixer::None,
        parallel: None,
        cross: None,
        ffn: plimsoll_model::Ffn::Moe(plimsoll_model::Moe {
            experts: 4,
            top_k: 2,
            intermediate: 128,
            shared: 0,
        }),
    };
    let tensors = gguf::tensors(&h, &[layer]);
    let gate = tensors.iter().find(|t| t.role == Role::Experts).unwrap();
    assert_eq!(
        (gate.experts, gate.shape.as_slice()),
        (Some(4), &[128, 64][..])
    );
    let stored = h.tensor("blk.0.ffn_gate_exps.weight").unwrap();
    assert_eq!(gate.bytes().unwrap().get(), stored.end - stored.begin);
    // A tensor of a layer past the last predicts ahead.
    let beyond = gguf::tensors(&h, &[]);
    assert!(
        beyond
            .iter()
            .filter(|t| t.name.starts_with("blk."))
            .all(|t| t.role == Role::Mtp)
    );
}

#[test]
fn j_split_files() {
    let part = |no: u16, count: u16, names: &[&str]| {
        let mut g = Gguf::default()
            .u16("split.no", no)
            .u16("split.count", count)
            .raw(b"split.tensors.count", 5, &3_i32.to_le_bytes());
        for n in names {
            g = g.tensor(n, &[8], 0);
        }
        (
            format!("m-{:05}-of-{count:05}.gguf", no + 1),
            read(&g).unwrap(),
        )
    };
    let first = part(0, 2, &["a", "b"]);
    let split = Split::of(&first.1).unwrap();
    assert_eq!((split.no, split.count, split.tensors), (0, 2, Some(3)));
    let names = sibling_names("m-00001-of-00002.gguf", split).unwrap();
    assert_eq!(names, ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
    assert!(matches!(
        sibling_names("m.gguf", split),
        Err(SplitError::Name { .. })
    ));
    assert!(matches!(
        sibling_names("-00001-of-00002.gguf", split),
        Err(SplitError::Name { .. })
    ));
    for (no, count) in [(2, 2), (u64::MAX, 2), (0, 1 << 40)] {
        let bad = Split {
            no,
            count,
            tensors: None,
        };
        assert!(matches!(
            sibling_names("m-00001-of-00002.gguf", bad),
            Err(SplitError::Number { .. })
        ));
    }
    let ok = join(vec![first.clone(), part(1, 2, &["c"])]).unwrap();
    assert_eq!(ok.tensors.len(), 3);
    let err = |second| join(vec![first.clone(), second]).unwrap_err();
    assert!(matches!(err(part(0, 2, &["c"])), SplitError::Order { .. }));
    assert!(matches!(err(part(1, 3, &["c"])), SplitError::Count { .. }));
    assert!(matches!(err(part(1, 2, &["a"])), SplitError::Twice { .. }));
    assert!(matches!(
        err(part(1, 2, &["c", "d"])),
        SplitError::Tensors {
            expected: 3,
            found: 4
        }
    ));
}

/// Counts the bytes that are asked for.
struct Counting<'a> {
    bytes: &'a [u8],
    read: std::cell::Cell<u64>,
}

impl ReadAt for Counting<'_> {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.read.set(self.read.get() + buf.len() as u64);
        self.bytes.read_at(offset, buf)
    }
}

#[test]
fn long_arrays_are_skipped_and_long_strings_measured() {
    let n = 150_000;
    let g = Gguf::llama()
        .strings("x.words", n, |i| format!("word{i}"))
        .strings("tokenizer.ggml.merges", n, |i| format!("wo rd{i}"))
        .array("tokenizer.ggml.scores", 6, 4 * n, &vec![0; 16 * n as usize])
        .str("tokenizer.chat_template", &"x".repeat(50 << 20));
    let bytes = g.header();
    let file = Gguf::file(&g);
    assert!(bytes.len() > 55 << 20);
    let source = Counting {
        bytes: &file,
        read: std::cell::Cell::new(0),
    };
    let h = Header::read(&source).unwrap();
    let array = h.get("x.words").unwrap().as_array().unwrap();
    assert_eq!((array.len, &array.values), (n, &None));
    assert!(
        matches!(h.get("tokenizer.chat_template"), Some(gguf::Value::LongString { bytes }) if *bytes == 50 << 20)
    );
    // Words must be walked; numbers and the template need not be.
    assert!(
        source.read.get() < 8 << 20,
        "{} bytes read",
        source.read.get()
    );
}

#[test]
fn the_window_never_matters() {
    // Strings of every length around the window's border, with the true end of the file near:
    // a window that was refilled short once read zeros in place of the file's last bytes.
    for tail in (0..600).step_by(7) {
        let g = Gguf::default()
            .strings("x.words", 300, |i| {
                "w".repeat(900 + (i as usize * 37 + tail) % 200)
            })
            .u32("last", 77)
            .tensor("t", &[32], 2);
        let h = read(&g).unwrap();
        assert_eq!(h.get("last").unwrap().as_u64(), Some(77));
        assert_eq!(h.tensors[0].name, "t");
    }
}

#[test]
fn what_is_kept_is_bounded() {
    // 4,000 keys with arrays of 60,000 bytes each: 240 MB of values would take 7 GiB as values.
    let mut g = Gguf::default();
    for i in 0..400 {
        g = g.array(&format!("k{i}"), 0, 60_000, &vec![1; 60_000]);
    }
    let h = read(&g).unwrap();
    let kept: usize = h
        .metadata
        .values()
        .filter_map(|v| v.as_array()?.values.as_ref())
        .map(Vec::len)
        .sum();
    assert!(
        kept * size_of::<gguf::Value>() <= 16 << 20,
        "{kept} values kept"
    );
    let mut many = Gguf::default();
    for i in 0..4_200 {
        many = many.u32(&format!("k{i}"), 1);
    }
    assert!(matches!(problem(&many), GgufProblem::TooMany { .. }));
}

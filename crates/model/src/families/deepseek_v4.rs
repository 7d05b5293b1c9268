//! DeepSeek V4: each layer's one key, which is its value too, over a window and over compressed entries, of which an indexer
//! chooses where entries are many; a residual stream of several lanes (hyper-connections); experts by hash in the first layers.
//!
//! Source: transformers `models/deepseek_v4/{configuration,modeling}_deepseek_v4.py`; published names, types that are 32 bits
//! whatever the model's is, and multi-token-prediction layers, which transformers drops, from vLLM 0.32
//! `models/deepseek_v4/{attention,compressor}.py` and `nvidia/{model,mtp}.py`.

use plimsoll_units::DType;

use super::{Decoder, Defaults, Family, MAX_EXPERTS, decoder_or, glm4_moe, tie};
use crate::builder::{columns, heads};
use crate::{
    Compressed, Config, Ffn, Indexer, LatentAttention, LayerSpec, Mixer, ModelError, Moe, Role, Shard, SpecBuilder,
};

pub(super) const FAMILY: Family = Family {
    name: "deepseek_v4",
    architectures: &["DeepseekV4ForCausalLM"],
    model_types: &["deepseek_v4"],
    towers: false,
    lower,
};

const ONE: Shard = Shard::Replicated;

/// The sizes that a layer's tensors follow from.
struct Sizes {
    d: Decoder,
    q_rank: u64,
    groups: u64,
    o_rank: u64,
    lanes: u64,
    moe: Moe,
    hashed: u64,
}

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults { kv_heads: Some(1), head_dim: Some(512), vocab: Some(129_280), max_context: Some(1 << 20), ..Defaults::default() };
    let d = decoder_or(&text, b, defaults)?;
    let s = Sizes {
        d,
        q_rank: text.dim_or(&["q_lora_rank"], 1024)?,
        groups: text.dim_or(&["o_groups"], 8)?,
        o_rank: text.dim_or(&["o_lora_rank"], 1024)?,
        lanes: text.dim_or(&["hc_mult"], 4)?,
        moe: glm4_moe::routed(&text)?,
        hashed: hashed(&text, d.layers)?,
    };
    let rope = text.dim_or(&["qk_rope_head_dim"], 64)?;
    if rope >= d.head_dim || d.kv_heads != 1 || !d.q_heads.is_multiple_of(s.groups) || s.lanes > MAX_EXPERTS {
        let reason = format!("expected one KV head, o_groups that divide {} heads, and heads above {rope} wide", d.q_heads);
        return Err(text.reject("num_attention_heads", reason));
    }
    let window = text.dim_or(&["sliding_window"], 128)?;
    let indexer = Indexer { heads: text.dim_or(&["index_n_heads"], 64)?, dim: text.dim_or(&["index_head_dim"], 128)? };
    let mixer = |ratio: u64| LatentAttention {
        q_heads: d.q_heads,
        rank: d.head_dim - rope,
        rope_dim: rope,
        nope_dim: d.head_dim - rope,
        v_dim: d.head_dim,
        q_rank: Some(s.q_rank),
        // Entries that overlap are the many, of which the best are read.
        indexer: (ratio == 4).then_some(indexer),
        compressed: Some(Compressed { window, ratio, overlaps: ratio == 4 }),
    };
    tie(config, &text, b, false)?;
    b.embedding("embed.weight", d.vocab, d.hidden);
    for (i, ratio) in (0..).zip(ratios(&text, d.layers)?) {
        let a = mixer(ratio);
        let layer = LayerSpec { mixer: Mixer::Latent(a), parallel: None, cross: None, ffn: Ffn::Moe(s.moe) };
        b.layer(&format!("layers.{i}."), layer, |b| block(b, &s, &a, i < s.hashed))?;
    }
    b.norm("norm", d.hidden);
    gather(b, &s);
    b.head("head", d.vocab, d.hidden);
    let count = text.opt("num_nextn_predict_layers")?.unwrap_or(1);
    if count > d.layers {
        return Err(text.reject("num_nextn_predict_layers", "expected no more than there are layers"));
    }
    b.spec().mtp_layers = count;
    (0..count).try_for_each(|i| b.mtp(&format!("mtp.{i}."), |b| predictor(b, &s, &mixer(0))))
}

/// Layers whose experts a token's number chooses: a field of older files, or listed.
fn hashed(text: &Config<'_>, layers: u64) -> Result<u64, ModelError> {
    match text.strings("mlp_layer_types")? {
        Some(kinds) => Ok(kinds.iter().take_while(|k| **k == "hash_moe").count() as u64),
        None => Ok(text.opt("num_hash_layers")?.unwrap_or(3).min(layers)),
    }
}

/// Tokens per compressed entry, 0 for none: published files number them (and those of predictors behind), transformers names
/// kinds; its class alternates after two layers.
fn ratios(text: &Config<'_>, layers: u64) -> Result<Vec<u64>, ModelError> {
    let key = if text.has("layer_types") { "layer_types" } else { "compress_ratios" };
    let named = |kind: &str| ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"].iter().position(|k| *k == kind);
    let list: Option<Vec<u64>> = match (text.strings("layer_types")?, text.numbers("compress_ratios")?) {
        (Some(kinds), _) => kinds.iter().map(|k| named(k).and_then(|i| [0, 4, 128].get(i).copied())).collect(),
        (None, Some(list)) => list.iter().map(|r| [0, 4, 128].contains(r).then_some(*r)).collect(),
        (None, None) => Some((0..layers).map(|i| if i >= 2 && i % 2 == 1 { 4 } else { 128 }).collect()),
    };
    let reason = || format!("expected 0, 4 or 128, or their names, for each of the {layers} layers");
    let mut list = list.filter(|l| l.len() as u64 >= layers).ok_or_else(|| text.reject(key, reason()))?;
    list.truncate(usize::try_from(layers).unwrap_or(usize::MAX));
    Ok(list)
}

/// A layer: attention, experts, and what mixes the lanes before and after each.
fn block(b: &mut SpecBuilder, s: &Sizes, a: &LatentAttention, by_hash: bool) -> Result<(), ModelError> {
    let (at, h, wide) = (Role::Attention, s.d.hidden, a.rank + a.rope_dim);
    b.whole(at, "attn.wq_a", [s.q_rank, h], false);
    b.norm("attn.q_norm", s.q_rank);
    b.out_split(at, "attn.wq_b", [a.q_heads * wide, s.q_rank], false, heads(a.q_heads));
    b.whole(at, "attn.wkv", [wide, h], false);
    b.norm("attn.kv_norm", wide);
    let split = heads(s.groups);
    b.out_split(at, "attn.wo_a", [s.groups * s.o_rank, a.q_heads / s.groups * wide], false, split);
    b.in_split(at, "attn.wo_b", [h, s.groups * s.o_rank], false, split);
    b.tensor_typed(at, "attn.attn_sink", &[a.q_heads], heads(a.q_heads), DType::F32);
    if let Some(c) = a.compressed.filter(|c| c.ratio > 0) {
        compressor(b, "attn.compressor.", &c, wide, h);
        if let Some(i) = a.indexer {
            b.whole(at, "attn.indexer.wq_b", [i.heads.saturating_mul(i.dim), s.q_rank], false);
            b.tensor(at, "attn.indexer.weights_proj.weight", &[i.heads, h], ONE);
            compressor(b, "attn.indexer.compressor.", &c, i.dim, h);
        }
    }
    b.norm("attn_norm", h);
    b.norm("ffn_norm", h);
    for part in ["attn", "ffn"] {
        let (rows, width) = (s.lanes * (s.lanes + 2), s.lanes * h);
        for (name, shape) in [("fn", &[rows, width][..]), ("base", &[rows]), ("scale", &[3])] {
            b.tensor_typed(Role::Other, &format!("hc_{part}_{name}"), shape, ONE, DType::F32);
        }
    }
    experts(b, s, by_hash)
}

/// What makes one entry of `ratio` tokens; no format quantises it.
fn compressor(b: &mut SpecBuilder, at: &str, c: &Compressed, dim: u64, hidden: u64) {
    let wide = if c.overlaps { dim.saturating_mul(2) } else { dim };
    b.tensor_typed(Role::Attention, &format!("{at}ape"), &[c.ratio, wide], ONE, DType::F32);
    for name in ["wkv", "wgate"] {
        b.tensor(Role::Attention, &format!("{at}{name}.weight"), &[wide, hidden], ONE);
    }
    b.norm(&format!("{at}norm"), dim);
}

fn experts(b: &mut SpecBuilder, s: &Sizes, by_hash: bool) -> Result<(), ModelError> {
    let (h, moe, role) = (s.d.hidden, &s.moe, Role::Router);
    b.whole(role, "ffn.gate", [moe.experts, h], false);
    if by_hash {
        b.tensor_typed(role, "ffn.gate.tid2eid", &[s.d.vocab, moe.top_k], ONE, DType::I64);
    } else {
        b.tensor_typed(role, "ffn.gate.bias", &[moe.experts], ONE, DType::F32);
    }
    let three = |b: &mut SpecBuilder, role, at: &str, inner| {
        for name in ["w1", "w3"] {
            b.out_split(role, &format!("{at}{name}"), [inner, h], false, columns(inner));
        }
        b.in_split(role, &format!("{at}w2"), [h, inner], false, columns(inner));
    };
    b.experts(moe.experts, |b| {
        three(b, Role::Experts, "ffn.experts.{e}.", moe.intermediate);
        Ok(())
    })?;
    if moe.shared > 0 {
        three(b, Role::SharedExperts, "ffn.shared_experts.", moe.shared);
    }
    Ok(())
}

/// What makes one stream of the lanes.
fn gather(b: &mut SpecBuilder, s: &Sizes) {
    for (name, shape) in [("fn", &[s.lanes, s.lanes * s.d.hidden][..]), ("base", &[s.lanes]), ("scale", &[1])] {
        b.tensor_typed(Role::Other, &format!("hc_head_{name}"), shape, ONE, DType::F32);
    }
}

fn predictor(b: &mut SpecBuilder, s: &Sizes, a: &LatentAttention) -> Result<(), ModelError> {
    let h = s.d.hidden;
    for name in ["e_proj", "h_proj"] {
        b.whole(Role::Mtp, name, [h, h], false);
    }
    for name in ["enorm", "hnorm", "norm"] {
        b.norm(name, h);
    }
    for name in ["emb.tok_emb.weight", "head.weight"] {
        b.tensor(Role::Mtp, name, &[s.d.vocab, h], Shard::Vocab { rows: s.d.vocab });
    }
    gather(b, s);
    block(b, s, a, false)
}

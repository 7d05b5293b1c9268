//! DeepSeek V4: each layer's one key, which is its value too, over a window and over compressed entries, of which an indexer
//! chooses where entries are many; a residual stream of several lanes (hyper-connections); experts by hash in the first layers.
//!
//! Source: transformers `models/deepseek_v4/{configuration,modeling}_deepseek_v4.py`; published names, types that are 32 bits
//! whatever the model's is, and multi-token-prediction layers, which transformers drops, from vLLM 0.32
//! `models/deepseek_v4/{attention,compressor}.py` and `nvidia/{model,mtp}.py`.

use plimsoll_units::DType;

use super::{Decoder, Defaults, Family, MAX_EXPERTS, decoder_or, glm4_moe, tie};
use crate::builder::{columns, heads};
use crate::quant::QuantFormat;
use crate::{Compressed, Config, Ffn, Indexer, LatentAttention, LayerSpec, Mixer, ModelError, Moe, Role, Rotary, Shard, SpecBuilder};

pub(super) const FAMILY: Family =
    Family { name: "deepseek_v4", architectures: &["DeepseekV4ForCausalLM"], model_types: &["deepseek_v4"], towers: false, lower };

const ONE: Shard = Shard::Replicated;
/// Kinds of layers by the tokens that one entry stands for; 0 where there are none.
const KINDS: [(&str, u64); 3] = [("sliding_attention", 0), ("compressed_sparse_attention", 4), ("heavily_compressed_attention", 128)];

/// The sizes that a layer's tensors follow from.
struct Sizes { d: Decoder, q_rank: u64, groups: u64, o_rank: u64, lanes: u64, moe: Moe, hashed: u64 }

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder_or(&text, b, Defaults { kv_heads: Some(1), head_dim: Some(512), ..Defaults::default() })?;
    let size = |key: &'static str, default| text.dim_or(&[key], default);
    let (groups, lanes, moe) = (size("o_groups", 8)?, size("hc_mult", 4)?, glm4_moe::routed(&text)?);
    let (q_rank, o_rank, rope) = (size("q_lora_rank", 1024)?, size("o_lora_rank", 1024)?, size("qk_rope_head_dim", 64)?);
    if rope >= d.head_dim || d.kv_heads != 1 || !d.q_heads.is_multiple_of(groups) || lanes > MAX_EXPERTS {
        let reason = format!("expected one KV head, o_groups that divide {} heads, and heads above {rope} wide", d.q_heads);
        return Err(text.reject("num_attention_heads", reason));
    }
    // Layers whose experts a token's number chooses: counted in published files, listed by transformers.
    let hashed = match text.strings("mlp_layer_types")? {
        Some(kinds) => kinds.iter().take_while(|k| **k == "hash_moe").count() as u64,
        None => text.opt("num_hash_layers")?.unwrap_or(3),
    };
    let s = Sizes { d, q_rank, groups, o_rank, lanes, moe, hashed };
    let (heads, dim, best) = (size("index_n_heads", 64)?, size("index_head_dim", 128)?, size("index_topk", 512)?);
    let (indexer, window, plain) = (Indexer { heads, dim, best }, size("sliding_window", 128)?, d.head_dim - rope);
    // Entries that overlap are the many, of which the best are read.
    let mixer = |ratio: u64| LatentAttention {
        q_heads: d.q_heads, rank: plain, rope_dim: rope, nope_dim: plain, v_dim: d.head_dim, q_rank: Some(q_rank),
        indexer: (ratio == 4).then_some(indexer), compressed: Some(Compressed { window, ratio, overlaps: ratio == 4 }),
    };
    // The class's default beside 8-bit blocks (vLLM 0.32 `models/deepseek_v4/quant_config.py`).
    if text.str("expert_dtype").unwrap_or("fp4") == "fp4" { b.beside_blocks("ffn.experts", QuantFormat::Mxfp4Packed) }
    tie(config, &text, b, false)?;
    // Layers with entries rotate at a base of their own.
    b.spec().rotary = b.spec().max_context.map(|positions| vec![Rotary { dim: rope, positions }; 2]).unwrap_or_default();
    b.embedding("embed.weight", d.vocab, d.hidden);
    for (i, ratio) in (0..).zip(ratios(&text, d.layers)?) {
        let a = mixer(ratio);
        let layer = LayerSpec { mixer: Mixer::Latent(a), parallel: None, cross: None, ffn: Ffn::Moe(s.moe) };
        b.layer(&format!("layers.{i}."), layer, |b| block(b, &s, &a, i < s.hashed))?;
    }
    b.norm("norm", d.hidden);
    mixes(b, "head", [s.lanes, s.lanes * d.hidden, 1]);
    b.head("head", d.vocab, d.hidden);
    let count = text.opt("num_nextn_predict_layers")?.unwrap_or(1).min(d.layers);
    b.spec().mtp_layers = count;
    (0..count).try_for_each(|i| b.mtp(&format!("mtp.{i}."), |b| predictor(b, &s, &mixer(0))))
}

/// Tokens per compressed entry, 0 for none: published files number them (and those of predictors behind), transformers names
/// kinds; its class alternates after two layers.
fn ratios(text: &Config<'_>, layers: u64) -> Result<Vec<u64>, ModelError> {
    let key = if text.has("layer_types") { "layer_types" } else { "compress_ratios" };
    let list: Option<Vec<u64>> = match (text.strings("layer_types")?, text.numbers("compress_ratios")?) {
        (Some(kinds), _) => kinds.iter().map(|n| KINDS.iter().find(|k| k.0 == *n).map(|k| k.1)).collect(),
        (None, Some(list)) => list.iter().map(|r| KINDS.iter().any(|k| k.1 == *r).then_some(*r)).collect(),
        (None, None) => Some((0..layers).map(|i| if i >= 2 && i % 2 == 1 { 4 } else { 128 }).collect()),
    };
    let reason = format!("expected 0, 4 or 128, or their names, for each of the {layers} layers");
    let mut list = list.filter(|l| l.len() as u64 >= layers).ok_or_else(|| text.reject(key, reason))?;
    list.truncate(usize::try_from(layers).unwrap_or(usize::MAX));
    Ok(list)
}

/// A layer: attention, experts, and what mixes the lanes before and after each.
fn block(b: &mut SpecBuilder, s: &Sizes, a: &LatentAttention, by_hash: bool) -> Result<(), ModelError> {
    let (at, h, wide) = (Role::Attention, s.d.hidden, a.v_dim);
    b.whole(at, "attn.wq_a", [s.q_rank, h], false);
    b.norm("attn.q_norm", s.q_rank);
    b.out_split(at, "attn.wq_b", [a.q_heads * wide, s.q_rank], false, heads(a.q_heads));
    b.whole(at, "attn.wkv", [wide, h], false);
    b.norm("attn.kv_norm", wide);
    let (split, all) = (heads(s.groups), s.groups * s.o_rank);
    b.out_split(at, "attn.wo_a", [all, a.q_heads / s.groups * wide], false, split);
    b.in_split(at, "attn.wo_b", [h, all], false, split);
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
    ["attn", "ffn"].into_iter().for_each(|part| mixes(b, part, [s.lanes * (s.lanes + 2), s.lanes * h, 3]));
    experts(b, s, by_hash)
}

/// What makes one entry of `ratio` tokens; no format quantises it.
fn compressor(b: &mut SpecBuilder, at: &str, c: &Compressed, dim: u64, hidden: u64) {
    let wide = if c.overlaps { dim.saturating_mul(2) } else { dim };
    b.tensor_typed(Role::Attention, &format!("{at}ape"), &[c.ratio, wide], ONE, DType::F32);
    ["wkv", "wgate"].into_iter().for_each(|name| b.tensor(Role::Attention, &format!("{at}{name}.weight"), &[wide, hidden], ONE));
    b.norm(&format!("{at}norm"), dim);
}

fn experts(b: &mut SpecBuilder, s: &Sizes, by_hash: bool) -> Result<(), ModelError> {
    let (h, moe, role) = (s.d.hidden, &s.moe, Role::Router);
    b.whole(role, "ffn.gate", [moe.experts, h], false);
    let (bias, table) = ([moe.experts], [s.d.vocab, moe.top_k]);
    match by_hash {
        true => b.tensor_typed(role, "ffn.gate.tid2eid", &table, ONE, DType::I64),
        false => b.tensor_typed(role, "ffn.gate.bias", &bias, ONE, DType::F32),
    }
    let three = |b: &mut SpecBuilder, role, at: &str, inner| {
        ["w1", "w3"].into_iter().for_each(|name| b.out_split(role, &format!("{at}{name}"), [inner, h], false, columns(inner)));
        b.in_split(role, &format!("{at}w2"), [h, inner], false, columns(inner));
    };
    b.experts(moe.experts, |b| { three(b, Role::Experts, "ffn.experts.{e}.", moe.intermediate); Ok(()) })?;
    if moe.shared > 0 {
        three(b, Role::SharedExperts, "ffn.shared_experts.", moe.shared);
    }
    Ok(())
}

/// What mixes the lanes of the residual stream around a part of a layer, or makes one of them for the head.
fn mixes(b: &mut SpecBuilder, part: &str, [rows, width, scales]: [u64; 3]) {
    for (name, shape) in [("fn", &[rows, width][..]), ("base", &[rows]), ("scale", &[scales])] {
        b.tensor_typed(Role::Other, &format!("hc_{part}_{name}"), shape, ONE, DType::F32);
    }
}

fn predictor(b: &mut SpecBuilder, s: &Sizes, a: &LatentAttention) -> Result<(), ModelError> {
    let h = s.d.hidden;
    ["e_proj", "h_proj"].into_iter().for_each(|name| b.whole(Role::Mtp, name, [h, h], false));
    ["enorm", "hnorm", "norm"].into_iter().for_each(|name| b.norm(name, h));
    ["emb.tok_emb.weight", "head.weight"].into_iter().for_each(|name| b.embedding(name, s.d.vocab, h));
    mixes(b, "head", [s.lanes, s.lanes * h, 1]);
    block(b, s, a, false)
}

//! Which GGUF tensor is which tensor of Hugging Face's checkpoint.
//!
//! Names: `gguf-py/gguf/tensor_mapping.py` and `constants.py` of llama.cpp. Families whose converter splits or
//! reorders what a row of the model is (GPT-NeoX's queries, keys and values; MLA) are not mapped: their tensors
//! are then missing, by name.

/// The stored name of `name`, and which slice of its outermost dimension it is.
pub(super) fn gguf(arch: &str, name: &str) -> Option<(String, Option<u64>)> {
    let name = ["model.", "transformer."]
        .iter()
        .find_map(|p| name.strip_prefix(p))
        .unwrap_or(name);
    let top = match name {
        "embed_tokens.weight" | "wte.weight" => "token_embd.weight",
        "wpe.weight" => "position_embd.weight",
        "norm.weight" | "ln_f.weight" | "final_layernorm.weight" => "output_norm.weight",
        "ln_f.bias" | "final_layernorm.bias" => "output_norm.bias",
        "lm_head.weight" => "output.weight",
        "lm_head.bias" => "output.bias",
        _ => "",
    };
    if !top.is_empty() {
        return Some((top.to_owned(), None));
    }
    let rest = name
        .strip_prefix("layers.")
        .or_else(|| name.strip_prefix("h."))?;
    let (layer, rest) = rest.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (stem, kind) = rest.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    let (stem, expert) = match expert(stem) {
        Some((stem, e)) => (stem, Some(e)),
        None => (block(arch, stem)?, None),
    };
    Some((format!("blk.{layer}.{stem}.{kind}"), expert))
}

/// One expert's matrix: all experts of a layer lie in one tensor.
fn expert(stem: &str) -> Option<(&'static str, u64)> {
    let rest = ["mlp.experts.", "block_sparse_moe.experts."]
        .iter()
        .find_map(|p| stem.strip_prefix(p))?;
    let (expert, part) = rest.split_once('.')?;
    let stored = match part {
        "gate_proj" | "w1" => "ffn_gate_exps",
        "down_proj" | "w2" => "ffn_down_exps",
        "up_proj" | "w3" => "ffn_up_exps",
        _ => return None,
    };
    Some((stored, expert.parse().ok()?))
}

fn block(arch: &str, stem: &str) -> Option<&'static str> {
    // Gemma's second and third version have a norm before and after each half of a layer.
    let four_norms = matches!(arch, "gemma2" | "gemma3");
    Some(match stem {
        "input_layernorm" | "ln_1" => "attn_norm",
        "post_attention_layernorm" if four_norms => "post_attention_norm",
        "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "post_attention_layernorm" | "ln_2" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" | "self_attn.dense" | "attn.c_proj" => "attn_output",
        "self_attn.qkv_proj" | "attn.c_attn" => "attn_qkv",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.fc1" | "mlp.c_fc" | "mlp.gate_up_proj" => "ffn_up",
        "mlp.down_proj" | "mlp.fc2" | "mlp.c_proj" => "ffn_down",
        "mlp.gate" | "block_sparse_moe.gate" => "ffn_gate_inp",
        "mlp.shared_expert_gate" => "ffn_gate_inp_shexp",
        "mlp.shared_expert.gate_proj" => "ffn_gate_shexp",
        "mlp.shared_expert.up_proj" => "ffn_up_shexp",
        "mlp.shared_expert.down_proj" => "ffn_down_shexp",
        _ => return None,
    })
}

/// Where the rows of a stored tensor alternate, the key that says how many heads they have.
pub(super) fn alternating(arch: &str, stored: &str) -> Option<&'static str> {
    // The converters that derive from LLaMA's (`undo_permute`).
    if !matches!(arch, "llama" | "granite" | "granitemoe") {
        return None;
    }
    match stored.splitn(3, '.').nth(2)? {
        "attn_q.weight" | "attn_q.bias" => Some("attention.head_count"),
        "attn_k.weight" | "attn_k.bias" => Some("attention.head_count_kv"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_worlds() {
        let is = |arch: &str, name: &str, want: &str, expert: Option<u64>| {
            assert_eq!(gguf(arch, name), Some((want.to_owned(), expert)), "{name}");
        };
        is(
            "llama",
            "model.embed_tokens.weight",
            "token_embd.weight",
            None,
        );
        is("llama", "lm_head.weight", "output.weight", None);
        is(
            "llama",
            "model.layers.12.self_attn.q_proj.weight",
            "blk.12.attn_q.weight",
            None,
        );
        is(
            "qwen2",
            "model.layers.0.self_attn.k_proj.bias",
            "blk.0.attn_k.bias",
            None,
        );
        is(
            "llama",
            "model.layers.3.post_attention_layernorm.weight",
            "blk.3.ffn_norm.weight",
            None,
        );
        is(
            "gemma2",
            "model.layers.3.post_attention_layernorm.weight",
            "blk.3.post_attention_norm.weight",
            None,
        );
        is(
            "gpt2",
            "transformer.h.1.mlp.c_fc.bias",
            "blk.1.ffn_up.bias",
            None,
        );
        is(
            "gpt2",
            "h.1.attn.c_attn.weight",
            "blk.1.attn_qkv.weight",
            None,
        );
        is(
            "llama",
            "model.layers.3.block_sparse_moe.experts.7.w2.weight",
            "blk.3.ffn_down_exps.weight",
            Some(7),
        );
        is(
            "qwen3moe",
            "model.layers.3.mlp.experts.127.up_proj.weight",
            "blk.3.ffn_up_exps.weight",
            Some(127),
        );
        for unknown in [
            "",
            "model.",
            "model.layers.x.mlp.up_proj.weight",
            "layers.1.mlp.up_proj",
            "model.layers.1.mlp.experts.-1.w1.weight",
        ] {
            assert_eq!(gguf("llama", unknown), None, "{unknown}");
        }
        assert_eq!(
            alternating("llama", "blk.0.attn_q.weight"),
            Some("attention.head_count")
        );
        assert_eq!(alternating("qwen2", "blk.0.attn_q.weight"), None);
        assert_eq!(alternating("llama", "blk.0.attn_v.weight"), None);
    }
}

#!/usr/bin/env python3
"""Golden tensor inventories from transformers, for the tests of plimsoll-model.

    transformers_shapes.py [--out DIR] [--catalogue FILE] [NAME ...]

For each case (a small config of every family, and published configs from the catalogue) builds
transformers' model on the meta device, in which tensors have shapes but no storage, and writes
what `save_pretrained` would put into the checkpoint: names after transformers' own reverse
conversion (version 5 fuses experts in memory and splits them again on saving), shapes and types.
Beside the tensors each file has what transformers' modules say of every layer: the window of its
attention, or that it keeps a state instead.

Files: {"transformers", "source", "config", "saved_config", "layers", "states", "tensors"}. `config` is what
was given, `saved_config` what `save_pretrained` writes for it (left out where it is the same); both must give the same model. A
tensor is [name, shape, dtype, l, e]: `{l}` and `{e}` in the name run over the numbers in `l` and
`e` ("0-3,7"), which are left out where the name has none. A layer is a window, 0 for all tokens, "chunk",
"state", "both" (attention beside a state) or "none". `cross` has what layers that read an encoder's output keep of it. `states` has the sizes of those that are kept; it is left out of
models without any, and of files written before it was asked for.

Needs torch and transformers >= 5. Nothing is downloaded.
"""
import argparse
import copy
import inspect
import itertools
import json
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

ROOT = Path(__file__).resolve().parents[2]

# Small but structurally complete: odd vocabulary, a head size that is not hidden / heads where the
# family has the field, biases where they are optional, enough layers for the pattern to show.
BASE = dict(
    vocab_size=1003, hidden_size=96, num_hidden_layers=4, intermediate_size=160, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=512, torch_dtype="bfloat16",
)


def small(model_type, architecture, **fields):
    config = {"architectures": [architecture], "model_type": model_type, **BASE, **fields}
    return {k: v for k, v in config.items() if v is not DROP}


DROP = object()

DEEPSEEK = dict(
    num_key_value_heads=6, kv_lora_rank=40, q_lora_rank=56, qk_rope_head_dim=8, qk_nope_head_dim=24, v_head_dim=20,
    moe_intermediate_size=44, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=2,
    first_k_dense_replace=1, n_group=2, topk_group=1, num_hidden_layers=5,
)
SIGLIP = dict(
    model_type="siglip_vision_model", hidden_size=48, intermediate_size=84, num_hidden_layers=3,
    num_attention_heads=4, image_size=56, patch_size=14,
)
CLIP = dict(
    model_type="clip_vision_model", hidden_size=48, intermediate_size=84, num_hidden_layers=3, num_attention_heads=4,
    image_size=56, patch_size=14, projection_dim=32,
)
PIXTRAL = dict(
    model_type="pixtral", hidden_size=48, intermediate_size=84, num_hidden_layers=3, num_attention_heads=4, head_dim=12,
    image_size=56, patch_size=14,
)


def text(model_type, **fields):
    return {"model_type": model_type, **{k: v for k, v in BASE.items() if k != "torch_dtype"}, **fields}


CASES = {
    "gpt2-small": dict(
        architectures=["GPT2LMHeadModel"], model_type="gpt2", vocab_size=1003, n_embd=96, n_layer=3, n_head=6,
        n_positions=64, torch_dtype="float32",
    ),
    "gpt2-inner": dict(
        architectures=["GPT2LMHeadModel"], model_type="gpt2", vocab_size=1003, n_embd=96, n_layer=2, n_head=6,
        n_positions=64, n_inner=100, tie_word_embeddings=False, torch_dtype="float16",
    ),
    "opt-small": dict(
        architectures=["OPTForCausalLM"], model_type="opt", vocab_size=1003, hidden_size=96, num_hidden_layers=3,
        num_attention_heads=6, ffn_dim=200, max_position_embeddings=64, word_embed_proj_dim=96, torch_dtype="float16",
    ),
    "opt-350m-like": dict(
        architectures=["OPTForCausalLM"], model_type="opt", vocab_size=1003, hidden_size=96, num_hidden_layers=3,
        num_attention_heads=6, ffn_dim=200, max_position_embeddings=64, word_embed_proj_dim=48,
        do_layer_norm_before=False, torch_dtype="float16",
    ),
    "gpt_neox-small": small("gpt_neox", "GPTNeoXForCausalLM", num_key_value_heads=DROP),
    "gpt_neox-no-bias-tied": small(
        "gpt_neox", "GPTNeoXForCausalLM", num_key_value_heads=DROP, attention_bias=False, tie_word_embeddings=True,
        use_parallel_residual=False,
    ),
    "llama-small": small("llama", "LlamaForCausalLM"),
    "llama-biases-head-dim": small(
        "llama", "LlamaForCausalLM", head_dim=24, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "mistral-window": small("mistral", "MistralForCausalLM", head_dim=24, sliding_window=64),
    "mistral-no-window-field": small("mistral", "MistralForCausalLM"),
    "mistral-defaults": small("mistral", "MistralForCausalLM", num_attention_heads=16, num_key_value_heads=DROP),
    "qwen2-defaults": small("qwen2", "Qwen2ForCausalLM", num_attention_heads=32, num_key_value_heads=DROP),
    "qwen3-defaults": small(
        "qwen3", "Qwen3ForCausalLM", num_attention_heads=32, num_key_value_heads=DROP, use_sliding_window=True
    ),
    "gemma-defaults": small("gemma", "GemmaForCausalLM", num_attention_heads=16, num_key_value_heads=DROP),
    "gpt_oss-defaults": small(
        "gpt_oss", "GptOssForCausalLM", num_attention_heads=8, num_key_value_heads=DROP, num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "mixtral-defaults": small(
        "mixtral", "MixtralForCausalLM", num_attention_heads=16, num_key_value_heads=DROP, num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "qwen2_moe-defaults": small(
        "qwen2_moe", "Qwen2MoeForCausalLM", num_attention_heads=16, num_key_value_heads=DROP, intermediate_size=DROP,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=44, shared_expert_intermediate_size=88,
        decoder_sparse_step=3, use_sliding_window=True,
    ),
    "qwen3_moe-defaults": small(
        "qwen3_moe", "Qwen3MoeForCausalLM", num_attention_heads=8, num_key_value_heads=DROP, intermediate_size=DROP,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=44, mlp_only_layers=[3],
    ),
    "qwen3_next-defaults": small(
        "qwen3_next", "Qwen3NextForCausalLM", num_key_value_heads=DROP, intermediate_size=DROP, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=44, mlp_only_layers=[3],
    ),
    "gemma2-kv-default": small(
        "gemma2", "Gemma2ForCausalLM", num_attention_heads=8, num_key_value_heads=DROP, intermediate_size=DROP
    ),
    "mistral-null-window": small("mistral", "MistralForCausalLM", sliding_window=None),
    "mixtral-small": small(
        "mixtral", "MixtralForCausalLM", num_local_experts=5, num_experts_per_tok=2, head_dim=24, sliding_window=None
    ),
    "mixtral-window": small(
        "mixtral", "MixtralForCausalLM", num_local_experts=12, num_experts_per_tok=3, sliding_window=64
    ),
    "qwen2-small": small("qwen2", "Qwen2ForCausalLM", use_sliding_window=False, sliding_window=64, max_window_layers=2),
    "qwen2-window": small(
        "qwen2", "Qwen2ForCausalLM", use_sliding_window=True, sliding_window=64, max_window_layers=2,
        num_hidden_layers=6, tie_word_embeddings=True,
    ),
    "qwen2_moe-small": small(
        "qwen2_moe", "Qwen2MoeForCausalLM", num_experts=6, num_experts_per_tok=2, moe_intermediate_size=44,
        shared_expert_intermediate_size=88, decoder_sparse_step=2, mlp_only_layers=[3], num_hidden_layers=6,
    ),
    "qwen2_moe-window-no-bias": small(
        "qwen2_moe", "Qwen2MoeForCausalLM", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=44,
        shared_expert_intermediate_size=88, use_sliding_window=True, sliding_window=64, max_window_layers=4,
        num_hidden_layers=6, qkv_bias=False,
    ),
    "qwen3-small": small("qwen3", "Qwen3ForCausalLM", head_dim=24),
    "qwen3-no-head-dim-window": small(
        "qwen3", "Qwen3ForCausalLM", attention_bias=True, use_sliding_window=True, sliding_window=64,
        max_window_layers=3, tie_word_embeddings=True,
    ),
    "qwen3_moe-small": small(
        "qwen3_moe", "Qwen3MoeForCausalLM", head_dim=24, num_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=44, decoder_sparse_step=1, mlp_only_layers=[0, 2],
    ),
    "qwen3_moe-window": small(
        "qwen3_moe", "Qwen3MoeForCausalLM", head_dim=24, num_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=44, decoder_sparse_step=2, use_sliding_window=True, sliding_window=64, attention_bias=True,
    ),
    "qwen3_next-small": small(
        "qwen3_next", "Qwen3NextForCausalLM", head_dim=24, num_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=44, shared_expert_intermediate_size=52, num_hidden_layers=8, linear_conv_kernel_dim=4,
        linear_key_head_dim=12, linear_value_head_dim=20, linear_num_key_heads=3, linear_num_value_heads=6,
    ),
    "qwen3_next-interval": small(
        "qwen3_next", "Qwen3NextForCausalLM", num_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=44, shared_expert_intermediate_size=52, num_hidden_layers=6, linear_conv_kernel_dim=3,
        linear_key_head_dim=12, linear_value_head_dim=20, linear_num_key_heads=3, linear_num_value_heads=6,
        full_attention_interval=3, mlp_only_layers=[1], decoder_sparse_step=2, attention_bias=True,
    ),
    "gemma-small": small("gemma", "GemmaForCausalLM", head_dim=24),
    "gemma-no-head-dim": small("gemma", "GemmaForCausalLM", attention_bias=True),
    "gemma2-small": small("gemma2", "Gemma2ForCausalLM", head_dim=24, sliding_window=64, num_hidden_layers=5),
    "gemma2-defaults": small("gemma2", "Gemma2ForCausalLM", final_logit_softcapping=None),
    "gemma3_text-small": small("gemma3_text", "Gemma3ForCausalLM", head_dim=24, sliding_window=64, num_hidden_layers=8),
    "gemma3_text-pattern": small(
        "gemma3_text", "Gemma3ForCausalLM", sliding_window=64, sliding_window_pattern=3, num_hidden_layers=7,
        tie_word_embeddings=False, attention_bias=True,
    ),
    "gemma3_text-layer-types": small(
        "gemma3_text", "Gemma3ForCausalLM", sliding_window=64,
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    ),
    "phi-small": small("phi", "PhiForCausalLM"),
    "phi-qk-norm": small("phi", "PhiForCausalLM", num_key_value_heads=None, qk_layernorm=True),
    "phi-tied": small("phi", "PhiForCausalLM", tie_word_embeddings=True),
    "phi3-small": small("phi3", "Phi3ForCausalLM", sliding_window=64, pad_token_id=0),
    "phi3-tied": small("phi3", "Phi3ForCausalLM", sliding_window=None, tie_word_embeddings=True, pad_token_id=0),
    "granite-small": small("granite", "GraniteForCausalLM"),
    "granite-biases": small(
        "granite", "GraniteForCausalLM", attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "granitemoe-small": small(
        "granitemoe", "GraniteMoeForCausalLM", num_local_experts=6, num_experts_per_tok=2, attention_bias=True
    ),
    "granitemoehybrid-small": small(
        "granitemoehybrid", "GraniteMoeHybridForCausalLM", num_local_experts=0, shared_intermediate_size=120,
        layer_types=["mamba", "attention", "mamba", "mamba"], mamba_n_heads=8, mamba_d_state=20,
    ),
    "granitemoehybrid-experts": small(
        "granitemoehybrid", "GraniteMoeHybridForCausalLM", num_local_experts=6, num_experts_per_tok=3,
        shared_intermediate_size=120, layer_types=["mamba", "attention", "mamba", "attention"], mamba_n_heads=12,
        mamba_d_head=24, mamba_expand=3, mamba_n_groups=3, mamba_d_state=20, mamba_d_conv=3, mamba_conv_bias=False,
        mamba_proj_bias=True, attention_bias=True, position_embedding_type="rope", tie_word_embeddings=True,
    ),
    "deepseek_v2-small": small("deepseek_v2", "DeepseekV2ForCausalLM", **DEEPSEEK),
    "deepseek_v2-lite": small(
        "deepseek_v2", "DeepseekV2ForCausalLM", **{**DEEPSEEK, "q_lora_rank": None, "attention_bias": True}
    ),
    "deepseek_v3-small": small("deepseek_v3", "DeepseekV3ForCausalLM", **DEEPSEEK, num_nextn_predict_layers=0),
    "deepseek_v3-no-q-rank": small(
        "deepseek_v3", "DeepseekV3ForCausalLM", num_nextn_predict_layers=0,
        **{**DEEPSEEK, "q_lora_rank": None, "attention_bias": True, "first_k_dense_replace": 2},
    ),
    "deepseek_v3-mtp": small("deepseek_v3", "DeepseekV3ForCausalLM", **DEEPSEEK, num_nextn_predict_layers=2),
    "gpt_oss-small": small(
        "gpt_oss", "GptOssForCausalLM", head_dim=24, num_local_experts=6, num_experts_per_tok=2, sliding_window=64
    ),
    "gpt_oss-no-bias": small(
        "gpt_oss", "GptOssForCausalLM", head_dim=24, num_local_experts=6, num_experts_per_tok=2, attention_bias=False,
        sliding_window=32, layer_types=["full_attention", "sliding_attention"] * 2,
    ),
    "gemma3-small": dict(
        architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", torch_dtype="bfloat16",
        text_config=text("gemma3_text", head_dim=24, sliding_window=64, num_hidden_layers=7),
        vision_config=SIGLIP, mm_tokens_per_image=4,
    ),
    # The published 4B to 27B leave out what equals transformers' defaults.
    "gemma3-omitted-fields": dict(
        architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", torch_dtype="bfloat16",
        text_config=dict(
            model_type="gemma3_text", hidden_size=96, intermediate_size=160, num_hidden_layers=7, sliding_window=64
        ),
        vision_config=SIGLIP, mm_tokens_per_image=4,
    ),
    "qwen2_vl-small": dict(
        architectures=["Qwen2VLForConditionalGeneration"], model_type="qwen2_vl", torch_dtype="bfloat16",
        text_config=text("qwen2_vl_text", tie_word_embeddings=True), tie_word_embeddings=True,
        vision_config=dict(
            depth=3, embed_dim=48, hidden_size=96, mlp_ratio=2, num_heads=4, in_channels=3, patch_size=14,
            spatial_merge_size=2, temporal_patch_size=2,
        ),
    ),
    "qwen2_5_vl-small": dict(
        architectures=["Qwen2_5_VLForConditionalGeneration"], model_type="qwen2_5_vl", torch_dtype="bfloat16",
        text_config=text(
            "qwen2_5_vl_text", use_sliding_window=True, sliding_window=64, max_window_layers=1
        ),
        vision_config=dict(
            depth=3, hidden_size=48, intermediate_size=84, num_heads=4, out_hidden_size=96, in_channels=3,
            patch_size=14, spatial_merge_size=2, temporal_patch_size=2,
        ),
    ),
    "llava-llama": dict(
        architectures=["LlavaForConditionalGeneration"], model_type="llava", torch_dtype="float16",
        text_config=text("llama"), vision_config=CLIP, image_seq_length=16,
    ),
    "llava-mistral-siglip": dict(
        architectures=["LlavaForConditionalGeneration"], model_type="llava", torch_dtype="float16",
        text_config=text("mistral", sliding_window=None, head_dim=24), vision_config={**SIGLIP, "vision_use_head": False},
        vision_feature_layer=[-2, -1],
        multimodal_projector_bias=False,
    ),
    "llava-pixtral": dict(
        architectures=["LlavaForConditionalGeneration"], model_type="llava", torch_dtype="float16",
        text_config=text("mistral", head_dim=24), vision_config=PIXTRAL, vision_feature_layer=-1,
    ),
    "mistral3-small": dict(
        architectures=["Mistral3ForConditionalGeneration"], model_type="mistral3", torch_dtype="bfloat16",
        text_config=text("mistral", sliding_window=None, head_dim=24), vision_config=PIXTRAL, tie_word_embeddings=False,
    ),
    "llama4_text-small": small(
        "llama4_text", "Llama4ForCausalLM", head_dim=24, num_local_experts=4, num_experts_per_tok=1,
        intermediate_size_mlp=200, interleave_moe_layer_step=2, attention_chunk_size=64, num_hidden_layers=8, pad_token_id=0,
    ),
    "llama4-small": dict(
        architectures=["Llama4ForConditionalGeneration"], model_type="llama4", torch_dtype="bfloat16",
        text_config=text(
            "llama4_text", head_dim=24, num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=200,
            interleave_moe_layer_step=1, attention_chunk_size=64, num_hidden_layers=8, pad_token_id=0,
        ),
        vision_config=dict(
            model_type="llama4_vision_model", hidden_size=48, intermediate_size=192, num_hidden_layers=3,
            num_attention_heads=4, image_size=56, patch_size=14, projector_input_dim=64, projector_output_dim=64,
            vision_output_dim=64,
        ),
    ),
    "qwen3_vl-small": dict(
        architectures=["Qwen3VLForConditionalGeneration"], model_type="qwen3_vl", torch_dtype="bfloat16",
        text_config=text("qwen3_vl_text", head_dim=24, tie_word_embeddings=True), tie_word_embeddings=True,
        vision_config=dict(
            depth=4, hidden_size=48, intermediate_size=84, num_heads=4, out_hidden_size=96, in_channels=3, patch_size=16,
            spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=64, deepstack_visual_indexes=[1, 2],
        ),
    ),
    "qwen3_vl_moe-small": dict(
        architectures=["Qwen3VLMoeForConditionalGeneration"], model_type="qwen3_vl_moe", torch_dtype="bfloat16",
        text_config=text(
            "qwen3_vl_moe_text", head_dim=24, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=44,
        ),
        vision_config=dict(
            depth=4, hidden_size=48, intermediate_size=84, num_heads=4, out_hidden_size=96, in_channels=3, patch_size=16,
            spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=64, deepstack_visual_indexes=[1, 2],
        ),
    ),
    "qwen3_5_text-small": small(
        "qwen3_5_text", "Qwen3_5ForCausalLM", head_dim=24, num_hidden_layers=8, linear_conv_kernel_dim=4,
        linear_key_head_dim=12, linear_value_head_dim=20, linear_num_key_heads=3, linear_num_value_heads=6,
    ),
    "qwen3_5_moe_text-small": small(
        "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", head_dim=24, num_hidden_layers=8, num_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=44, shared_expert_intermediate_size=52, linear_key_head_dim=12, linear_value_head_dim=20,
        linear_num_key_heads=3, linear_num_value_heads=6,
    ),
    "qwen3_5-small": dict(
        architectures=["Qwen3_5ForConditionalGeneration"], model_type="qwen3_5", torch_dtype="bfloat16",
        text_config=text(
            "qwen3_5_text", head_dim=24, linear_key_head_dim=12, linear_value_head_dim=20, linear_num_key_heads=3,
            linear_num_value_heads=6,
        ),
        vision_config=dict(
            depth=3, hidden_size=48, intermediate_size=84, num_heads=4, out_hidden_size=96, in_channels=3, patch_size=14,
            spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=64,
        ),
    ),
    "qwen3_5_moe-small": dict(
        architectures=["Qwen3_5MoeForConditionalGeneration"], model_type="qwen3_5_moe", torch_dtype="bfloat16",
        text_config=text(
            "qwen3_5_moe_text", head_dim=24, linear_key_head_dim=12, linear_value_head_dim=20, linear_num_key_heads=3,
            linear_num_value_heads=6, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=44,
            shared_expert_intermediate_size=52,
        ),
        vision_config=dict(
            depth=3, hidden_size=48, intermediate_size=84, num_heads=4, out_hidden_size=96, in_channels=3, patch_size=14,
            spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=64,
        ),
    ),
    "glm4-small": small("glm4", "Glm4ForCausalLM", head_dim=24, pad_token_id=0),
    "glm4-bias": small("glm4", "Glm4ForCausalLM", attention_bias=True, tie_word_embeddings=True, pad_token_id=0),
    "glm-small": small("glm", "GlmForCausalLM", head_dim=24, attention_bias=True, pad_token_id=0),
    "glm4_moe-small": small(
        "glm4_moe", "Glm4MoeForCausalLM", head_dim=24, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=44,
        n_shared_experts=2, first_k_dense_replace=1, use_qk_norm=True, attention_bias=True,
    ),
    "glm4_moe-no-qk-norm": small(
        "glm4_moe", "Glm4MoeForCausalLM", n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=44,
        n_shared_experts=1, first_k_dense_replace=3, num_nextn_predict_layers=1,
    ),
    "cohere-small": small("cohere", "CohereForCausalLM", pad_token_id=0),
    "cohere-qk-norm": small(
        "cohere", "CohereForCausalLM", use_qk_norm=True, attention_bias=True, tie_word_embeddings=False, pad_token_id=0
    ),
    "cohere2-small": small("cohere2", "Cohere2ForCausalLM", head_dim=24, sliding_window=64, num_hidden_layers=6, pad_token_id=0),
    "cohere2-pattern": small(
        "cohere2", "Cohere2ForCausalLM", sliding_window=64, sliding_window_pattern=2, attention_bias=True, pad_token_id=0
    ),
    "falcon-multi-query": small(
        "falcon", "FalconForCausalLM", num_key_value_heads=DROP, max_position_embeddings=DROP, intermediate_size=DROP
    ),
    "falcon-new-decoder": small(
        "falcon", "FalconForCausalLM", num_key_value_heads=DROP, num_kv_heads=2, new_decoder_architecture=True, bias=True,
        max_position_embeddings=DROP, intermediate_size=DROP,
    ),
    "falcon-alibi": small(
        "falcon", "FalconForCausalLM", num_key_value_heads=DROP, alibi=True, multi_query=False, bias=True,
        parallel_attn=False, max_position_embeddings=DROP, intermediate_size=DROP,
    ),
    "falcon-one-norm": small(
        "falcon", "FalconForCausalLM", num_key_value_heads=DROP, num_kv_heads=2, new_decoder_architecture=True,
        num_ln_in_parallel_attn=1, ffn_hidden_size=200, max_position_embeddings=DROP, intermediate_size=DROP,
        tie_word_embeddings=False,
    ),
    "bloom-small": dict(
        architectures=["BloomForCausalLM"], model_type="bloom", vocab_size=1003, hidden_size=96, n_layer=4, n_head=6,
        torch_dtype="bfloat16",
    ),
    "minimax_m2-small": small(
        "minimax_m2", "MiniMaxM2ForCausalLM", head_dim=24, num_local_experts=6, num_experts_per_tok=2,
    ),
    "olmo2-small": small("olmo2", "Olmo2ForCausalLM"),
    "olmo2-tied": small("olmo2", "Olmo2ForCausalLM", attention_bias=True, tie_word_embeddings=True),
    "olmo3-small": small("olmo3", "Olmo3ForCausalLM", sliding_window=64, num_hidden_layers=6),
    "jamba-small": small(
        "jamba", "JambaForCausalLM", num_experts=6, num_experts_per_tok=2, num_hidden_layers=8, attn_layer_period=4,
        attn_layer_offset=2, expert_layer_period=2, expert_layer_offset=1, mamba_d_state=8, mamba_dt_rank=10,
        pad_token_id=0,
    ),
    "jamba-biases": small(
        "jamba", "JambaForCausalLM", num_experts=1, num_experts_per_tok=1, num_hidden_layers=4, attn_layer_period=2,
        attn_layer_offset=1, mamba_expand=3, mamba_d_conv=3, mamba_conv_bias=False, mamba_proj_bias=True, pad_token_id=0,
    ),
    "bamba-small": small(
        "bamba", "BambaForCausalLM", mamba_n_heads=8, mamba_d_head=24, mamba_d_state=20, mamba_n_groups=2,
        attn_layer_indices=[1, 3], pad_token_id=0,
    ),
    "falcon_h1-small": small(
        "falcon_h1", "FalconH1ForCausalLM", head_dim=24, mamba_d_ssm=192, mamba_n_heads=8, mamba_d_head=24, mamba_d_state=20,
        mamba_n_groups=2, mamba_d_conv=4, pad_token_id=0,
    ),
    "falcon_h1-norm": small(
        "falcon_h1", "FalconH1ForCausalLM", mamba_d_ssm=192, mamba_n_heads=8, mamba_d_head=24, mamba_d_state=20,
        mamba_n_groups=1, mamba_rms_norm=True, mamba_proj_bias=True, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=True, pad_token_id=0,
    ),
    "mamba2-small": dict(
        architectures=["Mamba2ForCausalLM"], model_type="mamba2", vocab_size=1003, hidden_size=96, num_hidden_layers=4,
        num_heads=8, head_dim=24, state_size=20, n_groups=2, conv_kernel=4, torch_dtype="bfloat16", pad_token_id=0,
    ),
    "mamba2-biases": dict(
        architectures=["Mamba2ForCausalLM"], model_type="mamba2", vocab_size=1003, hidden_size=96, num_hidden_layers=4,
        num_heads=12, head_dim=24, expand=3, state_size=20, n_groups=1, conv_kernel=3, use_bias=True, use_conv_bias=False,
        tie_word_embeddings=True, torch_dtype="bfloat16", pad_token_id=0,
    ),
    "mamba-small": dict(
        architectures=["MambaForCausalLM"], model_type="mamba", vocab_size=1003, hidden_size=96, num_hidden_layers=4,
        state_size=8, conv_kernel=4, torch_dtype="bfloat16", pad_token_id=0,
    ),
    "mamba-biases": dict(
        architectures=["MambaForCausalLM"], model_type="mamba", vocab_size=1003, hidden_size=96, num_hidden_layers=4,
        state_size=8, conv_kernel=3, expand=3, time_step_rank=10, use_bias=True, use_conv_bias=False,
        tie_word_embeddings=False, torch_dtype="bfloat16", pad_token_id=0,
    ),
    "nemotron_h-small": small(
        "nemotron_h", "NemotronHForCausalLM", head_dim=24, num_hidden_layers=6, hybrid_override_pattern="MEM*M-",
        mamba_num_heads=8, mamba_head_dim=24, ssm_state_size=20, n_groups=2, conv_kernel=4, n_routed_experts=6,
        num_experts_per_tok=2, moe_intermediate_size=44, moe_shared_expert_intermediate_size=52,
    ),
    "nemotron_h-latent": small(
        "nemotron_h", "NemotronHForCausalLM", head_dim=24, num_hidden_layers=5, hybrid_override_pattern="MEM*E",
        mamba_num_heads=8, mamba_head_dim=24, ssm_state_size=20, n_groups=2, conv_kernel=4, n_routed_experts=6,
        num_experts_per_tok=2, moe_intermediate_size=44, moe_shared_expert_intermediate_size=52, moe_latent_size=36,
    ),
    "ministral3-small": small("ministral3", "Ministral3ForCausalLM", head_dim=24),
    "ministral3-defaults": small(
        "ministral3", "Ministral3ForCausalLM", vocab_size=DROP, num_attention_heads=DROP, num_key_value_heads=DROP,
        max_position_embeddings=DROP, tie_word_embeddings=True,
    ),
    "mistral3-ministral3": dict(
        architectures=["Mistral3ForConditionalGeneration"], model_type="mistral3", torch_dtype="bfloat16",
        text_config=text("ministral3", head_dim=24), vision_config=PIXTRAL, tie_word_embeddings=False,
    ),
    "glm4_moe_lite-small": small("glm4_moe_lite", "Glm4MoeLiteForCausalLM", **{**DEEPSEEK, "first_k_dense_replace": DROP}),
    "phimoe-small": small("phimoe", "PhimoeForCausalLM", num_local_experts=6, num_experts_per_tok=2, lm_head_bias=True),
    "phimoe-bias": small(
        "phimoe", "PhimoeForCausalLM", num_local_experts=6, num_experts_per_tok=2, attention_bias=True, sliding_window=64
    ),
    "olmoe-small": small("olmoe", "OlmoeForCausalLM", num_experts=6, num_experts_per_tok=2),
    "smollm3-small": small("smollm3", "SmolLM3ForCausalLM", num_hidden_layers=5, pad_token_id=0),
    "smollm3-untied": small(
        "smollm3", "SmolLM3ForCausalLM", attention_bias=True, tie_word_embeddings=False, pad_token_id=0
    ),
    "exaone4-small": small("exaone4", "Exaone4ForCausalLM", sliding_window=64, sliding_window_pattern=4, num_hidden_layers=9),
    "ernie4_5-small": small("ernie4_5", "Ernie4_5ForCausalLM", head_dim=24),
    "ernie4_5-bias": small("ernie4_5", "Ernie4_5ForCausalLM", use_bias=True, tie_word_embeddings=False),
    "ernie4_5_moe-small": small(
        "ernie4_5_moe", "Ernie4_5_MoeForCausalLM", moe_num_experts=6, moe_k=2, moe_intermediate_size=44,
        moe_num_shared_experts=2, moe_layer_start_index=1, num_hidden_layers=5,
    ),
    "ernie4_5_moe-interval": small(
        "ernie4_5_moe", "Ernie4_5_MoeForCausalLM", moe_num_experts=6, moe_k=2, moe_intermediate_size=44, use_bias=True,
        moe_num_shared_experts=0, moe_layer_start_index=1, moe_layer_interval=2, moe_layer_end_index=4, num_hidden_layers=6,
        tie_word_embeddings=False,
    ),
    "hunyuan_v1_dense-small": small("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", head_dim=24, pad_token_id=0),
    "hunyuan_v1_dense-bias": small(
        "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", head_dim=16, attention_bias=True, tie_word_embeddings=True, pad_token_id=0
    ),
    "hunyuan_v1_moe-small": small(
        "hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", head_dim=24, num_experts=6, moe_topk=2, pad_token_id=0
    ),
    "starcoder2-small": small("starcoder2", "Starcoder2ForCausalLM", sliding_window=64),
    "starcoder2-no-bias": small("starcoder2", "Starcoder2ForCausalLM", use_bias=False, tie_word_embeddings=False),
    "stablelm-small": small("stablelm", "StableLmForCausalLM"),
    "stablelm-qk-norm": small(
        "stablelm", "StableLmForCausalLM", use_qkv_bias=True, qk_layernorm=True, use_parallel_residual=True
    ),
    "seed_oss-small": small("seed_oss", "SeedOssForCausalLM", head_dim=24),
    "seed_oss-out-bias": small(
        "seed_oss", "SeedOssForCausalLM", attention_bias=False, attention_out_bias=True, mlp_bias=True,
        tie_word_embeddings=True,
    ),
    "kimi_linear-small": small(
        "kimi_linear", "KimiLinearForCausalLM", torch_dtype="float32", num_hidden_layers=8, **{k: v for k, v in DEEPSEEK.items() if k in (
            "num_key_value_heads", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim",
            "moe_intermediate_size", "n_shared_experts", "num_experts_per_tok")},
        num_local_experts=8, linear_head_dim=24, linear_num_heads=8, pad_token_id=0,
    ),
    # In 32 bits, since transformers widens routers, which published files and vLLM have in the model's type.
    "deepseek_v32-small": small(
        "deepseek_v32", "DeepseekV32ForCausalLM", torch_dtype="float32", **DEEPSEEK, index_head_dim=16, index_n_heads=4, index_topk=64
    ),
    "glm_moe_dsa-small": small(
        "glm_moe_dsa", "GlmMoeDsaForCausalLM", torch_dtype="float32", **{**DEEPSEEK, "num_hidden_layers": 7}, index_head_dim=16, index_n_heads=4,
        index_topk=64, attention_bias=True, index_topk_freq=3,
    ),
    "gemma4_unified-small": dict(
        architectures=["Gemma4UnifiedForConditionalGeneration"], model_type="gemma4_unified", torch_dtype="bfloat16",
        text_config=dict(
            model_type="gemma4_unified_text", vocab_size=1003, hidden_size=96, num_hidden_layers=7, intermediate_size=160,
            num_attention_heads=6, num_key_value_heads=2, head_dim=24, global_head_dim=48, num_global_key_value_heads=1,
            attention_k_eq_v=True, sliding_window=32, max_position_embeddings=512,
        ),
        vision_config=dict(
            model_type="gemma4_unified_vision", patch_size=4, pooling_kernel_size=3, mm_embed_dim=40, mm_posemb_size=24,
            output_proj_dims=40,
        ),
        audio_config=dict(model_type="gemma4_unified_audio", audio_embed_dim=64),
    ),
    # In 32 bits, since published files have the router in the model's type, and some parts in 32 bits whatever that is.
    "deepseek_v4-small": small(
        "deepseek_v4", "DeepseekV4ForCausalLM", torch_dtype="float32", num_hidden_layers=6, num_key_value_heads=1, head_dim=24,
        intermediate_size=DROP, moe_intermediate_size=44, q_lora_rank=56, qk_rope_head_dim=8, n_routed_experts=8,
        num_experts_per_tok=3, n_shared_experts=1, sliding_window=16, o_groups=3, o_lora_rank=20, index_n_heads=4, index_head_dim=16,
        index_topk=64, hc_mult=3, num_hash_layers=2, compress_ratios=[0, 0, 4, 128, 4, 0], num_nextn_predict_layers=0,
    ),
    # In 32 bits, since routers are kept so by some versions only.
    "kimi_k25-small": dict(
        architectures=["Kimi_K25ForConditionalGeneration"], model_type="kimi_k25", torch_dtype="float32",
        text_config=text("deepseek_v3", **DEEPSEEK, num_nextn_predict_layers=0), tie_word_embeddings=False,
        vision_config=dict(
            model_type="kimi_k25_vision", hidden_size=48, intermediate_size=84, num_hidden_layers=3, num_attention_heads=4,
            patch_size=14, pos_emb_height=8, pos_emb_width=8, pos_emb_time=4, merge_kernel_size=[2, 2],
        ),
        projection_hidden_size=48,
    ),
    "gemma3n_text-small": small(
        "gemma3n_text", "Gemma3nForCausalLM", num_attention_heads=4, head_dim=24, num_hidden_layers=10, sliding_window=64,
        num_kv_shared_layers=5, hidden_size_per_layer_input=12, vocab_size_per_layer_input=999, laurel_rank=8,
        intermediate_size=[160] * 5 + [320] * 5,
    ),
    "gemma3n-small": dict(
        architectures=["Gemma3nForConditionalGeneration"], model_type="gemma3n", torch_dtype="bfloat16",
        text_config=text(
            "gemma3n_text", num_attention_heads=4, head_dim=24, num_hidden_layers=10, sliding_window=64,
            num_kv_shared_layers=5, hidden_size_per_layer_input=12, vocab_size_per_layer_input=999, laurel_rank=8,
        ),
        vision_config=dict(model_type="gemma3n_vision", hidden_size=2048, vocab_size=128, vocab_offset=1000),
        audio_config=dict(
            model_type="gemma3n_audio", hidden_size=48, conf_num_hidden_layers=3, conf_num_attention_heads=4, vocab_size=128,
            vocab_offset=1001,
        ),
    ),
    "gemma4_text-small": small(
        "gemma4_text", "Gemma4ForCausalLM", head_dim=24, global_head_dim=32, num_hidden_layers=9, sliding_window=64,
        num_kv_shared_layers=3, hidden_size_per_layer_input=12, vocab_size_per_layer_input=999, use_double_wide_mlp=True,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 3,
    ),
    "gemma4_text-experts": small(
        "gemma4_text", "Gemma4ForCausalLM", head_dim=24, global_head_dim=32, num_global_key_value_heads=1,
        attention_k_eq_v=True, num_hidden_layers=7, hidden_size_per_layer_input=0, enable_moe_block=True, num_experts=6,
        top_k_experts=2, moe_intermediate_size=44, tie_word_embeddings=False,
    ),
    "gemma4-small": dict(
        architectures=["Gemma4ForConditionalGeneration"], model_type="gemma4", torch_dtype="bfloat16",
        text_config=text("gemma4_text", head_dim=24, global_head_dim=32, num_hidden_layers=6, hidden_size_per_layer_input=0),
        vision_config=dict(
            model_type="gemma4_vision", hidden_size=48, intermediate_size=84, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=4, head_dim=12, position_embedding_size=100, use_clipped_linears=True,
        ),
        audio_config=dict(
            model_type="gemma4_audio", hidden_size=48, num_hidden_layers=3, num_attention_heads=4, output_proj_dims=64,
        ),
    ),
    "lfm2-small": small(
        "lfm2", "Lfm2ForCausalLM", layer_types=["conv", "full_attention", "conv", "conv"], conv_L_cache=3, block_multiple_of=32,
    ),
    "lfm2-listed": small(
        "lfm2", "Lfm2ForCausalLM", full_attn_idxs=[2], block_ff_dim=200, block_multiple_of=32, block_ffn_dim_multiplier=1.3,
        conv_bias=True, tie_embedding=False,
    ),
    "lfm2-plain-width": small(
        "lfm2", "Lfm2ForCausalLM", layer_types=["conv", "conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False,
    ),
    "lfm2_moe-small": small(
        "lfm2_moe", "Lfm2MoeForCausalLM", layer_types=["conv", "full_attention", "conv", "full_attention"], num_experts=6,
        num_experts_per_tok=2, moe_intermediate_size=44, num_dense_layers=1,
    ),
    "lfm2_vl-small": dict(
        architectures=["Lfm2VlForConditionalGeneration"], model_type="lfm2_vl", torch_dtype="bfloat16",
        text_config=text("lfm2", layer_types=["conv", "full_attention", "conv", "conv"], block_multiple_of=32),
        vision_config=dict(
            model_type="siglip2_vision_model", hidden_size=48, intermediate_size=84, num_hidden_layers=3, num_attention_heads=4,
            num_patches=64, patch_size=16,
        ),
        projector_hidden_size=112,
    ),
    "minimax-small": small(
        "minimax", "MiniMaxForCausalLM", head_dim=24, num_local_experts=6, num_experts_per_tok=2,
        layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    ),
    "minimax-defaults": small("minimax", "MiniMaxForCausalLM", num_local_experts=6, num_experts_per_tok=2),
    "gptj-small": dict(
        architectures=["GPTJForCausalLM"], model_type="gptj", vocab_size=1003, n_embd=96, n_layer=4, n_head=6, n_positions=512,
        rotary_dim=8, torch_dtype="bfloat16", tie_word_embeddings=False,
    ),
    "mpt-small": dict(
        architectures=["MptForCausalLM"], model_type="mpt", vocab_size=1003, d_model=96, n_layers=4, n_heads=6,
        max_seq_len=512, torch_dtype="bfloat16",
    ),
    "zamba2-small": small(
        "zamba2", "Zamba2ForCausalLM", num_key_value_heads=6, num_hidden_layers=8, mamba_d_state=20, mamba_ngroups=2,
        n_mamba_heads=8, num_mem_blocks=2, adapter_rank=12, use_shared_attention_adapter=True, pad_token_id=0,
        layers_block_type=["mamba", "mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba", "hybrid"],
    ),
    "zamba2-one-block": small(
        "zamba2", "Zamba2ForCausalLM", num_key_value_heads=6, num_hidden_layers=8, mamba_d_state=20, n_mamba_heads=8,
        num_mem_blocks=1, adapter_rank=12, add_bias_linear=True, use_conv_bias=False, use_mem_rope=True, pad_token_id=0,
        layers_block_type=["mamba", "mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba", "hybrid"],
    ),
    "olmo-small": small("olmo", "OlmoForCausalLM", pad_token_id=0),
    "olmo-tied": small("olmo", "OlmoForCausalLM", attention_bias=True, tie_word_embeddings=True, pad_token_id=0),
    "mimo_v2_flash-small": small(
        "mimo_v2_flash", "MiMoV2FlashForCausalLM", num_attention_heads=8, num_hidden_layers=7, head_dim=24, v_head_dim=20, n_routed_experts=6,
        num_experts_per_tok=2, moe_intermediate_size=44, sliding_window=65,
    ),
    "mimo_v2_flash-swa-heads": small(
        "mimo_v2_flash", "MiMoV2FlashForCausalLM", num_attention_heads=8, num_hidden_layers=6, head_dim=24, v_head_dim=20,
        n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=44, sliding_window=65,
        swa_num_key_value_heads=4, swa_head_dim=24, swa_v_head_dim=20, swa_num_attention_heads=8,
    ),
    "internlm3-small": small("internlm3", "InternLM3ForCausalLM", head_dim=24),
    "internlm3-bias": small("internlm3", "InternLM3ForCausalLM", qkv_bias=True, bias=True, tie_word_embeddings=True),
    "dbrx-small": dict(
        architectures=["DbrxForCausalLM"], model_type="dbrx", vocab_size=1003, d_model=96, n_layers=4, n_heads=6,
        max_seq_len=512, attn_config=dict(kv_n_heads=2, clip_qkv=8, rope_theta=500000),
        ffn_config=dict(ffn_hidden_size=44, moe_num_experts=6, moe_top_k=2), torch_dtype="bfloat16",
    ),
    "dots1-small": small(
        "dots1", "Dots1ForCausalLM", head_dim=24, n_routed_experts=6, n_shared_experts=2, num_experts_per_tok=2,
        moe_intermediate_size=44, first_k_dense_replace=1, sliding_window=64, max_window_layers=3,
    ),
    "nemotron-small": small("nemotron", "NemotronForCausalLM", head_dim=24),
    "nemotron-bias": small("nemotron", "NemotronForCausalLM", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "exaone_moe-small": small(
        "exaone_moe", "ExaoneMoeForCausalLM", head_dim=24, num_hidden_layers=6, num_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=44, sliding_window=64, sliding_window_pattern=3,
    ),
    "solar_open-small": small(
        "solar_open", "SolarOpenForCausalLM", head_dim=24, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=44,
        intermediate_size=DROP,
    ),
    "whisper-small": dict(
        architectures=["WhisperForConditionalGeneration"], model_type="whisper", vocab_size=1003, d_model=96, encoder_layers=3,
        decoder_layers=4, encoder_attention_heads=6, decoder_attention_heads=4, encoder_ffn_dim=160, decoder_ffn_dim=168,
        max_source_positions=64, max_target_positions=48, num_mel_bins=80, torch_dtype="float16", pad_token_id=0,
    ),
    "t5-small": dict(
        architectures=["T5ForConditionalGeneration"], model_type="t5", vocab_size=1003, d_model=96, d_kv=24, d_ff=160,
        num_layers=3, num_decoder_layers=4, num_heads=6, torch_dtype="bfloat16", n_positions=512,
    ),
    "t5-gated": dict(
        architectures=["T5ForConditionalGeneration"], model_type="t5", vocab_size=1003, d_model=96, d_kv=24, d_ff=160,
        num_layers=3, num_heads=6, feed_forward_proj="gated-gelu", torch_dtype="bfloat16",
    ),
    "bart-small": dict(
        architectures=["BartForConditionalGeneration"], model_type="bart", vocab_size=1003, d_model=96, encoder_layers=3,
        decoder_layers=4, encoder_attention_heads=6, decoder_attention_heads=4, encoder_ffn_dim=160, decoder_ffn_dim=168,
        max_position_embeddings=64, torch_dtype="float32", pad_token_id=0,
    ),
    "mllama-small": dict(
        architectures=["MllamaForConditionalGeneration"], model_type="mllama", torch_dtype="bfloat16",
        text_config=text("mllama_text_model", num_hidden_layers=5, cross_attention_layers=[1, 3], pad_token_id=0),
        vision_config=dict(
            model_type="mllama_vision_model", hidden_size=48, intermediate_size=84, num_hidden_layers=4, num_global_layers=2,
            attention_heads=4, image_size=56, patch_size=14, intermediate_layers_indices=[1, 2], vision_output_dim=144,
        ),
    ),
    "internvl-small": dict(
        architectures=["InternVLForConditionalGeneration"], model_type="internvl", torch_dtype="bfloat16",
        text_config=text("qwen2", use_sliding_window=False), tie_word_embeddings=False,
        vision_config=dict(
            model_type="internvl_vision", hidden_size=48, intermediate_size=84, num_hidden_layers=3, num_attention_heads=4,
            image_size=[56, 56], patch_size=[14, 14], attention_bias=True,
        ),
    ),
    "internvl-qk-norm": dict(
        architectures=["InternVLForConditionalGeneration"], model_type="internvl", torch_dtype="bfloat16",
        text_config=text("qwen3", head_dim=24), tie_word_embeddings=False,
        vision_config=dict(
            model_type="internvl_vision", hidden_size=48, intermediate_size=84, num_hidden_layers=3, num_attention_heads=4,
            image_size=[56, 56], patch_size=[14, 14], use_qk_norm=True, norm_type="rms_norm", use_mean_pooling=False,
        ),
    ),
    "cohere2_vision-small": dict(
        architectures=["Cohere2VisionForConditionalGeneration"], model_type="cohere2_vision", torch_dtype="bfloat16",
        text_config=text("cohere2", head_dim=24, sliding_window=64, pad_token_id=0), vision_config=SIGLIP,
        alignment_intermediate_size=128, downsample_factor=2,
    ),
    "aya_vision-small": dict(
        architectures=["AyaVisionForConditionalGeneration"], model_type="aya_vision", torch_dtype="bfloat16",
        text_config=text("cohere2", head_dim=24, sliding_window=64, pad_token_id=0),
        vision_config={**SIGLIP, "vision_use_head": False}, downsample_factor=2, alignment_intermediate_size=128,
    ),
    "llava_next-small": dict(
        architectures=["LlavaNextForConditionalGeneration"], model_type="llava_next", torch_dtype="bfloat16",
        text_config=text("mistral"), vision_config=CLIP,
    ),
    "llava_onevision-small": dict(
        architectures=["LlavaOnevisionForConditionalGeneration"], model_type="llava_onevision", torch_dtype="bfloat16",
        text_config=text("qwen2"), vision_config={**SIGLIP, "vision_use_head": False},
    ),
    "idefics3-small": dict(
        architectures=["Idefics3ForConditionalGeneration"], model_type="idefics3", torch_dtype="bfloat16",
        text_config=text("llama", pad_token_id=0),
        vision_config=dict(
            model_type="idefics3_vision", hidden_size=48, intermediate_size=84, num_hidden_layers=3, num_attention_heads=4,
            image_size=56, patch_size=14,
        ),
        scale_factor=2, pad_token_id=0,
    ),
    "smolvlm-small": dict(
        architectures=["SmolVLMForConditionalGeneration"], model_type="smolvlm", torch_dtype="bfloat16",
        text_config=text("llama", tie_word_embeddings=True, pad_token_id=0), tie_word_embeddings=True,
        vision_config=dict(
            model_type="smolvlm_vision", hidden_size=48, intermediate_size=84, num_hidden_layers=3, num_attention_heads=4,
            image_size=56, patch_size=14,
        ),
        scale_factor=2, pad_token_id=0,
    ),
    "qwen2_audio-small": dict(
        architectures=["Qwen2AudioForConditionalGeneration"], model_type="qwen2_audio", torch_dtype="bfloat16",
        text_config=text("qwen2"),
        audio_config=dict(
            model_type="qwen2_audio_encoder", d_model=48, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=84,
            num_mel_bins=80, max_source_positions=64,
        ),
    ),
    "voxtral-small": dict(
        architectures=["VoxtralForConditionalGeneration"], model_type="voxtral", torch_dtype="bfloat16",
        text_config=text("llama", head_dim=24), hidden_size=96,
        audio_config=dict(
            model_type="voxtral_encoder", hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192,
            num_mel_bins=80, max_source_positions=64,
        ),
    ),
    "glm4v-small": dict(
        architectures=["Glm4vForConditionalGeneration"], model_type="glm4v", torch_dtype="bfloat16",
        text_config=text("glm4v_text", tie_word_embeddings=False, pad_token_id=0), tie_word_embeddings=False,
        vision_config=dict(
            model_type="glm4v_vision", depth=3, hidden_size=48, intermediate_size=84, num_heads=4, image_size=56, patch_size=14,
            out_hidden_size=96,
        ),
    ),
    "glm4v_moe-small": dict(
        architectures=["Glm4vMoeForConditionalGeneration"], model_type="glm4v_moe", torch_dtype="bfloat16",
        text_config=text(
            "glm4v_moe_text", head_dim=24, n_routed_experts=6, n_shared_experts=1, num_experts_per_tok=2,
            moe_intermediate_size=44, first_k_dense_replace=1, tie_word_embeddings=False, pad_token_id=0,
        ),
        tie_word_embeddings=False,
        vision_config=dict(
            model_type="glm4v_moe_vision", depth=3, hidden_size=48, intermediate_size=84, num_heads=4, image_size=56,
            patch_size=14, out_hidden_size=96,
        ),
    ),
    "paligemma-small": dict(
        architectures=["PaliGemmaForConditionalGeneration"], model_type="paligemma", torch_dtype="bfloat16",
        text_config=text("gemma2", head_dim=24, sliding_window=64),
        vision_config={**SIGLIP, "projection_dim": 96, "vision_use_head": False},
    ),
    "bailing_hybrid-small": small(
        "bailing_hybrid", "BailingHybridForCausalLM", num_hidden_layers=7, layer_group_size=3,
        **{k: v for k, v in DEEPSEEK.items() if k in (
            "num_key_value_heads", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim",
            "moe_intermediate_size", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group")},
        num_local_experts=8, head_dim=24, pad_token_id=0, torch_dtype="float32",
    ),
    "mistral4-small": small(
        "mistral4", "Mistral4ForCausalLM", **DEEPSEEK,
    ),
    "qwen2_5_omni-small": dict(
        architectures=["Qwen2_5OmniThinkerForConditionalGeneration"], model_type="qwen2_5_omni_thinker", torch_dtype="bfloat16",
        text_config=text("qwen2_5_omni_text", pad_token_id=0),
        vision_config=dict(
            model_type="qwen2_5_omni_vision_encoder", depth=3, hidden_size=48, intermediate_size=84, num_heads=4, out_hidden_size=96,
        ),
        audio_config=dict(
            model_type="qwen2_5_omni_audio_encoder", d_model=48, encoder_layers=3, encoder_attention_heads=4,
            encoder_ffn_dim=84, output_dim=96, num_mel_bins=80, max_source_positions=64,
        ),
    ),
    "phi4_multimodal-small": small(
        "phi4_multimodal", "Phi4MultimodalForCausalLM", pad_token_id=0,
        vision_config=dict(
            model_type="phi4_multimodal_vision", hidden_size=48, intermediate_size=84, num_hidden_layers=3, num_attention_heads=4,
            image_size=56, crop_size=56, patch_size=14,
        ),
        audio_config=dict(
            model_type="phi4_multimodal_audio", hidden_size=40, intermediate_size=60, num_blocks=3, num_attention_heads=4,
            ext_pw_out_channel=36, depthwise_separable_out_channel=44, kernel_size=5, input_size=50, time_reduction=4,
            bias_max_distance=20, nemo_conv_channels=28, downsample_rate=2,
        ),
    ),
    "qwen3_omni_moe-small": dict(
        architectures=["Qwen3OmniMoeThinkerForConditionalGeneration"], model_type="qwen3_omni_moe_thinker", torch_dtype="bfloat16",
        text_config=text(
            "qwen3_omni_moe_text", head_dim=24, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=44, pad_token_id=0,
        ),
        vision_config=dict(
            model_type="qwen3_omni_moe_vision_encoder", depth=3, hidden_size=48, intermediate_size=84, num_heads=4,
            out_hidden_size=96, num_position_embeddings=64, deepstack_visual_indexes=[0, 1],
        ),
        audio_config=dict(
            model_type="qwen3_omni_moe_audio_encoder", d_model=48, encoder_layers=3, encoder_attention_heads=4,
            encoder_ffn_dim=84, output_dim=96, downsample_hidden_size=24, num_mel_bins=80, max_source_positions=64,
        ),
    ),
    "step3p7-small": dict(
        architectures=["Step3p7ForConditionalGeneration"], model_type="step3p7", torch_dtype="bfloat16",
        text_config=text(
            "step3p5", head_dim=24, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=44, share_expert_dim=52,
            sliding_window=64, layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            mlp_layer_types=["dense", "sparse", "sparse", "sparse"], num_sliding_attention_heads=8, pad_token_id=0,
        ),
        vision_config=dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14),
    ),
}


def model_of(config):
    """The model on the meta device, and its transformers config."""
    fields = copy.deepcopy(config)
    fields.pop("quantization_config", None)  # the layouts of quantised checkpoints are tested apart
    model_type = fields.pop("model_type")
    dtype = getattr(torch, fields.get("torch_dtype") or fields.get("dtype") or "bfloat16")
    hf = AutoConfig.for_model(model_type, **fields)
    # A published class that transformers reads with another's code has no name there.
    cls = getattr(transformers, config["architectures"][0], None) or AutoModelForCausalLM._model_mapping[type(hf)]
    with torch.device("meta"):
        return cls._from_config(hf, dtype=dtype)


def checkpoint(model):
    """Names, shapes and types as `save_pretrained` writes them."""
    state = model.state_dict()
    for key in model._keys_to_ignore_on_save or []:
        state.pop(key, None)
    # On the meta device tensors have no address to find tied ones by: the declared ties are dropped.
    for tied in model.all_tied_weights_keys:
        state.pop(tied, None)
    state = remove_tied_weights_from_state_dict(state, model)
    # A model that was not loaded would be written without the prefixes that published checkpoints
    # have (`vision_model.`); handing it the mapping makes it look loaded, and keeps them.
    model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False) or None
    return {published(model, n): t for n, t in revert_weight_conversion(model, state).items()}


# Where transformers' reverse conversion is not the inverse of what it reads: published names, of its own mapping's
# source side, in place of those that it writes.
PUBLISHED = {
    **{kind: [
        (r"^thinker\.model\.thinker\.language_model\.", "thinker.model."),
        (r"^thinker\.model\.thinker\.", "thinker."),
    ] for kind in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")},
    # Also as vLLM reads them (0.32, `models/deepseek_v4/nvidia/model.py`, `_make_deepseek_v4_weights_mapper`).
    "deepseek_v4": [
        (r"^model\.embed_tokens\.", "embed."),
        (r"^model\.hc_head\.hc_", "hc_head_"),
        (r"\.attn\.norm\.", ".attn.kv_norm."),
        (r"^model\.", ""),
    ],
    "kimi_k25": [
        (r"^language_model\.model\.blocks\.", "language_model.model.layers."),
        (r"^model\.mm_projector\.", "mm_projector."),
        (r"^vision_tower\.encoder\.patch_embed\.", "vision_tower.patch_embed."),
    ],
}


def published(model, name):
    for pattern, name_there in PUBLISHED.get(model.config.model_type, ()):
        name = re.sub(pattern, name_there, name)
    return name


ATTENTION = ("self_attn", "SelfAttention", "attention", "attn", "self_attention", "norm_attn_norm")
STATE = ("mamba", "linear_attn", "conv")


def layer_facts(model):
    """What each decoder layer remembers: a window, 0 for everything, "chunk", "state", "both" or "none"."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or []
    stacks = [
        m for n, m in model.named_modules()
        if re.search(r"(^|\.)(layers|h|blocks|block)$", n) and not re.search(r"vision|visual|audio|encoder\.", n)
    ]
    facts = []
    for i, layer in enumerate(stacks[0]):
        if hasattr(layer, "layer"):  # T5: attention, to the encoder too, and feed-forward in a list
            layer = layer.layer[0]
        if getattr(layer, "shared_transformer", None) is not None:
            facts.append("both")
            continue
        attention = next((m for n in ATTENTION if (m := getattr(layer, n, None)) is not None), None)
        mixer = getattr(layer, "mixer", None)
        if attention is None and hasattr(mixer, "k_proj"):
            attention = mixer
        if any(hasattr(attention, n) for n in ("slope_rate", "conv1d")):
            facts.append("state")  # linear attention under attention's name
            continue
        if any(getattr(layer, n, None) is not None for n in STATE) or hasattr(mixer, "A_log"):
            facts.append("state" if attention is None else "both")
            continue
        if attention is None:
            facts.append("none")
            continue
        kind = kinds[i] if i < len(kinds) else None
        if kind in ("full_attention", "chunked_attention"):
            # The mask of a layer follows its type, whatever its module keeps.
            facts.append(0 if kind == "full_attention" else "chunk")
            continue
        if hasattr(attention, "sliding_window"):
            window = attention.sliding_window
        elif "self.sliding_window" in inspect.getsource(type(attention)):
            window = None  # the class has windows, but not in this layer
        else:
            # The mask of all layers follows the config, where the model's code has windows at all.
            source = inspect.getsource(sys.modules[type(attention).__module__])
            window = config.sliding_window if "create_sliding_window_causal_mask" in source else None
        facts.append(window or 0)
    return facts


def state_facts(model):
    """[taps, channels of the convolution, heads, rows, columns] of every layer that keeps a state, else null."""
    stacks = [
        m for n, m in model.named_modules()
        if re.search(r"(^|\.)(layers|h|blocks|block)$", n) and not re.search(r"vision|visual|audio|encoder\.", n)
    ]
    facts = []
    for layer in stacks[0]:
        inner = getattr(layer, "mamba_decoder", layer)  # a state behind shared attention
        mixers = [getattr(inner, n, None) for n in ("mamba", "linear_attn", "mixer", "self_attn", "conv")]
        mixer = next((m for m in mixers if any(hasattr(m, n) for n in ("conv1d", "slope_rate", "conv"))), None)
        if mixer is None:
            facts.append(None)
            continue
        if hasattr(mixer, "slope_rate"):  # linear attention with a fixed decay
            facts.append([0, 0, mixer.num_attention_heads, mixer.head_dim, mixer.head_dim])
            continue
        if not hasattr(mixer, "conv1d"):  # a short convolution
            facts.append([mixer.conv.weight.shape[2], mixer.conv.weight.shape[0], 0, 0, 0])
            continue
        channels, _, taps = mixer.conv1d.weight.shape
        if hasattr(mixer, "head_v_dim"):  # gated delta rule
            state = [mixer.num_v_heads, mixer.head_v_dim, mixer.head_k_dim]
        elif hasattr(mixer, "x_proj"):  # the first selective form: each channel by itself
            state = [mixer.intermediate_size, 1, mixer.ssm_state_size]
        elif hasattr(mixer, "ssm_state_size"):
            state = [mixer.num_heads, mixer.head_dim, mixer.ssm_state_size]
        else:  # Kimi's delta rule: keys and values of one size
            state = [mixer.num_heads, mixer.head_dim, mixer.head_dim]
        facts.append([taps, channels, *state])
    return facts


def cross_facts(model):
    """[KV heads, head size] of every decoder layer that reads an encoder's output, else null."""
    stacks = [
        m for n, m in model.named_modules()
        if re.search(r"(^|\.)(layers|h|blocks|block)$", n) and not re.search(r"vision|visual|audio|encoder\.", n)
    ]
    facts = []
    for layer in stacks[0]:
        if hasattr(layer, "layer"):
            layer = layer.layer[1]
        found = [getattr(layer, n, None) for n in ("encoder_attn", "EncDecAttention", "cross_attn")]
        cross = next((m for m in found if m is not None), None)
        if cross is None:
            facts.append(None)
            continue
        heads = next(n for k in ("num_key_value_heads", "num_heads", "n_heads") if (n := getattr(cross, k, None)))
        size = getattr(cross, "head_dim", None) or cross.key_value_proj_dim
        facts.append([heads, size])
    return facts


NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def ranges(numbers):
    numbers, parts = sorted(numbers), []
    for _, run in itertools.groupby(enumerate(numbers), lambda p: p[1] - p[0]):
        run = [n for _, n in run]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(parts)


def compress(state):
    """[name, shape, dtype, layers, experts], one line for what repeats over layers and experts."""
    groups = {}
    for name, tensor in state.items():
        numbers = tuple(int(n) for n in NUMBER.findall(name))[:2]
        pattern = iter(["{l}", "{e}"])
        key = NUMBER.sub(lambda m: next(pattern, m.group()), name)
        dtype = str(tensor.dtype).removeprefix("torch.")
        groups.setdefault((key, tuple(tensor.shape), dtype), []).append(numbers)
    rows = []
    for (name, shape, dtype), found in groups.items():
        if len(found) != len({n[:1] for n in found}) * len({n[1:] for n in found}):
            # Stages of unlike lengths (a convolutional tower): one row for each.
            for stage, run in itertools.groupby(sorted(found), lambda n: n[0]):
                row = name.replace("{l}", str(stage), 1).replace("{e}", "{l}", 1)
                rows.append([row, list(shape), dtype, ranges(n[1] for n in run)])
            continue
        axes = [sorted({n[i] for n in found}) for i in range(len(found[0]))]
        product = 1
        for axis in axes:
            product *= len(axis)
        assert product == len(found) == len(set(found)), f"{name}: not every expert in every layer"
        rows.append([name, list(shape), dtype, *[ranges(a) for a in axes]])
    return rows


NOISE = {
    "_name_or_path", "transformers_version", "id2label", "label2id", "return_dict", "output_hidden_states", "problem_type",
    "is_encoder_decoder", "chunk_size_feed_forward", "use_cache", "initializer_range", "output_attentions",
}


def denoise(value):
    if isinstance(value, dict):
        return {k: denoise(v) for k, v in value.items() if k not in NOISE}
    return value


def saved(model):
    """The config as `save_pretrained` writes it."""
    config = model.config
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__]
    return denoise(json.loads(config.to_json_string(use_diff=True)))


def write(path, source, config):
    model = model_of(config)
    body = {"transformers": transformers.__version__, "source": source, "config": config}
    rewritten = saved(model)
    if rewritten != config:
        body["saved_config"] = rewritten
    body["layers"] = layer_facts(model)
    states = state_facts(model)
    if any(states):
        body["states"] = states
    crossed = cross_facts(model)
    if any(crossed):
        body["cross"] = crossed
    lines = ["  " + json.dumps(k) + ": " + json.dumps(v) for k, v in body.items()]
    rows = ",\n".join("    " + json.dumps(row) for row in compress(checkpoint(model)))
    lines.append('  "tensors": [\n' + rows + "\n  ]")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("names", nargs="*", help="cases or catalogue names; all without")
    ap.add_argument("--out", type=Path, default=ROOT / "crates/model/tests/golden/shapes")
    ap.add_argument("--catalogue", type=Path, default=ROOT / "crates/model/data/catalogue.jsonl")
    a = ap.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    jobs = [(n, "made for this test", c) for n, c in CASES.items()]
    for line in a.catalogue.read_text().splitlines():
        entry = json.loads(line)
        if not entry["config"].get("model_type"):
            continue
        jobs.append((f"{entry['config']['model_type']}-{entry['name']}", f"catalogue: {entry['name']}", entry["config"]))
    failed = []
    jobs = [job for job in jobs if not a.names or job[0] in a.names]
    for name, source, config in jobs:
        try:
            write(a.out / f"{name}.json", source, config)
        except Exception as e:  # a config that transformers itself refuses is named, not skipped
            failed.append(name)
            print(f"{name}: {type(e).__name__}: {str(e)[:300]}", file=sys.stderr)
    print(f"{len(jobs) - len(failed)} written, {len(failed)} refused by transformers: {failed}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

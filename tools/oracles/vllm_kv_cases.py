"""Cases for the vLLM KV cache oracle: public config.json shapes and engine flags.

Each config holds the fields of the published config.json that vLLM's model code reads (facts;
weight quantisation left out, since it does not touch the KV cache). `variant` makes a case that no
published model has, to catch a planner that knows models by heart: 41 layers instead of 40, an odd
window, an uneven layer mix.
"""

import copy

GIB = 1 << 30
COMMON = dict(torch_dtype="bfloat16", bos_token_id=1, eos_token_id=2)


def llama(layers, heads, kv_heads, hidden, inter, vocab=128256, length=131072, **more):
    return dict(
        COMMON, architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=hidden,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=inter, vocab_size=vocab, max_position_embeddings=length,
        tie_word_embeddings=False, rms_norm_eps=1e-5, hidden_act="silu", **more,
    )


LLAMA_1B = llama(16, 32, 8, 2048, 8192, head_dim=64)
LLAMA_8B = llama(32, 32, 8, 4096, 14336)
LLAMA_13B = llama(40, 40, 40, 5120, 13824, vocab=32000, length=4096)
LLAMA_70B = llama(80, 64, 8, 8192, 28672)
MQA = llama(24, 16, 1, 2048, 8192, vocab=49152, length=8192)

OPT_6B = dict(
    COMMON, architectures=["OPTForCausalLM"], model_type="opt", hidden_size=4096,
    num_hidden_layers=32, num_attention_heads=32, ffn_dim=16384, vocab_size=50272,
    word_embed_proj_dim=4096, max_position_embeddings=2048, torch_dtype="float16",
    activation_function="relu", do_layer_norm_before=True, tie_word_embeddings=True,
)
GPT2 = dict(
    COMMON, architectures=["GPT2LMHeadModel"], model_type="gpt2", vocab_size=50257, n_embd=768,
    n_layer=12, n_head=12, n_positions=1024, n_ctx=1024, layer_norm_epsilon=1e-5,
    activation_function="gelu_new", bos_token_id=50256, eos_token_id=50256,
)
PHI2 = dict(
    COMMON, architectures=["PhiForCausalLM"], model_type="phi", hidden_size=2560,
    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, intermediate_size=10240,
    vocab_size=51200, max_position_embeddings=2048, partial_rotary_factor=0.4, hidden_act="gelu_new",
    layer_norm_eps=1e-5, torch_dtype="float16", rope_theta=10000.0,
)
QWEN2_7B = dict(
    COMMON, architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=3584,
    num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, intermediate_size=18944,
    vocab_size=152064, max_position_embeddings=32768, rms_norm_eps=1e-6, hidden_act="silu",
    use_sliding_window=False, sliding_window=131072, max_window_layers=28,
    tie_word_embeddings=False,
)
QWEN3_8B = dict(
    COMMON, architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=4096,
    num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    intermediate_size=12288, vocab_size=151936, max_position_embeddings=40960, rms_norm_eps=1e-6,
    hidden_act="silu", tie_word_embeddings=False,
)
QWEN3_MOE = dict(
    COMMON, architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", hidden_size=2048,
    num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
    intermediate_size=6144, vocab_size=151936, max_position_embeddings=40960, rms_norm_eps=1e-6,
    hidden_act="silu", num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
    decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True, tie_word_embeddings=False,
)
MISTRAL_7B_V01 = dict(
    COMMON, architectures=["MistralForCausalLM"], model_type="mistral", hidden_size=4096,
    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336,
    vocab_size=32000, max_position_embeddings=32768, sliding_window=4096, rms_norm_eps=1e-5,
    hidden_act="silu", tie_word_embeddings=False,
)


def deepseek(architecture, model_type, layers, heads, hidden, inter, experts, q_rank, **more):
    base = dict(
        COMMON, architectures=[architecture], model_type=model_type, hidden_size=hidden,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=inter, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128,
        v_head_dim=128, q_lora_rank=q_rank, n_routed_experts=experts, num_experts_per_tok=6,
        moe_intermediate_size=1408, n_shared_experts=2, first_k_dense_replace=1, moe_layer_freq=1,
        n_group=1, topk_group=1, topk_method="greedy", norm_topk_prob=False, hidden_act="silu",
        routed_scaling_factor=1.0, scoring_func="softmax", vocab_size=102400,
        max_position_embeddings=163840, rms_norm_eps=1e-6, tie_word_embeddings=False,
    )
    base.update(more)
    return base


DS_V2_LITE = deepseek("DeepseekV2ForCausalLM", "deepseek_v2", 27, 16, 2048, 10944, 64, None)
DS_V3 = deepseek(
    "DeepseekV3ForCausalLM", "deepseek_v3", 61, 128, 7168, 18432, 256, 1536,
    num_experts_per_tok=8, moe_intermediate_size=2048, n_shared_experts=1, first_k_dense_replace=3,
    n_group=8, topk_group=4, topk_method="noaux_tc", norm_topk_prob=True, vocab_size=129280,
    scoring_func="sigmoid", routed_scaling_factor=2.5,
)
DS_V32 = dict(
    copy.deepcopy(DS_V3), architectures=["DeepseekV32ForCausalLM"], model_type="deepseek_v32",
    index_head_dim=128, index_n_heads=64, index_topk=2048,
)
GEMMA2_2B = dict(
    COMMON, architectures=["Gemma2ForCausalLM"], model_type="gemma2", hidden_size=2304,
    num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
    intermediate_size=9216, vocab_size=256000, max_position_embeddings=8192, sliding_window=4096,
    query_pre_attn_scalar=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
    hidden_activation="gelu_pytorch_tanh", hidden_act="gelu_pytorch_tanh", rms_norm_eps=1e-6,
    tie_word_embeddings=True,
)
GEMMA2_9B = dict(
    GEMMA2_2B, hidden_size=3584, num_hidden_layers=42, num_attention_heads=16,
    num_key_value_heads=8, intermediate_size=14336,
)


def gemma3(layers, heads, kv_heads, head_dim, hidden, inter, window=1024, length=131072, pattern=6):
    return dict(
        COMMON, architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", hidden_size=hidden,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=head_dim, intermediate_size=inter, vocab_size=262144, sliding_window=window,
        max_position_embeddings=length, query_pre_attn_scalar=head_dim, rms_norm_eps=1e-6,
        hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True, rope_theta=1000000.0,
        rope_local_base_freq=10000.0,
        layer_types=["full_attention" if (i + 1) % pattern == 0 else "sliding_attention"
                     for i in range(layers)],
    )


GEMMA3_1B = gemma3(26, 4, 1, 256, 1152, 6912, window=512, length=32768)
GEMMA3_4B = gemma3(34, 8, 4, 256, 2560, 10240)
GEMMA3_12B = gemma3(48, 16, 8, 256, 3840, 15360)
GEMMA3_27B = gemma3(62, 32, 16, 128, 5376, 21504)


def gpt_oss(layers, experts):
    return dict(
        COMMON, architectures=["GptOssForCausalLM"], model_type="gpt_oss", hidden_size=2880,
        num_hidden_layers=layers, num_attention_heads=64, num_key_value_heads=8, head_dim=64,
        intermediate_size=2880, vocab_size=201088, max_position_embeddings=131072,
        sliding_window=128, num_local_experts=experts, num_experts_per_tok=4,
        experts_per_token=4, rms_norm_eps=1e-5, hidden_act="silu", swiglu_limit=7.0,
        tie_word_embeddings=False, attention_bias=True, rope_theta=150000,
        layer_types=["sliding_attention" if i % 2 == 0 else "full_attention"
                     for i in range(layers)],
        # The published checkpoints are MXFP4; vLLM's model code for them expects it.
        quantization_config=dict(
            quant_method="mxfp4",
            modules_to_not_convert=["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                    "model.embed_tokens", "lm_head"],
        ),
    )


QWEN3_NEXT = dict(
    COMMON, architectures=["Qwen3NextForCausalLM"], model_type="qwen3_next", hidden_size=2048,
    num_hidden_layers=48, num_attention_heads=16, num_key_value_heads=2, head_dim=256,
    intermediate_size=5120, vocab_size=151936, max_position_embeddings=262144, rms_norm_eps=1e-6,
    hidden_act="silu", num_experts=512, num_experts_per_tok=10, moe_intermediate_size=512,
    shared_expert_intermediate_size=512, decoder_sparse_step=1, mlp_only_layers=[],
    norm_topk_prob=True, linear_conv_kernel_dim=4, linear_key_head_dim=128,
    linear_num_key_heads=16, linear_num_value_heads=32, linear_value_head_dim=128,
    full_attention_interval=4, partial_rotary_factor=0.25, rope_theta=10000000,
    tie_word_embeddings=False,
)


def qwen35(layers, heads, kv_heads, hidden, inter, v_heads):
    return dict(
        architectures=["Qwen3_5ForConditionalGeneration"], model_type="qwen3_5",
        tie_word_embeddings=False, dtype="bfloat16", image_token_id=248056,
        video_token_id=248057, vision_start_token_id=248053, vision_end_token_id=248054,
        text_config=dict(
            model_type="qwen3_5_text", hidden_size=hidden, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=256,
            intermediate_size=inter, vocab_size=248320, max_position_embeddings=262144,
            tie_word_embeddings=False, linear_conv_kernel_dim=4, linear_key_head_dim=128,
            linear_num_key_heads=16, linear_num_value_heads=v_heads, linear_value_head_dim=128,
            full_attention_interval=4, mamba_ssm_dtype="float32", dtype="bfloat16",
            partial_rotary_factor=0.25, rms_norm_eps=1e-6, hidden_act="silu",
            attn_output_gate=True,
            layer_types=["full_attention" if (i + 1) % 4 == 0 else "linear_attention"
                         for i in range(layers)],
            rope_parameters=dict(rope_type="default", rope_theta=10000000, mrope_interleaved=True,
                                 mrope_section=[11, 11, 10], partial_rotary_factor=0.25),
        ),
        vision_config=dict(
            model_type="qwen3_5", hidden_size=1152, depth=27, intermediate_size=4304,
            patch_size=16, out_hidden_size=hidden, num_heads=16, in_channels=3,
            spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=2304,
            deepstack_visual_indexes=[], hidden_act="gelu_pytorch_tanh",
        ),
    )


QWEN35_27B = qwen35(64, 24, 4, 5120, 17408, 48)

LLAMA4_SCOUT = dict(
    architectures=["Llama4ForCausalLM"], model_type="llama4_text", hidden_size=5120,
    num_hidden_layers=48, num_attention_heads=40, num_key_value_heads=8, head_dim=128,
    intermediate_size=8192, intermediate_size_mlp=16384, num_local_experts=16,
    num_experts_per_tok=1, interleave_moe_layer_step=1, vocab_size=202048,
    max_position_embeddings=10485760, attention_chunk_size=8192, rms_norm_eps=1e-5,
    hidden_act="silu", use_qk_norm=True, attn_temperature_tuning=True, floor_scale=8192,
    attn_scale=0.1, no_rope_layers=[0 if (i + 1) % 4 == 0 else 1 for i in range(48)],
    torch_dtype="bfloat16", rope_theta=500000.0, tie_word_embeddings=False,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
    rope_scaling=dict(factor=16.0, high_freq_factor=1.0, low_freq_factor=1.0,
                      original_max_position_embeddings=8192, rope_type="llama3"),
    moe_layers=list(range(48)), router_aux_loss_coef=0.001, router_jitter_noise=0.0,
)
GRANITE4_TINY = dict(
    COMMON, architectures=["GraniteMoeHybridForCausalLM"], model_type="granitemoehybrid",
    hidden_size=1536, num_hidden_layers=40, num_attention_heads=12, num_key_value_heads=4,
    intermediate_size=512, shared_intermediate_size=1024, num_local_experts=64,
    num_experts_per_tok=6, vocab_size=100352, max_position_embeddings=131072, rms_norm_eps=1e-5,
    hidden_act="silu", mamba_chunk_size=256, mamba_conv_bias=True, mamba_d_conv=4,
    mamba_d_head=64, mamba_d_state=128, mamba_expand=2, mamba_n_groups=1, mamba_n_heads=48,
    mamba_proj_bias=False, position_embedding_type="nope", attention_bias=False,
    attention_multiplier=0.0078125, embedding_multiplier=12, logits_scaling=6,
    residual_multiplier=0.22, normalization_function="rmsnorm", tie_word_embeddings=True,
    layer_types=["attention" if i in (5, 15, 25, 35) else "mamba" for i in range(40)],
)
BAMBA_9B = dict(
    COMMON, architectures=["BambaForCausalLM"], model_type="bamba", hidden_size=4096,
    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336,
    vocab_size=128256, max_position_embeddings=262144, rms_norm_eps=1e-5, hidden_act="silu",
    attn_layer_indices=[9, 18, 27], attn_rotary_emb=64, mamba_chunk_size=256, mamba_conv_bias=True,
    mamba_d_conv=4, mamba_d_head=64, mamba_d_state=128, mamba_expand=2, mamba_n_groups=1,
    mamba_n_heads=128, mamba_proj_bias=False, attention_dropout=0.0, tie_word_embeddings=False,
    partial_rotary_factor=0.5,
)
JAMBA_MINI = dict(
    COMMON, architectures=["JambaForCausalLM"], model_type="jamba", hidden_size=4096,
    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336,
    vocab_size=65536, max_position_embeddings=262144, rms_norm_eps=1e-6, hidden_act="silu",
    attn_layer_offset=4, attn_layer_period=8, expert_layer_offset=1, expert_layer_period=2,
    num_experts=16, num_experts_per_tok=2, mamba_conv_bias=True, mamba_d_conv=4, mamba_d_state=16,
    mamba_dt_rank=256, mamba_expand=2, mamba_proj_bias=False, use_mamba_kernels=True,
    tie_word_embeddings=False, pad_token_id=0,
)
NEMOTRON_H = dict(
    COMMON, architectures=["NemotronHForCausalLM"], model_type="nemotron_h", hidden_size=4480,
    num_hidden_layers=56, num_attention_heads=40, num_key_value_heads=8, head_dim=128,
    attention_head_dim=128, intermediate_size=15680, vocab_size=131072,
    max_position_embeddings=131072, hybrid_override_pattern=(
        "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"),
    mamba_head_dim=80, mamba_num_heads=128, ssm_state_size=128, n_groups=8, conv_kernel=4,
    expand=2, chunk_size=128, mamba_hidden_act="silu", mlp_hidden_act="relu2", mlp_bias=False,
    attention_bias=False, use_bias=False, use_conv_bias=True, mamba_proj_bias=False,
    layer_norm_epsilon=1e-5, rms_norm_eps=1e-5, residual_in_fp32=False, tie_word_embeddings=False,
    num_logits_to_keep=1,
)
FALCON_H1 = dict(
    COMMON, architectures=["FalconH1ForCausalLM"], model_type="falcon_h1", hidden_size=2560,
    num_hidden_layers=32, num_attention_heads=10, num_key_value_heads=2, head_dim=128,
    intermediate_size=9984, vocab_size=65536, max_position_embeddings=131072, rms_norm_eps=1e-5,
    hidden_act="silu", mamba_d_ssm=4096, mamba_d_conv=4, mamba_d_head=128, mamba_d_state=256,
    mamba_expand=2, mamba_n_groups=1, mamba_n_heads=32, mamba_chunk_size=128,
    mamba_conv_bias=True, mamba_proj_bias=False, mamba_rms_norm=False,
    mamba_norm_before_gate=False, attention_bias=False, mlp_bias=False, projectors_bias=False,
    attention_in_multiplier=1.0, attention_out_multiplier=1.0, embedding_multiplier=1.0,
    key_multiplier=1.0, lm_head_multiplier=1.0, mlp_multipliers=[1.0, 1.0],
    ssm_in_multiplier=1.0, ssm_multipliers=[1.0] * 5, ssm_out_multiplier=1.0,
    rope_theta=1e11, tie_word_embeddings=False, pad_token_id=0,
)
MAMBA2 = dict(
    COMMON, architectures=["Mamba2ForCausalLM"], model_type="mamba2", hidden_size=2560,
    num_hidden_layers=64, vocab_size=50288, state_size=128, conv_kernel=4, expand=2, n_groups=1,
    num_heads=80, head_dim=64, chunk_size=256, use_bias=False, use_conv_bias=True,
    layer_norm_epsilon=1e-5, hidden_act="silu", rms_norm=True, residual_in_fp32=True,
    tie_word_embeddings=True, pad_token_id=0,
    max_position_embeddings=8192,
)
WHISPER = dict(
    architectures=["WhisperForConditionalGeneration"], model_type="whisper", d_model=512,
    encoder_layers=6, decoder_layers=6, encoder_attention_heads=8, decoder_attention_heads=8,
    encoder_ffn_dim=2048, decoder_ffn_dim=2048, vocab_size=51865, max_source_positions=1500,
    max_target_positions=448, num_mel_bins=80, torch_dtype="float16", activation_function="gelu",
    scale_embedding=False, is_encoder_decoder=True, decoder_start_token_id=50258,
    bos_token_id=50257, eos_token_id=50257, pad_token_id=50257, num_hidden_layers=6,
    max_length=448,
)
GEMMA4_31B_TEXT = dict(
    architectures=["Gemma4ForCausalLM"], model_type="gemma4_text", hidden_size=5376,
    num_hidden_layers=60, num_attention_heads=32, num_key_value_heads=16, head_dim=256,
    global_head_dim=512, num_global_key_value_heads=4, attention_k_eq_v=True,
    intermediate_size=21504, vocab_size=262144, max_position_embeddings=262144,
    sliding_window=1024, num_kv_shared_layers=0, hidden_size_per_layer_input=0,
    vocab_size_per_layer_input=262144, dtype="bfloat16", tie_word_embeddings=True,
    rms_norm_eps=1e-6, hidden_activation="gelu_pytorch_tanh", final_logit_softcapping=30.0,
    enable_moe_block=False, use_double_wide_mlp=False, bos_token_id=2, eos_token_id=1,
    layer_types=["full_attention" if (i + 1) % 6 == 0 else "sliding_attention"
                 for i in range(60)],
    rope_parameters=dict(
        full_attention=dict(rope_type="proportional", rope_theta=1000000.0,
                            partial_rotary_factor=0.25),
        sliding_attention=dict(rope_type="default", rope_theta=10000.0),
    ),
)


GEMMA3N_E2B = dict(
    COMMON, architectures=["Gemma3nForCausalLM"], model_type="gemma3n_text", hidden_size=2048,
    num_hidden_layers=30, num_attention_heads=8, num_key_value_heads=2, head_dim=256,
    intermediate_size=[8192] * 30, vocab_size=262400, vocab_size_per_layer_input=262144,
    hidden_size_per_layer_input=256, max_position_embeddings=32768, sliding_window=512,
    num_kv_shared_layers=10, altup_active_idx=0, altup_coef_clip=120.0, altup_correct_scale=True,
    altup_num_inputs=4, laurel_rank=64, rms_norm_eps=1e-6, rope_theta=1000000.0,
    rope_local_base_freq=10000.0, final_logit_softcapping=30.0, query_pre_attn_scalar=256,
    hidden_activation="gelu_pytorch_tanh", activation_sparsity_pattern=[0.95] * 10 + [0.0] * 20,
    layer_types=["full_attention" if (i + 1) % 5 == 0 else "sliding_attention" for i in range(30)],
)
KIMI_LINEAR = dict(
    COMMON, architectures=["KimiLinearForCausalLM"], model_type="kimi_linear", hidden_size=2304,
    num_hidden_layers=27, num_attention_heads=32, num_key_value_heads=32, head_dim=72,
    intermediate_size=9216, kv_lora_rank=512, q_lora_rank=None, qk_nope_head_dim=128,
    qk_rope_head_dim=64, v_head_dim=128, mla_use_nope=True, num_experts=256,
    num_experts_per_token=8, num_shared_experts=1, moe_intermediate_size=1024,
    moe_renormalize=True, moe_router_activation_func="sigmoid", moe_layer_freq=1,
    first_k_dense_replace=1, use_grouped_topk=True, num_expert_group=1, topk_group=1,
    routed_scaling_factor=2.446, hidden_act="silu", rms_norm_eps=1e-5, vocab_size=163840,
    rope_theta=10000.0, tie_word_embeddings=False, model_max_length=1048576,
    max_position_embeddings=1048576, num_nextn_predict_layers=0,
    linear_attn_config=dict(
        full_attn_layers=[4, 8, 12, 16, 20, 24, 27],
        kda_layers=[i for i in range(1, 28) if i not in (4, 8, 12, 16, 20, 24, 27)],
        head_dim=128, num_heads=32, short_conv_kernel_size=4,
    ),
)
LFM2 = dict(
    COMMON, architectures=["Lfm2ForCausalLM"], model_type="lfm2", hidden_size=2048,
    num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, intermediate_size=12288,
    block_dim=2048, block_ff_dim=12288, block_auto_adjust_ff_dim=True, block_multiple_of=256,
    block_ffn_dim_multiplier=1.0, conv_L_cache=3, conv_bias=False, conv_dim=2048,
    conv_dim_out=2048, vocab_size=65536, max_position_embeddings=128000, norm_eps=1e-5,
    rope_theta=1000000.0, tie_word_embeddings=True,
    layer_types=["full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)],
)
ZAMBA2_2B = dict(
    COMMON, architectures=["Zamba2ForCausalLM"], model_type="zamba2", hidden_size=2560,
    num_hidden_layers=54, num_attention_heads=32, num_key_value_heads=32, intermediate_size=10240,
    attention_hidden_size=5120, attention_head_dim=160, hybrid_layer_ids=[
        6, 12, 18, 24, 30, 36, 42, 47, 51], num_mem_blocks=2, mamba_d_state=64, mamba_d_conv=4,
    mamba_expand=2, mamba_ngroups=1, n_mamba_heads=80, mamba_headdim=64, chunk_size=256,
    adapter_rank=128, use_shared_attention_adapter=False, use_shared_mlp_adapter=True,
    use_mem_rope=True, use_conv_bias=True, add_bias_linear=False, vocab_size=32000,
    max_position_embeddings=4096, rms_norm_eps=1e-5, hidden_act="gelu", tie_word_embeddings=True,
    layers_block_type=["hybrid" if i in (6, 12, 18, 24, 30, 36, 42, 47, 51) else "mamba"
                       for i in range(54)],
)
DEEPSEEK_V4_FLASH = dict(
    COMMON, architectures=["DeepseekV4ForCausalLM"], model_type="deepseek_v4", hidden_size=4096,
    num_hidden_layers=43, num_attention_heads=64, num_key_value_heads=1, head_dim=512,
    vocab_size=129280, tie_word_embeddings=False, max_position_embeddings=1048576,
    sliding_window=128, qk_rope_head_dim=64, q_lora_rank=1024, n_routed_experts=256,
    num_experts_per_tok=6, moe_intermediate_size=2048, n_shared_experts=1, norm_topk_prob=True,
    index_head_dim=128, index_n_heads=64, index_topk=512, o_lora_rank=1024, o_groups=8,
    compress_ratios=[0, 0] + [4, 128] * 20 + [4, 0], num_nextn_predict_layers=1,
    rms_norm_eps=1e-6, hidden_act="silu", scoring_func="sqrtsoftplus", topk_method="noaux_tc",
    routed_scaling_factor=1.5, hc_mult=4, hc_sinkhorn_iters=20, hc_eps=1e-6, num_hash_layers=3,
    swiglu_limit=10.0, rope_theta=10000.0, compress_rope_theta=160000.0,
    rope_scaling=dict(type="yarn", factor=16, original_max_position_embeddings=65536,
                      beta_fast=32, beta_slow=1),
    quantization_config=dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8",
                             scale_fmt="ue8m0", weight_block_size=[128, 128]),
)


GLM5 = dict(
    COMMON, architectures=["GlmMoeDsaForCausalLM"], model_type="glm_moe_dsa", hidden_size=6144,
    num_hidden_layers=78, num_attention_heads=64, num_key_value_heads=64, intermediate_size=12288,
    kv_lora_rank=512, q_lora_rank=2048, qk_nope_head_dim=192, qk_rope_head_dim=64, v_head_dim=256,
    moe_intermediate_size=2048, n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8,
    n_group=1, topk_group=1, first_k_dense_replace=3, norm_topk_prob=True, scoring_func="sigmoid",
    routed_scaling_factor=2.5, index_head_dim=128, index_n_heads=32, index_topk=2048,
    vocab_size=154880, max_position_embeddings=202752, rms_norm_eps=1e-5, rope_theta=1000000.0,
    hidden_act="silu", tie_word_embeddings=False, topk_method="noaux_tc", attention_bias=False,
)
MINIMAX_01 = dict(
    COMMON, architectures=["MiniMaxText01ForCausalLM"], model_type="minimax",
    hidden_size=6144, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
    head_dim=128, intermediate_size=9216, num_local_experts=32, num_experts_per_tok=2,
    attn_type_list=[int(i % 8 == 7) for i in range(80)], vocab_size=200064, rotary_dim=64,
    layer_types=["full_attention" if i % 8 == 7 else "linear_attention" for i in range(80)],
    max_position_embeddings=10240000, rms_norm_eps=1e-5, rope_theta=10000000.0, postnorm=True,
    shared_intermediate_size=0, hidden_act="silu", tie_word_embeddings=False,
    layernorm_full_attention_alpha=3.5565588200778455, layernorm_full_attention_beta=1.0,
    layernorm_linear_attention_alpha=3.5565588200778455, layernorm_linear_attention_beta=1.0,
    layernorm_mlp_alpha=3.5565588200778455, layernorm_mlp_beta=1.0,
)
LFM2_8B_A1B = dict(
    COMMON, architectures=["Lfm2MoeForCausalLM"], model_type="lfm2_moe", hidden_size=2048,
    num_hidden_layers=24, num_attention_heads=32, num_key_value_heads=8, intermediate_size=7168,
    moe_intermediate_size=1792, num_experts=32, num_experts_per_tok=4, num_dense_layers=2,
    use_expert_bias=True, norm_topk_prob=True, conv_L_cache=3, conv_bias=False, vocab_size=65536,
    max_position_embeddings=128000, norm_eps=1e-5, rope_theta=1000000.0, tie_word_embeddings=True,
    layer_types=["full_attention" if i in (2, 6, 10, 14, 18, 21) else "conv" for i in range(24)],
)
GEMMA4_SHARED = dict(
    GEMMA4_31B_TEXT, hidden_size=1536, num_hidden_layers=35, num_attention_heads=8,
    num_key_value_heads=1, num_global_key_value_heads=None, attention_k_eq_v=False,
    num_kv_shared_layers=20, intermediate_size=6144, sliding_window=512, use_double_wide_mlp=True,
    hidden_size_per_layer_input=256, vocab_size_per_layer_input=262144,
    layer_types=["full_attention" if i % 5 == 4 else "sliding_attention" for i in range(35)],
)
MIMO_V2_FLASH = dict(
    COMMON, architectures=["MiMoV2FlashForCausalLM"], model_type="mimo_v2_flash", hidden_size=4096,
    num_hidden_layers=48, num_attention_heads=64, num_key_value_heads=4, head_dim=192,
    v_head_dim=128, swa_num_attention_heads=64, swa_num_key_value_heads=8, swa_head_dim=192,
    swa_v_head_dim=128, sliding_window=128, sliding_window_size=128, attention_chunk_size=128,
    hybrid_layer_pattern=[int(i > 0 and i % 6 != 5) for i in range(48)], intermediate_size=16384,
    moe_layer_freq=[int(i > 0) for i in range(48)], moe_intermediate_size=2048,
    n_routed_experts=256, num_experts_per_tok=8, n_group=1, topk_group=1, norm_topk_prob=True,
    scoring_func="sigmoid", topk_method="noaux_tc", routed_scaling_factor=None,
    n_shared_experts=None, vocab_size=152576, max_position_embeddings=262144, rope_theta=5000000,
    swa_rope_theta=10000, partial_rotary_factor=0.334, layernorm_epsilon=1e-5, attention_bias=False,
    add_swa_attention_sink_bias=True, add_full_attention_sink_bias=False, hidden_act="silu",
    tie_word_embeddings=False, attention_value_scale=0.707,
)


def case(name, config, gib=40, length=8192, **flags):
    flags.setdefault("max_model_len", length)
    flags.setdefault("available_bytes", gib * GIB)
    return dict(name=name, config=copy.deepcopy(config), flags=flags)


def variant(config, **changes):
    changed = copy.deepcopy(config)
    changed.update(changes)
    return changed


def cases():
    odd = 58 * GIB + 117_964_800 + 12_345  # a budget that is no multiple of anything
    rows = [
        # Full attention: GQA, MHA, MQA, tensor parallelism and its replication.
        case("llama-8b", LLAMA_8B, available_bytes=odd),
        case("llama-8b-32k", LLAMA_8B, available_bytes=odd, length=32768),
        case("llama-8b-odd-length", LLAMA_8B, length=10007),
        case("llama-8b-tp2", LLAMA_8B, tp=2, available_bytes=odd),
        case("llama-8b-tp4", LLAMA_8B, tp=4),
        case("llama-8b-tp8", LLAMA_8B, tp=8),
        case("llama-8b-tp16-replicated", LLAMA_8B, tp=16),
        case("llama-8b-pp2", LLAMA_8B, pp=2, available_bytes=odd),
        case("llama-8b-pp4-uneven", variant(LLAMA_8B, num_hidden_layers=30), pp=4),
        case("llama-8b-tp2-pp2", LLAMA_8B, tp=2, pp=2),
        case("llama-8b-fp8", LLAMA_8B, kv_cache_dtype="fp8", available_bytes=odd),
        case("llama-8b-block32", LLAMA_8B, block_size=32),
        case("llama-8b-block64", LLAMA_8B, block_size=64, length=10000),
        case("llama-8b-block128", LLAMA_8B, block_size=128, length=10000),
        case("llama-8b-float32", variant(LLAMA_8B, torch_dtype="float32"), dtype="float32"),
        case("llama-8b-no-prefix-cache", LLAMA_8B, prefix_caching=False),
        case("llama-8b-int8-per-token-head", LLAMA_8B, kv_cache_dtype="int8_per_token_head"),
        case("llama-8b-fp8-per-token-head", LLAMA_8B, kv_cache_dtype="fp8_per_token_head"),
        case("llama-8b-int4-per-token-head", LLAMA_8B, kv_cache_dtype="int4_per_token_head"),
        case("llama-1b", LLAMA_1B),
        case("llama-13b-mha", LLAMA_13B, gib=12, length=2048),
        case("llama-13b-41-layers", variant(LLAMA_13B, num_hidden_layers=41), gib=12, length=2048),
        case("llama-70b-tp8", LLAMA_70B, tp=8, gib=54),
        case("mqa", MQA),
        case("mqa-tp2-replicated", MQA, tp=2),
        case("opt-6.7b", OPT_6B, length=2048),
        case("gpt2", GPT2, length=1024, gib=8),
        case("phi-2", PHI2, length=2048),
        case("qwen2-7b-tp2", QWEN2_7B, tp=2),
        case("qwen3-8b", QWEN3_8B, length=40960),
        case("qwen3-moe-tp8-replicated", QWEN3_MOE, tp=8),
        # Latent attention.
        case("deepseek-v2-lite", DS_V2_LITE),
        case("deepseek-v2-lite-tp4", DS_V2_LITE, tp=4, length=16384),
        case("deepseek-v2-lite-fp8", DS_V2_LITE, kv_cache_dtype="fp8"),
        case("deepseek-v2-lite-block128", DS_V2_LITE, block_size=128),
        case("deepseek-v3-tp8", DS_V3, tp=8),
        case("deepseek-v3-tp8-fp8", DS_V3, tp=8, kv_cache_dtype="fp8", length=163840),
        case("deepseek-v32-tp8", DS_V32, tp=8),
        case("deepseek-v32-tp8-fp8-ds-mla", DS_V32, tp=8, kv_cache_dtype="fp8_ds_mla"),
        # Sliding windows.
        case("mistral-7b-v0.1-all-window", MISTRAL_7B_V01, length=32768),
        case("mistral-7b-v0.1-all-window-t2048", MISTRAL_7B_V01, length=32768,
             max_num_batched_tokens=2048),
        case("gemma-2-2b", GEMMA2_2B, available_bytes=odd),
        case("gemma-2-9b-tp2", GEMMA2_9B, tp=2),
        case("gemma-3-1b", GEMMA3_1B, length=32768),
        case("gemma-3-4b", GEMMA3_4B, available_bytes=odd),
        case("gemma-3-4b-128k", GEMMA3_4B, length=131072),
        case("gemma-3-4b-128k-t2048", GEMMA3_4B, length=131072, max_num_batched_tokens=2048),
        case("gemma-3-4b-128k-sync", GEMMA3_4B, length=131072, async_scheduling=False),
        case("gemma-3-12b", GEMMA3_12B, available_bytes=odd),
        case("gemma-3-12b-one-group-manager", GEMMA3_12B, length=32768,
             disable_hybrid_kv_cache_manager=True),
        case("gemma-3-27b-tp2", GEMMA3_27B, tp=2, length=32768),
        case("gemma-3-27b-tp2-block32", GEMMA3_27B, tp=2, length=32768, block_size=32),
        case("gemma-3-27b-fp8", GEMMA3_27B, kv_cache_dtype="fp8", length=131072),
        case("gemma-3-pp2", GEMMA3_12B, pp=2, length=32768),
        case("window-mix-13-of-30", variant(
            GEMMA3_4B, num_hidden_layers=30, sliding_window=777,
            layer_types=["full_attention" if i < 13 else "sliding_attention"
                         for i in range(30)]), length=20000),
        case("window-mix-12-of-29", variant(
            GEMMA3_4B, num_hidden_layers=29, sliding_window=777,
            layer_types=["full_attention" if i < 12 else "sliding_attention"
                         for i in range(29)]), length=20000),
        case("gpt-oss-20b", gpt_oss(24, 32), available_bytes=odd),
        case("gpt-oss-20b-tp2", gpt_oss(24, 32), tp=2),
        case("gpt-oss-120b-128k", gpt_oss(36, 128), length=131072),
        case("gpt-oss-120b-128k-t2048", gpt_oss(36, 128), length=131072,
             max_num_batched_tokens=2048),
        case("gemma-4-31b-text", GEMMA4_31B_TEXT, length=131072),
        # Chunked local attention.
        case("llama-4-scout-tp8", LLAMA4_SCOUT, tp=8, length=131072),
        case("llama-4-scout-tp8-hybrid-on", LLAMA4_SCOUT, tp=8, length=131072,
             disable_hybrid_kv_cache_manager=False),
        # Attention and recurrent state.
        case("qwen3-next-80b", QWEN3_NEXT, length=32768, prefix_caching=False),
        case("qwen3-next-80b-prefix-cache", QWEN3_NEXT, length=32768),
        case("qwen3-next-80b-tp2", QWEN3_NEXT, tp=2, length=32768, prefix_caching=False),
        case("qwen3-next-80b-tp4-replicated", QWEN3_NEXT, tp=4, length=32768,
             prefix_caching=False),
        case("qwen3-next-80b-fp8", QWEN3_NEXT, length=65536, kv_cache_dtype="fp8",
             prefix_caching=False),
        case("qwen3-next-80b-float32-state", QWEN3_NEXT, length=32768, prefix_caching=False,
             mamba_ssm_cache_dtype="float32"),
        case("qwen3-next-80b-block64", QWEN3_NEXT, length=32768, prefix_caching=False,
             block_size=64),
        case("qwen3.5-27b", QWEN35_27B, length=32768, prefix_caching=False),
        case("qwen3.5-27b-tp2-prefix-cache", QWEN35_27B, tp=2, length=131072),
        case("granite-4-tiny", GRANITE4_TINY, length=32768, prefix_caching=False),
        case("granite-4-tiny-prefix-cache", GRANITE4_TINY, length=32768),
        case("granite-4-tiny-prefix-cache-align", GRANITE4_TINY, length=32768,
             mamba_cache_mode="align"),
        case("granite-4-41-layers", variant(
            GRANITE4_TINY, num_hidden_layers=41,
            layer_types=GRANITE4_TINY["layer_types"] + ["mamba"]),
             length=32768, prefix_caching=False),
        case("bamba-9b", BAMBA_9B, length=32768, prefix_caching=False),
        case("bamba-9b-tp2", BAMBA_9B, tp=2, length=32768, prefix_caching=False),
        case("bamba-9b-prefix-cache", BAMBA_9B, length=32768),
        case("jamba-mini", JAMBA_MINI, length=32768, prefix_caching=False),
        case("jamba-mini-tp4", JAMBA_MINI, tp=4, length=32768, prefix_caching=False),
        case("nemotron-h-8b", NEMOTRON_H, length=32768, prefix_caching=False),
        case("falcon-h1-3b", FALCON_H1, length=32768, prefix_caching=False),
        case("mamba2-2.7b", MAMBA2, length=8192, prefix_caching=False),
        case("lfm2-1.2b", LFM2, length=32768, prefix_caching=False),
        case("zamba2-2.7b", ZAMBA2_2B, length=2048, prefix_caching=False,
             max_num_batched_tokens=2048),
        case("kimi-linear-48b", KIMI_LINEAR, length=131072, prefix_caching=False),
        case("kimi-linear-48b-tp2-prefix-cache", KIMI_LINEAR, length=131072, tp=2),
        case("gemma-3n-e2b-shared-kv", GEMMA3N_E2B, length=32768),
        case("deepseek-v32-tp8-fp8", DS_V32, tp=8, kv_cache_dtype="fp8"),
        case("glm-5-tp8", GLM5, tp=8, length=131072),
        case("glm-5-shared-indexers", variant(GLM5, num_hidden_layers=24, index_topk_freq=4), tp=8),
        case("minimax-text-01-tp8", MINIMAX_01, tp=8, length=131072, prefix_caching=False),
        case("minimax-text-01-tp8-prefix-cache", MINIMAX_01, tp=8, length=131072),
        case("lfm2-8b-a1b", LFM2_8B_A1B, length=32768, prefix_caching=False),
        case("lfm2-8b-a1b-prefix-cache", LFM2_8B_A1B, length=32768),
        case("gemma-4-shared-kv", GEMMA4_SHARED, length=131072),
        case("mimo-v2-flash-tp4", MIMO_V2_FLASH, length=131072, tp=4),
        case("jamba-mini-prefix-cache", JAMBA_MINI, length=32768),
        case("nemotron-h-8b-prefix-cache", NEMOTRON_H, length=32768),
        case("nemotron-h-8b-float16-state", NEMOTRON_H, length=32768, prefix_caching=False,
             mamba_ssm_cache_dtype="float16"),
        case("nemotron-h-8b-bfloat16-config", variant(NEMOTRON_H, mamba_ssm_cache_dtype="bfloat16"),
             length=32768, prefix_caching=False),
        case("falcon-h1-3b-tp2-prefix-cache", FALCON_H1, length=32768, tp=2),
        case("zamba2-2.7b-prefix-cache", ZAMBA2_2B, length=4096, max_num_batched_tokens=4096),
        case("deepseek-v4-flash-tp8-fp8", DEEPSEEK_V4_FLASH, length=262144, tp=8,
             kv_cache_dtype="fp8"),
        *per_request(),
        # Encoder and decoder.
        case("whisper-base", WHISPER, gib=4, length=448),
    ]
    return rows + refused_cases()


# Every family whose layers do not all keep all keys and values, for docs/hybrids.md: a config, and ranks where one
# card is too small for it.
HYBRIDS = {
    "bamba": (BAMBA_9B, 1),
    "deepseek-v3.2": (DS_V32, 8),
    "deepseek-v4": (DEEPSEEK_V4_FLASH, 4),
    "falcon-h1": (FALCON_H1, 1),
    "gemma-3": (GEMMA3_27B, 2),
    "gemma-3n": (GEMMA3N_E2B, 1),
    "gemma-4": (GEMMA4_31B_TEXT, 1),
    "glm-5": (GLM5, 8),
    "gpt-oss": (gpt_oss(24, 32), 1),
    "granite-4": (GRANITE4_TINY, 1),
    "jamba": (JAMBA_MINI, 1),
    "kimi-linear": (KIMI_LINEAR, 1),
    "lfm2": (LFM2, 1),
    "lfm2-moe": (LFM2_8B_A1B, 1),
    "llama-4": (LLAMA4_SCOUT, 8),
    "mimo-v2-flash": (MIMO_V2_FLASH, 4),
    "minimax-01": (MINIMAX_01, 8),
    "nemotron-h": (NEMOTRON_H, 1),
    "qwen3-next": (QWEN3_NEXT, 1),
    "qwen3.5": (QWEN35_27B, 1),
    "zamba2": (ZAMBA2_2B, 1),
}


# Families whose shares of weights are compared (`vllm_shards.py`).
SHARDED = {
    **{name: config for name, (config, _) in HYBRIDS.items()},
    # Classes that transformers does not know: vLLM reads their fields from any config.
    "baichuan-2": dict(
        COMMON, architectures=["BaichuanForCausalLM"], model_type="llama", hidden_size=4096, num_hidden_layers=32,
        num_attention_heads=32, intermediate_size=11008, vocab_size=125696, max_position_embeddings=4096,
        rms_norm_eps=1e-6, hidden_act="silu", tie_word_embeddings=False,
    ),
    "chatglm": dict(
        COMMON, architectures=["ChatGLMModel"], model_type="chatglm", hidden_size=4096, num_layers=40,
        num_attention_heads=32, multi_query_attention=True, multi_query_group_num=2, kv_channels=128,
        ffn_hidden_size=13696, padded_vocab_size=151552, seq_length=131072, add_qkv_bias=True, add_bias_linear=False,
        rmsnorm=True, post_layer_norm=True, layernorm_epsilon=1.5625e-07, rope_ratio=500, original_rope=True,
        tie_word_embeddings=False,
    ),
    "internlm-2": dict(
        COMMON, architectures=["InternLM2ForCausalLM"], model_type="llama", hidden_size=4096, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336, vocab_size=92544, bias=False,
        max_position_embeddings=32768, rms_norm_eps=1e-5, rope_theta=1000000, hidden_act="silu",
        tie_word_embeddings=False,
    ),
    "ling-2": dict(
        COMMON, architectures=["BailingMoeV2ForCausalLM"], model_type="llama", hidden_size=2048, num_hidden_layers=20,
        num_attention_heads=16, num_key_value_heads=4, head_dim=128, intermediate_size=5120, moe_intermediate_size=512,
        num_experts=256, num_experts_per_tok=8, num_shared_experts=1, first_k_dense_replace=1, vocab_size=157184,
        use_bias=False, use_qkv_bias=False, use_qk_norm=True, moe_router_enable_expert_bias=True, n_group=8,
        topk_group=4, norm_topk_prob=True, score_function="sigmoid", routed_scaling_factor=2.5, router_dtype="fp32",
        moe_shared_expert_intermediate_size=512, partial_rotary_factor=0.5, max_position_embeddings=32768,
        rms_norm_eps=1e-6, rope_theta=600000, hidden_act="silu", tie_word_embeddings=False, embedding_dropout=0.0,
        output_dropout=0.0, attention_dropout=0.0,
    ),
    "mimo": dict(
        COMMON, architectures=["MiMoForCausalLM"], model_type="qwen2", hidden_size=4096, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, intermediate_size=11008, vocab_size=151680,
        max_position_embeddings=32768, rms_norm_eps=1e-5, rope_theta=640000, hidden_act="silu",
        tie_word_embeddings=False, use_sliding_window=False, attention_bias=True,
    ),
    # Layers as Nemotron Super's and Ultra's are: plain, without attention, without both, with wide feed-forwards.
    "nemotron-nas": dict(
        COMMON, architectures=["DeciLMForCausalLM"], model_type="nemotron-nas", hidden_size=8192, num_hidden_layers=6,
        num_attention_heads=64, num_key_value_heads=None, intermediate_size=None, vocab_size=128256,
        max_position_embeddings=131072, rms_norm_eps=1e-5, hidden_act="silu", tie_word_embeddings=False,
        attention_bias=False, mlp_bias=False, rope_parameters=dict(rope_type="default", rope_theta=500000.0),
        block_configs=[dict(
            attention=dict(n_heads_in_group=group, no_op=group is None, replace_with_linear=False),
            ffn=dict(ffn_mult=times, no_op=times is None, replace_with_linear=False),
        ) for group, times in ((8, 5.25), (None, 1.3125), (16, 0.5), (None, None), (8, 2.625), (None, 10.0))],
    ),
    # Every second layer with experts and what is dense beside them, by the class's default.
    "arctic": dict(
        COMMON, architectures=["ArcticForCausalLM"], model_type="arctic", hidden_size=1024, num_hidden_layers=4,
        num_attention_heads=16, num_key_value_heads=8, intermediate_size=768, vocab_size=32000,
        max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu", num_local_experts=8,
        num_experts_per_tok=2, use_residual=True, tie_word_embeddings=False,
    ),
    "arctic-every-layer": dict(
        COMMON, architectures=["ArcticForCausalLM"], model_type="arctic", hidden_size=1024, num_hidden_layers=3,
        num_attention_heads=16, num_key_value_heads=8, intermediate_size=768, vocab_size=32000,
        max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu", num_local_experts=8,
        num_experts_per_tok=2, moe_layer_frequency=1, use_residual=False, tie_word_embeddings=False,
    ),
    # MiMo V2.5 and 2.6: one matrix of queries, keys and values.
    "mimo-v2": dict(MIMO_V2_FLASH, architectures=["MiMoV2ForCausalLM"]),
    "deepseek-v3": DS_V3,
    "gemma-2": GEMMA2_9B,
    "gpt2": GPT2,
    "llama": LLAMA_8B,
    "mamba2": MAMBA2,
    "mqa": MQA,
    "opt": OPT_6B,
    "phi": PHI2,
    "qwen2": QWEN2_7B,
    "qwen3": QWEN3_8B,
    "qwen3-moe": QWEN3_MOE,
    "whisper": WHISPER,
}


def middling(model_type, architecture, **fields):
    """A config of no published model: large enough for 4 ranks and every kernel."""
    return dict(
        COMMON, architectures=[architecture], model_type=model_type, vocab_size=32000, hidden_size=1024,
        num_hidden_layers=4, intermediate_size=2048, num_attention_heads=16, num_key_value_heads=8, head_dim=64,
        max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=10000.0, hidden_act="silu",
        tie_word_embeddings=False, **fields,
    )


ROUTED = dict(moe_intermediate_size=512, num_experts_per_tok=2)
SHARDED.update({f"middling-{c['model_type']}": c for c in (
    # vLLM ties it whatever the config says, as all published models do.
    dict(middling("cohere2", "Cohere2ForCausalLM", sliding_window=1024, layer_norm_eps=1e-5, logit_scale=0.25),
         tie_word_embeddings=True),
    middling("dots1", "Dots1ForCausalLM", n_routed_experts=8, n_shared_experts=2, first_k_dense_replace=1, n_group=1,
             topk_group=1, norm_topk_prob=True, scoring_func="noaux_tc", sliding_window=None, max_window_layers=4,
             routed_scaling_factor=2.5, **ROUTED),
    middling("ernie4_5", "Ernie4_5ForCausalLM", use_bias=False),
    middling("ernie4_5_moe", "Ernie4_5_MoeForCausalLM", moe_num_experts=8, moe_k=2, moe_intermediate_size=512,
             moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_end_index=3, moe_layer_interval=1,
             moe_use_aux_free=True, use_bias=False),
    middling("exaone4", "Exaone4ForCausalLM", sliding_window=1024, sliding_window_pattern=4),
    middling("exaone_moe", "ExaoneMoEForCausalLM", num_experts=8, num_shared_experts=1, sliding_window=1024,
             sliding_window_pattern=4, first_k_dense_replace=1, n_group=1, topk_group=1, norm_topk_prob=True,
             scoring_func="sigmoid", routed_scaling_factor=2.5, **ROUTED),
    middling("glm4", "Glm4ForCausalLM", attention_bias=True, partial_rotary_factor=0.5),
    middling("glm4_moe", "Glm4MoeForCausalLM", n_routed_experts=8, n_shared_experts=1, first_k_dense_replace=1, n_group=1,
             topk_group=1, norm_topk_prob=True, use_qk_norm=True, attention_bias=True, routed_scaling_factor=1.0,
             partial_rotary_factor=0.5, **ROUTED),
    middling("granite", "GraniteForCausalLM"),
    middling("granitemoe", "GraniteMoeForCausalLM", num_local_experts=8, num_experts_per_tok=2),
    middling("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", use_qk_norm=True),
    middling("minimax_m2", "MiniMaxM2ForCausalLM", num_local_experts=8, num_experts_per_tok=2, use_qk_norm=True,
             qk_norm_type="per_layer", scoring_func="sigmoid", use_routing_bias=True, rotary_dim=32),
    middling("mistral", "MistralForCausalLM", sliding_window=None),
    middling("mixtral", "MixtralForCausalLM", num_local_experts=8, num_experts_per_tok=2, sliding_window=None),
    middling("nemotron", "NemotronForCausalLM", partial_rotary_factor=0.5, norm_eps=1e-5),
    middling("olmo", "OlmoForCausalLM"),
    middling("olmo2", "Olmo2ForCausalLM"),
    middling("olmoe", "OlmoeForCausalLM", num_experts=8, num_experts_per_tok=2),
    middling("phi3", "Phi3ForCausalLM", sliding_window=None, original_max_position_embeddings=4096, rope_scaling=None),
    middling("phimoe", "PhiMoEForCausalLM", num_local_experts=8, num_experts_per_tok=2, lm_head_bias=True,
             attention_bias=True, sliding_window=None),
    middling("qwen2_moe", "Qwen2MoeForCausalLM", num_experts=8, shared_expert_intermediate_size=1024,
             decoder_sparse_step=1, norm_topk_prob=False, use_sliding_window=False, **ROUTED),
    middling("seed_oss", "SeedOssForCausalLM", attention_bias=True, attention_out_bias=False),
    middling("smollm3", "SmolLM3ForCausalLM", pad_token_id=0),
    middling("stablelm", "StableLmForCausalLM", use_qkv_bias=False, layer_norm_eps=1e-5, partial_rotary_factor=0.25),
    middling("starcoder2", "Starcoder2ForCausalLM", use_bias=True, norm_epsilon=1e-5, sliding_window=None),
)})

# Families with multi-token-prediction layers, of which one drafts.
PREDICTING = {
    "mtp-deepseek-v3": dict(DS_V3, num_nextn_predict_layers=1),
    "mtp-deepseek-v3.2": dict(DS_V32, num_nextn_predict_layers=1),
    "mtp-glm-5": dict(GLM5, num_nextn_predict_layers=1),
    "mtp-qwen3-next": QWEN3_NEXT,
    "mtp-qwen3.5": dict(
        QWEN35_27B, text_config=dict(QWEN35_27B["text_config"], mtp_num_hidden_layers=1)),
    "mtp-glm-4.5": dict(
        COMMON, architectures=["Glm4MoeForCausalLM"], model_type="glm4_moe", hidden_size=4096, num_hidden_layers=46,
        num_attention_heads=96, num_key_value_heads=8, head_dim=128, intermediate_size=10944, attention_bias=True,
        moe_intermediate_size=1408, n_routed_experts=128, n_shared_experts=1, num_experts_per_tok=8, n_group=1,
        topk_group=1, first_k_dense_replace=1, norm_topk_prob=True, use_qk_norm=False, routed_scaling_factor=1.0,
        vocab_size=151552, max_position_embeddings=131072, num_nextn_predict_layers=1, rms_norm_eps=1e-5,
        rope_theta=1000000, partial_rotary_factor=0.5, hidden_act="silu", tie_word_embeddings=False,
    ),
}


def per_request():
    """Each hybrid at three lengths: what one request holds."""
    longest = 131072
    rows = []
    for name, (config, tp) in HYBRIDS.items():
        config = copy.deepcopy(config)
        text = config.get("text_config", config)
        if text.get("max_position_embeddings", 0) < longest:
            text["max_position_embeddings"] = longest
        for label, length in (("1k", 1024), ("8k", 8192), ("128k", longest)):
            rows.append(case(f"request-{name}-{label}", config, tp=tp, length=length, prefix_caching=False))
    return rows


def refused_cases():
    """Budgets too small for one request of max_model_len: what vLLM then asks for."""
    return [
        case("small-llama-8b", LLAMA_8B, gib=4, length=131072),
        case("small-llama-8b-by-one-block", LLAMA_8B, length=8192,
             available_bytes=512 * 32 * 65536 - 1),
        case("small-gemma-3-4b", GEMMA3_4B, gib=2, length=131072),
        case("small-gemma-3-27b", GEMMA3_27B, gib=16, length=131072),
        case("small-gpt-oss-20b", gpt_oss(24, 32), gib=1, length=131072),
        case("small-qwen3-next-80b", QWEN3_NEXT, gib=4, length=262144, prefix_caching=False),
        case("small-deepseek-v32", DS_V32, gib=4, length=163840, tp=8),
        case("small-llama-8b-pp2", LLAMA_8B, gib=4, length=131072, pp=2),
        # Enough for the request but not for the null block besides (0.32 counts it).
        case("tight-llama-8b-one-request", LLAMA_8B, length=8192,
             available_bytes=512 * 32 * 65536),
        case("tight-llama-8b-one-request-and-null", LLAMA_8B, length=8192,
             available_bytes=513 * 32 * 65536),
    ]

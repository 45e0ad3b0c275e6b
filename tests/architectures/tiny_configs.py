"""Tiny configs of every model type: known keys get small values, single types a few more.

What a config class derives from its sizes, such as the types of the layers, is left to it.
"""

from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

NUM_IDS = 64
"""Columns of the models: more than the tokens of the tokenizer, as padded embeddings have."""
WINDOW = 16
"""Every window, chunk and original length: examples are shorter and longer."""
LONGEST = 128

_SIZES: dict[str, Any] = {
    32: ["hidden_size", "d_model", "n_embd", "embedding_dim", "emb_dim", "lru_width",
         "attention_hidden_size", "word_embed_proj_dim", "embedding_size", "dim_model",
         "moe_latent_size", "input_embedding_size", "output_embedding_size", "hidden_dim"],
    NUM_IDS: ["intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_inner", "n_inner",
         "dim_ff", "dff", "feed_forward_size", "moe_intermediate_size", "ffn_hidden_size",
         "shared_expert_intermediate_size", "dense_intermediate_size", "expert_ffn_hidden_size",
         "shared_intermediate_size", "shared_experts_intermediate_size", "mamba_d_ssm",
         "intermediate_size_mlp", "moe_shared_expert_intermediate_size", "vocab_size",
         "vocab_size_per_layer_input", "decoder_vocab_size"],
    2: ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers",
        "encoder_layers", "num_decoder_layers", "num_encoder_layers", "num_blocks", "depth",
        "num_key_value_heads", "num_kv_heads", "kv_n_heads", "num_experts_per_tok",
        "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts", "moe_router_topk",
        "num_linear_key_heads", "linear_num_key_heads", "num_global_key_value_heads",
        "swa_num_key_value_heads", "n_group", "topk_group", "num_expert_group"],
    4: ["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
        "encoder_attention_heads", "attention_heads", "num_decoder_attention_heads",
        "num_encoder_attention_heads", "num_experts", "num_local_experts", "n_routed_experts",
        "moe_num_experts", "linear_num_value_heads", "swa_num_attention_heads",
        "state_size", "ssm_state_size", "mamba_d_state", "conv_kernel"],
    # Few heads would make many scores of an indexer exactly 0, and their order arbitrary.
    12: ["index_n_heads"],
    8: ["head_dim", "global_head_dim", "dim_head", "d_head", "attention_head_size", "d_kv",
        "kv_channels", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "linear_key_head_dim",
        "linear_value_head_dim", "index_head_dim", "swa_head_dim", "rotary_dim", "mamba_d_head",
        "mamba_head_dim", "mamba_headdim", "kv_lora_rank", "q_lora_rank", "chunk_size",
        "mamba_chunk_size", "index_topk", "hidden_size_per_layer_input", "swa_v_head_dim"],
    16: ["sliding_window", "window_size", "attention_window_size", "attention_chunk_size",
         "sliding_window_size", "patch_size", "image_size", "prompt_length", "local_attention"],
    LONGEST: ["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length",
              "max_target_positions", "model_max_length", "max_source_positions"],
}  # fmt: skip
_SCALARS: dict[str, float] = {
    "logits_scaling": 0.7, "logit_scale": 0.6, "final_logit_softcapping": 3.0,
    "logits_soft_cap": 3.0, "output_logit_soft_cap": 3.0, "attn_logit_softcapping": 2.0,
    "lm_head_multiplier": 0.7, "embedding_multiplier": 1.3, "residual_multiplier": 0.8,
    "attention_multiplier": 0.5, "query_pre_attn_scalar": 6, "embedding_scale": 1.5,
}  # fmt: skip
SMALL: dict[str, Any] = {name: size for size, names in _SIZES.items() for name in names} | _SCALARS
_OFF = ("dropout", "drop", "layerdrop", "jitter", "pdrop")
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def small_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The known keys of a config with small values; those of configs inside it too."""
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _IDS and value is not None:
            small[name] = _IDS[name]
        elif name.endswith("_token_id") and type(value) is int:
            small[name] = 3
        elif name in SMALL and value is not None and not isinstance(value, list | dict):
            small[name] = SMALL[name]
        elif type(value) is float and any(part in name for part in _OFF):
            small[name] = 0.0
        elif isinstance(value, dict) and "model_type" in value:
            small[name] = {"model_type": value["model_type"], **small_fields(value)}
    return small


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A tiny config of a model type."""
    kind = CONFIG_MAPPING[model_type]
    own = OWN.get(model_type, {})
    fields = small_fields(kind().to_dict())
    return kind(**merged(merged(fields, own), changes))


def merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`fields` with `changes`, also inside nested ones; a value of `...` takes a key away."""
    both = dict(fields)
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(both.get(name), dict):
            both[name] = merged(both[name], value)
        elif value is ...:
            both.pop(name, None)
        else:
            both[name] = value
    return both


_SHARED = {
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 2,
}  # fmt: skip
_DECODER = {"is_decoder": True, "is_encoder_decoder": False}
_SHARED = {
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 2,
}  # fmt: skip
_DECODER = {"is_decoder": True}
_MLA = {"num_key_value_heads": 4, "qk_nope_head_dim": 8}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
_QSA = {
    **_LINEAR, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
    "indexer_budget": 8, "indexer_compress_ratio": 2,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
         "minicpm3", "youtu", "dots3_note_text", "longcat_flash"), _MLA
    ),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), {"head_dim": 8}),
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), _LINEAR),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), {"text_config": _LINEAR}),
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
         "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta",
         "xlm-roberta-xl"), _DECODER
    ),
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "dots3_note": {"text_config": _MLA, "vision_config": {"mlp_layer_types": ["dense", "dense"], "adapter_in_dim": 32, "adapter_out_dim": 32}, "audio_config": {"adapter_out_dim": 32, "adapter_input_size": 32}},
    "bailing_hybrid": {**_MLA, **_LINEAR},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 1.0}},
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "gemma3n_text": {"intermediate_size": [64] * 3, "num_hidden_layers": 3, "num_kv_shared_layers": 1, "layer_types": ["sliding_attention", "full_attention", "full_attention"], "activation_sparsity_pattern": [0.0] * 3},
    "gemma4_assistant": {"text_config": _SHARED},
    "gemma4_unified_assistant": {"text_config": _SHARED},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"],
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**_MLA, **_LINEAR, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 16, "n_groups": 2},
    "qwen4_exp": {"text_config": _QSA},
    "qwen4_exp_text": _QSA,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True, "attn_layers": ["local", "lsh"], "axial_pos_embds": False,
        "num_attention_heads": 2, "attention_head_size": 16, "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8, "num_buckets": 4, "num_hashes": 2, "hash_seed": 1,
    },
    "roc_bert": {
        **_DECODER, "pronunciation_embed_dim": 8, "pronunciation_vocab_size": 64, "shape_embed_dim": 8,
        "shape_vocab_size": 64,
    },
    "xlstm": {"qk_dim_factor": 2.0, "v_dim_factor": 2.0},
    "xmod": {**_DECODER, "default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3, "num_key_value_heads": 4, "attention_head_dim": 16, "attention_hidden_size": 64},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3, "num_key_value_heads": 4, "attention_hidden_size": 64, "attention_head_dim": 16, "mamba_headdim": 8, "n_mamba_heads": 8, "use_mem_rope": True, "use_shared_attention_adapter": True, "adapter_rank": 4},
    "zaya": {"num_experts_per_tok": 1},
}

"""Tiny configs of every model type: known keys get small values, single types a few more.

What a config class derives from its sizes, such as the types of the layers, is left to it.
"""

from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

NUM_IDS = 272
"""Columns of the models: more than the tokens of the tokenizer, as padded embeddings have."""
WINDOW = 16
"""Every window, chunk and original length: examples are shorter and longer."""
LONGEST = 128

_SIZES: dict[int, list[str]] = {
    32: ["attention_hidden_size", "d_model", "dim_model", "emb_dim", "embedding_dim",
         "embedding_size", "hidden_dim", "hidden_size", "input_embedding_size", "lru_width",
         "n_embd", "output_embedding_size", "word_embed_proj_dim"],
    64: ["d_inner", "decoder_ffn_dim", "dense_intermediate_size", "dff", "dim_ff",
         "encoder_ffn_dim", "expert_ffn_hidden_size", "feed_forward_size", "ffn_dim",
         "ffn_hidden_size", "intermediate_size", "intermediate_size_mlp", "mamba_d_ssm",
         "moe_intermediate_size", "moe_shared_expert_intermediate_size", "n_inner",
         "shared_expert_intermediate_size", "shared_experts_intermediate_size",
         "shared_intermediate_size"],
    2: ["decoder_layers", "depth", "encoder_layers", "kv_n_heads", "linear_num_key_heads", "moe_k",
        "moe_top_k", "moe_topk", "n_group", "n_layer", "n_layers", "num_blocks",
        "num_decoder_layers", "num_encoder_layers", "num_expert_group", "num_experts_per_tok",
        "num_experts_per_token", "num_global_key_value_heads", "num_hidden_layers",
        "num_key_value_heads", "num_kv_heads", "num_layers", "swa_num_key_value_heads",
        "top_k_experts", "topk_group"],
    4: ["attention_heads", "conv_kernel", "decoder_attention_heads", "encoder_attention_heads",
        "linear_num_value_heads", "mamba_d_state", "moe_num_experts", "n_head", "n_heads",
        "n_routed_experts", "num_attention_heads", "num_decoder_attention_heads",
        "num_encoder_attention_heads", "num_experts", "num_heads", "num_local_experts",
        "ssm_state_size", "state_size", "swa_num_attention_heads"],
    8: ["attention_head_size", "chunk_size", "d_head", "dim_head", "global_head_dim", "head_dim",
        "hidden_size_per_layer_input", "index_head_dim", "index_topk", "kv_channels",
        "kv_lora_rank", "linear_key_head_dim", "linear_value_head_dim", "mamba_chunk_size",
        "mamba_d_head", "mamba_head_dim", "mamba_headdim", "q_lora_rank", "qk_nope_head_dim",
        "qk_rope_head_dim", "rotary_dim", "swa_head_dim", "swa_v_head_dim", "v_head_dim"],
    12: ["index_n_heads"],
    WINDOW: ["attention_chunk_size", "attention_window_size", "image_size", "local_attention",
             "patch_size", "prompt_length", "sliding_window", "sliding_window_size", "window_size"],
    LONGEST: ["context_length", "max_position_embeddings", "max_seq_len", "max_source_positions",
              "max_target_positions", "model_max_length", "n_ctx", "n_positions"],
}  # fmt: skip
"""Few heads would make many scores of an indexer exactly 0, and their order arbitrary: so 12."""
_SCALARS: dict[str, float] = {
    "logits_scaling": 0.7, "logit_scale": 0.6, "final_logit_softcapping": 3.0,
    "logits_soft_cap": 3.0, "output_logit_soft_cap": 3.0, "attn_logit_softcapping": 2.0,
    "lm_head_multiplier": 0.7, "embedding_multiplier": 1.3, "residual_multiplier": 0.8,
    "attention_multiplier": 0.5, "query_pre_attn_scalar": 6, "embedding_scale": 1.5,
}  # fmt: skip
SMALL: dict[str, Any] = {
    **{name: size for size, names in _SIZES.items() for name in names},
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"), NUM_IDS),
    **_SCALARS,
}
_WINDOWED = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1}
"""Set also where a class has no window by default."""
_OFF = ("drop", "jitter")
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def small_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The known keys of a config with small values; those of configs inside it too."""
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _IDS and value is not None:
            small[name] = _IDS[name]
        elif name.endswith("_token_id") and type(value) is int:
            small[name] = 3
        elif name in _WINDOWED and not isinstance(value, list | dict):
            small[name] = _WINDOWED[name]
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
    """`fields` with `changes`, also inside nested ones."""
    both = dict(fields)
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(both.get(name), dict):
            both[name] = merged(both[name], value)
        else:
            both[name] = value
    return both


_DECODER = {"is_decoder": True}
_MLA = {"num_key_value_heads": 4, "qk_nope_head_dim": 8}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
_QSA = {
    **_LINEAR, "indexer_n_heads": 12, "indexer_kv_heads": 1, "indexer_head_dim": 8,
    "indexer_budget": 8, "indexer_compress_ratio": 2,
}  # fmt: skip
_ZAMBA = {
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
    "num_key_value_heads": 4, "attention_hidden_size": 64, "attention_head_dim": 16,
}  # fmt: skip
_WITH_MLA = (
    "axk1", "axk2", "deepseek_v3", "deepseek_v32", "dots3_note_text", "glm4_moe_lite",
    "glm_moe_dsa", "longcat_flash", "minicpm3", "youtu",
)  # fmt: skip
_ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
    "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta",
    "xlm-roberta-xl",
)  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(_WITH_MLA, _MLA),
    **dict.fromkeys(_ENCODERS, _DECODER),
    "bailing_hybrid": {**_MLA, **_LINEAR},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "blt": {
        "encoder_hash_byte_group_vocab": 50, "decoder_config": {"hidden_size_global": 32},
        "encoder_config": {"hidden_size_global": 32}, "global_config": {"hidden_size_local": 32},
        "cross_attn_k": 2, "patcher_config": {"hidden_size": 32},
    },
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1],
            },
        },
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 1.0}},
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},
    "dots3_note": {
        "text_config": _MLA,
        "vision_config": {
            "mlp_layer_types": ["dense", "dense"], "adapter_in_dim": 32, "adapter_out_dim": 32,
        },
        "audio_config": {"adapter_out_dim": 32, "adapter_input_size": 32},
    },
    "falcon_h1": _MAMBA,
    "gemma3n_text": {
        "intermediate_size": [64] * 3, "num_hidden_layers": 3, "num_kv_shared_layers": 1,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0] * 3,
    },
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"],
    },
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**_MLA, **_LINEAR, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 16, "n_groups": 2},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen3_5": {"text_config": _LINEAR},
    "qwen3_5_moe": {"text_config": _LINEAR},
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "qwen4_exp": {"text_config": _QSA},
    "qwen4_exp_text": _QSA,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        **_DECODER, "attn_layers": ["local", "lsh"], "axial_pos_embds": False,
        "num_attention_heads": 2, "attention_head_size": 16, "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8, "num_buckets": 4, "num_hashes": 2, "hash_seed": 1,
    },
    "roc_bert": {
        **_DECODER, "pronunciation_embed_dim": 8, "pronunciation_vocab_size": NUM_IDS,
        "shape_embed_dim": 8, "shape_vocab_size": NUM_IDS,
    },
    "xlm": {"causal": True},
    "xlstm": {"qk_dim_factor": 2.0, "v_dim_factor": 2.0},
    "xmod": {**_DECODER, "default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zamba2": {
        **_ZAMBA, "mamba_headdim": 8, "n_mamba_heads": 8, "use_mem_rope": True,
        "use_shared_attention_adapter": True, "adapter_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What single types need: sizes that must fit each other, and lists of layers."""

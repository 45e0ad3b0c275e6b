"""Tiny random models of many architectures, among them some that a batch or later tokens change."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.tiny import tiny_tokenizer

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ORIGINAL = 24
"""Length of the first training of the models with scaled positions, and every window."""
_ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": ORIGINAL}
_LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 8.0, 20.0],
    "factor": 4.0, **_ROPE,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, **_ROPE}
_BART = {
    "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64,
    "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "max_position_embeddings": 128, "is_decoder": True, "is_encoder_decoder": False,
}  # fmt: skip
_XLNET = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}
_CPMANT = {
    "hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 64,
    "num_hidden_layers": 2, "prompt_types": 4, "prompt_length": 4, "segment_types": 4,
}  # fmt: skip
_REFORMER = {
    "is_decoder": True, "attn_layers": ["local", "lsh"], "hidden_size": 32,
    "axial_pos_embds": False, "num_attention_heads": 2, "attention_head_size": 16,
    "feed_forward_size": 64,
    "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "num_buckets": 4, "num_hashes": 2,
    "max_position_embeddings": 128, "hash_seed": 1,
}  # fmt: skip
_GIT_VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
_SLIDING = {"sliding_window": ORIGINAL}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, **_SLIDING}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", COMMON),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "llama-yarn": ("llama", {**COMMON, "rope_parameters": _YARN}),
    "llama-dynamic": (
        "llama",
        {
            **COMMON,
            "max_position_embeddings": ORIGINAL,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
        },
    ),
    "phi3-longrope": (
        "phi3",
        {
            **COMMON,
            "original_max_position_embeddings": ORIGINAL,
            "rope_parameters": _LONGROPE,
        },
    ),
    "mistral": ("mistral", {**COMMON, **_SLIDING}),
    "gemma2": ("gemma2", {**COMMON, **_GEMMA}),
    "gemma3": ("gemma3_text", {**COMMON, **_GEMMA}),
    "gemma3-bidirectional": (
        "gemma3_text",
        {**COMMON, **_GEMMA, "use_bidirectional_attention": True},
    ),
    "rwkv": ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 128}),
    "minimax": (
        "minimax",
        {**COMMON, "block_size": 8, "num_local_experts": 4, "head_dim": 8},
    ),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "bart": ("bart", _BART),
    "opt": ("opt", {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "roformer": ("roformer", {**COMMON, "is_decoder": True, "embedding_size": 32}),
    "bert-encoder": ("bert", {**COMMON, "is_decoder": False}),
    "bert": ("bert", {**COMMON, "is_decoder": True}),
    "git": ("git", {**COMMON, "vision_config": _GIT_VISION}),
    "reformer": ("reformer", _REFORMER),
    "xlnet": ("xlnet", _XLNET),
    "cpmant": ("cpmant", _CPMANT),
}  # fmt: skip


def build(name: str, *, scale: float = 4.0, **changes: Any) -> Any:
    """A random causal LM with the vocabulary of `tiny_tokenizer`; `scale` sharpens its weights.

    Initial weights of most architectures are so small that their attention is uniform.
    """
    tokenizer = tiny_tokenizer()
    kind, options = ARCHITECTURES[name]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **{**options, **ids, **changes})
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model


def save(name: str, folder: Path, **changes: Any) -> Path:
    """Write such a model with its tokenizer as a transformers directory."""
    build(name, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder

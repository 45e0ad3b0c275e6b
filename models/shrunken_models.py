"""A small copy of a model with random weights, made from its config alone.

It has the class's own forward: whether that is causal, and what it takes, is known before the
weights of the model are loaded, and costs less than a second.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from caskd.models.forward_probe import check_causal
from caskd.models.model_parts import FAILURES, run_model
from caskd.models.opening import build_model
from caskd.models.split_model import SplitModel, check_split
from caskd.store.errors import UsageError

_MOST_PARAMETERS = 20_000_000
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers",
           "encoder_layers", "num_blocks")  # fmt: skip
_VOCABULARY = dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"), 64)
_INNER = {
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner",
         "ffn_hidden_size", "intermediate_size_mlp", "moe_intermediate_size",
         "shared_expert_intermediate_size"), 64
    ),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 16
    ),
}  # fmt: skip
_HEADS = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "embedding_size"), 64
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads",
         "encoder_attention_heads", "num_key_value_heads"), 4
    ),
}  # fmt: skip
_HEAD_WIDTHS = {"head_dim": 16, "kv_channels": 16, "rotary_dim": 16}
_TRIES: tuple[Mapping[str, int], ...] = (
    _VOCABULARY,
    {**_VOCABULARY, **_INNER},
    {**_VOCABULARY, **_INNER, **_HEADS},
    {**_VOCABULARY, **_INNER, **_HEADS, **_HEAD_WIDTHS},
)
"""Sizes of the copies, the one that changes least first; the first that runs is taken."""


def check_class(config: Any, flag: str, longest: int | None = None) -> None:
    """Refuse a model whose class caskd cannot use, before its weights are loaded.

    A class that no small copy stands for passes: the loaded model is checked again.

    Args:
        config: of the model.
        flag: the option that named it, for errors.
        longest: tokens that one example may have; by default any number that the config names.

    Raises:
        UsageError: it sees later tokens, its logits are not those of its head, or it takes fewer
            tokens.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = next(_copies(config, flag), None)
        if model is None:
            return
        split = SplitModel(model, flag)
        check_split(model, split)
        check_causal(split, flag)
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        if longest is None or not isinstance(most, int) or not 0 < most < longest:
            return
        try:
            run_model(model, torch.zeros(1, longest, dtype=torch.long))
        except FAILURES as error:
            raise UsageError(
                f"{flag}: {type(model).__name__} takes at most {most:,} tokens, but the longest "
                f"example has {longest:,}; expected a model with more positions; pass another "
                "model, or a store with shorter examples (caskd precompute --max-length)"
            ) from error


@torch.no_grad()
def _copies(config: Any, flag: str) -> Iterator[Any]:
    """Copies that run, the most alike first."""
    for sizes in _TRIES:
        try:
            smaller = _shrunk(config, sizes)
            empty = build_model(copy.deepcopy(smaller), flag, device="meta")
            if sum(parameter.numel() for parameter in empty.parameters()) > _MOST_PARAMETERS:
                continue
            model = build_model(smaller, flag, dtype=torch.float32).eval()
            run_model(model, torch.arange(8)[None])
        except (UsageError, ArithmeticError, *FAILURES):
            continue
        yield model


def _shrunk(config: Any, sizes: Mapping[str, int]) -> Any:
    """A config with these sizes where they are smaller, and a layer of each type."""
    smaller = copy.deepcopy(config)
    if hasattr(smaller, "quantization_config"):
        del smaller.quantization_config
    for part in _parts(smaller):
        own = vars(part)
        layers = next((own[key] for key in _LAYERS if isinstance(own.get(key), int)), None)
        if layers is not None and layers > 2:
            _keep_layers(part, layers)
        for key, size in sizes.items():
            if isinstance(own.get(key), int) and own[key] > size:
                setattr(part, key, size)
        if isinstance(own.get("pad_token_id"), int):
            part.pad_token_id = min(part.pad_token_id, 0)
    return smaller


def _parts(config: Any) -> Iterator[Any]:
    """A config and the configs in it."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield from _parts(value)


def _keep_layers(config: Any, layers: int) -> None:
    types = vars(config).get("layer_types")
    kept = [0, 1]
    if isinstance(types, list) and len(types) == layers:
        kept = sorted({types.index(kind) for kind in types} | {0, 1})
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(config, key, [value[index] for index in kept])
        elif key in _LAYERS and value == layers:
            setattr(config, key, len(kept))

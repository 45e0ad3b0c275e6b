"""Tiny models of every type in which nothing is 0 or 1, and their tokenizer."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers.tiny import ALPHABET, SPECIAL
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from architectures.tiny_configs import tiny_config

NOT_BUILT_ERRORS = (AttributeError, ImportError, KeyError, TypeError, ValueError)


class NotBuiltError(Exception):
    """transformers does not build or run a model of a type from its config and token ids."""


def build(
    model_type: str,
    folder: Path,
    *,
    dtype: str = "float32",
    prepare: Callable[[Any], None] | None = None,
    **changes: Any,
) -> Any:
    """Write a tiny model of a type with its tokenizer; weights are so large that any of them
    that is left out shows.

    Raises:
        NotBuiltError: transformers builds or runs no such model.
    """
    torch.manual_seed(0)
    try:
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).eval()
        model(input_ids=torch.ones(1, 2, dtype=torch.long), **no_cache(model))
    except (*NOT_BUILT_ERRORS, StrictDataclassError) as error:
        raise NotBuiltError(str(error).split("ValueError: ")[-1]) from error
    randomise(model)
    if prepare is not None:
        prepare(model)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


def no_cache(model: Any) -> dict[str, Any]:
    """Options of a forward that keeps no cache, where the model takes them."""
    accepted = inspect.signature(model.forward).parameters
    return {"use_cache": False} if "use_cache" in accepted else {}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, as byte-level BPE: transformers opens every type with it."""
    shown = [{" ": "Ġ", "\n": "Ċ"}.get(text, text) for text in [*SPECIAL, *ALPHABET]]
    others = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(shown))
    vocabulary = {text: index for index, text in enumerate([*shown, *others])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@torch.no_grad()
def randomise(model: Any) -> None:
    """Give every weight, bias, norm and scalar of a model a value of its own."""
    stored = model.state_dict()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape) * 0.2
        parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    for name, buffer in model.named_buffers():
        # Larger buffers are tables of the architecture, such as decays.
        if name in stored and buffer.is_floating_point() and buffer.dim() <= 1:
            buffer.add_(torch.randn(buffer.shape) * 0.2)

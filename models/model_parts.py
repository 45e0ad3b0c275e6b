"""Parts of a transformers model: its embedding, its head, its device, and one forward.

Legend: B examples of a batch, L padded length, H hidden, V vocabulary.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from caskd.store.errors import UsageError

FAILURES = (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError,
            NotImplementedError, AssertionError)  # fmt: skip
"""Errors of a model that does not take such inputs."""


def input_device(model: Any) -> torch.device:
    """The device of a model; if it spans several devices, the first of them."""
    layout = getattr(model, "hf_device_map", {}).values()
    devices = [device for device in layout if device not in ("cpu", "disk")]
    own: torch.device = model.device
    return torch.device(devices[0]) if devices else own


def run_model(model: Any, input_ids: Tensor, **options: Tensor | None) -> Any:
    """The outputs of a model's forward without a cache, with those options that it names."""
    accepted = inspect.signature(model.forward).parameters
    offered: dict[str, Any] = {**options, "use_cache": False}
    given = {name: x for name, x in offered.items() if x is not None and name in accepted}
    return model(input_ids=input_ids, **given)


@contextmanager
def inputs_of(head: nn.Module | None) -> Iterator[list[Tensor]]:
    """Keep the states [B, L, H] that the head receives, and let it compute those of one token.

    Nothing is kept without a head.
    """
    caught: list[Tensor] = []
    if head is None:
        yield caught
        return

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        caught.append(inputs[0])
        # Not detached: DDP looks for unused parameters behind the outputs of the model.
        return (inputs[0][:1, :1], *inputs[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield caught
    finally:
        handle.remove()


def num_embeddings(model: Any, flag: str) -> int:
    """Rows of the embedding: ids that the model can read.

    Raises:
        UsageError: the model has no embedding of token ids.
    """
    embedding = embedding_of(model)
    if embedding is None:
        raise refusal(model, flag, "has no embedding of token ids")
    return int(embedding.weight.shape[0])


def embedding_of(model: Any) -> Any:
    """The embedding of token ids; None if the model has none.

    transformers does not know that of some decoders, such as BART's: it is the widest then.
    """
    try:
        found = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        found = None
    if getattr(found, "weight", None) is not None:
        return found
    others = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return max(others, key=lambda module: module.num_embeddings, default=None)


def output_head(model: Any) -> nn.Module | None:
    """The module of the head; None if the model has none of one matrix."""
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    has_weight = isinstance(head, nn.Module) and getattr(head, "weight", None) is not None
    return head if has_weight else None


def output_logits(output: Any) -> Tensor:
    """The logits [B, L, V] of a model's output, which may be a tuple."""
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


def refusal(model: Any, flag: str, problem: str) -> UsageError:
    return UsageError(
        f"{flag}: {type(model).__name__} {problem}; expected a causal language model; pass another "
        "model"
    )

"""Which operations a model applies to the product of its head, tried in its own forward.

Legend: L tokens of the trial, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from caskd.models.head_forms import HeadForm, constants_of, find_form, trial_product
from caskd.models.model_parts import (
    FAILURES,
    embedding_of,
    input_device,
    output_logits,
    refusal,
    run_model,
)
from caskd.store.errors import UsageError, reason

_TRIAL_TOKENS = 8


def form_and_width(model: Any, head: nn.Module, flag: str) -> tuple[HeadForm, int]:
    """The operations after the head, and the number of columns that the model keeps.

    Where those of a model without weights cannot be tried, they count as none: the check of the
    loaded model decides.
    """
    tried: list[Tensor] = []

    def replace(_: nn.Module, __: Any, product: Tensor) -> Tensor:
        tried.append(trial_product(product.shape))
        # Without weights the product is on `meta`, which holds no numbers.
        return tried[0] if product.device.type == "meta" else tried[0].to(product.device)

    handle = head.register_forward_hook(replace)
    try:
        logits = _logits_of_one_pass(model, head, flag)
    except UsageError:
        if _is_empty(model):
            return HeadForm(), int(head.weight.shape[0])  # type: ignore[union-attr, arg-type, index]
        raise
    finally:
        handle.remove()
    found = None
    if logits.dim() == 3 and len(tried) == 1 and logits.device.type != "meta":
        product = tried[0][..., : logits.shape[-1]]
        if product.shape == logits.shape:
            found = find_form(product, logits.cpu(), constants_of(model.config))
    if found is None:
        raise UsageError(
            f"{flag}: {type(model).__name__} changes the product of its head in a way that caskd "
            "does not compute; expected at most a scale, a soft cap and a cut of the last "
            "columns; pass another model"
        )
    return found, logits.shape[-1]


@torch.no_grad()
def _logits_of_one_pass(model: Any, head: nn.Module, flag: str) -> Tensor:
    """Logits [1, L, V] of a few tokens in the model's own forward."""
    is_empty, device = _is_empty(model), input_device(model)
    if device.type == "meta" and not is_empty:
        device = torch.device("cpu")
    tokens = torch.zeros(1, _TRIAL_TOKENS, dtype=torch.long, device=device)
    training = model.training
    model.eval()
    try:
        with _without_body(model, head) if is_empty else nullcontext():
            return output_logits(run_model(model, tokens))
    except FAILURES as error:
        raise refusal(
            model, flag, f"computes no logits from token ids alone ({reason(error)})"
        ) from error
    finally:
        model.train(training)


def _is_empty(model: Any) -> bool:
    """Whether weights are on `meta`, and no layout says where they come from when they are used."""
    layout = getattr(model, "hf_device_map", None)
    return layout is None and any(parameter.is_meta for parameter in model.parameters())


class _Outputs:
    """The outputs of a body that did not run: hidden states, and None for everything else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, _: str) -> None:
        return None

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]


@contextmanager
def _without_body(model: Any, head: nn.Module) -> Iterator[None]:
    """Replace the body, whatever its name, with one that returns states at once."""
    width = getattr(model.config.get_text_config(), "hidden_size", None) or head.weight.shape[1]  # type: ignore[union-attr, index]
    outputs = _Outputs(torch.zeros(1, _TRIAL_TOKENS, int(width), device="meta"))
    embedding = embedding_of(model)
    bodies = [
        module
        for module in model.modules()
        if module is not embedding and embedding in (parts := set(module.modules()))
        if head not in parts
    ]
    for module in bodies:
        module.forward = lambda *_, **__: outputs
    try:
        yield
    finally:
        for module in bodies:
            del module.forward

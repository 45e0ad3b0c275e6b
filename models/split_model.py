"""A causal LM as body and head, and the check that the two halves equal the whole.

Legend: B examples of a batch, L padded length, N rows, H hidden, V vocabulary.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from caskd.models.batching import Batch
from caskd.models.head_forms import HeadForm, constants_of, find_form, trial_product
from caskd.models.length_borders import forget_lengths, length_borders
from caskd.store.errors import UsageError, reason

Positions = npt.NDArray[np.integer[Any]]

FAILURES = (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError,
            NotImplementedError, AssertionError)  # fmt: skip
"""Errors of a model that does not take such inputs."""
_TRIAL_TOKENS = 8


class SplitModel:
    """A causal LM in two halves, so that logits are computed only for the rows that need them.

    The hidden states are what the head receives in the model's own forward: layers, scales and
    changes of dtype before the head are the model's.

    Args:
        model: the causal LM; on device `meta`, its operations after the head are tried alone.
        flag: the option that named the model, such as `--teacher`; errors start with it.

    Raises:
        UsageError: the model has no head of one matrix, or changes the head's product in another
            way than by a scale, a soft cap and a cut of the last columns.
    """

    def __init__(self, model: Any, flag: str) -> None:
        self.flag = flag
        self.model = model
        self.architecture = type(model).__name__
        head = output_head(model)
        if head is None:
            raise _refusal(model, flag, "has no separate body and head")
        self.head: nn.Module = head
        self.config: Any = model.config
        self.borders = length_borders(model.config)
        self.form, self.width = _form_and_width(model, self.head, flag)

    @property
    def num_ids(self) -> int:
        """Ids that the model can both read and predict."""
        return min(num_embeddings(self.model, self.flag), self.width)

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        device = _input_device(self.model)
        # Parameters that accelerate keeps on disk are on `meta` until they are used.
        return torch.device("cpu") if device.type == "meta" else device

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states [B, L, H] of token ids [B, L]; see `batching` for the two layouts."""
        options = {"attention_mask": attention_mask, "position_ids": position_ids}
        if self.borders.each is not None:
            forget_lengths(self.model)
        with inputs_of(self.head) as caught:
            run_model(self.model, input_ids, **options)
        if len(caught) != 1 or caught[0].shape[:-1] != input_ids.shape:
            raise UsageError(
                f"{self.flag}: {self.architecture} does not call its head once with a state of "
                "each token; expected a causal language model; pass another model"
            )
        return caught[0]

    def hidden_rows(self, batch: Batch, positions: Sequence[Positions]) -> Tensor:
        """Hidden states [N, H] at the given positions of each sequence, sequence by sequence."""
        device, numbers = self.device, batch.position_ids
        hidden = self.hidden(
            torch.from_numpy(batch.input_ids).to(device),
            position_ids=None if numbers is None else torch.from_numpy(numbers).to(device),
        ).flatten(0, 1)
        flat = np.concatenate([s + own for s, own in zip(batch.starts, positions, strict=True)])
        return hidden[torch.from_numpy(flat).to(hidden.device)]

    def logits(self, hidden: Tensor, num_columns: int | None = None) -> Tensor:
        """Logits [N, V] in float32 of hidden states [N, H], cut to the first `num_columns`."""
        return self.adjusted(self.head(hidden), num_columns)

    def adjusted(self, product: Tensor, num_columns: int | None = None) -> Tensor:
        """Logits [N, V] in float32 of the head's product, cut to the first `num_columns`."""
        width = self.width if num_columns is None else min(num_columns, self.width)
        return self.form.logits(product[:, :width].float())

    @property
    def weight(self) -> Tensor:
        """The head's matrix [V, H], without rows whose logits the model cuts off."""
        weight: Tensor = self.head.weight  # type: ignore[assignment]
        return weight if len(weight) == self.width else weight[: self.width]

    @property
    def bias(self) -> Tensor | None:
        """The head's bias [V], if it has one."""
        bias: Tensor | None = getattr(self.head, "bias", None)
        return bias if bias is None or len(bias) == self.width else bias[: self.width]


def _input_device(model: Any) -> torch.device:
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
        raise _refusal(model, flag, "has no embedding of token ids")
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


def _form_and_width(model: Any, head: nn.Module, flag: str) -> tuple[HeadForm, int]:
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
    is_empty, device = _is_empty(model), _input_device(model)
    if device.type == "meta" and not is_empty:
        device = torch.device("cpu")
    tokens = torch.zeros(1, _TRIAL_TOKENS, dtype=torch.long, device=device)
    training = model.training
    model.eval()
    try:
        with _without_body(model, head) if is_empty else nullcontext():
            return output_logits(run_model(model, tokens))
    except FAILURES as error:
        raise _refusal(
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


def output_logits(output: Any) -> Tensor:
    """The logits of a model's output, which may be a tuple."""
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


def _refusal(model: Any, flag: str, problem: str) -> UsageError:
    return UsageError(
        f"{flag}: {type(model).__name__} {problem}; expected a causal language model; pass another "
        "model"
    )


@torch.no_grad()  # not inference_mode: training must be able to use tensors that a forward caches
def check_split(model: Any, split: SplitModel, num_columns: int | None = None) -> None:
    """Compare the logits of the two halves with those of the whole model, on eight tokens.

    Raises:
        UsageError: they differ.
    """
    num_ids = split.num_ids if num_columns is None else num_columns
    input_ids = (torch.arange(8, device=split.device) % num_ids)[None]
    whole = output_logits(run_model(model, input_ids))[0, :, :num_columns].float()
    hidden = split.hidden(input_ids)[0]
    ours = split.logits(hidden, num_columns).to(whole.device)
    error, size = float((whole - ours).abs().max()), float(whole.abs().max())
    if error > (1e-4 if is_float32(model) else 5e-2) * max(size, 1.0):
        raise UsageError(
            f"{split.flag}: the logits that caskd computes from the hidden states of "
            f"{type(model).__name__} differ from the model's own by {error:.3g}; expected a head "
            "of one matrix with at most a bias, a scale and a soft cap; pass another model"
        )


@torch.no_grad()
def check_matrix(split: SplitModel) -> None:
    """Refuse a head that is more than a matrix and a bias, which a loss may read itself.

    Raises:
        UsageError: its product is another one.
    """
    states = torch.linspace(-1, 1, 8 * split.weight.shape[1], device=split.weight.device)
    states = states.to(split.weight.dtype).reshape(8, -1)
    theirs = split.head(states)[:, : split.width]
    ours = nn.functional.linear(states, split.weight, split.bias)
    if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max())):
        raise _refusal(split.model, split.flag, "has a head that is more than a matrix and a bias")


def is_float32(model: nn.Module) -> bool:
    """Whether a model computes in float32, so that two ways of computing agree closely."""
    return next(model.parameters()).dtype == torch.float32

"""The teacher: tokens in, row fields out.

Legend: B examples of a batch, L padded length, N rows of the batch, H hidden, V vocabulary,
k cells kept per row.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from caskd.precompute.architecture import SplitModel, check_split
from caskd.precompute.checkpoint import TeacherSource
from caskd.precompute.rules import RowRule
from caskd.precompute.topk import Fields
from caskd.store.alignment import logit_positions, row_labels
from caskd.store.errors import UsageError
from caskd.store.writer import ShardExample

TILE_LOGITS = 1 << 24  # logits of one tile: 64 MB in float32


class Teacher(Protocol):
    """Whatever can say what it expects at each response token: a model here, or one served."""

    def rows(self, examples: Sequence[ShardExample]) -> Fields:
        """Row fields of all examples, concatenated in their order.

        Raises:
            MemoryError: the batch is too large; a smaller one may do.
        """


class TransformersTeacher:
    """A frozen transformers causal LM on one device.

    Raises:
        UsageError: no CUDA where it was asked for, or a checkpoint that lacks weights.
    """

    def __init__(
        self, source: TeacherSource, *, vocab_size: int, rule: RowRule, device: str
    ) -> None:
        self.device = pick_device(device)
        self.num_columns = min(vocab_size, source.num_ids)
        self.rule = rule
        self.model = load_model(source, self.device)
        self.split = SplitModel(self.model)
        check_split(self.model, self.split, self.num_columns)

    @torch.inference_mode()
    def rows(self, examples: Sequence[ShardExample]) -> Fields:
        """Row fields of all examples, concatenated in their order."""
        with _memory_errors():
            positions = [logit_positions(example.is_response) for example in examples]
            hidden = self._hidden_rows(examples, positions)
            labels = torch.from_numpy(
                np.concatenate([row_labels(e.token_ids, e.is_response) for e in examples])
                .astype(np.int64)
            ).to(self.device)  # fmt: skip
            tile = max(1, TILE_LOGITS // self.num_columns)
            numbers = self.rule.numbers(examples)
            tiles = [
                self.rule.fields(
                    self.split.logits(hidden[start : start + tile], self.num_columns),
                    labels[start : start + tile],
                    numbers[start : start + tile],
                )
                for start in range(0, len(labels), tile)
            ]
        return {name: np.concatenate([t[name] for t in tiles]) for name in tiles[0]}

    def _hidden_rows(
        self, examples: Sequence[ShardExample], positions: Sequence[Any]
    ) -> torch.Tensor:
        """Hidden states [N, H] at the positions that predict the rows."""
        # The token of the last row is only ever a label: the teacher need not see it.
        lengths = [int(places[-1]) + 1 for places in positions]
        longest = max(lengths)
        input_ids = np.zeros((len(examples), longest), dtype=np.int64)
        for line, example, length in zip(input_ids, examples, lengths, strict=True):
            line[:length] = example.token_ids[:length]
            # Padding must be finite even behind the mask (0 x NaN is NaN): a token of its own is.
            line[length:] = example.token_ids[0]
        mask = np.arange(longest) < np.array(lengths)[:, None]
        hidden = self.split.hidden(
            torch.from_numpy(input_ids).to(self.device),
            torch.from_numpy(mask.astype(np.int64)).to(self.device),
        )
        flat = np.concatenate([n * longest + places for n, places in enumerate(positions)])
        return hidden.flatten(0, 1)[torch.from_numpy(flat).to(self.device)]


def pick_device(device: str) -> torch.device:
    """The device that a flag names.

    Raises:
        UsageError: there is no CUDA.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UsageError("--device is cuda but torch sees no CUDA device; type --device cpu")
    return torch.device("cuda" if has_cuda and device != "cpu" else "cpu")


def load_model(source: TeacherSource, device: torch.device) -> Any:
    """Load the weights, for inference only and never with code from the checkpoint.

    Raises:
        UsageError: weights are missing; transformers would fill them with random numbers.
    """
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        source.folder,
        dtype=getattr(torch, source.load_dtype),
        attn_implementation=source.attention,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise UsageError(
            f"teacher {source.name!r} lacks {len(report['missing_keys'])} weights, the first "
            f"{min(report['missing_keys'])!r}; expected a whole checkpoint: fetch it again"
        )
    return model.requires_grad_(False).eval().to(device)


@contextmanager
def fixed_kernels(on: bool) -> Iterator[None]:
    """Deterministic kernels while inside; as it was before, afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    if on:  # read by cuBLAS when it starts; without it torch refuses its matrix products
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn every kind of running out of memory into MemoryError."""
    try:
        yield
    except RuntimeError as error:
        cpu = "not enough memory" in str(error) or "can't allocate memory" in str(error)
        if not (cpu or isinstance(error, torch.OutOfMemoryError)):
            raise
        reason = str(error).splitlines()[0]
    else:
        return
    # Outside the handler, so that no frame of the failed pass keeps its tensors alive.
    torch.cuda.empty_cache()
    raise MemoryError(reason)

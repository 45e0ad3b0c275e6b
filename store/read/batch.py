"""What reading a store gives: some examples, their tokens, labels, positions and row fields.

Legend: B examples asked for, T their tokens, N their rows, k cells per row.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.corpus import alignment
from caskd.store.errors import CorruptError, UsageError
from caskd.store.format import ExampleIndex

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StoreBatch:
    """Some examples, concatenated in the order asked for.

    `logit_positions[n]` is the position, within its own example, whose logits predict row n;
    `labels[n]` is the token that stands one position later. Row fields that were not asked for
    are None, and so are those that a store of this kind does not have. Cells of a row from
    `num_kept` on are padding: mask by `num_kept`, never by value.
    """

    example_indices: npt.NDArray[np.int64]  # [B]
    token_ids: npt.NDArray[np.uint32]  # [T]
    is_response: npt.NDArray[np.uint8]  # [T]
    token_offsets: npt.NDArray[np.int64]  # [B + 1]
    row_offsets: npt.NDArray[np.int64]  # [B + 1]
    logit_positions: npt.NDArray[np.int64]  # [N]
    labels: npt.NDArray[np.uint32]  # [N]
    topk_ids: npt.NDArray[np.uint32] | None = None  # [N, k], rank order
    topk_logits: npt.NDArray[np.float32] | None = None  # [N, k]
    num_kept: npt.NDArray[np.uint16] | None = None  # [N]
    logsumexp: npt.NDArray[np.float32] | None = None  # [N]
    label_logit: npt.NDArray[np.float32] | None = None  # [N]
    tail_mass: npt.NDArray[np.float32] | None = None  # [N]
    argmax: npt.NDArray[np.uint32] | None = None  # [N]
    label_rank: npt.NDArray[np.uint32] | None = None  # [N]
    sampled_ids: npt.NDArray[np.uint32] | None = None  # [N, k], descending count, then ascending id
    sampled_counts: npt.NDArray[np.uint16] | None = None  # [N, k], num_samples in all

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.labels)

    def column(self, name: str) -> Array:
        """A row field that was asked for.

        Raises:
            UsageError: it was not read.
        """
        values: Array | None = getattr(self, name)
        if values is None:
            raise UsageError(f"field {name!r} was not read; name it in read(fields=...).")
        return values


def assemble(
    chosen: npt.NDArray[np.int64],
    index: ExampleIndex,
    token_ids: Array,
    is_response: Array,
    rows: dict[str, Array],
) -> StoreBatch:
    """Derive positions and labels of each example from its tokens and mask, and concatenate."""
    token_offsets, row_offsets = (
        _offsets(index.token_count[chosen]),
        _offsets(index.row_count[chosen]),
    )
    places = alignment.joined_row_positions(is_response, token_offsets)
    found = np.diff(np.searchsorted(places, token_offsets))
    wrong = np.flatnonzero(found != index.row_count[chosen])
    if len(wrong):
        example = chosen[wrong[0]]
        raise CorruptError(
            f"example {example}: {found[wrong[0]]} response tokens, but "
            f"{index.row_count[example]} rows. Run caskd store verify."
        )
    return StoreBatch(
        example_indices=chosen,
        token_ids=token_ids,
        is_response=is_response,
        token_offsets=token_offsets,
        row_offsets=row_offsets,
        logit_positions=places - 1 - np.repeat(token_offsets[:-1], found),
        labels=token_ids[places],
        **rows,
    )


def _offsets(counts: Array) -> npt.NDArray[np.int64]:
    """Where each part begins and the last one ends, [n + 1]."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets

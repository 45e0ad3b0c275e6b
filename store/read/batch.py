"""StoreBatch: the result of a read, with tokens, labels, positions and row fields of examples.

Legend: B examples, T their tokens, N their rows, k cells per row.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caskd.store.corpus import joined_row_positions
from caskd.store.errors import CorruptError, UsageError
from caskd.store.format import Array, ExampleIndex


@dataclass(frozen=True)
class StoreBatch:
    """Examples, concatenated in the requested order.

    `logit_positions[n]` is the position, within its own example, whose logits predict row n;
    `labels[n]` is the token one position later. Row fields that were not requested, or that the
    store's kind of rows lacks, are None. Cells of a row from `num_kept` on are padding: mask by
    `num_kept`, never by value.
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
    # Of draws with a head: its ids come first in sampled_ids, in rank order, with a count of 0.
    head_logits: npt.NDArray[np.float32] | None = None  # [N, k], -inf beyond the head
    num_head: npt.NDArray[np.uint16] | None = None  # [N]
    drawn_mass: npt.NDArray[np.float32] | None = None  # [N], outside of the head

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.labels)

    def column(self, name: str) -> Array:
        """A row field.

        Raises:
            UsageError: the field was not requested.
        """
        values: Array | None = getattr(self, name)
        if values is None:
            raise UsageError(
                f"field {name!r}: was not read; expected a field of the batch; add it to "
                "read(fields=...)"
            )
        return values


def assemble(
    chosen: npt.NDArray[np.int64],
    index: ExampleIndex,
    token_ids: Array,
    is_response: Array,
    rows: dict[str, Array],
) -> StoreBatch:
    """Derive the labels and logit positions of all rows, and make a batch.

    Raises:
        CorruptError: an example's response tokens contradict its row count.
    """
    token_offsets = _offsets(index.token_count[chosen])
    row_offsets = _offsets(index.row_count[chosen])
    positions = joined_row_positions(is_response, token_offsets)
    found = np.diff(np.searchsorted(positions, token_offsets))
    wrong = np.flatnonzero(found != index.row_count[chosen])
    if len(wrong):
        example = chosen[wrong[0]]
        raise CorruptError(
            f"example {example}: {found[wrong[0]]} response tokens, but "
            f"{index.row_count[example]} rows",
            cure="run caskd store verify",
        )
    return StoreBatch(
        example_indices=chosen,
        token_ids=token_ids,
        is_response=is_response,
        token_offsets=token_offsets,
        row_offsets=row_offsets,
        logit_positions=positions - 1 - np.repeat(token_offsets[:-1], found),
        labels=token_ids[positions],
        **rows,
    )


def _offsets(counts: Array) -> npt.NDArray[np.int64]:
    """The start of each part, then the end of the last one, [n + 1]."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets

"""Row fields on their way between processes: packed in one, put together in the other.

Legend: N rows of a piece or a batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from caskd.precompute.rows.topk import Columns, Fields
from caskd.store.errors import TeacherError

Packed = Mapping[str, tuple[str, Sequence[int], bytes]]
"""Type, shape and bytes of each column."""
Piece = tuple[int, int, Packed]
"""Number of an example in its batch, its first row in this piece, and the columns of these rows."""
_NARROW = {np.dtype(np.int64): np.dtype(np.int32), np.dtype(np.float64): np.dtype(np.float32)}
"""Half the bytes: a store has 32 bits of either."""


def pack(columns: Columns) -> Packed:
    """Columns of a device as bytes."""
    found = {}
    for name, values in columns.items():
        array = values.cpu().numpy()
        array = array.astype(_NARROW.get(array.dtype, array.dtype))
        found[name] = (array.dtype.str, list(array.shape), array.tobytes())
    return found


def unpack(packed: Packed) -> Fields:
    """The columns that `pack` was given."""
    return {
        name: np.frombuffer(data, dtype).reshape(shape)
        for name, (dtype, shape, data) in packed.items()
    }


def assembled(pieces: Iterable[Piece], row_counts: Sequence[int]) -> Fields:
    """The columns [N, ...] of a batch from pieces in any order.

    Args:
        pieces: rows of its examples. A piece that comes twice, as after an engine had to start an
            example anew, counts once.
        row_counts: rows of each example.

    Raises:
        TeacherError: rows are missing, or outside of an example.
    """
    starts = np.concatenate([[0], np.cumsum(row_counts)]).astype(int)
    filled = np.zeros(starts[-1], bool)
    whole: dict[str, Any] = {}
    for number, first, packed in pieces:
        columns = unpack(packed)
        num_rows = len(next(iter(columns.values())))
        if not 0 <= number < len(row_counts) or first + num_rows > row_counts[number]:
            raise TeacherError(
                f"--backend vllm: its workers sent rows {first} to {first + num_rows} of example "
                f"{number}; expected rows that were asked for; check the version of vllm"
            )
        for name, values in columns.items():
            if name not in whole:
                whole[name] = np.empty((len(filled), *values.shape[1:]), values.dtype)
            whole[name][starts[number] + first :][:num_rows] = values
        filled[starts[number] + first :][:num_rows] = True
    if not filled.all():
        raise TeacherError(
            f"--backend vllm: its workers sent {int(filled.sum()):,} of {len(filled):,} rows; "
            "expected all of them; check the version of vllm"
        )
    return whole

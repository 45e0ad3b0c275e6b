"""The compact encodings of earlier versions, which readers read and no writer writes.

Legend: N rows, k cells per row, C orders of ids, V vocabulary.

* An id is stored as its position in one of the orders of `id_order`, which a pilot of the teacher
  gave (see id_orders.py).
* The log-probabilities of a top-k or a head become codes with steps of up to 1/4 nat (see
  log_probabilities.py); differences between neighbouring ranks are stored.
* Draws stand in ascending position, and an id is the step from the position before it. The cells of
  a chunk's rows follow each other without padding.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from caskd.store.cells import (
    decode_ids,
    draw_cells,
    from_cells,
    kept_cells,
    log_probability_table,
    logits_of_codes,
    places_of_steps,
    put_behind_head,
    sum_of_steps,
)
from caskd.store.errors import CorruptError
from caskd.store.format.codecs import Array
from caskd.store.format.rows import (
    HEAD_SAMPLED,
    SAMPLED,
    TOPK,
    RowArray,
    RowEncoding,
    check_heads,
)

MAX_STEP = 1 / 4
LOG_PROBABILITIES = log_probability_table(MAX_STEP).astype(np.float32)


class CompactTopK(RowEncoding):
    """Ids as positions in orders of ids, logits as steps between quantised log-probabilities."""

    kind = TOPK
    name = "compact"
    is_written = False
    cell_arrays = (
        RowArray("topk_id_codes", "uint32", "packed", "id", field="topk_ids"),
        RowArray("topk_id_order", "uint8", "shuffled", "order", is_column=True),
        RowArray("topk_logit_steps", "uint16", "transposed", field="topk_logits"),
    )
    sources = MappingProxyType(
        {
            "topk_ids": ("topk_id_codes", "topk_id_order", "num_kept"),
            "topk_logits": ("topk_logit_steps", "num_kept", "logsumexp"),
        }
    )
    uses_id_orders = True
    exact = False

    def decode(
        self, name: str, stored: Mapping[str, Array], id_orders: Array | None, out: Array
    ) -> None:
        """Decode `topk_ids` or `topk_logits` of one chunk."""
        num_kept = stored["num_kept"]
        if name == "topk_ids":
            assert id_orders is not None
            codes, chosen = stored["topk_id_codes"], stored["topk_id_order"]
            decode_ids(codes, chosen, num_kept, id_orders, out)
        else:
            decode_logits(stored, "topk_logit_steps", num_kept, out)


class CompactDraws(RowEncoding):
    """Ids as steps between positions in orders of ids, counts in the same sequence, no padding."""

    kind = SAMPLED
    name = "compact"
    is_written = False
    cell_arrays = (
        RowArray("sampled_place_steps", "uint32", "ragged", "id", field="sampled_ids"),
        RowArray("sampled_id_order", "uint8", "shuffled", "order", is_column=True),
        RowArray("sampled_place_counts", "uint16", "ragged", "num_cells", field="sampled_counts"),
    )
    # The sequence of both fields depends on ids and counts, so each needs all arrays.
    sources = MappingProxyType(
        dict.fromkeys(
            ("sampled_ids", "sampled_counts"),
            ("sampled_place_steps", "sampled_id_order", "sampled_place_counts", "num_kept"),
        )
    )
    uses_id_orders = True

    def decode(
        self, name: str, stored: Mapping[str, Array], id_orders: Array | None, out: Array
    ) -> None:
        """Decode `sampled_ids` or `sampled_counts` of one chunk."""
        ids, counts = _draws(stored, stored["num_kept"], id_orders)
        out[:] = ids if name == "sampled_ids" else counts


class CompactHeadDraws(RowEncoding):
    """The head as in a compact top-k, the draws as in compact draws, in one order of ids a row."""

    kind = HEAD_SAMPLED
    name = "compact"
    is_written = False
    cell_arrays = (
        RowArray("head_id_codes", "uint32", "ragged", "id", field="sampled_ids"),
        RowArray("head_logit_steps", "uint16", "transposed", field="head_logits"),
        RowArray("sampled_place_steps", "uint32", "ragged", "id"),
        RowArray("sampled_place_counts", "uint16", "ragged", "num_cells", field="sampled_counts"),
        RowArray("sampled_id_order", "uint8", "shuffled", "order", is_column=True),
    )
    _DRAWS = (
        "sampled_place_steps", "sampled_place_counts", "sampled_id_order", "num_kept", "num_head",
    )  # fmt: skip
    sources = MappingProxyType(
        {
            "sampled_ids": ("head_id_codes", *_DRAWS),
            "sampled_counts": _DRAWS,
            "head_logits": ("head_logit_steps", "num_head", "logsumexp"),
        }
    )
    uses_id_orders = True
    exact = False

    def decode(
        self, name: str, stored: Mapping[str, Array], id_orders: Array | None, out: Array
    ) -> None:
        """Decode the ids, the counts or the head's logits of one chunk."""
        num_head = stored["num_head"]
        if name == "head_logits":
            decode_logits(stored, "head_logit_steps", num_head, out)
            return
        num_kept = stored["num_kept"]
        check_heads(num_head, num_kept)
        ids, counts = _draws(stored, num_kept - num_head, id_orders)
        put_behind_head(ids if name == "sampled_ids" else counts, num_head, num_kept, out)
        if name == "sampled_ids":
            assert id_orders is not None
            head = kept_cells(num_head, out.shape[1])
            codes = from_cells(stored["head_id_codes"], head, np.int64)
            starts = stored["sampled_id_order"].astype(np.int64)[:, None] * id_orders.shape[1]
            out[head] = id_orders.reshape(-1).take(codes + starts)[head]


def decode_logits(stored: Mapping[str, Array], name: str, num_kept: Array, out: Array) -> None:
    """Decode logits [N, k] into `out` from the array `name` of steps; padding is -inf."""
    codes = np.empty(out.shape[::-1], np.uint16)
    sum_of_steps(stored[name].T, codes, name)
    logits_of_codes(codes, LOG_PROBABILITIES, num_kept, stored["logsumexp"], out)


def _draws(
    stored: Mapping[str, Array], num_drawn: Array, id_orders: Array | None
) -> tuple[Array, Array]:
    """`sampled_ids` and `sampled_counts` [N, k] of the drawn cells of one chunk's rows.

    Raises:
        CorruptError: a position beyond the vocabulary.
    """
    assert id_orders is not None
    steps, vocab_size = stored["sampled_place_steps"], id_orders.shape[1]
    cells = kept_cells(num_drawn, steps.shape[1])
    positions = places_of_steps(steps, cells)
    if positions.size and int(positions.max()) >= vocab_size:
        raise CorruptError(
            f"sampled_place_steps lead to {int(positions.max()):,}; expected at most "
            f"{vocab_size - 1:,}",
            cure="run caskd store verify",
        )
    starts = stored["sampled_id_order"].astype(np.int64)[:, None] * vocab_size
    ids = id_orders.reshape(-1).take(positions + starts)
    return draw_cells(ids, from_cells(stored["sampled_place_counts"], cells, np.uint64), cells)

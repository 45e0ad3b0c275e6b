"""What the arrays of a store hold is checked before anything is indexed by it.

Legend: E examples, T tokens, R rows with filler, V vocabulary.
"""

import numpy as np

from caskd.store.errors import CorruptError
from caskd.store.format import layout
from caskd.store.format.example_index import ExampleIndex
from caskd.store.format.layout import Array
from caskd.store.format.spec import StoreSpec

MAX_TOKEN_BYTES = 256  # on average over the vocabulary


def value_limits(spec: StoreSpec) -> dict[str, int]:
    """Largest value of each array whose values are positions or ids."""
    vocab = spec.vocab_size - 1
    ids = (
        "token_ids", "topk_ids", "topk_id_codes", "sampled_ids", "sampled_place_steps", "id_order",
        "argmax", "label_rank",
    )  # fmt: skip
    limits = dict.fromkeys(ids, vocab)
    last_order = layout.num_orders(spec.num_rows) - 1
    others = {
        "topk_id_order": last_order, "sampled_id_order": last_order, "is_response": 1,
        "num_kept": spec.num_cells, "status": len(layout.STATUSES) - 1,
        "sampled_counts": spec.num_cells, "sampled_place_counts": spec.num_cells,
    }  # fmt: skip
    return {**limits, **others}


def check_values(name: str, values: Array, limits: dict[str, int]) -> None:
    """Check a decoded chunk of the array `name`.

    Raises:
        CorruptError: a value that no id or position can have.
    """
    if name in limits and values.size and int(values.max()) > limits[name]:
        raise CorruptError(f"it holds {int(values.max()):,}, expected at most {limits[name]:,}")


def check_index(index: ExampleIndex, spec: StoreSpec, name: str) -> None:
    """Check that the examples tile the token axis and that their rows stand inside one shard each.

    Raises:
        CorruptError: names the store and what does not fit.
    """
    tokens, rows = index.token_count.astype(np.int64), index.row_count.astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(tokens)])
    with_rows = np.flatnonzero(rows)
    first = index.row_start[with_rows]
    last = first + rows[with_rows] - 1
    checks = {
        "counts are negative": min(tokens.min(), rows.min(), index.row_start.min()) >= 0,
        "examples do not tile the token axis": np.array_equal(index.token_start, starts[:-1])
        and starts[-1] == spec.num_tokens,
        "rows are not as many as planned": rows.sum() == spec.num_rows,
        "an example has more rows than tokens": (rows <= tokens).all(),
        "rows lie outside the shards": index.row_start.max() <= spec.num_shards * spec.shard_rows
        and last.max(initial=0) < spec.num_shards * spec.shard_rows,
        "an example straddles a shard": (first // spec.shard_rows == last // spec.shard_rows).all(),
        "rows of examples overlap": (first[1:] > last[:-1]).all(),
        "a task has no name": int(index.task.max()) < len(spec.tasks),
    }
    wrong = next((text for text, holds in checks.items() if not holds), None)
    if wrong:
        raise CorruptError(f"{name}: its examples cannot be: {wrong}. Run caskd store verify.")


def check_vocab(offsets: Array, num_bytes: int, name: str) -> None:
    """Check that token bytes follow each other.

    Raises:
        CorruptError: names the store.
    """
    if offsets[0] != 0 or offsets[-1] != num_bytes or (np.diff(offsets) < 0).any():
        raise CorruptError(f"{name}: vocab_offsets do not fit vocab_bytes. Run caskd store verify.")


def check_id_order(orders: Array, name: str) -> None:
    """Check that each order [C, V] names every id once.

    Raises:
        CorruptError: names the store.
    """
    for order in orders:
        if not (np.bincount(order, minlength=len(order)) == 1).all():
            raise CorruptError(f"{name}: id_order does not name every id once.")

"""Checks of the arrays of a store that may come from an untrusted source.

No value from a store indexes an array before it passed these checks.

Legend: C orders of ids, V vocabulary.
"""

import numpy as np

from caskd.store.errors import CorruptError
from caskd.store.format import layout
from caskd.store.format.codecs import Array
from caskd.store.format.example_index import ExampleIndex
from caskd.store.format.spec import StoreSpec

MAX_TOKEN_BYTES = 256  # mean bytes of a token over the vocabulary


def value_limits(spec: StoreSpec) -> dict[str, int]:
    """Largest valid value of each array that holds ids, positions, counts or flags."""
    return {
        "token_ids": spec.vocab_size - 1,
        "is_response": 1,
        "status": layout.NUM_STATUSES[spec.format_version] - 1,
        layout.ID_ORDER.name: spec.vocab_size - 1,
        **spec.row_encoding.limits(
            vocab_size=spec.vocab_size,
            num_cells=spec.num_cells,
            num_orders=layout.num_orders(spec.num_rows),
        ),
    }


def check_values(name: str, values: Array, limits: dict[str, int]) -> None:
    """Check a decoded chunk of the array `name`.

    Raises:
        CorruptError: a value is above its limit.
    """
    if name in limits and values.size and int(values.max()) > limits[name]:
        raise CorruptError(f"it holds {int(values.max()):,}; expected at most {limits[name]:,}")


def check_index(index: ExampleIndex, spec: StoreSpec, name: str) -> None:
    """Check that the examples tile the token axis and that each one's rows lie inside one shard.

    Raises:
        CorruptError: names the store and the contradiction.
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
        "row counts do not add up to num_rows": rows.sum() == spec.num_rows,
        "an example has more rows than tokens": (rows <= tokens).all(),
        "rows lie outside the shards": index.row_start.max() <= spec.num_shards * spec.shard_rows
        and last.max(initial=0) < spec.num_shards * spec.shard_rows,
        "an example straddles a shard": (first // spec.shard_rows == last // spec.shard_rows).all(),
        "rows of examples overlap": (first[1:] > last[:-1]).all(),
        "a task id has no name": int(index.task.max()) < len(spec.tasks),
    }
    wrong = next((text for text, holds in checks.items() if not holds), None)
    if wrong:
        raise CorruptError(f"{name}: invalid example index: {wrong}", cure="run caskd store verify")


def check_vocab(offsets: Array, num_bytes: int, name: str) -> None:
    """Check that the offsets cut `num_bytes` token bytes into consecutive tokens.

    Raises:
        CorruptError: names the store.
    """
    if offsets[0] != 0 or offsets[-1] != num_bytes or (np.diff(offsets) < 0).any():
        raise CorruptError(
            f"{name}: vocab_offsets do not match vocab_bytes", cure="run caskd store verify"
        )


def check_id_order(orders: Array, name: str) -> None:
    """Check that each of the orders [C, V] holds every id once.

    Raises:
        CorruptError: names the store.
    """
    for order in orders:
        if not (np.bincount(order, minlength=len(order)) == 1).all():
            raise CorruptError(
                f"{name}: id_order does not hold every id once", cure="run caskd store verify"
            )

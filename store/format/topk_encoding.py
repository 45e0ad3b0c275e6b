"""Between the fields of a row and the arrays on disk.

Legend: N rows, k cells per row, C orders of ids, V vocabulary.

`exact` keeps the bits of every logit. `compact` (the default) keeps ids exact and in rank order,
and a logit's log-probability to within a step that grows as the probability falls:

* an id is stored as its place in one of the orders of `id_order` (see id_orders.py);
* a log-probability l becomes the code 2/a (1 - sqrt p) while sqrt p > a/b, and continues with steps
  of b below, where p = exp l, a = 1/512 (so that a step is a/sqrt p nats, constant in the mean KL
  it costs) and b = 1/4 nat. Codes rise with rank; differences between neighbors are stored.

Measured on real rows: mean KL of the whole distribution below 1e-5, no probability off by 2e-3.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from caskd.store.format.draw_encoding import encode_draws
from caskd.store.format.id_orders import IdPlaces, blank
from caskd.store.format.layout import Array

STEP = 1 / 512
MAX_STEP = 1 / 4
_TURN = STEP / MAX_STEP  # sqrt p at which the steps stop growing
_TURN_LOG = float(2 * np.log(_TURN))
_TURN_CODE = 2 / STEP * (1 - _TURN)
MAX_CODE = 4095  # log-probabilities below about -780 nats are stored as that
TAIL_BITS = 9  # mantissa bits of tail_mass: a relative error of 1e-3
BLOCK_ROWS = 512  # encoded at a time, so that a block stays in the processor's cache


def encode_rows(
    encoding: str,
    rows: Mapping[str, Array],
    id_orders: npt.NDArray[np.uint32] | None,
) -> dict[str, Array]:
    """Arrays on disk, by name, from a shard's row fields; `id_orders` [C, V] if it is compact."""
    if encoding == "exact":
        return dict(rows)
    assert id_orders is not None
    if "sampled_ids" in rows:
        stored = {name: values for name, values in rows.items() if not name.startswith("sampled_")}
        return {**stored, **encode_draws(rows, id_orders)}
    return _encode_topk(rows, id_orders)


def _encode_topk(rows: Mapping[str, Array], id_orders: npt.NDArray[np.uint32]) -> dict[str, Array]:
    places = IdPlaces(id_orders)
    num_rows, top_k = rows["topk_ids"].shape
    codes = np.empty((num_rows, top_k), np.uint32)
    chosen = np.empty(num_rows, np.uint8)
    steps = np.empty((top_k, num_rows), np.uint16)
    for start in range(0, num_rows, BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        cells = np.arange(top_k) < rows["num_kept"][block, None]
        codes[block], chosen[block] = places.encode(rows["topk_ids"][block], cells)
        steps[:, block] = _steps(rows["topk_logits"][block], rows["logsumexp"][block], cells)
    stored = {name: values for name, values in rows.items() if not name.startswith("topk_")}
    return {
        **stored,
        "topk_id_codes": codes,
        "topk_id_order": chosen,
        "topk_logit_steps": steps.T,
        "tail_mass": _rounded(rows["tail_mass"]),
    }


def decode_logits(steps: Array, num_kept: Array, logsumexp: Array, out: Array) -> None:
    """topk_logits [N, k] from their steps, into `out`; padding is -inf."""
    codes = _running_sum(steps.T)
    # As indices, in the order of `out`: numpy would do the same, more slowly.
    LOG_PROBABILITIES.take(codes.T.astype(np.intp, order="C"), out=out, mode="wrap")
    out += logsumexp[:, None]
    blank(out, num_kept, -np.inf)


def _running_sum(steps: Array) -> Array:
    """Codes [k, N] from their differences along the first axis."""
    if steps.shape[1] % 4 or not steps.flags.c_contiguous:
        return np.cumsum(steps, axis=0, dtype=np.uint16)
    # Four at a time: what caskd writes never carries from one into the next.
    return np.cumsum(steps.view(np.uint64), axis=0).view(np.uint16)


def _steps(logits: Array, logsumexp: Array, cells: npt.NDArray[np.bool_]) -> Array:
    """Differences [k, N] between the codes of neighboring ranks; 0 in padding."""
    log_p = np.subtract(logits.T, logsumexp, order="C")  # padding is -inf
    codes = log_probability_codes(log_p)
    if (codes[1:] < codes[:-1]).any():
        codes = np.maximum.accumulate(codes, axis=0)
    codes[1:] -= codes[:-1].copy()
    codes[~cells.T] = 0
    return codes


def log_probability_codes(log_p: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Codes of log-probabilities, of the same shape; a larger code is a smaller probability."""
    # The two pieces meet with the same slope, so the code is their sum, each cut off at the turn.
    codes = np.maximum(log_p, np.float32(_TURN_LOG))
    codes *= np.float32(0.5)
    np.exp(codes, out=codes)
    codes *= np.float32(-2 / STEP)
    codes += np.float32(2 / STEP)
    below = np.minimum(log_p - np.float32(_TURN_LOG), np.float32(0))
    below *= np.float32(-1 / MAX_STEP)
    codes += below
    np.clip(codes, 0, MAX_CODE, out=codes)
    return np.rint(codes, out=codes).astype(np.uint16)


def _log_probability_table() -> npt.NDArray[np.float32]:
    codes = np.arange(MAX_CODE + 1, dtype=np.float64)
    near = 2 * np.log(np.maximum(1 - codes * STEP / 2, _TURN / 2))
    far = _TURN_LOG - (codes - _TURN_CODE) * MAX_STEP
    return np.where(codes < _TURN_CODE, near, far).astype(np.float32)


LOG_PROBABILITIES = _log_probability_table()


def _rounded(values: Array) -> Array:
    """float32 with `TAIL_BITS` bits of mantissa, to nearest, never above 1."""
    drop = 23 - TAIL_BITS
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded: Array = ((bits + (1 << (drop - 1))) >> drop << drop).astype(np.uint32)
    return np.minimum(rounded.view(np.float32), np.float32(1))

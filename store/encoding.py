"""Between the fields of a row and the arrays on disk.

Legend: N rows, k cells per row, V vocabulary.

`exact` keeps the bits of every logit. `compact` (the default) keeps ids exact and in rank order,
and a logit's log-probability to within a step that grows as the probability falls:

* an id is stored as its place in `id_order`, a list of all ids, most frequent first, that a short
  pilot of the teacher makes once; small numbers pack well;
* a log-probability l becomes the code 2/a (1 - sqrt p) while sqrt p > a/b, and continues with steps
  of b below, where p = exp l, a = 1/512 (so that a step is a/sqrt p nats, constant in the mean KL
  it costs) and b = 1/4 nat. Codes rise with rank; differences between neighbors are stored.

Measured on real rows: mean KL of the whole distribution below 1e-5, no probability off by 2e-3.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from caskd.store.layout import Array

STEP = 1 / 512
MAX_STEP = 1 / 4
_TURN = STEP / MAX_STEP  # sqrt p at which the steps stop growing
_TURN_CODE = 2 / STEP * (1 - _TURN)
MAX_CODE = 4095  # log-probabilities below about -780 nats are stored as that
TAIL_BITS = 11  # mantissa bits of tail_mass: a relative error of 2.4e-4


def encode_rows(
    encoding: str, rows: Mapping[str, Array], id_order: npt.NDArray[np.uint32] | None
) -> dict[str, Array]:
    """Arrays on disk, by name, from the row fields."""
    if encoding == "exact":
        return dict(rows)
    assert id_order is not None
    place = np.empty(len(id_order), np.uint32)
    place[id_order] = np.arange(len(id_order), dtype=np.uint32)
    cells = np.arange(rows["topk_ids"].shape[1]) < rows["num_kept"][:, None]
    stored = {name: values for name, values in rows.items() if not name.startswith("topk_")}
    stored["topk_id_codes"] = np.where(cells, place[rows["topk_ids"]], 0).astype(np.uint32)
    stored["topk_logit_steps"] = _steps(rows["topk_logits"], rows["logsumexp"], cells)
    stored["tail_mass"] = _rounded(rows["tail_mass"])
    return stored


def decode_ids(codes: Array, num_kept: Array, id_order: npt.NDArray[np.uint32]) -> Array:
    """topk_ids [N, k] from their codes; padding is 0."""
    ids = id_order.take(codes, mode="clip")
    return _blank(ids, num_kept, 0)


def decode_logits(steps: Array, num_kept: Array, logsumexp: Array) -> Array:
    """topk_logits [N, k] from their steps; padding is -inf."""
    # Down the columns of the transposed chunk every addition runs over contiguous memory.
    codes = np.cumsum(steps.T, axis=0, dtype=np.uint16)
    logits = LOG_PROBABILITIES.take(codes, mode="clip")
    logits += logsumexp
    return _blank(logits.T, num_kept, -np.inf)


def _blank(cells: Array, num_kept: Array, value: float) -> Array:
    k = cells.shape[1]
    if len(num_kept) and int(num_kept.min()) < k:
        cells[np.arange(k) >= num_kept[:, None]] = value
    return cells


def _steps(logits: Array, logsumexp: Array, cells: Array) -> Array:
    """Differences [N, k] between the codes of neighboring ranks; 0 in padding."""
    with np.errstate(invalid="ignore"):  # padding is -inf
        log_p = np.where(cells, logits.astype(np.float64) - logsumexp[:, None], 0.0)
    codes = np.where(cells, log_probability_codes(log_p), 0)
    # Padding repeats the last code, so that its difference is 0.
    codes = np.maximum.accumulate(codes, axis=1)
    return np.diff(codes, axis=1, prepend=0).astype(np.uint16)


def log_probability_codes(log_p: Array) -> Array:
    """Codes (int64) of log-probabilities; a larger code is a smaller probability."""
    root = np.exp(log_p / 2)
    codes = np.where(
        root > _TURN, 2 / STEP * (1 - root), _TURN_CODE + (2 * np.log(_TURN) - log_p) / MAX_STEP
    )
    return np.clip(np.rint(codes), 0, MAX_CODE).astype(np.int64)


def _log_probability_table() -> npt.NDArray[np.float32]:
    codes = np.arange(MAX_CODE + 1, dtype=np.float64)
    near = 2 * np.log(np.maximum(1 - codes * STEP / 2, _TURN / 2))
    far = 2 * np.log(_TURN) - (codes - _TURN_CODE) * MAX_STEP
    return np.where(codes < _TURN_CODE, near, far).astype(np.float32)


LOG_PROBABILITIES = _log_probability_table()


def _rounded(values: Array) -> Array:
    """float32 with `TAIL_BITS` bits of mantissa, to nearest, never above 1."""
    drop = 23 - TAIL_BITS
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded: Array = ((bits + (1 << (drop - 1))) >> drop << drop).astype(np.uint32)
    return np.minimum(rounded.view(np.float32), np.float32(1))


def frequency_order(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """All ids [V], most frequent first, ties to the lowest id."""
    return np.lexsort((np.arange(len(counts)), -counts)).astype(np.uint32)

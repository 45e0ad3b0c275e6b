"""The compact encoding of top-k rows, the default.

Legend: N rows, k cells per row, C orders of ids, V vocabulary.

Ids are exact and in rank order. Log-probabilities are quantised; the step grows as the probability
falls:

* an id is stored as its position in one of the orders of `id_order` (see id_orders.py);
* a log-probability l becomes the code 2/a (1 - sqrt p) while sqrt p > a/b. Below, the codes
  continue with steps of b. Here p = exp l, a = 1/512 and b = 1/4 nat. A step of a/sqrt p nats costs
  the same mean KL at every p. Codes rise with rank; differences between neighbours are stored.

Measured on real rows: mean KL of the whole distribution below 1e-5, no probability off by 2e-3.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from caskd.store.cells import IdPositions, blank, decode_ids, kept_cells
from caskd.store.format.codecs import Array
from caskd.store.format.rows import TOPK, RowArray, RowEncoding

STEP = 1 / 512
MAX_STEP = 1 / 4
MAX_CODE = 4095  # also the code of log-probabilities below about -780 nats
TAIL_BITS = 9  # mantissa bits of tail_mass: a relative error of 1e-3
BLOCK_ROWS = 512  # rows encoded at a time, so that they stay in the processor's cache


class CompactTopK(RowEncoding):
    """Ids as positions in orders of ids, logits as steps between quantised log-probabilities."""

    kind = TOPK
    name = "compact"
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
    cell_bytes = (1.3, 2.2)

    def encode(
        self, rows: Mapping[str, Array], id_orders: Array | None, vocab_size: int
    ) -> dict[str, Array]:
        """The arrays on disk of a shard."""
        assert id_orders is not None
        positions = IdPositions(id_orders)
        num_rows, top_k = rows["topk_ids"].shape
        codes = np.empty((num_rows, top_k), np.uint32)
        chosen = np.empty(num_rows, np.uint8)
        steps = np.empty((top_k, num_rows), np.uint16)
        for start in range(0, num_rows, BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            cells = kept_cells(rows["num_kept"][block], top_k)
            codes[block], chosen[block] = positions.encode(rows["topk_ids"][block], cells)
            steps[:, block] = logit_steps(
                rows["topk_logits"][block], rows["logsumexp"][block], cells
            )
        return {
            **{array.name: rows[array.name] for array in self.kind.columns},
            "topk_id_codes": codes,
            "topk_id_order": chosen,
            "topk_logit_steps": steps.T,
            "tail_mass": rounded_mass(rows["tail_mass"]),
        }

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
            decode_logits(stored["topk_logit_steps"], num_kept, stored["logsumexp"], out)


def decode_logits(steps: Array, num_kept: Array, logsumexp: Array, out: Array) -> None:
    """Decode topk_logits [N, k] from their steps into `out`; padding is -inf."""
    codes = running_sum(steps.T)
    # Contiguous indices of numpy's own index type: take() would convert others more slowly.
    LOG_PROBABILITIES.take(codes.T.astype(np.intp, order="C"), out=out, mode="wrap")
    out += logsumexp[:, None]
    blank(out, num_kept, -np.inf)


def running_sum(steps: Array, out: Array | None = None) -> Array:
    """Codes [k, N] from their differences along the first axis."""
    if steps.shape[1] % 4 or not steps.flags.c_contiguous:
        return np.cumsum(steps, axis=0, dtype=np.uint16, out=out)
    # Adds four uint16 at once; codes that caskd writes never carry into the next one.
    into = None if out is None else out.view(np.uint64)
    return np.cumsum(steps.view(np.uint64), axis=0, out=into).view(np.uint16)


def logit_steps(logits: Array, logsumexp: Array, cells: npt.NDArray[np.bool_]) -> Array:
    """Differences [k, N] between the codes of neighbouring ranks; 0 in padding."""
    log_p = np.subtract(logits.T, logsumexp, order="C")  # padding is -inf
    codes = log_probability_codes(log_p)
    if (codes[1:] < codes[:-1]).any():
        codes = np.maximum.accumulate(codes, axis=0)
    codes[1:] -= codes[:-1].copy()
    codes[~cells.T] = 0
    return codes


def _turn(max_step: float) -> tuple[float, float, float]:
    """sqrt p, log p and code at which the steps stop growing."""
    turn = STEP / max_step
    return turn, float(2 * np.log(turn)), 2 / STEP * (1 - turn)


def log_probability_codes(
    log_p: npt.NDArray[np.float32], max_step: float = MAX_STEP
) -> npt.NDArray[np.uint16]:
    """Codes of log-probabilities, of the same shape; a larger code is a smaller probability."""
    _, turn_log, _ = _turn(max_step)
    # The two curves meet at the turn with the same slope, so the code is the sum of both, each
    # clipped there.
    codes = np.maximum(log_p, np.float32(turn_log))
    codes *= np.float32(0.5)
    np.exp(codes, out=codes)
    codes *= np.float32(-2 / STEP)
    codes += np.float32(2 / STEP)
    below = np.minimum(log_p - np.float32(turn_log), np.float32(0))
    below *= np.float32(-1 / max_step)
    codes += below
    np.clip(codes, 0, MAX_CODE, out=codes)
    return np.rint(codes, out=codes).astype(np.uint16)


def log_probability_table(max_step: float = MAX_STEP) -> npt.NDArray[np.float64]:
    """The log-probability of every code."""
    turn, turn_log, turn_code = _turn(max_step)
    codes = np.arange(MAX_CODE + 1, dtype=np.float64)
    near = 2 * np.log(np.maximum(1 - codes * STEP / 2, turn / 2))
    far = turn_log - (codes - turn_code) * max_step
    return np.where(codes < turn_code, near, far)


LOG_PROBABILITIES = log_probability_table().astype(np.float32)


def rounded_mass(values: Array) -> Array:
    """Round to float32 with `TAIL_BITS` bits of mantissa, to nearest, at most 1."""
    drop = 23 - TAIL_BITS
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded: Array = ((bits + (1 << (drop - 1))) >> drop << drop).astype(np.uint32)
    return np.minimum(rounded.view(np.float32), np.float32(1))

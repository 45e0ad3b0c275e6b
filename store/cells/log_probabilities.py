"""Log-probabilities as codes whose steps grow as the probability falls.

Legend: N rows, k cells per row.

A log-probability l becomes the code 2/a (1 - sqrt p) while sqrt p > a/b. Below, the codes continue
with steps of b. Here p = exp l and a = 1/512; b is the largest step, in nats. A step of a/sqrt p
nats costs the same mean KL at every p. Codes rise with rank; stores hold the differences between
neighbours.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.cells.id_orders import blank
from caskd.store.errors import CorruptError

Array = npt.NDArray[Any]

STEP = 1 / 512
MAX_CODE = 4095  # also the code of log-probabilities below about -780 nats with steps of 1/4
TAIL_BITS = 9  # mantissa bits of a rounded mass: a relative error of 1e-3


def _turn(max_step: float) -> tuple[float, float, float]:
    """sqrt p, log p and code at which the steps stop growing."""
    turn = STEP / max_step
    return turn, float(2 * np.log(turn)), 2 / STEP * (1 - turn)


def log_probability_codes(
    log_p: npt.NDArray[np.float32], max_step: float
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


def log_probability_table(max_step: float) -> npt.NDArray[np.float64]:
    """The log-probability of every code."""
    turn, turn_log, turn_code = _turn(max_step)
    codes = np.arange(MAX_CODE + 1, dtype=np.float64)
    near = 2 * np.log(np.maximum(1 - codes * STEP / 2, turn / 2))
    far = turn_log - (codes - turn_code) * max_step
    return np.where(codes < turn_code, near, far)


def rounded_mass(values: Array) -> Array:
    """Round to float32 with `TAIL_BITS` bits of mantissa, to nearest, at most 1."""
    drop = 23 - TAIL_BITS
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded: Array = ((bits + (1 << (drop - 1))) >> drop << drop).astype(np.uint32)
    return np.minimum(rounded.view(np.float32), np.float32(1))


def sum_of_steps(steps: Array, out: Array, name: str) -> None:
    """Codes [k, N] from their differences along the first axis, into `out`.

    Args:
        steps: uint16 [k, N].
        out: uint16 [k, N], overwritten.
        name: of the array that holds the steps.

    Raises:
        CorruptError: a code beyond `MAX_CODE`, also one that 16 bits do not hold.
    """
    if steps.shape[1] % 4 or not steps.flags.c_contiguous:
        np.cumsum(steps, axis=0, dtype=np.uint16, out=out)
    else:  # four uint16 at once; valid codes never carry into the next one
        np.cumsum(steps.view(np.uint64), axis=0, out=out.view(np.uint64))
    # A sum that left its 16 bits is smaller than the sum before it, at least the first to do so.
    fell = bool((out[1:] < out[:-1]).any())
    if out.size and (fell or int(out[-1].max()) > MAX_CODE):
        raise CorruptError(f"{name} lead beyond {MAX_CODE:,}", cure="run caskd store verify")


def logits_of_codes(
    codes: Array, table: npt.NDArray[np.float32], num_kept: Array, logsumexp: Array, out: Array
) -> None:
    """Logits [N, k] into `out`; padding is -inf.

    Args:
        codes: [k, N].
        table: `log_probability_table`.
        num_kept: [N].
        logsumexp: [N].
        out: float32 [N, k], overwritten.
    """
    # Contiguous indices of numpy's own index type: take() would convert others more slowly.
    table.take(codes.T.astype(np.intp, order="C"), out=out, mode="wrap")
    out += logsumexp[:, None]
    blank(out, num_kept, -np.inf)

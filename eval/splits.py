"""Which examples fit rules and choose thresholds, and which ones judge them."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from caskd.store.errors import UsageError


def calibration_places(names: Sequence[str], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Mark the examples of the calibration split.

    An example's side depends on its name and the seed alone: not on its place, nor on which other
    examples there are. So the split is the same for every model, and for more data later.

    Args:
        names: what tells the questions apart; equal questions fall on the same side.
        share: of the examples, on average, that calibrate.
        seed: another one draws another split.

    Raises:
        UsageError: the share is not between 0 and 1, or one side is empty.
    """
    if not 0.0 < share < 1.0:
        raise UsageError(f"got --calibration {share:g}, expected a share between 0 and 1")
    limit = int(share * 2**64)
    marked = np.array([_hash(name, seed) < limit for name in names])
    if marked.all() or not marked.any():
        raise UsageError(
            f"--calibration {share:g} leaves one side of {len(names):,} examples empty; "
            "choose another share or --calibration-seed, or more examples"
        )
    return marked


def _hash(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{name}".encode()).digest()[:8], "big")

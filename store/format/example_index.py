"""The example axis: where each example's tokens and rows lie."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ExampleIndex:
    """The example axis, whole in memory."""

    token_start: npt.NDArray[np.int64]
    token_count: npt.NDArray[np.int32]
    row_start: npt.NDArray[np.int64]
    row_count: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]
    source_index: npt.NDArray[np.int64]
    task: npt.NDArray[np.uint16]

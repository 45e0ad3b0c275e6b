"""The example axis: the tokens and rows of each example."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ExampleIndex:
    """All arrays of the example axis, in memory."""

    token_start: npt.NDArray[np.int64]
    token_count: npt.NDArray[np.int32]
    row_start: npt.NDArray[np.int64]
    row_count: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]
    source_index: npt.NDArray[np.int64]
    task: npt.NDArray[np.uint16]

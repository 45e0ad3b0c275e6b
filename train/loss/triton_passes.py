"""The two passes over a tile's rows as Triton kernels: one read, then one read and one write.

In plain torch the same work goes over the tile seven times, which shows on a GPU whenever the head
is narrow (H below about 2,000): there the matrix products are faster than the memory.

The gradient goes to a buffer of its own in the products' dtype, half a tile in bfloat16; rows are
packed on the way. Set TRITON_INTERPRET=1 before this module is imported to run it on a CPU, slowly.

Dimension letters: n rows of a tile, m of them live, V student vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from caskd.train.loss.tile import Outside, RowChange

_MOST_COLUMNS = 4096
"""Read by one program at once."""

_NUM_WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _read_row(  # type: ignore[no-untyped-def]
    logits, stride, argmax, peak, total, num_columns, COLUMNS: tl.constexpr
):
    """Argmax, peak and sum of exp(logit - peak) of one row; lanes keep their own until the end."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, COLUMNS)
    value = tl.load(logits + row * stride + lanes, mask=lanes < num_columns, other=-float("inf"))
    best = tl.maximum(value, -3.0e38)  # finite, so that a lane without logits adds 0
    best_at = lanes
    partial = tl.exp(value - best)
    for start in range(COLUMNS, num_columns, COLUMNS):
        columns = start + lanes
        inside = columns < num_columns
        value = tl.load(logits + row * stride + columns, mask=inside, other=-float("inf"))
        best_at = tl.where(value > best, columns, best_at)
        higher = tl.maximum(value, best)
        partial = partial * tl.exp(best - higher) + tl.exp(value - higher)
        best = higher
    top = tl.max(best, axis=0)
    at = tl.min(tl.where(best == top, best_at, num_columns - 1), axis=0)
    tl.store(argmax + row, at)
    tl.store(peak + row, top)
    tl.store(total + row, tl.sum(partial * tl.exp(best - top), axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _differentiate_row(  # type: ignore[no-untyped-def]
    logits,
    stride,
    gradient,
    gradient_stride,
    live,
    peak,
    weight,
    labels,
    at_label,
    softcap,
    num_columns,
    HAS_SOFTCAP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Some columns of one live row: exp(logit - peak) * weight, and the label's share."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < num_columns
    source = logits + tl.load(live + row) * stride
    value = tl.load(source + columns, mask=inside, other=-float("inf"))
    result = tl.exp(value - tl.load(peak + row)) * tl.load(weight + row)
    if HAS_SOFTCAP:
        ratio = tl.maximum(value / softcap, -1.0)  # of a cell that was taken out, too
        result *= 1 - ratio * ratio
    result = tl.where(columns == tl.load(labels + row), result + tl.load(at_label + row), result)
    target = gradient + row * gradient_stride + columns
    tl.store(target, result.to(gradient.dtype.element_ty), mask=inside)


class TritonPasses:
    """Kernels over one tile, and the buffer that its gradients are written to."""

    def __init__(self, tile: Tensor, operand: torch.dtype) -> None:
        self.operand = operand
        self._shape = tile.shape
        self._buffer: Tensor | None = None

    def read_(self, tile: Tensor) -> Outside:
        """Read logits [n, V] and leave them."""
        num_rows, num_columns = tile.shape
        argmax = tile.new_empty(num_rows, dtype=torch.int64)
        peak, total = tile.new_empty(num_rows), tile.new_empty(num_rows)
        with torch.cuda.device_of(tile):  # type: ignore[no-untyped-call]
            _read_row[(num_rows,)](
                tile,
                tile.stride(0),
                argmax,
                peak,
                total,
                num_columns,
                COLUMNS=_columns(num_columns),
                num_warps=_NUM_WARPS,
                enable_fp_fusion=True,
            )
        return Outside(argmax, peak, total)

    def differentiate_(self, tile: Tensor, live: Tensor, change: RowChange) -> Tensor:
        """Write the gradient of the rows `live`; the tile stays."""
        if self._buffer is None:  # nobody wants a gradient in evaluation
            self._buffer = tile.new_empty(self._shape, dtype=self.operand)
        gradient = self._buffer[: len(live)]
        num_columns = tile.shape[1]
        columns = _columns(num_columns)
        with torch.cuda.device_of(tile):  # type: ignore[no-untyped-call]
            _differentiate_row[(len(live), triton.cdiv(num_columns, columns))](
                tile,
                tile.stride(0),
                gradient,
                gradient.stride(0),
                live,
                change.peak.contiguous(),
                change.weight.contiguous(),
                change.labels.contiguous(),
                change.at_label.contiguous(),
                change.softcap or 0.0,
                num_columns,
                HAS_SOFTCAP=change.softcap is not None,
                COLUMNS=columns,
                num_warps=_NUM_WARPS,
                enable_fp_fusion=True,
            )
        return gradient


def _columns(num_columns: int) -> int:
    return int(min(_MOST_COLUMNS, triton.next_power_of_2(num_columns)))

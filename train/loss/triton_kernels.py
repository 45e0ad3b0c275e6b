"""`TileKernels` in Triton: the first pass reads the tile once, the second reads and writes once.

In plain torch the same work goes over the tile seven times. That costs time on a GPU whenever the
head is narrow (H below about 2,000), because there the matrix products are faster than the memory.

The kernels write the gradient to a separate buffer in the products' dtype, half a tile in bfloat16,
and pack the rows on the way. Set TRITON_INTERPRET=1 before importing this module to run it on a
CPU, slowly.

Dimension letters: n rows of a tile, m of them live, V student vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from caskd.models.kernels import block_for
from caskd.train.loss.tile import GradTerms, NonTopK


@triton.jit  # type: ignore[untyped-decorator]
def _read_row(  # type: ignore[no-untyped-def]
    logits, stride, argmax, peak, total, num_columns, COLUMNS: tl.constexpr
):
    """Argmax, peak and sum of exp(logit - peak) of one row; lanes are merged at the end."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, COLUMNS)
    value = tl.load(logits + row * stride + lanes, mask=lanes < num_columns, other=-float("inf"))
    best = tl.maximum(value, -3.0e38)  # finite: a lane without logits must add 0
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
    """Some columns of one live row: exp(logit - peak) * weight, plus the label's term."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < num_columns
    source = logits + tl.load(live + row) * stride
    value = tl.load(source + columns, mask=inside, other=-float("inf"))
    result = tl.exp(value - tl.load(peak + row)) * tl.load(weight + row)
    if HAS_SOFTCAP:
        ratio = tl.maximum(value / softcap, -1.0)  # also of a removed cell, -inf
        result *= 1 - ratio * ratio
    result = tl.where(columns == tl.load(labels + row), result + tl.load(at_label + row), result)
    target = gradient + row * gradient_stride + columns
    tl.store(target, result.to(gradient.dtype.element_ty), mask=inside)


class TritonKernels:
    """Kernels over one tile, and the buffer for its gradients."""

    def __init__(self, tile: Tensor, operand: torch.dtype) -> None:
        self.operand = operand
        self._shape = tile.shape
        self._buffer: Tensor | None = None

    def read_(self, tile: Tensor) -> NonTopK:
        """Read logits [n, V]; the tile stays as it is."""
        num_rows, num_columns = tile.shape
        argmax = tile.new_empty(num_rows, dtype=torch.int64)
        peak, total = tile.new_empty(num_rows), tile.new_empty(num_rows)
        block = block_for("read", tile.device, num_columns)
        with torch.cuda.device_of(tile):  # type: ignore[no-untyped-call]
            _read_row[(num_rows,)](
                tile,
                tile.stride(0),
                argmax,
                peak,
                total,
                num_columns,
                COLUMNS=block.columns,
                num_warps=block.num_warps,
                enable_fp_fusion=True,
            )
        return NonTopK(argmax, peak, total)

    def differentiate_(self, tile: Tensor, live: Tensor, terms: GradTerms) -> Tensor:
        """Write the gradient of the rows `live`; the tile stays as it is."""
        if self._buffer is None:  # evaluation needs no gradient
            self._buffer = tile.new_empty(self._shape, dtype=self.operand)
        gradient = self._buffer[: len(live)]
        num_columns = tile.shape[1]
        block = block_for("differentiate", tile.device, num_columns)
        with torch.cuda.device_of(tile):  # type: ignore[no-untyped-call]
            _differentiate_row[(len(live), triton.cdiv(num_columns, block.columns))](
                tile,
                tile.stride(0),
                gradient,
                gradient.stride(0),
                live,
                terms.peak.contiguous(),
                terms.weight.contiguous(),
                terms.labels.contiguous(),
                terms.at_label.contiguous(),
                terms.softcap or 0.0,
                num_columns,
                HAS_SOFTCAP=terms.softcap is not None,
                COLUMNS=block.columns,
                num_warps=block.num_warps,
                enable_fp_fusion=True,
            )
        return gradient

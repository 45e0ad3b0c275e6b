"""The passes over the vocabulary in Triton: each reads a tile once, in the dtype of the head.

A program reads some columns of one row and writes one cell of a small table; torch reduces these
tables, always in the same order. Set TRITON_INTERPRET=1 before importing this module to run it on
a CPU, slowly.

Legend: N rows of a tile, V vocabulary, C programs of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from caskd.models.kernels import block_for
from caskd.precompute.rows.passes import BLOCK, Rest


@triton.jit  # type: ignore[untyped-decorator]
def _read_maxima(  # type: ignore[no-untyped-def]
    logits, stride, maxima, bad, num_columns, num_blocks, BLOCKS: tl.constexpr, WIDTH: tl.constexpr
):
    """Maxima of a row's blocks, and the number of its cells that are NaN or Inf."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    blocks = part * BLOCKS + tl.arange(0, BLOCKS)
    columns = blocks[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    inside = columns < num_columns
    value = tl.load(logits + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    # A comparison with NaN is false.
    is_bad = inside & ~(tl.abs(value) < float("inf"))
    highest = tl.max(tl.where(inside, value, -float("inf")), axis=1)
    tl.store(maxima + row * num_blocks + blocks, highest, mask=blocks < num_blocks)
    count = tl.sum(tl.sum(is_bad.to(tl.int32), axis=1), axis=0)
    tl.store(bad + row * tl.num_programs(1) + part, count)


@triton.jit  # type: ignore[untyped-decorator]
def _read_rest(  # type: ignore[no-untyped-def]
    logits,
    stride,
    high,
    last,
    last_id,
    label_logit,
    label,
    outside,
    earlier,
    num_columns,
    COLUMNS: tl.constexpr,
):
    """Weight of the cells after a row's last kept one, and number of those before its label."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = part * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < num_columns
    value = tl.load(logits + row * stride + columns, mask=inside, other=-float("inf"))
    value = value.to(tl.float32)
    edge, edge_id = tl.load(last + row), tl.load(last_id + row)
    is_after = (value < edge) | ((value == edge) & (columns > edge_id))
    weight = tl.where(is_after & inside, tl.exp(value - tl.load(high + row)), 0.0)
    own, own_id = tl.load(label_logit + row), tl.load(label + row)
    is_before = inside & ((value > own) | ((value == own) & (columns < own_id)))
    cell = row * tl.num_programs(1) + part
    tl.store(outside + cell, tl.sum(weight, axis=0))
    tl.store(earlier + cell, tl.sum(is_before.to(tl.int32), axis=0))


class TritonPasses:
    """On a CUDA device."""

    def prepared(self, logits: Tensor) -> Tensor:
        """The logits [N, V] as they are; columns of a wider product need no copy."""
        return logits if logits.stride(1) == 1 else logits.contiguous()

    def maxima(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Maxima of the blocks [N, blocks] and whether each row is finite [N], in one read."""
        num_rows, num_columns = logits.shape
        num_blocks = triton.cdiv(num_columns, BLOCK)
        block = block_for("maxima", logits.device, num_columns)
        blocks = max(1, block.columns // BLOCK)
        parts = triton.cdiv(num_blocks, blocks)
        maxima = logits.new_empty((num_rows, num_blocks), dtype=torch.float32)
        bad = logits.new_empty((num_rows, parts), dtype=torch.int32)
        with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
            _read_maxima[(num_rows, parts)](
                logits,
                logits.stride(0),
                maxima,
                bad,
                num_columns,
                num_blocks,
                BLOCKS=blocks,
                WIDTH=BLOCK,
                num_warps=block.num_warps,
                enable_fp_fusion=True,
            )
        return maxima, bad.amax(dim=1) == 0

    def rest(
        self, logits: Tensor, values: Tensor, ids: Tensor, label_logit: Tensor, labels: Tensor
    ) -> Rest:
        """One read: the cells outside come after the last of the k in the order of the cells."""
        num_rows, num_columns = logits.shape
        block = block_for("rest", logits.device, num_columns)
        parts = triton.cdiv(num_columns, block.columns)
        outside = logits.new_empty((num_rows, parts), dtype=torch.float32)
        earlier = logits.new_empty((num_rows, parts), dtype=torch.int32)
        with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
            _read_rest[(num_rows, parts)](
                logits,
                logits.stride(0),
                values[:, 0].contiguous(),
                values[:, -1].contiguous(),
                ids[:, -1].contiguous(),
                label_logit.contiguous(),
                labels.contiguous(),
                outside,
                earlier,
                num_columns,
                COLUMNS=block.columns,
                num_warps=block.num_warps,
                enable_fp_fusion=True,
            )
        return Rest(outside.sum(dim=1), earlier.sum(dim=1))

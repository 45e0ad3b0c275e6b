"""Head projection, loss and gradient in one pass over tiles of rows.

Per tile, one matrix product makes the logits. They are read (argmax, log-sum-exp, label, top-k) and
turned into exponentials and then into the gradient in the same memory. Rows that the mask drops are
skipped, and two products take the gradient back to hidden states and weight. The backward
recomputes nothing: because the loss is a plain sum over rows, it only multiplies by the upstream
gradient.

The kernels over a tile's logits are plain torch, or Triton on a GPU.

Dimension letters: N rows, n rows of a tile, V student vocabulary, H hidden width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from caskd.store.errors import UsageError
from caskd.train.loss.matmul import add_product_, product_dtype, write_product_
from caskd.train.loss.tile import TileKernels, differentiate_, forward_tile_
from caskd.train.loss.torch_kernels import TorchKernels
from caskd.train.loss.types import Head, LossRows, LossSums, LossTerms


@dataclass(frozen=True, eq=False)
class FusedCall:
    """Arguments of one call that are not differentiated."""

    rows: LossRows
    index: Tensor
    """[M] rows that go through the head, ascending."""
    terms: LossTerms
    softcap: float | None
    scale: float | None
    dtype: torch.dtype
    """Of the inputs to the products."""
    tile_rows: int
    triton: bool
    """Use the Triton kernels, not those of torch."""
    wanted: tuple[bool, bool, bool]
    """Whether hidden, weight and bias need a gradient. `ctx.needs_input_grad` ignores `no_grad`, so
    that evaluation would compute three products for nothing."""


def fused_loss(hidden: Tensor, head: Head, call: FusedCall) -> LossSums:
    """Sums over the rows `call.index`; `loss` can be backpropagated once.

    Args:
        hidden: [N, H].
    """
    return LossSums(*_FusedLoss.apply(hidden, head.weight, head.bias, call))  # type: ignore[no-untyped-call]


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: FusedCall
    ) -> tuple[Tensor, ...]:
        head = Head(weight, bias, call.softcap, call.scale)
        with torch.autocast(hidden.device.type, enabled=False):
            sums, gradients = _run_tiles(hidden, head, call)
        ctx.gradients = gradients
        ctx.set_materialize_grads(False)
        outputs = sums.tensors()
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return None, None, None, None
        if torch.is_grad_enabled():
            raise UsageError(
                "fused loss: got backward(create_graph=True); expected a first derivative only; "
                "use impl='dense'"
            )
        if ctx.gradients is None:
            raise UsageError(
                "fused loss: was backpropagated twice; expected once (its gradient is scaled in "
                "place); call cascade_aware_loss again, or use impl='dense'"
            )
        gradients, ctx.gradients = ctx.gradients, None
        hidden, weight, bias = (None if g is None else g.mul_(upstream) for g in gradients)
        return hidden, weight, bias, None


def _run_tiles(
    hidden: Tensor, head: Head, call: FusedCall
) -> tuple[LossSums, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Sums, and the gradients of hidden [N, H], weight [V, H] and bias [V] where wanted."""
    operand, exact = product_dtype(call.dtype, hidden.device)
    weight = head.weight.detach().to(operand)
    delegates = call.terms.delegation is not None
    sums = LossSums.zeros(hidden.device, exact, delegates=delegates)
    tile_rows = _even_tile_rows(len(call.index), call.tile_rows)
    tile = weight.new_empty((tile_rows, len(weight)), dtype=exact)
    kernels = _make_kernels(call, tile, operand)
    gradients = _Gradients(hidden, head, call.wanted, exact)
    for part in range(0, len(call.index), max(1, tile_rows)):
        index = _tile_index(call.index[part : part + tile_rows], part, len(hidden), len(call.index))
        rows = call.rows.take(index)
        inputs = hidden.detach()[index].to(operand)
        logits = head.finish_(write_product_(tile[: len(inputs)], inputs, weight.t()))
        tile_sums, forward = forward_tile_(logits, rows, call.terms, kernels)
        sums = sums + tile_sums
        if any(call.wanted):
            live = forward.live()
            if 0 < len(live) < len(inputs):
                forward, inputs = forward.take(live), inputs[live]
                index = call.index[part : part + tile_rows][live]
            if len(live):
                gradient = differentiate_(logits, live, forward, head, call.terms, kernels)
                gradients.add_(gradient, inputs, weight, index)
    return sums, gradients.finish(head)


@torch.no_grad()
def fused_label_stats(hidden: Tensor, head: Head, call: FusedCall) -> tuple[Tensor, Tensor]:
    """-log p of each label [M] and the student's argmax [M] (ties to the lowest id).

    One product and no gradient, of the same tiles as `fused_loss`, so that both see equal logits.
    """
    operand, exact = product_dtype(call.dtype, hidden.device)
    weight = head.weight.detach().to(operand)
    tile_rows = _even_tile_rows(len(call.index), call.tile_rows)
    tile = weight.new_empty((tile_rows, len(weight)), dtype=exact)
    kernels = _make_kernels(call, tile, operand)
    nll, argmax = [hidden.new_empty(0, dtype=exact)], [call.index[:0]]
    for part in range(0, len(call.index), max(1, tile_rows)):
        index = _tile_index(call.index[part : part + tile_rows], part, len(hidden), len(call.index))
        inputs = hidden.detach()[index].to(operand)
        logits = head.finish_(write_product_(tile[: len(inputs)], inputs, weight.t()))
        label_logit = logits.gather(1, call.rows.labels[index][:, None]).squeeze(1)
        read = kernels.read_(logits)
        nll.append(read.total.log() + (read.peak - label_logit))
        argmax.append(read.argmax)
    return torch.cat(nll), torch.cat(argmax)


def _tile_index(index: Tensor, start: int, num_rows: int, num_counted: int) -> Tensor | slice:
    """Rows of a tile; where every row counts they are adjacent, and nothing is copied."""
    return slice(start, start + len(index)) if num_counted == num_rows else index


def _even_tile_rows(num_rows: int, most: int) -> int:
    """Rows of each tile, so that the last one is not much smaller."""
    num_tiles = max(1, -(-num_rows // most))
    return -(-num_rows // num_tiles)


def _make_kernels(call: FusedCall, tile: Tensor, operand: torch.dtype) -> TileKernels:
    if not call.triton:
        return TorchKernels(operand, entropy=call.terms.confidence is not None)
    from caskd.train.loss.triton_kernels import TritonKernels  # Triton may be missing

    return TritonKernels(tile, operand)


class _Gradients:
    """Running sums of the gradients. One that is not wanted is None and costs nothing."""

    def __init__(
        self, hidden: Tensor, head: Head, wanted: tuple[bool, bool, bool], exact: torch.dtype
    ) -> None:
        # Float16 would overflow before the division by the row count; autograd casts after it.
        row_dtype = exact if hidden.dtype == torch.float16 else hidden.dtype
        self.hidden = torch.zeros_like(hidden, dtype=row_dtype) if wanted[0] else None
        self.weight = torch.empty_like(head.weight, dtype=exact) if wanted[1] else None
        self.bias = None
        if head.bias is not None and wanted[2]:
            self.bias = torch.zeros_like(head.bias, dtype=exact)
        self._is_weight_written = False

    def add_(self, gradient: Tensor, inputs: Tensor, weight: Tensor, index: Tensor | slice) -> None:
        """Add a tile's gradient [m, V], taken back through the head.

        Args:
            inputs: [m, H] the hidden states of these rows.
            index: [m] the rows in `hidden`, ascending; a slice where they are neighbours.
        """
        if self.bias is not None:
            self.bias.add_(gradient.sum(0, dtype=self.bias.dtype))
        if self.hidden is not None:
            rows = torch.empty_like(inputs, dtype=torch.promote_types(inputs.dtype, torch.float32))
            write_product_(rows, gradient, weight)
            if isinstance(index, slice):
                self.hidden[index].copy_(rows)
            else:
                self.hidden.index_copy_(0, index, rows.to(self.hidden.dtype))
        if self.weight is not None:
            # The first product is written, not added: zeroing first is one more pass over the head.
            put = add_product_ if self._is_weight_written else write_product_
            put(self.weight, gradient.t(), inputs)
            self._is_weight_written = True

    def finish(self, head: Head) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients for the backward, in the dtype of their parameters."""

        def hold(total: Tensor | None, parameter: Tensor | None) -> Tensor | None:
            if total is None or parameter is None or parameter.dtype == torch.float16:
                return total
            return total.to(parameter.dtype)

        if self.weight is not None and not self._is_weight_written:
            self.weight.zero_()
        return self.hidden, hold(self.weight, head.weight), hold(self.bias, head.bias)

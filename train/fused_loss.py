"""Head projection, loss and gradient in one pass over tiles of rows.

Per tile: one product makes the logits, they are read (argmax, log-sum-exp, label, top-k) and turned
into exponentials and then into the gradient in the same memory, rows that the mask drops are closed
up, and two products take the gradient back. Nothing is recomputed in the backward, which only
multiplies by the upstream gradient; that is possible because the loss is a plain sum over rows.

Dimension letters: N rows, n rows of a tile, V student vocabulary, H hidden width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from caskd.store.errors import UsageError
from caskd.train.loss_tile import close_up_, differentiate_, read_tile_
from caskd.train.loss_types import Head, LossRows, LossSums, LossTerms
from caskd.train.products import add_product_, product_dtype, write_product_


@dataclass(frozen=True, eq=False)
class FusedCall:
    """Everything of one call that is not differentiated."""

    rows: LossRows
    index: Tensor
    """[M] rows that meet the head, ascending."""
    terms: LossTerms
    softcap: float | None
    scale: float | None
    dtype: torch.dtype
    """Of the inputs to the products."""
    tile_rows: int
    wanted: tuple[bool, bool, bool]
    """Whether hidden, weight and bias need a gradient. `ctx.needs_input_grad` does not know that
    the caller is under `no_grad`, and evaluation would pay for three products."""


def fused_loss(hidden: Tensor, head: Head, call: FusedCall) -> LossSums:
    """The sums of the rows `call.index`; `loss` can be backpropagated once.

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
                "the fused loss has no second derivative, got backward with create_graph=True; "
                "use impl='dense'"
            )
        if ctx.gradients is None:
            raise UsageError(
                "the fused loss was backpropagated twice, but its gradient is scaled in place; "
                "call cascade_aware_loss again, or use impl='dense'"
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
    sums = LossSums.zeros(hidden.device, exact)
    tile = weight.new_empty((min(call.tile_rows, len(call.index)), len(weight)), dtype=exact)
    gradients = _Gradients.allocate(hidden, head, call.wanted, exact)
    for index in call.index.split(call.tile_rows) if len(call.index) else ():
        rows = call.rows.take(index)
        inputs = hidden.detach()[index].to(operand)
        logits = head.finish_(write_product_(tile[: len(index)], inputs, weight.t()))
        reading = read_tile_(logits, rows, call.terms)
        sums = sums + reading.sums
        if any(call.wanted):
            live = reading.factor.nonzero().squeeze(1)
            if len(live):
                close_up_(logits, live)
                live_rows = reading.take(live)
                gradient = differentiate_(logits[: len(live)], live_rows, head, call.terms.w)
                gradients.add_(gradient, inputs[live], weight, index[live])
    return sums, gradients.finish(hidden.dtype, head)


@dataclass(frozen=True, eq=False)
class _Gradients:
    """Running sums; None where no gradient is wanted, and then nothing is computed for it."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def allocate(
        cls, hidden: Tensor, head: Head, wanted: tuple[bool, bool, bool], exact: torch.dtype
    ) -> "_Gradients":
        # Float16 overflows in sums that are not divided yet; autograd casts after scaling.
        row_dtype = exact if hidden.dtype == torch.float16 else hidden.dtype
        row_sums = torch.zeros_like(hidden, dtype=row_dtype) if wanted[0] else None
        weight = torch.zeros_like(head.weight, dtype=exact) if wanted[1] else None
        bias = None
        if head.bias is not None and wanted[2]:
            bias = torch.zeros_like(head.bias, dtype=exact)
        return cls(row_sums, weight, bias)

    def add_(self, gradient: Tensor, inputs: Tensor, weight: Tensor, index: Tensor) -> None:
        """Take a tile's gradient [n, V] back through the head.

        Args:
            inputs: [n, H] the hidden states it belongs to.
            index: [n] their rows.
        """
        if self.bias is not None:
            self.bias.add_(gradient.sum(0))
        operand = gradient.to(inputs.dtype)
        if self.hidden is not None:
            rows = gradient.new_empty(inputs.shape)
            write_product_(rows, operand, weight)
            self.hidden.index_copy_(0, index, rows.to(self.hidden.dtype))
        if self.weight is not None:
            add_product_(self.weight, operand.t(), inputs)

    def finish(
        self, dtype: torch.dtype, head: Head
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients as they wait for the backward: in bfloat16 where the parameters are."""

        def hold(total: Tensor | None, parameter: Tensor | None) -> Tensor | None:
            if total is None or parameter is None or parameter.dtype == torch.float16:
                return total
            return total.to(parameter.dtype)

        return self.hidden, hold(self.weight, head.weight), hold(self.bias, head.bias)

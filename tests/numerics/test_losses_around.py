"""The loss with compiled, checkpointed or autocast bodies, and together with other losses."""

import pytest
import torch
from loss_cases import FAST, make_case, relative_error, run_loss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from caskd.train.loss import cascade_aware_loss


class Body(nn.Module):
    """Two layers, the first of which is recomputed in the backward where wanted."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(7, 9), nn.Linear(9, 7)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.recompute = recompute
        self.num_runs = 0

    def _first(self, inputs: Tensor) -> Tensor:
        self.num_runs += 1
        return self.first(inputs).tanh()

    def forward(self, inputs: Tensor) -> Tensor:
        if self.recompute:
            return self.second(checkpoint(self._first, inputs, use_reentrant=False))
        return self.second(self.first(inputs).tanh())


@pytest.fixture
def case():
    return make_case(num_rows=24, dtype=torch.float32)


def body_gradients(case, body: nn.Module, call: nn.Module | None = None, **options) -> list[Tensor]:
    head = case.weight.clone().requires_grad_()
    hidden = (body if call is None else call)(case.hidden)
    sums = run_loss(hidden, head, case.labels, case.teacher, objective="cat-dist", **options)
    sums.loss.backward()
    return [head.grad, *(parameter.grad for parameter in body.parameters())]


def assert_equal_gradients(got: list[Tensor], expected: list[Tensor], bound: float = 2e-6) -> None:
    for ours, reference in zip(got, expected, strict=True):
        assert relative_error(ours, reference) <= bound


@pytest.mark.parametrize("impl", FAST)
def test_a_body_that_is_recomputed(case, impl):
    body = Body(recompute=True)
    got = body_gradients(case, body, impl=impl)
    assert body.num_runs == 2
    assert_equal_gradients(got, body_gradients(case, Body(), impl="dense"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_body_that_is_compiled(case):
    body = Body()
    compiled = torch.compile(body, backend="aot_eager", fullgraph=True)
    got = body_gradients(case, body, compiled)
    assert_equal_gradients(got, body_gradients(case, Body(), impl="dense"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_a_step_that_is_compiled_whole_breaks_its_graph_at_the_loss(case):
    weight = case.weight.clone().requires_grad_()
    body = Body()

    def step(hidden: Tensor, head: Tensor) -> Tensor:
        return cascade_aware_loss(
            body(hidden), head, case.labels, case.teacher, objective="cat-dist"
        ).loss

    torch.compile(step, backend="eager")(case.hidden, weight).backward()
    got = [weight.grad, *(parameter.grad for parameter in body.parameters())]
    assert_equal_gradients(got, body_gradients(case, Body(), impl="dense"))


def test_a_body_under_autocast_gives_bfloat16_states(case):
    body = Body()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = body_gradients(case, body)
        expected = body_gradients(case, Body(), impl="dense")
    assert all(gradient.dtype == torch.float32 for gradient in got)
    assert_equal_gradients(got, expected, bound=3e-2)


def test_two_losses_of_one_body_add_up(case):
    """Two stores in one step: their sums share a graph, and one backward serves both."""
    body, head = Body(), case.weight.clone().requires_grad_()
    hidden = body(case.hidden)
    losses = [
        run_loss(
            hidden[part], head, case.labels[part], case.teacher.take(part), objective="cat-dist"
        ).loss
        for part in torch.arange(24).split([10, 14])
    ]
    sum(losses).backward()
    got = [head.grad, *(parameter.grad for parameter in body.parameters())]
    assert_equal_gradients(got, body_gradients(case, Body(), impl="dense"))

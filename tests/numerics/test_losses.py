"""The fused loss equals the dense one, and the dense one equals the formula."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_cases import (
    FAST,
    IMPLS,
    TRITON,
    Case,
    for_tail,
    gradients,
    make_case,
    numpy_cat_loss,
    relative_error,
    run_loss,
    stored,
)
from torch.nn import functional as F

from caskd.train.loss import cascade_aware_loss, keep_mask
from caskd.train.objectives import OBJECTIVES, TAILS

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": torch.linspace(-1, 1, 53, dtype=torch.float64)},
    "softcap": {"logit_softcap": 3.0},
    "scale": {"logit_scale": 0.4},
    "all": {
        "bias": torch.linspace(-1, 1, 53, dtype=torch.float64),
        "logit_softcap": 4.0,
        "logit_scale": 1.7,
    },
}


@pytest.fixture(scope="module")
def case() -> Case:
    """With filler cells, a row without a teacher, an ignored label and labels outside the top-k."""
    case = make_case()
    num_kept = case.teacher.num_kept.clone()
    num_kept[::5] = 3
    num_kept[7] = 0
    probability = (case.teacher.topk_logits - case.teacher.logsumexp[:, None]).exp()
    valid = torch.arange(6) < num_kept[:, None]
    labels = case.labels.clone()
    labels[11] = -100
    teacher = replace(
        case.teacher,
        topk_ids=case.teacher.topk_ids.masked_fill(~valid, 0),
        topk_logits=case.teacher.topk_logits.masked_fill(~valid, -torch.inf),
        num_kept=num_kept,
        tail_mass=1 - (probability * valid).sum(1),
    )
    assert bool((case.teacher.topk_ids != labels[:, None]).all(1).any())
    return replace(case, labels=labels, teacher=teacher)


@pytest.fixture(scope="module")
def short_case(case: Case) -> Case:
    """Its first 20 rows: each of the four kinds of label with each remainder of 5, three tiles."""
    some = torch.arange(20)
    labels, teacher = case.labels[some], case.teacher.take(some)
    assert bool((teacher.topk_ids != labels[:, None]).all(1).any())
    return replace(
        case,
        hidden=case.hidden[some],
        labels=labels,
        teacher=teacher,
        teacher_logits=case.teacher_logits[some],
    )


OVER_TOKENS = {name: kind for name, kind in OBJECTIVES.items() if not kind.matches_spans}
OWN_MASK = [name for name, kind in OVER_TOKENS.items() if kind.rule != "given"]


def assert_same(case: Case, bound: float, *, impl: str, **options: Any) -> None:
    case = for_tail(case, options["tail"])
    expected_sums, expected = gradients(case, impl="dense", upstream=0.37, **options)
    sums, got = gradients(case, impl=impl, upstream=0.37, tile_rows=9, **options)
    for ours, reference in zip(sums.tensors(), expected_sums.tensors(), strict=True):
        if reference.is_floating_point():
            assert relative_error(ours.detach(), reference.detach()) <= bound
        else:
            assert int(ours) == int(reference)
    for ours, reference in zip(got, expected, strict=True):
        assert relative_error(ours, reference) <= bound


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("w", [None, 0.0, 1.0, 0.3])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("objective", OWN_MASK)
def test_fused_equals_dense_in_float64(case, objective, tail, w, head):
    assert_same(case, 1e-10, impl="torch", objective=objective, tail=tail, w=w, **HEADS[head])


# The interpreter of kernels is slow: heads take turns, and the rows are fewer.
HEADS_IN_TURN = list(itertools.product(OWN_MASK, TAILS, [None, 0.0, 1.0, 0.3]))
HEADS_IN_TURN = list(zip(HEADS_IN_TURN, itertools.cycle(HEADS)))


@pytest.mark.parametrize("impl", [TRITON])
@pytest.mark.parametrize(("which", "head"), HEADS_IN_TURN)
def test_kernels_equal_dense_in_float64(short_case, which, head, impl):
    objective, tail, w = which
    assert_same(short_case, 1e-10, impl=impl, objective=objective, tail=tail, w=w, **HEADS[head])


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("impl", FAST)
def test_row_weights_and_own_mask_equal_dense(case, tail, impl):
    weights = torch.linspace(0, 2, len(case.labels), dtype=torch.float64)
    keep = torch.arange(len(case.labels)) % 3 > 0
    options = {"objective": "cat-dist", "tail": tail, "row_weights": weights, "impl": impl}
    assert_same(case, 1e-10, **options)
    assert_same(case, 1e-10, keep=keep, **options)


@pytest.mark.parametrize("plain", ["xent", "dist"])
@pytest.mark.parametrize("impl", FAST)
def test_a_random_objective_is_the_plain_one_over_the_rows_that_are_given(case, plain, impl):
    keep = torch.arange(len(case.labels)) % 3 > 0
    masked, (masked_grad, _) = gradients(case, objective=f"random-{plain}", keep=keep, impl=impl)
    labels = case.labels.masked_fill(~keep, -100)
    alone, (alone_grad, _) = gradients(replace(case, labels=labels), objective=plain, impl=impl)
    assert float(masked.loss.detach()) == pytest.approx(float(alone.loss.detach()), rel=1e-12)
    assert relative_error(masked_grad, alone_grad) <= 1e-12
    assert int(masked.num_kept) == int(alone.num_kept)
    assert int(masked.num_rows) > int(alone.num_rows)
    everything = torch.ones_like(keep)
    same, grads = gradients(case, objective=f"random-{plain}", keep=everything, impl=impl)
    expected, expected_grads = gradients(case, objective=plain, impl=impl)
    pairs = zip([*same.tensors(), *grads], [*expected.tensors(), *expected_grads], strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("impl", FAST)
def test_fused_float32_is_as_exact_as_float32(case, tail, impl):
    case = for_tail(case, tail)
    single = replace(case, hidden=case.hidden.float(), weight=case.weight.float())
    double = replace(case, hidden=single.hidden.double(), weight=single.weight.double())
    sums, got = gradients(single, objective="cat-dist", tail=tail, impl=impl, tile_rows=9)
    reference, expected = gradients(double, objective="cat-dist", tail=tail, impl="dense")
    assert sums.loss.dtype == torch.float32
    assert relative_error(sums.loss.detach(), reference.loss.detach()) <= 2e-6
    for ours, exact in zip(got, expected, strict=True):
        assert relative_error(ours, exact) <= 2e-6


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("impl", FAST)
def test_fused_bfloat16_is_never_worse_than_the_naive_path(tail, impl):
    half = make_case(num_rows=120, hidden_size=64, vocab_size=300, dtype=torch.bfloat16)
    half = for_tail(half, tail)
    double = replace(half, hidden=half.hidden.double(), weight=half.weight.double())
    options = {"objective": "dist", "tail": tail}
    exact_sums, exact = gradients(double, impl="dense", **options)
    naive_sums, naive = gradients(half, impl="dense", **options)
    sums, got = gradients(half, impl=impl, tile_rows=32, **options)
    pairs = zip(
        [sums.loss, *got], [naive_sums.loss, *naive], [exact_sums.loss, *exact], strict=True
    )
    for ours, rough, truth in pairs:
        error = relative_error(ours.detach(), truth.detach())
        assert error <= 5e-3
        assert error <= relative_error(rough.detach(), truth.detach()) + 1e-3


@pytest.mark.parametrize("rule", ["all", "either", "teacher", "student"])
@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("impl", IMPLS)
def test_equation_written_out(rule, w, impl):
    case = make_case()
    objective = {name for name, kind in OVER_TOKENS.items() if kind.rule == rule}.pop()
    sums = run_loss(
        case.hidden, case.weight, case.labels, case.teacher, objective=objective, w=w, impl=impl
    )
    assert float(sums.loss.detach()) == pytest.approx(numpy_cat_loss(case, w, rule), rel=1e-12)


class _Fresh(torch.autograd.Function):
    """The loss made anew for each backward, as gradcheck asks for several of one graph."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, loss):
        ctx.save_for_backward(hidden, weight, bias)
        ctx.loss = loss
        return loss(hidden, weight, bias)

    @staticmethod
    def backward(ctx, upstream):
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            value = ctx.loss(*leaves)
        return *torch.autograd.grad(value, leaves, upstream), None


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("impl", FAST)
def test_gradcheck(tail, softcap, impl):
    size = (
        {"num_rows": 4, "vocab_size": 7} if impl == "triton" else {"num_rows": 9, "vocab_size": 11}
    )
    case = for_tail(make_case(hidden_size=3, top_k=4, **size), tail)

    def loss(hidden, weight, bias):
        return run_loss(
            hidden,
            weight,
            case.labels,
            case.teacher,
            objective="cat-dist",
            tail=tail,
            bias=bias,
            logit_softcap=softcap,
            logit_scale=0.5,
            impl=impl,
            tile_rows=4,
        ).loss

    bias = torch.linspace(-1, 1, len(case.weight), dtype=torch.float64)
    leaves = [tensor.clone().requires_grad_() for tensor in (case.hidden, case.weight, bias)]
    assert torch.autograd.gradcheck(lambda *inputs: _Fresh.apply(*inputs, loss), leaves)


@pytest.mark.parametrize("tile_rows", [1, 2, 13, 40, 41, 1000])
@pytest.mark.parametrize("impl", FAST)
def test_tiles_do_not_show(case, tile_rows, impl):
    _, whole = gradients(case, objective="cat-dist", tile_rows=len(case.labels))
    _, tiled = gradients(case, objective="cat-dist", tile_rows=tile_rows, impl=impl)
    for ours, reference in zip(tiled, whole, strict=True):
        assert relative_error(ours, reference) <= 1e-13


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_full_top_k_is_full_distillation(tail, impl, rounding):
    """Also where the stored tail mass of a row that keeps all V is not 0 but a rounding error."""
    case = make_case(vocab_size=23, top_k=23)
    left_out = torch.zeros(41) if tail == "none" else torch.full((41,), rounding)
    case = replace(case, teacher=replace(case.teacher, tail_mass=left_out))
    hidden, weight = case.hidden.requires_grad_(), case.weight.requires_grad_()
    sums = run_loss(
        hidden, weight, case.labels, case.teacher, objective="dist", w=0.0, tail=tail, impl=impl
    )
    got = torch.autograd.grad(sums.loss, (hidden, weight))
    full = F.cross_entropy(hidden @ weight.T, case.teacher_logits.softmax(1), reduction="sum")
    expected = torch.autograd.grad(full, (hidden, weight))
    assert float(sums.loss.detach()) == pytest.approx(float(full.detach()), rel=1e-12)
    for ours, reference in zip(got, expected, strict=True):
        assert relative_error(ours, reference) <= 1e-12


@pytest.mark.parametrize("rule", ["all", "either", "teacher", "student"])
@pytest.mark.parametrize("impl", IMPLS)
def test_label_term_alone_is_cross_entropy_on_kept_rows(case, rule, impl):
    name = {"all": "xent", "either": "cat-xent", "teacher": "cat-xent-l", "student": "cat-xent-s"}
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
    sums = run_loss(hidden, weight, case.labels, case.teacher, objective=name[rule], impl=impl)
    got = torch.autograd.grad(sums.loss, (hidden, weight))
    logits = hidden @ weight.T
    kept = keep_mask(logits.argmax(1), case.teacher.argmax, case.labels, rule)
    if rule in ("either", "teacher"):
        kept = kept & (case.teacher.num_kept > 0)
    plain = F.cross_entropy(logits[kept], case.labels[kept], reduction="sum")
    assert int(sums.num_kept) == int(kept.sum()) > 0
    assert float(sums.loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-12)
    for ours, reference in zip(got, torch.autograd.grad(plain, (hidden, weight)), strict=True):
        assert relative_error(ours, reference) <= 1e-12


def test_sums_of_micro_batches_are_those_of_the_batch(case):
    whole, expected = gradients(case, objective="cat-dist", upstream=1 / 37)
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
    total = None
    for index in torch.arange(len(case.labels)).split([3, 20, 0, 11, 7]):
        sums = cascade_aware_loss(
            hidden[index],
            weight,
            case.labels[index],
            case.teacher.take(index),
            objective="cat-dist",
        )
        (sums.loss / 37).backward()
        total = sums.detach() if total is None else total + sums.detach()
    for ours, reference in zip(total.tensors(), whole.tensors(), strict=True):
        assert float(ours) == pytest.approx(float(reference.detach()), rel=1e-12)
    for ours, reference in zip((hidden.grad, weight.grad), expected, strict=True):
        assert relative_error(ours, reference) <= 1e-12


def test_student_equal_to_teacher_has_no_divergence_and_one_row_off_has():
    case = make_case(num_rows=64, vocab_size=200, top_k=16, dtype=torch.float32)
    own_logits = (case.hidden @ case.weight.T).double()
    own = stored(own_logits, 16)
    shifted = own.take(torch.arange(64).roll(1))

    def divergence(teacher):
        sums = cascade_aware_loss(case.hidden, case.weight, case.labels, teacher, objective="dist")
        assert int(sums.num_distilled) == 64
        return float(sums.teacher_kl) / 64

    assert abs(divergence(own)) < 1e-6
    assert divergence(shifted) > 0.1


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.slow
def test_training_follows_the_dense_twin(fast):
    curves = {}
    for impl in (fast, "dense"):
        case = make_case(num_rows=16, dtype=torch.float32)
        weight = torch.nn.Parameter(0.1 * case.weight)
        optimizer = torch.optim.AdamW([weight], lr=0.05)
        curves[impl] = []
        for _ in range(50):
            sums = run_loss(
                case.hidden, weight, case.labels, case.teacher, objective="cat-dist", impl=impl
            )
            optimizer.zero_grad()
            (sums.loss / 16).backward()
            optimizer.step()
            curves[impl].append(float(sums.loss.detach()) / 16)
    assert curves[fast] == pytest.approx(curves["dense"], abs=1e-4)
    assert curves[fast][-1] < 0.9 * max(curves[fast])

"""Edge cases: no kept row, no row, no tail, a tiny tail, no teacher."""

from dataclasses import replace

import pytest
import torch
from loss_cases import (
    FAST,
    IMPLS,
    gradients,
    make_case,
    relative_error,
    run_loss,
    stored,
)
from torch.nn import functional as F

from caskd.train.loss import TeacherRows, cascade_aware_loss
from caskd.train.objectives import TAILS


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("labels", ["masked", "ignored"])
def test_no_row_kept_gives_zero_with_a_gradient_of_zeros(impl, labels):
    case = make_case(dtype=torch.float32)
    if labels == "ignored":
        nothing = torch.full_like(case.labels, -100)
    else:
        argmaxes = (case.teacher.argmax, (case.hidden @ case.weight.T).argmax(1))
        free = [set(range(53)) - {int(a), int(b)} for a, b in zip(*argmaxes, strict=True)]
        nothing = torch.tensor([min(ids) for ids in free])
    sums, got = gradients(replace(case, labels=nothing), objective="cat-dist", impl=impl)
    assert float(sums.loss.detach()) == 0
    assert int(sums.num_kept) == 0
    assert int(sums.num_rows) == (0 if labels == "ignored" else 41)
    assert all(bool((part == 0).all()) for part in got)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows_at_all(impl, tail):
    case = make_case()
    nothing = torch.arange(0)
    empty = replace(
        case, hidden=case.hidden[:0], labels=case.labels[:0], teacher=case.teacher.take(nothing)
    )
    sums, (hidden, weight) = gradients(empty, objective="cat-dist", tail=tail, impl=impl)
    assert [float(value.detach()) for value in sums.tensors()] == [0] * 15
    assert hidden.shape == (0, 7)
    assert bool((weight == 0).all())


def peaked(tail_logit: float, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Logits [6, 40] whose ids 0..4 hold almost everything; an identity head passes them on."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    logits[:, 5:] += tail_logit
    return logits.to(dtype), torch.eye(40, dtype=dtype)


@pytest.mark.parametrize("tail_logit", [-15.0, -22.0, -40.0, -300.0])
@pytest.mark.parametrize("impl", FAST)
def test_a_tail_far_below_float32_rounding_is_matched(tail_logit, impl):
    """1 - Q would be 0 or noise here; the loss and its gradient must stay those of float64."""
    logits, head = peaked(tail_logit, torch.float32)
    teacher_logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(4)).double()
    teacher_logits[:, 5:] -= 6
    teacher = stored(teacher_logits, 5)
    assert bool((teacher.topk_ids.sort(1).values == torch.arange(5)).all())
    mass_outside = logits.double().softmax(1)[:, 5:].sum(1)
    assert float(mass_outside.max()) < 2e-5
    got, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    labels = torch.full((6,), 2)
    ours = run_loss(got, head, labels, teacher, objective="dist", w=0.0, impl=impl)
    ours.loss.backward()
    logprobs = exact.log_softmax(1)
    bucketed = torch.cat([logprobs[:, :5], logprobs[:, 5:].logsumexp(1, keepdim=True)], 1)
    target = teacher_logits.softmax(1)
    target = torch.cat([target[:, :5], target[:, 5:].sum(1, keepdim=True)], 1)
    loss = -(target * bucketed).sum()
    loss.backward()
    assert float(ours.loss.detach()) == pytest.approx(float(loss.detach()), rel=2e-6)
    assert relative_error(got.grad, exact.grad) <= 2e-6
    on_cells = got.grad[:, :5], exact.grad[:, :5]
    assert relative_error(*on_cells) <= 2e-6


@pytest.mark.parametrize("impl", IMPLS)
def test_teacher_tail_of_1e_8_pulls_with_its_full_force(impl):
    logits, head = peaked(-25.0, torch.float64)
    teacher_logits = logits.clone()
    teacher_logits[:, 5:] += 6
    teacher = stored(teacher_logits, 5)
    assert 1e-9 < float(teacher.tail_mass.mean()) < 1e-6
    hidden = logits.clone().requires_grad_()
    labels = torch.zeros(6, dtype=torch.int64)
    run_loss(hidden, head, labels, teacher, objective="dist", w=0.0, impl=impl).loss.backward()
    pull = -hidden.grad[:, 5:].sum(1)
    expected = teacher.tail_mass - logits.softmax(1)[:, 5:].sum(1)
    assert pull.tolist() == pytest.approx(expected.tolist(), rel=1e-8)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("rounding", [0.0, 3e-4, -3e-4])
@pytest.mark.parametrize("impl", FAST)
def test_stored_mass_need_not_sum_to_one(tail, rounding, impl):
    """Tail mass exactly 0, and a top-k that sums to a little more or less than 1 - tail_mass."""
    case = make_case()
    teacher = replace(
        case.teacher,
        logsumexp=case.teacher.topk_logits.logsumexp(1) - rounding,
        tail_mass=torch.zeros_like(case.teacher.tail_mass),
    )
    case = replace(case, teacher=teacher)
    options = {"objective": "dist", "w": 0.0, "tail": tail}
    expected_sums, expected = gradients(case, impl="dense", **options)
    sums, got = gradients(case, impl=impl, **options)
    for ours, reference in zip([sums.loss, *got], [expected_sums.loss, *expected], strict=True):
        assert relative_error(ours.detach(), reference.detach()) <= 1e-10
    if tail != "none":
        logprobs = (case.hidden @ case.weight.T).log_softmax(1).gather(1, teacher.topk_ids)
        exact = -(teacher.topk_logits.softmax(1) * logprobs).sum()
        assert float(sums.loss.detach()) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_filler_cells_do_not_count(impl):
    case = make_case()
    three = case.teacher.topk_logits[:, 3:] * 0
    narrow = replace(
        case.teacher,
        topk_ids=case.teacher.topk_ids[:, :3],
        topk_logits=case.teacher.topk_logits[:, :3],
        num_kept=torch.full((41,), 3),
    )
    wide = replace(
        narrow,
        topk_ids=torch.cat([narrow.topk_ids, three.long()], 1),
        topk_logits=torch.cat([narrow.topk_logits, three - torch.inf], 1),
    )
    _, expected = gradients(replace(case, teacher=narrow), objective="cat-dist", impl=impl)
    _, got = gradients(replace(case, teacher=wide), objective="cat-dist", impl=impl)
    for ours, reference in zip(got, expected, strict=True):
        assert relative_error(ours, reference) <= 1e-14


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("objective", ["dist", "cat-xent", "xent", "cat-xent-s"])
def test_rows_without_a_teacher_count_only_where_none_is_needed(objective, impl):
    case = make_case()
    absent = torch.arange(41) % 3 == 0
    teacher = TeacherRows(
        argmax=case.teacher.argmax.masked_fill(absent, 0),
        topk_ids=case.teacher.topk_ids.masked_fill(absent[:, None], 0),
        topk_logits=case.teacher.topk_logits.masked_fill(absent[:, None], -torch.inf),
        num_kept=case.teacher.num_kept.masked_fill(absent, 0),
        logsumexp=case.teacher.logsumexp.masked_fill(absent, 0),
        tail_mass=case.teacher.tail_mass.masked_fill(absent, 0),
    )
    sums, got = gradients(replace(case, teacher=teacher), objective=objective, impl=impl)
    if objective in ("dist", "cat-xent"):
        there = (~absent).nonzero().squeeze(1)
        present = replace(case, labels=case.labels.masked_fill(absent, -100))
        assert int(sums.num_measured) == len(there)
    else:
        present = case
        assert int(sums.num_measured) == 41
    reference, expected = gradients(present, objective=objective, impl="dense")
    assert int(sums.num_distilled) == int((~absent).sum())
    assert int(sums.num_rows) == 41
    for ours, exact in zip([sums.loss, *got], [reference.loss, *expected], strict=True):
        assert relative_error(ours.detach(), exact.detach()) <= 1e-12


@pytest.mark.parametrize("impl", IMPLS)
def test_columns_beyond_the_teachers_vocabulary_belong_to_the_tail(impl):
    """A padded head: the extra columns have mass, and the bucket pushes on them as on the rest."""
    case = make_case()
    padding = torch.full((4, 7), 0.05, dtype=torch.float64)
    padded = replace(case, weight=torch.cat([case.weight, padding]))
    sums, _ = gradients(padded, objective="dist", w=0.0, impl=impl)
    logprobs = (padded.hidden @ padded.weight.T).log_softmax(1)
    outside = logprobs.scatter(1, case.teacher.topk_ids, -torch.inf).logsumexp(1)
    mass = (case.teacher.topk_logits - case.teacher.logsumexp[:, None]).exp()
    cells = (mass * logprobs.gather(1, case.teacher.topk_ids)).sum()
    expected = -(cells + (case.teacher.tail_mass * outside).sum())
    assert float(sums.loss.detach()) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_sampled_targets_are_the_shares_of_the_draws(impl):
    case = make_case(num_rows=3, dtype=torch.float32)
    counts = torch.tensor([[2, 1, 1, 0], [4, 0, 0, 0], [1, 1, 1, 1]])
    draws = TeacherRows(
        argmax=torch.tensor([4, 4, 4]),
        topk_ids=torch.tensor([[4, 9, 30, 0], [4, 0, 0, 0], [30, 4, 9, 11]]),
        topk_logits=(counts / 4).log(),
        num_kept=(counts > 0).sum(1),
        logsumexp=torch.zeros(3),
        tail_mass=torch.zeros(3),
    )
    options = {"objective": "dist", "w": 0.0}
    sums, (_, weight) = gradients(replace(case, teacher=draws), impl=impl, tail="none", **options)
    target = torch.zeros(3, 53).scatter_add(1, draws.topk_ids, counts / 4)
    leaf = case.weight.clone().requires_grad_()
    F.cross_entropy(case.hidden @ leaf.T, target, reduction="sum").backward()
    assert relative_error(weight, leaf.grad) <= 1e-6
    assert int(sums.num_distilled) == 3
    for tail in ("drop", "renormalise", "bucket"):  # nothing is left out, so that all agree
        _, (_, same) = gradients(replace(case, teacher=draws), impl=impl, tail=tail, **options)
        assert relative_error(same, weight) <= 1e-6


def test_an_infinite_row_that_is_dropped_does_not_reach_the_sum():
    case = make_case(num_rows=4)
    hidden = case.hidden.clone()
    hidden[1] = torch.inf
    labels = case.labels.clone()
    labels[1] = -100
    _, (got, weight) = gradients(replace(case, hidden=hidden, labels=labels), objective="dist")
    assert bool(got.isfinite().all())
    assert bool(weight.isfinite().all())


def test_counts():
    labels = torch.tensor([0, 1, 2, 3, -100])
    hidden = torch.eye(4)[[0, 1, 3, 2, 0]]
    head = 9 * torch.eye(4)
    teacher = TeacherRows(argmax=torch.tensor([0, 2, 2, 1, 0]))
    figures = {}
    for objective in ("xent", "cat-xent", "cat-xent-l", "cat-xent-s"):
        sums = cascade_aware_loss(hidden, head, labels, teacher, objective=objective)
        counts = (sums.num_rows, sums.num_measured, sums.num_kept, sums.student_correct)
        figures[objective] = [int(count) for count in (*counts, sums.teacher_correct)]
    assert figures == {
        "xent": [4, 4, 4, 2, 2],
        "cat-xent": [4, 4, 3, 2, 2],
        "cat-xent-l": [4, 2, 2, 1, 2],
        "cat-xent-s": [4, 4, 2, 2, 2],
    }

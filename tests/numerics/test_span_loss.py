"""The span objectives: against float64 autograd, and against the ordinary loss."""

from dataclasses import fields, replace

import pytest
import torch
from loss_cases import DEVICES, FAST, Case, make_case
from torch import Tensor

from caskd.train.loss import (
    LossSums,
    MappedRows,
    TeacherRows,
    TeacherSpans,
    cascade_aware_loss,
    span_loss,
)
from caskd.train.objectives import Objective

RULES = ("all", "either", "teacher", "student")


def spans_of(num_rows: int, seed: int = 0, *, outside: bool = True) -> TeacherSpans:
    """Spans of 1 to 3 rows; one row of ten belongs to none."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 4, (num_rows,), generator=generator)
    of_row = torch.repeat_interleave(torch.arange(num_rows), sizes)[:num_rows]
    count = int(of_row.max()) + 1
    if outside:
        of_row[::10] = count
    teacher = -6 * torch.rand(count, generator=generator, dtype=torch.float64)
    return TeacherSpans(of_row, teacher, torch.rand(count, generator=generator) < 0.4)


def by_hand(
    hidden: Tensor, weight: Tensor, labels: Tensor, spans: TeacherSpans, rule: str, w: float
) -> Tensor:
    """The formula, span by span."""
    logprobs = (hidden @ weight.T).log_softmax(1)
    total = hidden.new_zeros(())
    for span in range(len(spans.correct)):
        rows = (spans.of_row == span).nonzero().squeeze(1)
        right = bool((logprobs[rows].argmax(1) == labels[rows]).all())
        keeps = {"all": True, "teacher": False, "student": right, "either": right}[rule]
        if not (keeps or (rule in ("either", "teacher") and spans.correct[span])):
            continue
        student = logprobs[rows, labels[rows]].sum()
        p, q = ((v / 100 - 1e-6).exp() for v in (spans.log_likelihood[span], student))
        matching = -(p * q.log() + (1 - p) * (1 - q).log())
        total = total - w * student + (1 - w) * 100 * matching
    return total


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("impl", ["dense", "torch"])
@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rule", RULES)
def test_loss_and_gradient_are_those_of_the_formula(impl: str, w: float, rule: str) -> None:
    case = make_case(60)
    spans = spans_of(60)
    inputs = case.hidden.requires_grad_(), case.weight.requires_grad_()
    objective = Objective(rule, w, matches_spans=True)
    sums = span_loss(*inputs, case.labels, spans, objective=objective, impl=impl, tile_rows=32)
    expected = by_hand(*inputs, case.labels, spans, rule, w)
    torch.testing.assert_close(sums.loss, expected, rtol=1e-10, atol=1e-10)
    for found, wanted in zip(
        gradients(sums.loss, *inputs), gradients(expected, *inputs), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("impl", FAST)
def test_one_tokenizer_gives_the_ordinary_loss_bit_for_bit(
    impl: str, rule: str, dtype: torch.dtype
) -> None:
    device = DEVICES.get(impl, "cpu")
    if impl == "triton" and dtype == torch.float64:
        pytest.skip("the kernels are float32")
    case = make_case(150, dtype=dtype)
    hidden, weight = (t.to(device).requires_grad_() for t in (case.hidden, case.weight))
    labels, argmax = case.labels.to(device), case.teacher.argmax.to(device)
    spans = TeacherSpans(
        torch.arange(150, device=device),
        torch.zeros(150, dtype=torch.float64, device=device),
        argmax == labels,
    )
    options = {"impl": impl, "tile_rows": 64}
    ordinary = cascade_aware_loss(
        hidden,
        weight,
        labels,
        TeacherRows(argmax=argmax),
        objective=Objective(rule, 1.0),
        **options,
    )
    own = span_loss(hidden, weight, labels, spans, objective=Objective(rule, 1.0), **options)
    assert counts(own) == counts(ordinary)
    if rule == "teacher":  # the ordinary loss drops these rows first, so that its tiles differ
        torch.testing.assert_close(own.loss, ordinary.loss)
        return
    assert torch.equal(own.loss, ordinary.loss)
    for found, wanted in zip(
        gradients(own.loss, hidden, weight), gradients(ordinary.loss, hidden, weight), strict=True
    ):
        assert torch.equal(found, wanted)


def counts(sums: LossSums) -> list[int]:
    return [int(value) for value in (sums.num_rows, sums.num_kept, sums.teacher_correct)]


def test_a_student_as_likely_as_its_teacher_has_no_gradient() -> None:
    case = make_case(60)
    hidden = case.hidden.requires_grad_()
    with torch.no_grad():
        logprobs = (hidden @ case.weight.T).log_softmax(1)
    own = logprobs.gather(1, case.labels[:, None]).squeeze(1)
    spans = spans_of(60, outside=False)
    exact = torch.zeros(len(spans.correct), dtype=torch.float64).index_add_(0, spans.of_row, own)
    spans = TeacherSpans(spans.of_row, exact, spans.correct)
    objective = Objective("all", 0.0, matches_spans=True)
    sums = span_loss(hidden, case.weight, case.labels, spans, objective=objective, impl="torch")
    assert gradients(sums.loss, hidden)[0].norm() < 1e-6 * len(case.labels)
    assert abs(float(sums.teacher_kl)) < 1e-9


def test_a_caller_s_mask_drops_spans() -> None:
    case, spans = make_case(30), spans_of(30)
    hidden = case.hidden.requires_grad_()
    keep = torch.arange(len(spans.correct)) % 2 == 0
    objective = Objective("all", 0.5, matches_spans=True)
    sums = span_loss(
        hidden, case.weight, case.labels, spans, objective=objective, keep=keep, impl="torch"
    )
    gradient = gradients(sums.loss, hidden)[0]
    kept = torch.cat([keep, torch.tensor([False])])[spans.of_row]
    assert ((gradient != 0).any(1) == kept).all()
    assert int(sums.num_kept) == int(keep.sum())


def test_no_rows() -> None:
    case = make_case(4)
    spans = TeacherSpans(
        *(torch.zeros(0, dtype=d) for d in (torch.long, torch.float64, torch.bool))
    )
    hidden = case.hidden[:0].requires_grad_()
    weight = case.weight.requires_grad_()
    sums = span_loss(
        hidden,
        weight,
        case.labels[:0],
        spans,
        objective=Objective("either", 0.0, matches_spans=True),
    )
    sums.loss.backward()
    assert float(sums.loss.detach()) == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def with_topk(case: Case, spans: TeacherSpans, shift: int = 0) -> TeacherSpans:
    """The spans; all but one of those of a single row have a top-k, and one no tail.

    Args:
        shift: rows by which the top-k is off, the mistake to detect.
    """
    sizes = torch.bincount(spans.of_row, minlength=len(spans.correct) + 1)
    inside = spans.of_row < len(spans.correct)
    row = (inside & (sizes[spans.of_row] == 1)).nonzero().squeeze(1)[1:]
    teacher = case.teacher.take((row + shift) % len(case.labels))
    kept, tail = teacher.num_kept.clone(), teacher.tail_mass.clone()
    kept[::2] = 3
    tail[1] = 0
    teacher = replace(teacher, num_kept=kept, tail_mass=tail)
    return replace(spans, mapped=MappedRows(row, teacher))


def by_hand_with_topk(
    hidden: Tensor, weight: Tensor, labels: Tensor, spans: TeacherSpans, rule: str, w: float
) -> Tensor:
    """The formula: cells and one bucket where there is a top-k, likelihoods elsewhere."""
    probabilities = (hidden @ weight.T).softmax(1)
    mapped = spans.mapped
    total = hidden.new_zeros(())
    for span in {*range(len(spans.correct))} - {*spans.of_row[mapped.row].tolist()}:
        one = TeacherSpans(
            (spans.of_row != span).long(), spans.log_likelihood[[span]], spans.correct[[span]]
        )
        total = total + by_hand(hidden, weight, labels, one, rule, w)
    for number, row in enumerate(mapped.row.tolist()):
        q, teacher = probabilities[row], mapped.teacher
        right = bool(q.argmax() == labels[row])
        theirs = bool(spans.correct[spans.of_row[row]])
        keeps = {"all": True, "teacher": theirs, "student": right, "either": right or theirs}
        if not keeps[rule]:
            continue
        count, tail = int(teacher.num_kept[number]), teacher.tail_mass[number]
        ids = teacher.topk_ids[number, :count]
        p = (teacher.topk_logits[number, :count] - teacher.logsumexp[number]).exp()
        p = p * (1 - tail) / p.sum()
        loss = -(p * q[ids].log()).sum()
        if tail > 0:
            loss = loss - tail * (1 - q[ids].sum()).log()
        total = total - w * q[labels[row]].log() + (1 - w) * loss
    return total


@pytest.mark.parametrize("impl", ["dense", "torch"])
@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rule", RULES)
def test_a_mapped_topk_has_the_loss_and_gradient_of_the_formula(
    impl: str, w: float, rule: str
) -> None:
    case = make_case(120)
    spans = with_topk(case, spans_of(120))
    assert len(spans.mapped.row) > 5
    inputs = case.hidden.requires_grad_(), case.weight.requires_grad_()
    options = {"objective": Objective(rule, w, True, True), "impl": impl, "tile_rows": 4}
    sums = span_loss(*inputs, case.labels, spans, **options)
    expected = by_hand_with_topk(*inputs, case.labels, spans, rule, w)
    torch.testing.assert_close(sums.loss, expected, rtol=1e-10, atol=1e-10)
    for found, wanted in zip(
        gradients(sums.loss, *inputs), gradients(expected, *inputs), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    if w < 1:  # the test would notice a top-k of the next row
        shifted = span_loss(*inputs, case.labels, with_topk(case, spans_of(120), 1), **options)
        assert abs(float((shifted.loss - expected).detach())) > 1e-3
        assert float(sums.teacher_kl) > 0


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("rule", ["all", "either"])
def test_spans_that_all_have_a_topk_are_the_ordinary_objective(impl: str, rule: str) -> None:
    case = make_case(70, dtype=torch.float32)
    device = DEVICES.get(impl, "cpu")
    hidden, weight = (t.to(device).requires_grad_() for t in (case.hidden, case.weight))
    labels = case.labels.to(device)
    teacher = TeacherRows(*(getattr(case.teacher, f.name).to(device) for f in fields(TeacherRows)))
    every = torch.arange(70, device=device)
    none = torch.zeros(70, dtype=torch.float64, device=device)
    spans = TeacherSpans(every, none, teacher.argmax == labels, MappedRows(every, teacher))
    options = {"impl": impl, "tile_rows": 32}
    own = span_loss(
        hidden, weight, labels, spans, objective=Objective(rule, 0.3, True, True), **options
    )
    ordinary = cascade_aware_loss(
        hidden, weight, labels, teacher, objective=Objective(rule, 0.3), **options
    )
    assert counts(own) == counts(ordinary)
    for name in ("loss", "label_nll", "teacher_cross_entropy", "teacher_kl"):
        torch.testing.assert_close(
            getattr(own, name).float(), getattr(ordinary, name), rtol=2e-5, atol=1e-4
        )
    for found, wanted in zip(
        gradients(own.loss, hidden, weight), gradients(ordinary.loss, hidden, weight), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)

"""Calls of the loss: arguments that it refuses, and products that it does not compute."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_cases import for_tail, gradients, make_case, relative_error, sampled
from torch.utils._python_dispatch import TorchDispatchMode

from caskd.store.errors import UsageError
from caskd.train.loss import TeacherRows, cascade_aware_loss, keep_mask
from caskd.train.objectives import OBJECTIVES, Objective


class Products(TorchDispatchMode):
    """Counts the rows of each matrix product, and new matrices as large as the head."""

    def __init__(self, head_shape: torch.Size) -> None:
        super().__init__()
        self.head_shape = head_shape
        self.rows: list[int] = []
        self.num_head_sized = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "mm" in func.__name__:
            shapes = [arg.shape for arg in args if isinstance(arg, torch.Tensor)]
            self.rows.append(min(min(shape) for shape in shapes))
        fresh = func.__name__.split(".")[0] in (
            "empty",
            "empty_like",
            "zeros",
            "zeros_like",
            "new_empty",
            "clone",
        )
        if fresh and result.shape == self.head_shape:
            self.num_head_sized += 1
        return result


def count(case, *, hidden_grad=True, weight_grad=True, **options: Any) -> Products:
    hidden = case.hidden.clone().requires_grad_(hidden_grad)
    weight = case.weight.clone().requires_grad_(weight_grad)
    with Products(weight.shape) as products:
        cascade_aware_loss(
            hidden, weight, case.labels, case.teacher, impl="torch", tile_rows=100, **options
        )
    return products


@pytest.fixture
def case():
    # Hidden and vocabulary are wider than the rows, so that the smallest side of a product is rows.
    return make_case(num_rows=40, hidden_size=50, vocab_size=90)


def test_three_products_and_none_that_nobody_wants(case):
    assert count(case, objective="dist").rows == [40, 40, 40]
    frozen = count(case, objective="dist", weight_grad=False)
    assert frozen.rows == [40, 40]
    assert frozen.num_head_sized == 0
    assert count(case, objective="dist").num_head_sized == 1
    assert count(case, objective="dist", hidden_grad=False).rows == [40, 40]
    with torch.no_grad():
        evaluation = count(case, objective="dist")
    assert evaluation.rows == [40]
    assert evaluation.num_head_sized == 0


def test_dropped_rows_meet_no_backward_product(case):
    kept = int(
        cascade_aware_loss(
            case.hidden, case.weight, case.labels, case.teacher, objective="cat-dist"
        ).num_kept
    )
    assert 0 < kept < 40
    assert count(case, objective="cat-dist").rows == [40, kept, kept]


def test_a_teacher_only_mask_drops_rows_before_the_first_product(case):
    kept = int((case.teacher.argmax == case.labels).sum())
    assert 0 < kept < 40
    assert count(case, objective="cat-dist-l").rows == [kept] * 3
    own = torch.arange(40) < 13
    assert count(case, objective="cat-dist", keep=own).rows == [13] * 3


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient_and_the_other_the_same(case, frozen):
    _, (hidden_grad, weight_grad) = gradients(case, objective="cat-dist")
    hidden = case.hidden.clone().requires_grad_(frozen != "hidden")
    weight = case.weight.clone().requires_grad_(frozen != "weight")
    cascade_aware_loss(
        hidden, weight, case.labels, case.teacher, objective="cat-dist"
    ).loss.backward()
    if frozen == "hidden":
        assert hidden.grad is None
        assert relative_error(weight.grad, weight_grad) == 0
    else:
        assert weight.grad is None
        assert relative_error(hidden.grad, hidden_grad) == 0


def test_a_tied_head_gets_both_gradients(case):
    tied = {}
    for impl in ("dense", "torch"):
        weight = case.weight.clone().requires_grad_()
        hidden = weight[case.labels].tanh()
        sums = cascade_aware_loss(
            hidden, weight, case.labels, case.teacher, objective="cat-dist", impl=impl
        )
        sums.loss.backward()
        tied[impl] = weight.grad
    assert relative_error(tied["torch"], tied["dense"]) <= 1e-12


@pytest.mark.parametrize("impl", ["torch", "dense"])
def test_autocast_keeps_the_bounds_and_the_parameters_dtypes(impl):
    case = make_case(num_rows=60, hidden_size=32, vocab_size=90, dtype=torch.float32)
    rounded = replace(case, hidden=case.hidden.bfloat16().double(), weight=case.weight.double())
    _, expected = gradients(rounded, objective="dist", impl="dense")
    hidden = case.hidden.bfloat16().requires_grad_()
    weight = case.weight.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = cascade_aware_loss(
            hidden, weight, case.labels, case.teacher, objective="dist", impl=impl
        )
    sums.loss.backward()
    assert sums.loss.dtype == weight.grad.dtype == torch.float32
    assert hidden.grad.dtype == torch.bfloat16
    bound = 5e-3 if impl == "torch" else 2e-2
    assert relative_error(hidden.grad, expected[0]) <= bound
    assert relative_error(weight.grad, expected[1]) <= bound


def test_float16_gradients_are_scaled_before_they_are_rounded():
    """A sum of 4000 rows of 60 each leaves float16's range; divided by the rows it does not."""
    hidden = torch.full((4000, 2), 60.0, dtype=torch.float16)
    weight = torch.zeros(3, 2, dtype=torch.float16, requires_grad=True)
    labels = torch.zeros(4000, dtype=torch.int64)
    sums = cascade_aware_loss(hidden, weight, labels, None, objective="xent")
    (sums.loss / 4000).backward()
    assert weight.grad[0].tolist() == pytest.approx([-40.0, -40.0], rel=1e-3)


def test_reuse_and_double_backward_are_refused(case):
    hidden = case.hidden.clone().requires_grad_()
    loss = cascade_aware_loss(hidden, case.weight, case.labels, case.teacher, objective="dist").loss
    loss.backward(retain_graph=True)
    with pytest.raises(UsageError, match="backpropagated twice"):
        loss.backward()
    loss = cascade_aware_loss(hidden, case.weight, case.labels, case.teacher, objective="dist").loss
    with pytest.raises(UsageError, match=r"create_graph=True.*first derivative.*impl='dense'"):
        torch.autograd.grad(2 * loss, hidden, create_graph=True)


def test_checkpointing_around_it_runs_it_again_and_stays_right(case):
    _, (expected, _) = gradients(case, objective="cat-dist")
    hidden = case.hidden.clone().requires_grad_()

    def loss(states):
        return cascade_aware_loss(
            states, case.weight, case.labels, case.teacher, objective="cat-dist"
        ).loss

    torch.utils.checkpoint.checkpoint(loss, hidden, use_reentrant=False).backward()
    assert relative_error(hidden.grad, expected) <= 1e-13


def test_keep_mask():
    label = torch.tensor([1, 1, 1, 1, -100])
    student = torch.tensor([1, 0, 1, 0, -100])
    teacher = torch.tensor([1, 1, 0, 0, -100])
    expected = {
        "all": [True, True, True, True, False],
        "either": [True, True, True, False, False],
        "teacher": [True, True, False, False, False],
        "student": [True, False, True, False, False],
    }
    for rule, mask in expected.items():
        assert keep_mask(student, teacher, label, rule).tolist() == mask
    assert keep_mask(None, teacher, label, "teacher").tolist() == expected["teacher"]
    with pytest.raises(UsageError, match=r"'either'.*student_argmax.*None"):
        keep_mask(None, teacher, label, "either")
    with pytest.raises(UsageError, match=r"'either'.*teacher_argmax.*None"):
        keep_mask(student, None, label, "either")
    with pytest.raises(UsageError, match=r"'both'.*unknown"):
        keep_mask(student, teacher, label, "both")


def _with(case, **fields):
    return replace(case, teacher=replace(case.teacher, **fields))


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "objective": (None, {"objective": "kd"}, "objective 'kd'.*unknown.*cat-dist"),
    "w": (None, {"w": 1.5}, r"\bw\b.*1\.5.*from 0 .*to 1 "),
    "tail": (None, {"tail": "ghost"}, "tail 'ghost'.*unknown.*bucket"),
    "impl": (None, {"impl": "fast"}, "impl 'fast'.*unknown.*dense"),
    "tile": (None, {"tile_rows": 0}, r"tile_rows\b.*\b0\b.*at least 1"),
    "no teacher": (lambda c: replace(c, teacher=None), {}, "'cat-dist'.*teacher rows.*None"),
    "argmax only": (
        lambda c: replace(c, teacher=TeacherRows(c.teacher.argmax)),
        {},
        "'cat-dist'.*: no topk_ids, topk_logits, num_kept, logsumexp, tail_mass in the teacher",
    ),
    "one field": (
        lambda c: _with(c, tail_mass=None),
        {},
        r"'cat-dist' with w=0\.5: no tail_mass in the teacher",
    ),
    "teacher id": (
        lambda c: _with(c, topk_ids=c.teacher.topk_ids + 60),
        {},
        r"teacher ids.* from \d+ to \d+.*expected 0 to 89",
    ),
    "repeated id": (
        lambda c: _with(c, topk_ids=c.teacher.topk_ids[:, [0, 1, 2, 3, 4, 1]]),
        {},
        "same id twice",
    ),
    "a tail of sampled targets": (
        lambda c: c,
        {"tail": "none"},
        r"tail mass up to 0\.\d.*targets that sum to 1.*tail='bucket'",
    ),
    "sampled targets of half a mass": (
        lambda c: _with(for_tail(c, "none"), logsumexp=sampled(c.teacher).logsumexp + 0.7),
        {"tail": "none"},
        r"got a tail mass up to 0 and a sum off by 0\.503",
    ),
    "label": (lambda c: replace(c, labels=c.labels + 90), {}, r"labels.* from \d+ to \d+.*0 to 89"),
    "negative label": (
        lambda c: replace(c, labels=c.labels - 99),
        {},
        r"labels.* from -\d+ to -\d+.*0 to 89",
    ),
    "hidden": (lambda c: replace(c, hidden=c.hidden[None]), {}, "flatten batch and time"),
    "rows": (lambda c: replace(c, labels=c.labels[1:]), {}, r"labels.*\[39\].*expected \[40\]"),
    "teacher rows": (
        lambda c: _with(c, topk_ids=c.teacher.topk_ids[:, 0]),
        {},
        r"teacher\.topk_ids.*\[40\].*expected \[40, k\]",
    ),
    "bias": (None, {"bias": torch.zeros(3)}, r"bias.*\[3\].*expected \[90\]"),
    "keep": (None, {"keep": torch.ones(40)}, r"keep.*torch\.float32.*torch\.bool"),
    "no mask": (None, {"objective": "random-xent"}, "'random-xent'.*keep.*None"),
}


@pytest.mark.parametrize("impl", ["torch", "dense"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(case, name, impl):
    change, options, message = REFUSED[name]
    wrong = case if change is None else change(case)
    arguments = {"objective": "cat-dist", "impl": impl} | options
    with pytest.raises(UsageError, match=message) as refused:
        cascade_aware_loss(wrong.hidden, wrong.weight, wrong.labels, wrong.teacher, **arguments)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels can run here")
def test_kernels_are_refused_where_they_cannot_run(case, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UsageError, match=r"triton.*got cpu.*the triton package and a CUDA device"):
        cascade_aware_loss(
            case.hidden, case.weight, case.labels, None, objective="xent", impl="triton"
        )
    sums = cascade_aware_loss(case.hidden, case.weight, case.labels, None, objective="xent")
    assert bool(sums.loss.isfinite())


@pytest.mark.parametrize("name", [n for n, kind in OBJECTIVES.items() if not kind.matches_spans])
def test_an_objective_and_its_name_are_the_same(case, name):
    keep = torch.arange(len(case.labels)) % 2 == 0 if OBJECTIVES[name].needs_keep else None
    arguments = (case.hidden, case.weight, case.labels, case.teacher)
    by_name, given = (
        cascade_aware_loss(*arguments, objective=value, keep=keep)
        for value in (name, OBJECTIVES[name])
    )
    assert torch.equal(by_name.loss, given.loss)
    other_w = cascade_aware_loss(*arguments, objective=name, w=0.25, keep=keep)
    given = cascade_aware_loss(
        *arguments, objective=Objective(OBJECTIVES[name].rule, 0.25), keep=keep
    )
    assert torch.equal(other_w.loss, given.loss)


def test_an_objective_outside_the_table_is_checked_too(case):
    arguments = (case.hidden, case.weight, case.labels)
    for objective, message in (
        (Objective("all", 1.5), r"\bw\b.*1\.5.*from 0 .*to 1 "),
        (Objective("either", 0.5), r"rule='either', w=0\.5.*teacher rows.*None"),
        (Objective("given", 1.0), r"rule='given', w=1\.0.*\bkeep\b.*None"),
    ):
        with pytest.raises(UsageError, match=message):
            cascade_aware_loss(*arguments, None, objective=objective)

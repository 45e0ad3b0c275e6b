"""The mask of the fused loss equals that of the dense argmax in every row."""

import pytest
import torch
from loss_cases import IMPLS, make_case, run_loss, stored

from caskd.train.loss import keep_mask
from caskd.train.objectives import OBJECTIVES


def kept_rows(hidden, weight, labels, teacher, **options) -> torch.Tensor:
    """[N] bool, seen from outside: rows whose hidden state has a gradient."""
    leaf = hidden.clone().requires_grad_()
    run_loss(leaf, weight, labels, teacher, **options).loss.backward()
    return (leaf.grad != 0).any(1)


@pytest.mark.parametrize("vocab_size", [40, 64, 300])
@pytest.mark.parametrize("impl", IMPLS)
def test_ties_go_to_the_lowest_id(impl, vocab_size):
    generator = torch.Generator().manual_seed(1)
    # Small integers: every product is exact in float32, and ties abound.
    hidden = torch.randint(-2, 3, (200, 4), generator=generator).float()
    weight = torch.randint(-2, 3, (vocab_size, 4), generator=generator).float()
    logits = hidden @ weight.T
    lowest = torch.tensor([int((row == row.max()).nonzero()[0]) for row in logits])
    highest = torch.tensor([int((row == row.max()).nonzero()[-1]) for row in logits])
    assert int((lowest != highest).sum()) > 50
    labels = torch.where(torch.arange(200) % 2 == 0, lowest, highest)
    sums = run_loss(hidden, weight, labels, None, objective="cat-xent-s", impl=impl, tile_rows=70)
    assert int(sums.num_kept) == int(keep_mask(lowest, None, labels, "student").sum())


@pytest.mark.parametrize("impl", IMPLS)
def test_ties_between_the_top_k_and_the_rest_go_to_the_lowest_id(impl):
    """The student's largest logit is twice there, once among the teacher's ids and once not."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randint(-3, 3, (60, 40), generator=generator).float()
    teacher = stored(torch.randn(60, 40, generator=generator), 5)
    inside = teacher.topk_ids[torch.arange(60), torch.arange(60) % 5]
    outside = torch.tensor(
        [
            next(j for j in (7, 30, 20, 11, 3, 39) if j not in row)
            for row in teacher.topk_ids.tolist()
        ]
    )
    rows = torch.arange(60)
    logits[rows, inside] = logits[rows, outside] = 4.0
    assert 10 < int((inside < outside).sum()) < 50
    lowest = torch.minimum(inside, outside)
    options = {"objective": "dist", "impl": impl, "tile_rows": 25}
    for labels, expected in ((lowest, 60), (torch.maximum(inside, outside), 0)):
        sums = run_loss(logits, torch.eye(40), labels, teacher, **options)
        assert int(sums.student_correct) == expected


@pytest.mark.parametrize("rule", ["either", "student"])
@pytest.mark.parametrize("impl", IMPLS)
def test_rows_with_a_margin_above_four_ulp_are_kept_as_dense(rule, impl):
    case = make_case(num_rows=400, hidden_size=24, vocab_size=170, dtype=torch.float32)
    exact = case.hidden.double() @ case.weight.double().T
    top = exact.topk(2, dim=1)
    ulp = torch.finfo(torch.float32).eps * top.values[:, 0].abs()
    clear = top.values[:, 0] - top.values[:, 1] > 4 * ulp
    assert int(clear.sum()) > 390
    name = {"either": "cat-dist", "student": "cat-dist-s"}[rule]
    assert OBJECTIVES[name].rule == rule
    got = kept_rows(case.hidden, case.weight, case.labels, case.teacher, objective=name, impl=impl)
    expected = keep_mask(top.indices[:, 0], case.teacher.argmax, case.labels, rule)
    assert 100 < int(expected.sum()) < 300
    assert bool((got == expected)[clear].all())

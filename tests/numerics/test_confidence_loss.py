"""The confidence term against its formula in float64, and against the plain objective."""

from dataclasses import replace

import pytest
import torch
from loss_cases import make_case

from caskd.store.errors import UsageError
from caskd.train.delegation import NOTHING, DelegateRows, Delegation
from caskd.train.loss import cascade_aware_loss
from caskd.train.objectives import OBJECTIVES, Confidence, ConfidenceRule

RULES = ("gatekeeper", "cascade-gatekeeper")
MASKED = ("xent", "dist", "cat-xent-s", "cat-dist", "cat-dist-l", "random-dist")
HEAD = {"logit_softcap": 5.0, "logit_scale": 0.7}
A = 0.4


@pytest.fixture(scope="module")
def case():
    return make_case(num_rows=97)


def keep_of(case, objective):
    return torch.arange(len(case.labels)) % 3 == 0 if objective == "random-dist" else None


def gradients(case, confidence, objective, **options):
    bias = torch.linspace(-1, 1, len(case.weight), dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in (case.hidden, case.weight, bias)]
    sums = cascade_aware_loss(
        leaves[0], leaves[1], case.labels, case.teacher, bias=leaves[2], objective=objective,
        keep=keep_of(case, objective), confidence=confidence, **options,
    )  # fmt: skip
    sums.loss.backward()
    return sums, [leaf.grad for leaf in leaves]


def expected(case, rule, objective, *, softcap, weights, shift=0, sign=1):
    """The loss from its definition by autograd, its gradients, and the rows to be unsure of.

    `shift` and `sign` make mutants of it.
    """
    bias = torch.linspace(-1, 1, len(case.weight), dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in (case.hidden, case.weight, bias)]
    logits = leaves[0] @ leaves[1].T + leaves[2]
    logits = 5 * torch.tanh(0.7 * logits / 5) if softcap else logits
    logp = logits.log_softmax(1)
    nll = -logp.gather(1, case.labels[:, None]).squeeze(1)
    teacher, top = case.teacher_logits.softmax(1), case.teacher.topk_ids
    outside = logp.scatter(1, top, -torch.inf).logsumexp(1)
    cross = -(teacher.gather(1, top) * logp.gather(1, top)).sum(1)
    cross = cross - (1 - teacher.gather(1, top).sum(1)) * outside
    mine, theirs = logp.argmax(1) == case.labels, case.teacher.argmax == case.labels
    keep = {
        "all": torch.ones_like(mine), "either": mine | theirs, "student": mine, "teacher": theirs,
        "given": keep_of(case, objective),
    }[OBJECTIVES[objective].rule]  # fmt: skip
    w = OBJECTIVES[objective].w
    unsure = ~mine & theirs if rule == "cascade-gatekeeper" else ~mine
    uniform = torch.ones_like(logp) / logp.shape[1]
    divergence = (logp.exp() * (logp - uniform.log())).sum(1)
    plain = torch.where(keep, w * nll + (1 - w) * cross, 0.0)
    rows = (1 - A) * plain + sign * A * unsure.roll(shift).double() * divergence
    loss = (rows * (1 if weights is None else weights)).sum()
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves], unsure, divergence.detach()


@pytest.mark.parametrize("impl", ["dense", "torch"])
@pytest.mark.parametrize("objective", MASKED)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("capped", [False, True])
def test_loss_and_gradient_are_those_of_the_definition(case, rule, objective, impl, capped):
    weights = torch.linspace(0, 2, len(case.labels), dtype=torch.float64) if capped else None
    loss, wanted, unsure, divergence = expected(
        case, rule, objective, softcap=capped, weights=weights
    )
    options = {"impl": impl, "row_weights": weights, **(HEAD if capped else {})}
    if impl == "torch":
        options["tile_rows"] = 16
    sums, found = gradients(case, Confidence(rule, A), objective, **options)
    assert 5 < int(unsure.sum()) < 90
    assert sums.num_unsure == unsure.sum()
    torch.testing.assert_close(sums.unsure_kl, divergence[unsure].sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sums.loss.detach(), loss, rtol=1e-12, atol=0)
    for ours, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mutant", [{"shift": 1}, {"sign": -1}])
@pytest.mark.parametrize("rule", RULES)
def test_a_shift_by_one_and_a_wrong_sign_are_seen(case, rule, mutant):
    sums, found = gradients(case, Confidence(rule, A), "cat-dist", impl="torch")
    loss, wanted, *_ = expected(case, rule, "cat-dist", softcap=False, weights=None, **mutant)
    assert abs(float(sums.loss.detach() - loss)) > 0.1
    assert float((found[0] - wanted[0]).abs().max()) > 1e-2


@pytest.mark.parametrize("impl", ["dense", "torch"])
@pytest.mark.parametrize("objective", MASKED)
@pytest.mark.parametrize("rule", RULES)
def test_weight_0_measures_and_changes_no_bit(case, rule, objective, impl):
    plain, of_plain = gradients(case, None, objective, impl=impl)
    sums, found = gradients(case, Confidence(rule, 0.0), objective, impl=impl)
    assert torch.equal(sums.loss, plain.loss)
    assert all(torch.equal(a, b) for a, b in zip(found, of_plain, strict=True))
    assert plain.num_unsure == 0
    assert sums.num_kept == plain.num_kept
    assert sums.num_unsure > 0 or objective == "random-dist"


def test_the_rows_of_the_two_rules_differ_where_the_teacher_is_wrong_or_missing(case):
    missing = torch.arange(len(case.labels)) % 8 == 1  # rows in which the teacher is right
    num_kept = case.teacher.num_kept.masked_fill(missing, 0)
    lacking = replace(case, teacher=replace(case.teacher, num_kept=num_kept))
    counts = [
        int(gradients(one, Confidence(rule, A), "xent", impl="torch")[0].num_unsure)
        for one in (case, lacking)
        for rule in RULES
    ]
    every, right, same, fewer = counts
    assert every == same > right > fewer > 0


def test_a_head_with_removed_columns_has_a_finite_gradient(case):
    bias = torch.zeros(len(case.weight), dtype=torch.float64)
    bias[50:] = -torch.inf
    labels = case.labels.clamp_max(49)
    for impl in ("dense", "torch"):
        hidden = case.hidden.clone().requires_grad_()
        sums = cascade_aware_loss(
            hidden, case.weight, labels, None, objective="xent", bias=bias, impl=impl,
            confidence=Confidence("gatekeeper", A),
        )  # fmt: skip
        sums.loss.backward()
        assert bool(hidden.grad.isfinite().all())


def test_a_column_of_the_top_k_that_underflows_has_a_finite_gradient():
    case = make_case(num_rows=8, dtype=torch.float32)
    hidden = (3e3 * case.hidden).requires_grad_()
    sums = cascade_aware_loss(
        hidden, case.weight, case.labels, case.teacher, objective="dist", impl="torch",
        confidence=Confidence("gatekeeper", A),
    )  # fmt: skip
    sums.loss.backward()
    assert bool(hidden.grad.isfinite().all())


def refused(case, rule: ConfidenceRule, weight=A, **options):
    options = {"teacher": case.teacher, "objective": "xent", **options}
    with pytest.raises(UsageError) as error:
        cascade_aware_loss(
            case.hidden, case.weight, case.labels, confidence=Confidence(rule, weight), **options
        )
    return str(error.value)


def test_what_does_not_combine_is_refused_by_name(case):
    assert "'torch', 'dense' or 'auto'" in refused(case, "gatekeeper", impl="triton")
    assert "TeacherRows" in refused(case, "cascade-gatekeeper", teacher=None)
    assert "1.5" in refused(case, "gatekeeper", weight=1.5)
    assert "nan" in refused(case, "gatekeeper", weight=float("nan"))
    rows = DelegateRows(torch.zeros(len(case.labels)))
    call = {"delegation": Delegation("loss", 52, NOTHING), "delegate": rows}
    assert "'loss'" in refused(case, "gatekeeper", **call)

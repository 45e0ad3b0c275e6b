"""The loss with a CALL column against its formula in float64, and against the plain objective."""

from dataclasses import replace

import pytest
import torch
from loss_cases import make_case

from caskd.train.delegation import (
    CELLS,
    NOTHING,
    DelegateRows,
    Delegation,
    Threshold,
    cells_of,
)
from caskd.train.loss import Head, LossRows, cascade_aware_loss, row_stats
from caskd.train.objectives import OBJECTIVES

RULES = ("loss", "rho", "gap", "unacceptable", "random")
VOCAB = 53


@pytest.fixture(scope="module", params=["last", "inside"])
def call_case(request):
    """A case with a CALL column: behind the vocabulary, with a column of padding behind or not."""
    case = make_case(num_rows=97, vocab_size=VOCAB)
    extra = 1 if request.param == "last" else 2
    generator = torch.Generator().manual_seed(5)
    rows = 3 * torch.randn(extra, case.weight.shape[1], generator=generator, dtype=torch.float64)
    return replace(case, weight=torch.cat([case.weight, rows]))


def rows_of(case):
    generator = torch.Generator().manual_seed(3)
    label = case.teacher_logits.log_softmax(1).gather(1, case.labels[:, None]).squeeze(1)
    uniform = torch.rand(len(case.labels), generator=generator)
    return DelegateRows(uniform, label)


def gradients(case, delegation, **options):
    leaves = [case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()]
    if options.get("bias") is not None:
        leaves.append(options["bias"].clone().requires_grad_())
        options["bias"] = leaves[2]
    sums = cascade_aware_loss(
        leaves[0], leaves[1], case.labels, case.teacher, delegation=delegation,
        delegate=None if delegation is None else rows_of(case), **options,
    )  # fmt: skip
    sums.loss.backward()
    return sums, [leaf.grad for leaf in leaves]


def scores(case, rule):
    """Scores from their definitions, with the teacher's dense rows."""
    logp = (case.hidden @ case.weight.T)[:, vocabulary(case)].log_softmax(1)
    nll = -logp.gather(1, case.labels[:, None]).squeeze(1)
    teacher = case.teacher_logits.softmax(1)
    label_p = teacher.gather(1, case.labels[:, None]).squeeze(1)
    mine = logp.argmax(1)
    wrong, right = mine != case.labels, case.teacher.argmax == case.labels
    stored = (case.teacher.topk_ids == mine[:, None]).any(1)
    own = teacher.gather(1, mine.clamp_max(VOCAB - 1)[:, None]).squeeze(1) * stored
    nothing, best = torch.full_like(nll, -torch.inf), teacher.amax(1)
    return {
        "loss": nll,
        "rho": label_p.log() + nll,
        "gap": torch.where(wrong & right, label_p.log() + nll, nothing),
        "unacceptable": torch.where(wrong & (own < best), 1 - own / best, nothing),
    }[rule]


def vocabulary(case):
    """All columns but that of CALL; a column of padding belongs to the vocabulary's tail."""
    return [column for column in range(len(case.weight)) if column != VOCAB]


def expected(case, chosen, objective):
    """The loss from its definition, where the rows `chosen` are delegated."""
    logits = case.hidden @ case.weight.T
    logp = logits[:, vocabulary(case)].log_softmax(1)
    nll = -logp.gather(1, case.labels[:, None]).squeeze(1)
    teacher, top = case.teacher_logits.softmax(1), case.teacher.topk_ids
    tail = torch.ones_like(logp, dtype=torch.bool).scatter(1, top, value=False)
    bucket = torch.where(tail, logp, -torch.inf).logsumexp(1)
    cross = -(teacher.gather(1, top) * logp.gather(1, top)).sum(1)
    cross = cross - (1 - teacher.gather(1, top).sum(1)) * bucket
    right = (logp.argmax(1) == case.labels) | (case.teacher.argmax == case.labels)
    keep = right if objective == "cat-dist" else torch.ones_like(right)
    w = OBJECTIVES[objective].w
    plain = torch.where(keep, w * nll + (1 - w) * cross, 0.0)
    return torch.where(chosen, -logits.log_softmax(1)[:, VOCAB], plain).sum()


@pytest.mark.parametrize("impl", ["dense", "torch"])
@pytest.mark.parametrize("objective", ["xent", "dist", "cat-dist"])
@pytest.mark.parametrize("rule", ["loss", "rho", "gap", "unacceptable"])
def test_loss_and_gradient_are_those_of_the_definition(call_case, rule, objective, impl):
    leaves = [call_case.hidden.clone().requires_grad_(), call_case.weight.clone().requires_grad_()]
    case = replace(call_case, hidden=leaves[0], weight=leaves[1])
    score = scores(call_case, rule)
    cells = cells_of(score)
    threshold = Threshold(sorted(cells.tolist())[77], 1.0)
    chosen = cells >= max(threshold.cell, 0)
    highest = score.argsort(descending=True)[: int(chosen.sum())]
    assert sorted(highest.tolist()) == chosen.nonzero().squeeze(1).tolist()
    wanted = expected(case, chosen, objective)
    wanted.backward()
    sums, (hidden, weight) = gradients(
        call_case, Delegation(rule, VOCAB, threshold), objective=objective, impl=impl, tile_rows=16
    )
    assert 5 < int(chosen.sum()) < 80
    assert sums.delegation[0] == chosen.sum()
    torch.testing.assert_close(sums.loss, wanted.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(hidden, case.hidden.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(weight, case.weight.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", [{}, {"softcap": True}])
def test_the_fused_loss_is_the_dense_one(call_case, rule, options):
    head = {
        "bias": torch.linspace(-1, 1, len(call_case.weight), dtype=torch.float64),
        **({"logit_softcap": 5.0, "logit_scale": 0.7} if options else {}),
    }
    cell = CELLS * 7 // 8 if rule == "loss" else CELLS // 2  # a loss of 3 nats, or equal scores
    delegation = Delegation(rule, VOCAB, Threshold(cell, 0.4))
    dense, of_dense = gradients(call_case, delegation, objective="dist", impl="dense", **head)
    fused, of_fused = gradients(
        call_case, delegation, objective="dist", impl="torch", tile_rows=13, **head
    )
    assert 0 < fused.delegation[0] < len(call_case.labels)
    torch.testing.assert_close(fused.delegation, dense.delegation, rtol=1e-12, atol=0)
    for ours, theirs in zip(of_fused, of_dense, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_without_delegated_rows_the_loss_is_the_plain_one_bit_for_bit(call_case):
    """A column that a bias of -inf removes is in no normaliser, and is no part of the tail."""
    removed = torch.zeros(len(call_case.weight), dtype=torch.float64)
    removed[VOCAB] = -torch.inf
    for objective in ("xent", "dist", "cat-dist"):
        options = {"objective": objective, "impl": "torch", "tile_rows": 16}
        plain, (hidden, weight, _) = gradients(call_case, None, bias=removed, **options)
        ours, (own_hidden, own_weight) = gradients(
            call_case, Delegation("loss", VOCAB, NOTHING), **options
        )
        assert torch.equal(ours.loss, plain.loss)
        assert torch.equal(own_hidden, hidden)
        assert torch.equal(own_weight, weight)
        assert not own_weight[VOCAB].any()
        assert ours.delegation[0] == 0
        narrow = replace(call_case, weight=call_case.weight[:VOCAB])
        if len(call_case.weight) == VOCAB + 1:
            small, (of_small, head) = gradients(narrow, None, **options)
            torch.testing.assert_close(ours.loss, small.loss, rtol=1e-14, atol=0)
            torch.testing.assert_close(own_hidden, of_small, rtol=0, atol=1e-14)
            torch.testing.assert_close(own_weight[:VOCAB], head, rtol=0, atol=1e-13)


@pytest.mark.parametrize("impl", ["dense", "torch"])
def test_a_row_that_keeps_the_whole_vocabulary_has_no_tail(impl):
    """A rounded tail_mass has no column left to be the target of: CALL is not one."""
    case = make_case(vocab_size=VOCAB, top_k=VOCAB)
    tail_mass = torch.full_like(case.teacher.tail_mass, 1e-3)
    narrow = replace(case, teacher=replace(case.teacher, tail_mass=tail_mass))
    wide = replace(narrow, weight=torch.cat([case.weight, case.weight[:1]]))
    plain, (of_hidden, _) = gradients(narrow, None, objective="dist", impl=impl)
    ours, (own_hidden, _) = gradients(
        wide, Delegation("loss", VOCAB, NOTHING), objective="dist", impl=impl
    )
    torch.testing.assert_close(ours.loss, plain.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(own_hidden, of_hidden, rtol=0, atol=1e-12)


def test_where_every_row_is_delegated_no_label_has_a_gradient(call_case):
    delegation = Delegation("random", VOCAB, Threshold(0, 1.0))
    first, of_first = gradients(call_case, delegation, objective="xent")
    other = replace(call_case, labels=(call_case.labels + 7) % VOCAB)
    second, of_second = gradients(other, delegation, objective="xent")
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(a, b) for a, b in zip(of_first, of_second, strict=True))


@pytest.mark.parametrize("rule", ["loss", "unacceptable"])
def test_only_marked_rows_are_facts(call_case, rule):
    rows = rows_of(call_case)
    marked = torch.arange(len(rows.uniform)) % 3 == 0
    threshold = Threshold(CELLS // 2, 1.0)
    found = {}
    for name, given in ((rule, rows), (f"fact-{rule}", replace(rows, marked=marked))):
        sums = cascade_aware_loss(
            call_case.hidden, call_case.weight, call_case.labels, call_case.teacher, delegate=given,
            objective="xent", delegation=Delegation(name, VOCAB, threshold), impl="torch",
        )  # fmt: skip
        found[name] = sums
    chosen = (cells_of(scores(call_case, rule)) >= threshold.cell) & marked
    assert found[f"fact-{rule}"].delegation[0] == chosen.sum() < found[rule].delegation[0]
    wanted = expected(call_case, chosen, "xent")
    torch.testing.assert_close(found[f"fact-{rule}"].loss, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("impl", ["dense", "torch"])
def test_a_delegated_row_counts_whatever_the_mask(call_case, impl):
    delegation = Delegation("random", VOCAB, Threshold(CELLS // 2, 0.5))
    rows = rows_of(call_case)
    keep = torch.arange(len(rows.uniform)) % 2 == 0
    sums = cascade_aware_loss(
        call_case.hidden, call_case.weight, call_case.labels, call_case.teacher,
        objective="random-xent", keep=keep, delegation=delegation, delegate=rows, impl=impl,
    )  # fmt: skip
    delegated = rows.uniform < 0.5
    assert sums.delegation[0] == delegated.sum()
    assert sums.num_kept == (delegated | keep).sum()


@pytest.mark.parametrize("impl", ["dense", "torch"])
@pytest.mark.parametrize("rule", ["l2d", "ova"])
def test_learning_to_defer_is_its_formula(call_case, rule, impl):
    hidden, weight = call_case.hidden.clone(), call_case.weight.clone()
    hidden.requires_grad_()
    weight.requires_grad_()
    logp = (hidden @ weight.T).log_softmax(1)
    right = (call_case.teacher.argmax == call_case.labels).double()
    label = logp.gather(1, call_case.labels[:, None]).squeeze(1)
    own = (hidden @ weight.T)[:, vocabulary(call_case)]
    if rule == "l2d":
        wanted = (-label - right * logp[:, VOCAB]).sum()
        defers = logp[:, VOCAB] >= logp[:, vocabulary(call_case)].amax(1)
    else:
        is_right = ((hidden @ weight.T)[:, VOCAB] - own.logsumexp(1)).sigmoid()
        nll = -own.log_softmax(1).gather(1, call_case.labels[:, None]).squeeze(1)
        wanted = (nll - right * is_right.log() - (1 - right) * (1 - is_right).log()).sum()
        defers = is_right >= own.softmax(1).amax(1)
    wanted.backward()
    sums, (of_hidden, of_weight) = gradients(
        call_case, Delegation(rule, VOCAB, NOTHING), objective="xent", impl=impl, tile_rows=16
    )
    torch.testing.assert_close(sums.loss, wanted.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(of_hidden, hidden.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(of_weight, weight.grad, rtol=0, atol=1e-11)
    assert sums.delegation[0] == defers.sum() > 0


@pytest.mark.parametrize("rule", ["l2d", "ova"])
def test_learning_to_defer_learns_bayes_rule_on_a_separable_toy(rule):
    """The teacher is right on contexts 0 and 1, wrong on 2 and 3; labels are coins of p = 0.7 or 1.

    The student should defer on 0, where it would be wrong in 3 of 10 cases, and not on 2 and 3.
    """
    generator = torch.Generator().manual_seed(0)
    context = torch.arange(4).repeat(250)
    labels = torch.where(torch.rand(1000, generator=generator) < 0.7, context % 2, 1 - context % 2)
    teacher_is_right = context < 2
    teacher = replace(
        make_case(num_rows=1000, vocab_size=2, top_k=1).teacher,
        argmax=torch.where(teacher_is_right, labels, 1 - labels),
    )
    weight = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    hidden = torch.nn.functional.one_hot(context, 4).double()
    optimizer = torch.optim.LBFGS([weight], max_iter=200)

    def step():
        optimizer.zero_grad()
        sums = cascade_aware_loss(
            hidden, weight, labels, teacher, objective="xent",
            delegation=Delegation(rule, 2, NOTHING), delegate=DelegateRows(torch.zeros(1000)),
        )  # fmt: skip
        loss = sums.loss / 1000 + 1e-6 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(step)
    log_odds = weight[2] - weight[:2].logsumexp(0)
    confidence = weight[:2].log_softmax(0).amax(0)
    defers = Delegation(rule, 2, NOTHING).defers(log_odds, confidence)
    assert defers.tolist() == [True, True, False, False]
    if rule == "ova":
        assert log_odds.sigmoid().tolist() == pytest.approx([1, 1, 0, 0], abs=0.01)


def test_the_measures_of_an_evaluation_have_no_call_column(call_case):
    rows = LossRows(call_case.labels, call_case.teacher, None)
    removed = torch.zeros(len(call_case.weight), dtype=torch.float64)
    removed[VOCAB] = -torch.inf
    head = Head(call_case.weight, None, None, None)
    plain = row_stats(call_case.hidden, Head(call_case.weight, removed, None, None), rows, "all")
    assert torch.equal(row_stats(call_case.hidden, head, rows, "all", VOCAB), plain)
    assert not torch.equal(row_stats(call_case.hidden, head, rows, "all"), plain)

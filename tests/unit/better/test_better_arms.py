"""The rules of row weights against their definitions, row by row in float64, and their control."""

import numpy as np
import pytest
import torch
from arms import ANSWER_ARMS, BASES, FLAGS, RULES, arms_of, control_of
from train_arm import Recorded, Shuffled

from caskd.store import StoreBatch
from caskd.train.data import WeighedRows
from caskd.train.loss import Head, cascade_aware_loss, student_right

SIZES = (1, 4, 2, 5, 3, 7, 1, 6)
V, H, K = 23, 5, 4


class Rows:
    """Rows of answers of unequal length, with the teacher's whole distribution."""

    def __init__(self, seed: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.num = sum(SIZES)
        self.answers = np.repeat(np.arange(len(SIZES)), SIZES)
        normal = {"generator": generator, "dtype": torch.float64}
        self.hidden = torch.randn(self.num, H, **normal)
        self.weight = torch.randn(V, H, **normal)
        self.teacher = 2 * torch.randn(self.num, V, **normal)
        labels = torch.randint(0, V, (self.num,), generator=generator)
        mine, theirs = (self.hidden @ self.weight.T).argmax(1), self.teacher.argmax(1)
        which = torch.randint(0, 4, (self.num,), generator=generator)
        labels = torch.where(which < 2, theirs, torch.where(which == 2, mine, labels))
        second = self.teacher.topk(3, dim=1).indices[:, 2]
        labels[::7] = second[::7]
        first, last = (np.flatnonzero(self.answers == answer) for answer in (1, 5))
        labels[first] = theirs[first]  # an answer that the teacher gives
        labels[last] = (mine[last] + 1) % V  # and one that the student does not
        self.labels, self.mine = labels, mine
        self.rank = (self.teacher > self.teacher.gather(1, labels[:, None])).sum(1)

    def batch(self) -> StoreBatch:
        top = self.teacher.topk(K, dim=1)
        nothing = np.zeros(self.num, np.uint32)
        return StoreBatch(
            example_indices=np.arange(len(SIZES)),
            token_ids=nothing,
            is_response=nothing.astype(np.uint8),
            token_offsets=np.zeros(len(SIZES) + 1, np.int64),
            row_offsets=np.cumsum([0, *SIZES]),
            logit_positions=np.zeros(self.num, np.int64),
            labels=self.labels.numpy().astype(np.uint32),
            topk_ids=top.indices.numpy().astype(np.uint32),
            topk_logits=top.values.numpy().astype(np.float32),
            num_kept=np.full(self.num, K, np.uint16),
            logsumexp=self.teacher.logsumexp(1).numpy().astype(np.float32),
            label_logit=self.teacher.gather(1, self.labels[:, None])[:, 0].numpy().astype("f4"),
            argmax=self.teacher.argmax(1).numpy().astype(np.uint32),
            label_rank=self.rank.numpy().astype(np.uint32),
        )

    def weights(self, arm: str, right: torch.Tensor) -> torch.Tensor:
        """As `train` computes them."""
        rule = RULES[arm]
        values = torch.from_numpy(rule.values(0, self.batch()))
        rows = WeighedRows(values, torch.from_numpy(self.answers))
        return rule.weights(rows, right if rule.needs_student else None)


@pytest.fixture(scope="module")
def rows():
    return Rows()


def defined(rows, arm, shift=0):
    """Each weight from the formula in plan.md; a shift of the teacher's rows makes a mutant."""
    teacher = rows.teacher.softmax(1).roll(shift, 0)
    found = []
    for n in range(rows.num):
        y = int(rows.labels[n])
        p, best = float(teacher[n, y]), float(teacher[n].max())
        student = int(rows.mine[n]) == y
        rank = int((teacher[n] > p).sum())
        own = [m for m in range(rows.num) if rows.answers[m] == rows.answers[n]]
        theirs = [bool(teacher[m].argmax() == rows.labels[m]) for m in own]
        either = [
            t or bool(rows.mine[m] == rows.labels[m]) for m, t in zip(own, theirs, strict=True)
        ]
        found.append({
            "soft": p, "soft-either": max(student, p), "ratio": p / best,
            "ratio-either": max(student, p / best), "rank2": student or rank < 2,
            "rank4": student or rank < 4, "answer-teacher": sum(theirs) / len(own),
            "answer-either": sum(either) / len(own), "answer-half": 2 * sum(either) >= len(own),
            "answer-whole": all(either),
        }[arm])  # fmt: skip
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("arm", RULES)
def test_weights_are_those_of_the_definition(rows, arm):
    right = rows.mine == rows.labels
    torch.testing.assert_close(
        rows.weights(arm, right).double(), defined(rows, arm), rtol=1e-6, atol=1e-6
    )
    assert len(defined(rows, arm).unique()) > 1
    assert not torch.allclose(defined(rows, arm, shift=1), defined(rows, arm), atol=1e-3)


@pytest.mark.parametrize("arm", RULES)
def test_loss_and_gradient_are_those_of_the_weighted_sum_in_float64(rows, arm):
    leaves = [x.clone().requires_grad_() for x in (rows.hidden, rows.weight)]
    right = student_right(leaves[0], Head(leaves[1], None, None, None), rows.labels, tile_rows=8)
    weights = rows.weights(arm, right).double()
    sums = cascade_aware_loss(
        *leaves, rows.labels, None, objective="xent", row_weights=weights, tile_rows=8
    )
    sums.loss.backward()
    twins = [x.clone().requires_grad_() for x in (rows.hidden, rows.weight)]
    logprobs = (twins[0] @ twins[1].T).log_softmax(1)
    exact = defined(rows, arm)
    loss = sum(-exact[n] * logprobs[n, rows.labels[n]] for n in range(rows.num))
    loss.backward()
    torch.testing.assert_close(sums.loss, loss, rtol=1e-6, atol=1e-6)
    for leaf, twin in zip(leaves, twins, strict=True):
        torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-6, atol=1e-6)


def test_a_row_without_a_teacher_row_has_the_value_0(rows):
    batch = rows.batch()
    batch.num_kept[:] = 0
    for rule in RULES.values():
        assert not rule.values(0, batch).any()


def test_one_answer_of_one_row_is_cat_xent(rows):
    right, teacher = rows.mine == rows.labels, rows.rank == 0
    single = WeighedRows(teacher.float(), torch.arange(rows.num))
    for arm in ANSWER_ARMS:
        rule = RULES[arm]
        wanted = (right | teacher) if rule.either else teacher
        assert torch.equal(rule.weights(single, right if rule.either else None).bool(), wanted)
    assert not set(ANSWER_ARMS) & set(arms_of(one_row=True))


def test_controls_have_the_weights_of_each_step_in_another_order(rows, tmp_path):
    batch, answers = rows.batch(), torch.from_numpy(rows.answers)
    arm = Recorded(RULES["soft"])
    for step in range(3):
        # Read ahead of the forward, in two micro-batches of a step.
        values = [arm.values(step, batch) for _ in range(2)]
        for value in values:
            arm.weights(WeighedRows(torch.from_numpy(value) * (step + 1), answers), None)
    arm.save(tmp_path / "soft.npz")
    control = Recorded(Shuffled(RULES["soft"], tmp_path / "soft.npz", seed=5))
    for step in range(3):
        for value in [control.values(step, batch) for _ in range(2)]:
            control.weights(WeighedRows(torch.from_numpy(value), answers), None)
    control.save(tmp_path / "control.npz")
    ours, theirs = (np.load(tmp_path / f"{name}.npz") for name in ("soft", "control"))
    assert ours["sizes"].tolist() == theirs["sizes"].tolist() == [2 * rows.num] * 3
    for mine, its in zip(*(np.split(f["weights"], 3) for f in (ours, theirs)), strict=True):
        assert not np.array_equal(mine, its)
        np.testing.assert_array_equal(np.sort(mine), np.sort(its))


def test_every_arm_that_weighs_rows_has_a_control():
    arms = arms_of(one_row=False)
    assert set(arms) == {*RULES, *FLAGS}
    assert arms[: len(BASES)] == BASES
    assert [arm for arm in arms if control_of(arm) is None] == ["xent"]

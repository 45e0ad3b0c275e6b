"""A student equal to the teacher has zero KL; an off-by-one shift anywhere does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import capture, config_for, read_metrics

from caskd.store import StoreBatch, TeacherStore
from caskd.train import train
from caskd.train.data import collate, fields_to_read
from caskd.train.model import SUM_NAMES, LossOptions, StudentWithLoss, load_student
from caskd.train.objectives import OBJECTIVES

NATS = 1e-4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("aligned")
    capture(directory)
    return directory


def sums_of(root: Path, change: Callable[[StoreBatch], StoreBatch]) -> dict[str, float]:
    """Sums of the loss of the teacher as its own student, on rows that went through `change`."""
    store = TeacherStore.open(root / "store")
    model = load_student(str(root / "teacher"), store.spec.vocab_size)
    student = StudentWithLoss(model, LossOptions(OBJECTIVES["dist"], "bucket"))
    batch = store.read(range(len(store)), fields_to_read(OBJECTIVES["dist"]))
    with torch.no_grad():
        _, sums = student(collate(change(batch), pad_id=0))
    return dict(zip(SUM_NAMES, sums.tolist(), strict=True))


def kl(root: Path, change: Callable[[StoreBatch], StoreBatch]) -> float:
    sums = sums_of(root, change)
    return sums["teacher_kl"] / sums["num_distilled"]


def test_the_teacher_as_its_own_student_has_no_divergence(root: Path) -> None:
    assert abs(kl(root, lambda batch: batch)) < NATS


def test_so_it_is_through_the_trainer(root: Path, tmp_path: Path) -> None:
    teacher = str(root / "teacher")
    config = config_for(root, out=str(tmp_path / "run"), student=teacher, lr=1e-30, steps=5)
    train(config)
    assert all(abs(line["kl"]) < NATS for line in read_metrics(config.out))


ROW_FIELDS = ("topk_ids", "topk_logits", "num_kept", "logsumexp", "tail_mass", "argmax")


def shifted_rows(batch: StoreBatch) -> StoreBatch:
    return replace(batch, **{f: np.roll(getattr(batch, f), 1, axis=0) for f in ROW_FIELDS})


def shifted_positions(by: int) -> Callable[[StoreBatch], StoreBatch]:
    def change(batch: StoreBatch) -> StoreBatch:
        longest = np.repeat(np.diff(batch.token_offsets), np.diff(batch.row_offsets)) - 1
        return replace(batch, logit_positions=np.clip(batch.logit_positions + by, 0, longest))

    return change


def shifted_tokens(batch: StoreBatch) -> StoreBatch:
    return replace(batch, token_ids=np.roll(batch.token_ids, 1))


@pytest.mark.parametrize(
    "change",
    [shifted_rows, shifted_positions(1), shifted_positions(-1), shifted_tokens],
    ids=["rows", "positions+1", "positions-1", "tokens"],
)
def test_a_shift_by_one_shows(root: Path, change: Callable[[StoreBatch], StoreBatch]) -> None:
    assert kl(root, change) > 10 * NATS


def test_shifted_labels_show(root: Path) -> None:
    """The KL knows no label; the teacher's own log-probability of the label, as stored, does."""
    store = TeacherStore.open(root / "store")
    rows = store.read(range(len(store)), ("label_logit", "logsumexp"))
    assert rows.label_logit is not None
    assert rows.logsumexp is not None
    stored = float((rows.logsumexp - rows.label_logit).astype(np.float64).mean())

    def nll(change: Callable[[StoreBatch], StoreBatch]) -> float:
        sums = sums_of(root, change)
        return sums["label_nll"] / sums["num_measured"]

    assert nll(lambda batch: batch) == pytest.approx(stored, abs=NATS)
    shifted = nll(lambda batch: replace(batch, labels=np.roll(batch.labels, 1)))
    assert abs(shifted - stored) > 10 * NATS

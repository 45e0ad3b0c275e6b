"""Training on sampled stores: unbiased, correctly aligned, and only with --tail none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import capture, config_for, read_metrics
from transformers import AutoModelForCausalLM

from caskd.cli.main import main
from caskd.precompute import PrecomputeConfig, precompute
from caskd.store import StoreBatch, TeacherStore
from caskd.train import train
from caskd.train.data import MicroBatch, collate, fields_to_read
from caskd.train.loss import cascade_aware_loss
from caskd.train.objectives import OBJECTIVES

NUM_SAMPLES = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT/sampled beside ROOT/store, from the same teacher and data."""
    directory = tmp_path_factory.mktemp("sampled")
    capture(directory)
    precompute(
        PrecomputeConfig(
            teacher=str(directory / "teacher"), data=(str(directory / "data.jsonl"),),
            store=str(directory / "sampled"), sample=NUM_SAMPLES, shard_rows=64, dtype="float32",
            device="cpu",
        )
    )  # fmt: skip
    return directory


def read(root: Path) -> StoreBatch:
    store = TeacherStore.open(root / "sampled")
    return store.read(range(len(store)), fields_to_read(OBJECTIVES["dist"], "sampled"))


def student_side(root: Path, batch: StoreBatch) -> tuple[torch.Tensor, torch.Tensor, MicroBatch]:
    """The teacher as its own student: hidden states of the rows, the head, and the batch."""
    model = AutoModelForCausalLM.from_pretrained(root / "teacher").eval()
    micro = collate(batch, pad_id=0)
    with torch.no_grad():
        body = model.base_model(input_ids=micro.input_ids, attention_mask=micro.attention_mask)
    hidden = body.last_hidden_state.flatten(0, 1)[micro.gather_index]
    return hidden, model.get_output_embeddings().weight.detach(), micro


def cross_entropy(root: Path, change: Callable[[StoreBatch], StoreBatch]) -> float:
    hidden, head, micro = student_side(root, change(read(root)))
    sums = cascade_aware_loss(
        hidden, head, micro.labels, micro.teacher, objective="dist", tail="none"
    )
    return float(sums.teacher_cross_entropy / sums.num_distilled)


def entropy(root: Path) -> float:
    """Mean entropy of the teacher over the same rows, from its whole logits."""
    hidden, head, _ = student_side(root, read(root))
    log_p = (hidden @ head.T).double().log_softmax(1)
    return float(-(log_p.exp() * log_p).sum(1).mean())


def test_the_teachers_own_cross_entropy_with_its_draws_is_its_entropy(root: Path) -> None:
    assert cross_entropy(root, lambda batch: batch) == pytest.approx(entropy(root), abs=0.03)


DRAWS = ("sampled_ids", "sampled_counts", "num_kept")


def shifted_draws(batch: StoreBatch) -> StoreBatch:
    return replace(batch, **{f: np.roll(getattr(batch, f), 1, axis=0) for f in DRAWS})


def shifted_positions(by: int) -> Callable[[StoreBatch], StoreBatch]:
    def change(batch: StoreBatch) -> StoreBatch:
        longest = np.repeat(np.diff(batch.token_offsets), np.diff(batch.row_offsets)) - 1
        return replace(batch, logit_positions=np.clip(batch.logit_positions + by, 0, longest))

    return change


@pytest.mark.parametrize(
    "change",
    [shifted_draws, shifted_positions(1), shifted_positions(-1)],
    ids=["draws", "positions+1", "positions-1"],
)
def test_a_shift_by_one_shows(root: Path, change: Callable[[StoreBatch], StoreBatch]) -> None:
    assert cross_entropy(root, change) > entropy(root) + 0.3


@pytest.mark.parametrize("impl", ["torch", "dense"])
@pytest.mark.parametrize("objective", ["dist", "cat-dist"])
def test_the_loss_of_a_batch_is_the_formula_with_counts(
    root: Path, impl: str, objective: str
) -> None:
    """Against log_softmax and a dense [N, V] of counts / N, gradient included."""
    batch = read(root)
    micro = collate(batch, pad_id=0)
    num_rows, vocab = batch.num_rows, TeacherStore.open(root / "sampled").spec.vocab_size
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_rows, 6, generator=generator)
    weight = torch.randn(vocab, 6, generator=generator).requires_grad_()
    sums = cascade_aware_loss(
        hidden, weight, micro.labels, micro.teacher, objective=objective, tail="none", impl=impl
    )  # type: ignore[arg-type]
    (got,) = torch.autograd.grad(sums.loss, weight)

    target = torch.zeros(num_rows, vocab)
    ids = torch.from_numpy(batch.column("sampled_ids").astype(np.int64))
    shares = torch.from_numpy(batch.column("sampled_counts").astype(np.float32) / NUM_SAMPLES)
    target.scatter_add_(1, ids, shares)
    logits = hidden @ weight.T
    log_p = logits.log_softmax(1)
    own = -log_p.gather(1, micro.labels[:, None]).squeeze(1)
    keep = torch.ones(num_rows)
    if objective == "cat-dist":
        right = (logits.argmax(1) == micro.labels) | (micro.teacher.argmax == micro.labels)
        keep = right.float()
        assert 0 < keep.mean() < 1
    loss = (keep * (0.5 * own - 0.5 * (target * log_p).sum(1))).sum()
    (wanted,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(sums.loss.detach(), loss.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_row_without_a_teacher_counts_nowhere_in_the_teacher_term() -> None:
    batch = StoreBatch(
        example_indices=np.array([0]), token_ids=np.array([1, 2, 3], np.uint32),
        is_response=np.array([0, 1, 1], np.uint8), token_offsets=np.array([0, 3]),
        row_offsets=np.array([0, 2]), logit_positions=np.array([0, 1]),
        labels=np.array([2, 3], np.uint32), argmax=np.array([2, 0], np.uint32),
        num_kept=np.array([2, 0], np.uint16),
        sampled_ids=np.array([[2, 4, 0], [0, 0, 0]], np.uint32),
        sampled_counts=np.array([[3, 1, 0], [0, 0, 0]], np.uint16),
    )  # fmt: skip
    teacher = collate(batch, pad_id=0).teacher
    assert teacher.topk_ids is not None
    assert teacher.topk_logits is not None
    assert teacher.topk_ids.tolist() == [[2, 4], [0, 0]]  # the cell that no row uses is gone
    assert teacher.topk_logits[0].exp().tolist() == [0.75, 0.25]
    assert teacher.present().tolist() == [True, False]


def test_training_takes_none_by_itself_and_learns(root: Path, tmp_path: Path) -> None:
    config = config_for(
        root, out=str(tmp_path / "run"), store=str(root / "sampled"), w=0.0, steps=12, lr=1e-2
    )
    train(config)
    lines = read_metrics(config.out)
    assert len(lines) == 12
    assert lines[-1]["kl"] < lines[0]["kl"] - 0.1
    assert '"tail": "none"' in (config.out / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("store", "tail", "said"),
    [
        ("sampled", "bucket", "no tail; expected none"),
        ("sampled", "renormalise", "no tail; expected none"),
        ("sampled", "drop", "no tail; expected none"),
        ("store", "none", "a top-k, which has a tail; expected bucket or renormalise or drop"),
    ],
)
def test_a_tail_that_makes_no_sense_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str, tail: str, said: str
) -> None:
    words = [
        "train", "--store", str(root / store), "--student", str(root / "student"),
        "--out", str(tmp_path / "run"), "--steps", "1", "--tail", tail,
    ]  # fmt: skip
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"--tail {tail}" in error
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()

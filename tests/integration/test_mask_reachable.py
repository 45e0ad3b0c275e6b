"""`caskd train --mask reachable`: rows whose label the initial student finds likely enough."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.training import capture, config_for, copy_killed, read_metrics
from transformers import AutoModelForCausalLM

from caskd.store import TeacherStore
from caskd.store.errors import CorruptError, IdentityError, UsageError
from caskd.train import train
from caskd.train.checkpoint import CHECKPOINTS, checkpoint_path
from caskd.train.data import student_mask
from caskd.train.run.plan import plan_run

P_TH = 0.02


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("reachable")
    capture(root, num=24)
    return root


def options(root, out, **changes):
    usual = {"objective": "dist", "mask": "reachable", "p_th": P_TH, "save_every": 3}
    return config_for(root, out=str(out), **{**usual, **changes})


@pytest.fixture(scope="module")
def whole(root):
    train(options(root, root / "whole"))
    return root / "whole"


@torch.inference_mode()
def dense_mask(root):
    """For each example, which of its labels the student gives P_TH, in float64."""
    store = TeacherStore.open(root / "store")
    model = AutoModelForCausalLM.from_pretrained(root / "student").eval().double()
    found = []
    for index in range(len(store)):
        batch = store.read([index])
        ids = torch.from_numpy(batch.token_ids.astype(np.int64))
        p = model(ids[None]).logits[0].softmax(-1)
        places = np.flatnonzero(batch.is_response)
        found.append(np.array([float(p[place - 1, ids[place]]) >= P_TH for place in places]))
    return found


@pytest.mark.slow
def test_the_mask_is_that_of_a_dense_computation_and_counts_in_every_step(root, whole):
    expected = dense_mask(root)
    plan = plan_run(options(root, root / "nowhere"))
    made = {"mask": "reachable", "p_th": P_TH, "stores": plan.store.digest}
    mask = student_mask.read_mask(whole, plan.store, made)
    assert np.array_equal(mask.kept, np.concatenate(expected))
    assert 0.1 < mask.fraction < 0.9
    for step, line in enumerate(read_metrics(whole)):
        examples = plan.order.examples_for_step(step, 8)
        kept = np.concatenate([expected[one] for one in examples])
        assert line["keep_fraction"] == pytest.approx(kept.mean(), abs=1e-12)
        read = mask.keep(step, plan.store.read(examples, ()))
        assert np.array_equal(read, kept)
    assert json.loads((whole / "mask.json").read_text())["keep_fraction"] == mask.fraction


@pytest.mark.slow
def test_p_th_0_is_the_plain_objective_bit_for_bit(root, tmp_path):
    train(options(root, tmp_path / "all", p_th=0.0))
    train(options(root, tmp_path / "plain", mask=None, p_th=None))
    assert read_metrics(tmp_path / "all") == read_metrics(tmp_path / "plain")


@pytest.mark.slow
def test_resuming_reads_the_mask_and_is_bitwise(root, whole, tmp_path, monkeypatch):
    run = copy_killed(whole, tmp_path / "run", 6)
    monkeypatch.setattr("caskd.train.run.start.row_scores", None)
    with pytest.raises(IdentityError, match=r"--p-th 0\.5.*0\.02"):
        train(options(root, run, p_th=0.5, resume=True))
    train(options(root, run, resume=True))
    assert read_metrics(run) == read_metrics(whole)
    shutil.rmtree(checkpoint_path(run, 6))
    bits = bytearray((run / "mask.bits").read_bytes())
    bits[0] ^= 1
    (run / "mask.bits").write_bytes(bits)
    with pytest.raises(CorruptError, match=r"mask\.json.*sha256.*restore"):
        train(options(root, run, resume=True))
    (run / "mask.bits").unlink()
    with pytest.raises(CorruptError, match=r"mask\.json.*restore"):
        train(options(root, run, resume=True))


def test_rows_of_all_ranks_come_together_at_their_places(root):
    """A stand-in for the student: a label below 20 is likely, all others are not."""
    store = plan_run(options(root, root / "nowhere")).store
    labels = store.read(np.arange(len(store.row_counts())), ()).labels

    def score(batch):
        return (batch.labels >= 20) * 9.0 + 1.0

    parts = [
        student_mask.row_scores(
            store, score, fields=("num_kept",), sum_over_ranks=lambda part: part, batch_size=3,
            pad_id=0, rank=rank, world_size=3, device=torch.device("cpu"),
        )
        for rank in range(3)
    ]  # fmt: skip
    assert all((part > 0).any() for part in parts)
    assert np.array_equal(sum(parts), np.where(labels < 20, 1.0, 10.0))
    assert np.array_equal(student_mask.reachable_rows(sum(parts), P_TH), labels < 20)


@pytest.mark.nightly
@pytest.mark.distributed
def test_two_ranks_equal_one(root, whole, tmp_path):
    words = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "caskd.cli", "train", "--store", str(root / "store"), "--out", str(tmp_path / "run"),
        "--student", str(root / "student"), "--steps", "6", "--objective", "dist", "--mask",
        "reachable", "--p-th", str(P_TH), "--global-batch-size", "8", "--micro-batch-size", "2",
        "--dtype", "float32", "--lr", "1e-3", "--zero-stage", "3",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("of the rows: p_S(label) >=") == 1
    for name in ("mask.json", "mask.bits"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    for ours, theirs in zip(read_metrics(tmp_path / "run"), read_metrics(whole), strict=True):
        assert ours["keep_fraction"] == theirs["keep_fraction"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mask": None}, "--p-th .*without --mask reachable"),
        ({"p_th": 1.5}, r"--p-th 1\.5"),
        ({"objective": "random-xent", "keep_fraction_from": "x"}, r"--mask reachable.*random"),
        ({"objective": "alm"}, r"--mask reachable.*spans"),
        ({"objective": "xent", "delegate": "l2d"}, r"--mask reachable.*l2d"),
        ({"objective": "xent", "delegate": "ova"}, r"--mask reachable.*ova"),
    ],
)
def test_options_without_a_meaning_are_refused(tmp_path, changes, named):
    with pytest.raises(UsageError, match=named):
        options(tmp_path, tmp_path / "run", **changes)
    assert not (tmp_path / "run" / CHECKPOINTS).exists()

"""`caskd train --mask learnable`: rows where a reference came closest to the teacher."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.training import capture, config_for, copy_killed, read_metrics
from transformers import AutoModelForCausalLM

from caskd.store import TeacherStore
from caskd.store.errors import CorruptError, IdentityError, UsageError
from caskd.train import train
from caskd.train.checkpoint import checkpoint_path
from caskd.train.data.student_mask import learnable_rows
from caskd.train.mask_options import check_mask_fields
from caskd.train.run.exporter import export
from caskd.train.run.plan import plan_run

SHARE = 0.3
BITS = "mask.bits"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("learnable")
    capture(root, num=16)
    train(config_for(root, "reference", steps=2, lr=3e-3))
    return root


def options(root, out, **changes):
    usual = {"mask": "learnable", "mask_share": SHARE, "reference": root / "reference", "steps": 4}
    return config_for(root, out=str(out), **{**usual, "save_every": 2, **changes})


@pytest.fixture(scope="module")
def whole(root):
    train(options(root, root / "whole"))
    return root / "whole"


@torch.inference_mode()
def divergence(root, folder):
    """KL [R] in nats from the teacher's top-k and tail to a model, in float64, row by row."""
    store = TeacherStore.open(root / "store")
    model = AutoModelForCausalLM.from_pretrained(folder).eval().double()
    found = []
    for index in range(len(store)):
        batch = store.read([index])
        logprobs = model(torch.from_numpy(batch.token_ids.astype(np.int64))[None]).logits[0]
        logprobs = logprobs.log_softmax(-1).numpy()
        for row, place in enumerate(np.flatnonzero(batch.is_response)):
            kept = int(batch.num_kept[row])
            logits = batch.topk_logits[row, :kept].astype(np.float64)
            tail = float(batch.tail_mass[row])
            p = np.exp(logits - float(batch.logsumexp[row]))
            p *= (1 - tail) / p.sum()
            ours = logprobs[place - 1, batch.topk_ids[row, :kept].astype(np.int64)]
            rest = np.log1p(-np.exp(ours).sum())
            found.append(float((p * (np.log(p) - ours)).sum() + tail * (np.log(tail) - rest)))
    return np.array(found)


@pytest.mark.slow
def test_the_mask_is_that_of_a_dense_computation_and_counts_in_every_step(root, whole):
    export(root / "reference", root / "exported")
    gain = divergence(root, root / "student") - divergence(root, root / "exported")
    num = round(SHARE * len(gain))
    expected = np.zeros(len(gain), dtype=bool)
    expected[np.argsort(-gain, kind="stable")[:num]] = True
    described = json.loads((whole / "mask.json").read_text())
    content = np.frombuffer((whole / BITS).read_bytes(), np.uint8)
    kept = np.unpackbits(content, count=described["num_rows"]).astype(bool)
    least, most = np.sort(gain)[-num - 1 : len(gain) - num + 1]
    assert most - least > 1e-5, "the limit lies between two rows that float32 tells apart"
    assert np.array_equal(kept, expected)
    for wrong in (np.roll(gain, 1), -gain):  # a neighbour's score; the other order
        assert not np.array_equal(kept, learnable_rows(wrong.astype(np.float32), SHARE))
    assert described["keep_fraction"] == pytest.approx(num / len(gain))
    assert described["reference"].startswith("reference step 2 sha256:")
    plan = plan_run(options(root, root / "nowhere"))
    starts = np.cumsum(plan.store.row_counts()) - plan.store.row_counts()
    for step, line in enumerate(read_metrics(whole)):
        examples = plan.order.examples_for_step(step, 8)
        rows = [
            np.arange(starts[one], starts[one] + plan.store.row_counts()[one]) for one in examples
        ]
        assert line["keep_fraction"] == pytest.approx(kept[np.concatenate(rows)].mean(), abs=1e-12)


@pytest.mark.slow
def test_resuming_reads_the_mask_and_is_bitwise(root, whole, tmp_path, monkeypatch):
    run = copy_killed(whole, tmp_path / "run", 4)
    monkeypatch.setattr("caskd.train.run.start.row_scores", None)
    with pytest.raises(IdentityError, match=r"--mask-share 0\.5.*0\.3"):
        train(options(root, run, mask_share=0.5, resume=True))
    with pytest.raises(IdentityError, match=r"--reference .*step 2"):
        train(options(root, run, reference=whole, resume=True))
    train(options(root, run, resume=True))
    assert read_metrics(run) == read_metrics(whole)
    shutil.rmtree(checkpoint_path(run, 4))
    (run / BITS).write_bytes(bytes(len((run / BITS).read_bytes())))
    with pytest.raises(CorruptError, match=r"mask\.json.*sha256.*restore"):
        train(options(root, run, resume=True))


def test_the_largest_gains_count_and_rows_without_a_teacher_never_do():
    gain = np.array([0.5, -np.inf, 2.0, 0.5, -1.0, 0.5], np.float32)
    assert learnable_rows(gain, 0.6).tolist() == [True, False, True, True, False, False]
    assert learnable_rows(gain, 1e-6).tolist() == [False, False, True, False, False, False]
    assert learnable_rows(gain, 1.0).sum() == 5
    assert not learnable_rows(np.full(3, -np.inf, np.float32), 0.5).any()


@pytest.mark.slow
def test_a_store_without_the_tail_and_no_finished_run_are_refused(root, whole, tmp_path):
    store = SimpleNamespace(name="S", spec=SimpleNamespace(capture_fields={"tail": "unknown"}))
    with pytest.raises(
        UsageError, match=r"--mask learnable: capture\.tail of --store S is unknown"
    ):
        check_mask_fields("learnable", [store])
    with pytest.raises(UsageError, match=r"nowhere: found no such directory"):
        plan_run(options(root, tmp_path / "run", reference=root / "nowhere"))
    unfinished = copy_killed(whole, tmp_path / "unfinished", 4)
    with pytest.raises(UsageError, match=r"--reference .*not finished \(step 2 of 4\)"):
        plan_run(options(root, tmp_path / "run", reference=unfinished))
    assert not (tmp_path / "run").exists()


@pytest.mark.nightly
@pytest.mark.distributed
def test_two_ranks_equal_one(root, whole, tmp_path):
    words = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "caskd.cli", "train", "--store", str(root / "store"), "--out", str(tmp_path / "run"),
        "--student", str(root / "student"), "--steps", "4", "--objective", "dist", "--mask",
        "learnable", "--mask-share", str(SHARE), "--reference", str(root / "reference"),
        "--global-batch-size", "8", "--micro-batch-size", "2", "--dtype", "float32", "--lr", "1e-3",
        "--zero-stage", "3",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("mask.json", BITS):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"reference": None}, r"--mask learnable: has no --reference"),
        ({"mask_share": 0.0}, r"--mask-share 0:"),
        ({"mask_share": float("nan")}, r"--mask-share nan:"),
        ({"p_th": 0.1}, r"--p-th 0.1.*--mask reachable"),
        ({"mask": None, "mask_share": None}, r"--reference .*--mask learnable"),
        ({"mask": "reachable", "reference": None}, r"--mask-share .*--mask learnable"),
        ({"objective": "alm"}, r"--mask learnable.*spans"),
    ],
)
def test_options_without_a_meaning_are_refused(tmp_path, changes, named):
    with pytest.raises(UsageError, match=named):
        options(tmp_path, tmp_path / "run", **changes)

"""A teacher divided over two ranks as of `torchrun`: the rows of one process, to rounding."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.captures import config_for, words_for
from helpers.tiny import ragged_records, save_tiny
from helpers.warm import start_ranks

from caskd.precompute import precompute
from caskd.store.read import TeacherStore

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

WIDER = 53
"""Columns of the head: three more than tokens, and not divisible by the number of ranks."""
BOUND = 2e-6
"""Largest difference of a value in float32: sums of 32 and 64 products in another order."""


def assert_same_rows(ours: str, theirs: str) -> None:
    one, two = (TeacherStore.open(store) for store in (ours, theirs))
    assert one.spec.identity == two.spec.identity
    rows, others = (store.read(np.arange(len(store))) for store in (one, two))
    for name in ("topk_ids", "argmax", "label_rank", "num_kept"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(others, name), err_msg=name)
    for name in ("topk_logits", "logsumexp", "label_logit", "tail_mass"):
        values, expected = getattr(rows, name), getattr(others, name)
        np.testing.assert_allclose(values, expected, rtol=BOUND, atol=BOUND, err_msg=name)


def test_two_ranks_are_one_worker_with_the_rows_of_one_process(tmp_path):
    teacher = save_tiny(tmp_path / "big", tie=False, vocab_size=WIDER)
    records = ragged_records(60, seed=2)
    (tmp_path / "whole").mkdir()
    whole = config_for(teacher, tmp_path / "whole", records)
    precompute(whole)
    config = config_for(teacher, tmp_path, records, tensor_parallel=2)
    ranks = start_ranks(2, ["-m", "caskd.cli", *words_for(config)])
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.stderr[-4000:] for rank in ranks]
    out = "".join(rank.stdout for rank in ranks)
    assert out.count("plan of ") == out.count("sealed") == 1
    assert_same_rows(config.store, whole.store)
    attempts = [json.loads(f.read_text()) for f in Path(config.store, "environment").iterdir()]
    assert [(a["tensor_parallel"], a["num_workers"]) for a in attempts] == [(2, 1)]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_worker_and_its_shard_is_taken_again(tmp_path, victim):
    """After rank 0 one process goes on: workers with and without ranks share a store."""
    teacher = save_tiny(tmp_path / "big")
    records = ragged_records(400, seed=2)
    config = config_for(teacher, tmp_path, records, shard_rows=64, tensor_parallel=2)
    words = ["-m", "caskd.cli", *words_for(config)]
    ranks = start_ranks(2, words)
    commits = Path(config.store, "commits")
    deadline = time.monotonic() + 120
    while len(list(commits.glob("0*.json"))) < 3:
        assert time.monotonic() < deadline, ranks[0].stderr
        time.sleep(0.01)
    ranks[victim].kill()
    codes = [rank.wait(120) for rank in ranks]
    assert codes == ([-signal.SIGKILL, 1] if victim == 0 else [1, -signal.SIGKILL])
    survivor = ranks[1 - victim].stdout + ranks[1 - victim].stderr
    lines = [line for line in survivor.splitlines() if line.startswith("caskd: ")]
    assert len(lines) == 1, survivor
    for fact in ("--tensor-parallel 2", f"rank {1 - victim}", "run the same command again"):
        assert fact in lines[0]
    assert not any(text in survivor for text in ("Traceback", "continuing with the others"))
    done = len(list(commits.glob("0*.json")))
    assert done < TeacherStore.open(config.store, allow_unsealed=True).spec.num_shards

    if victim:
        assert [rank.wait(120) for rank in start_ranks(2, words)] == [0, 0]
    else:
        precompute(replace(config, tensor_parallel=1))
    (tmp_path / "whole").mkdir()
    whole = config_for(teacher, tmp_path / "whole", records, shard_rows=64)
    precompute(whole)
    assert_same_rows(config.store, whole.store)

"""A capture under `torchrun`: rank 0 plans, each process is a worker, no messages are sent."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.captures import config_for, sealed_files, words_for
from helpers.tiny import ragged_records, save_tiny

from caskd.precompute import precompute

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

RECORDS = ragged_records(60, seed=2)
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_two_processes_plan_once_and_make_the_same_bytes(tmp_path):
    teacher = save_tiny(tmp_path / "big")
    (tmp_path / "whole").mkdir()
    whole = config_for(teacher, tmp_path / "whole", RECORDS, deterministic=True)
    precompute(whole)
    config = config_for(teacher, tmp_path, RECORDS, deterministic=True, executor="torchrun")
    done = subprocess.run(
        [*LAUNCHER, "-m", "caskd.cli", *words_for(config)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("plan of ") == done.stdout.count("sealed") == 1
    assert sealed_files(config.store) == sealed_files(whole.store)
    attempts = [json.loads(f.read_text()) for f in Path(config.store, "environment").iterdir()]
    assert {(a["executor"], a["num_workers"]) for a in attempts} == {("torchrun", 2)}
    num_shards = sum(a["num_shards"] for a in attempts)
    assert num_shards >= len(list(Path(config.store, "commits").glob("0*.json")))


def test_sigterm_to_the_launcher_ends_all_and_leaves_a_store_to_go_on_with(tmp_path):
    teacher = save_tiny(tmp_path / "big")
    config = config_for(
        teacher, tmp_path, ragged_records(2000, seed=2), shard_rows=32, executor="torchrun"
    )
    launcher = subprocess.Popen(
        [*LAUNCHER, "-m", "caskd.cli", *words_for(config)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    commits = Path(config.store, "commits")
    while len(list(commits.glob("0*.json"))) < 3:
        assert launcher.poll() is None, launcher.stderr.read()
    launcher.send_signal(signal.SIGTERM)
    said = launcher.communicate(timeout=120)[1]
    assert launcher.returncode != 0
    assert said.count("shards committed; run the same command again to go on") == 2
    assert not Path(config.store, "seal.json").exists()

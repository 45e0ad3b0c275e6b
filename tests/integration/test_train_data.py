"""Runs that mix stores, split steps by tokens, or read a damaged store."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tiny import ragged_records, save_tiny, write_jsonl
from helpers.training import TOP_K, capture, config_for, read_metrics
from transformers import AutoModelForCausalLM

from caskd.cli.main import main
from caskd.precompute import PrecomputeConfig, precompute
from caskd.store.errors import CorruptError, IdentityError, UsageError
from caskd.train import train
from caskd.train.checkpoint import checkpoint_path
from caskd.train.data import Prefetcher
from caskd.train.engine import Ranks
from caskd.train.run.loop import batch_reader
from caskd.train.run.plan import plan_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores of one vocabulary, of two teachers and unequal k."""
    directory = tmp_path_factory.mktemp("data")
    capture(directory)
    save_tiny(directory / "teacher2", seed=7)
    write_jsonl(directory / "more.jsonl", ragged_records(24, seed=9))
    precompute(
        PrecomputeConfig(
            teacher=str(directory / "teacher2"), data=(str(directory / "more.jsonl"),),
            store=str(directory / "store2"), top_k=TOP_K // 2, shard_rows=64, dtype="float32",
            device="cpu",
        )
    )  # fmt: skip
    return directory


def both(root: Path, first: float = 3, second: float = 1) -> tuple[str, ...]:
    return f"{root / 'store'}={first}", f"{root / 'store2'}={second}"


def test_two_stores_by_weight_and_resumed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(
        root, out=str(tmp_path / "run"), store=both(root), steps=4, save_every=2, token_budget=80
    )
    train(config)
    printed = capsys.readouterr().out
    assert "75.0% of the examples = 0.60 epochs (store)" in printed
    assert "25.0% of the examples = 0.33 epochs (store2)" in printed
    assert "packing      on" in printed
    whole = read_metrics(config.out)
    counts = [line["examples_per_store"] for line in whole]
    assert all(sum(pair) == 8 and abs(pair[0] - 6) <= 2 for pair in counts)
    assert abs(sum(pair[0] for pair in counts) - 24) <= 2

    shutil.rmtree(checkpoint_path(config.out, 4))  # as if killed after step 2
    again = {**config.to_json(), "out": config.out, "resume": True, "store": both(root, 1.5, 0.5)}
    train(type(config)(**again))
    assert read_metrics(config.out) == whole
    for names in (both(root, 1, 1), both(root)[:1], both(root)[::-1]):
        with pytest.raises(IdentityError, match="the same stores with the same weights"):
            train(type(config)(**{**again, "store": names}))
    state = json.loads((checkpoint_path(config.out, 4) / "state.json").read_text())
    assert state["teacher"] == "teacher, teacher2"


def test_stores_on_the_command_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = both(root)
    words = ["train", "--student", str(root / "student"), "--out", str(root / "none"),
             "--steps", "1", "--global-batch-size", "8", "--dry-run"]  # fmt: skip
    assert main([*words, "--store", first, "--store", second]) == 0
    repeated = capsys.readouterr().out
    assert main([*words, "--store", first, second, "--micro-batch-size", "8"]) == 0
    assert capsys.readouterr().out == repeated
    assert "64 of 64 have response tokens" in repeated
    assert main([*words, "--store", f"{root / 'store'}=0"]) == 2
    assert "expected a number above 0" in capsys.readouterr().err
    assert main([*words, "--store", first, "--token-budget", "20"]) == 2
    error = capsys.readouterr().err
    assert "--token-budget 20: the longest example has 43 tokens" in error
    assert "pass --token-budget 43" in error


def test_a_chunk_that_turns_corrupt_stops_the_run_with_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(root / "store", store)
    config = config_for(root, out=str(tmp_path / "run"), store=str(store), steps=6)
    plan = plan_run(config)
    reader = batch_reader(plan, Ranks(0, 1, torch.device("cpu")))
    with Prefetcher(reader.steps(0, 400), "store", ahead=1) as batches:
        steps = iter(batches)
        next(steps)
        damage(store)
        with pytest.raises(CorruptError, match="argmax"):
            for _ in steps:
                pass
    words = ["train", "--store", str(store), "--steps", "6", "--student", str(root / "student"),
             "--out", str(tmp_path / "run"), "--global-batch-size", "8"]  # fmt: skip
    assert main(words) == 1
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("caskd:")]
    assert len(lines) == 1
    assert "argmax" in lines[0]


def damage(store: Path) -> None:
    """Flip a bit of every chunk of the teacher's argmax, files keeping their size."""
    for path in (store / "data.zarr" / "argmax" / "c").rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            data[2] ^= 4
            path.write_bytes(data)


def test_a_budget_and_ranks_that_do_not_go_together(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="pass --global-batch-size 9"):
        plan_run(config_for(root, out="none", token_budget=100))


def test_the_lora_example_runs(root: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "examples" / "cascade_trainer_lora.py"),
             str(root / "student"), str(tmp_path / "out"), *both(root),
             "--steps", "10"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "keep_fraction" in done.stdout
    assert "an ordinary transformers model" in done.stdout
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before = AutoModelForCausalLM.from_pretrained(root / "student").state_dict()
    assert any(not value.equal(before[name]) for name, value in model.state_dict().items())

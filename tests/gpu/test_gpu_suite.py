"""The suite of benchmarks for a GPU runs at toy sizes: a GPU's time is not for finding typos."""

import csv
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from caskd.models import open_tokenizer

SUITE = Path(__file__).parents[2] / "benchmarks" / "gpu_suite.py"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run inside of itself")
def test_it_runs_to_its_end_on_a_cpu(tmp_path: Path) -> None:
    steps = ["loss", "capture", "step", "blocks"]
    words = ["--toy", "--rounds", "1", "--steps", *steps, "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(SUITE), *words], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for table in ("loss_cpu", "capture", "step", "blocks"):
        with (tmp_path / f"{table}.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) > 5, table
    with (tmp_path / "step.csv").open(newline="") as file:
        figures = {
            (line["variant"], line["figure"]): line["value"] for line in csv.DictReader(file)
        }
    assert float(figures["caskd cat-dist, compiled body", "graphs"]) > 0
    log = (tmp_path / "suite.log").read_text()
    assert "caskd capture, eager" in log, "the arm with another attention"
    assert (tmp_path / "cache" / "kernel-blocks.json").exists()
    with (tmp_path / "aims.csv").open(newline="") as file:
        verdicts = {line["figure"]: line["verdict"] for line in csv.DictReader(file)}
    assert verdicts["step, waiting for data, share of the time"] in ("met", "missed")
    assert verdicts["loss, all rows, 16384x4096x128256, over dense cross-entropy"] == "not measured"


def test_an_aim_has_two_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SUITE.parent))
    aim = importlib.import_module("gpu_suite").Aim
    verdicts = [aim("forecast", value, 1.10, 0.90).verdict for value in (None, 0.8, 1.0, 1.2)]
    assert verdicts == ["not measured", "missed", "met", "missed"]


def test_one_device_leaves_out_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(SUITE.parent))
    bench = importlib.import_module("bench_devices")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(bench, "accept_shapes", lambda: None)
    words = [f"--{name}=none" for name in ("store", "student", "teacher")]
    monkeypatch.setattr(sys, "argv", ["bench_devices.py", *words, "--out", str(tmp_path)])
    assert bench.main() == 0
    assert "left out: 1 CUDA device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_rank_that_was_lost_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SUITE.parent))
    difference = importlib.import_module("bench_devices").difference
    one = [{"loss": 2.0, "grad_norm": 3.0, "seconds": 1.0}] * 2
    assert difference(one, one) is None
    for name, factor in (("loss", 1.01), ("grad_norm", 0.99), ("loss", float("nan"))):
        other = [one[0], {**one[1], name: one[1][name] * factor}]
        assert name in difference(other, one)


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 4096])
def test_the_random_teacher_has_the_labels_in_its_top_k(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """At the toys' width, and at that of an 8B model; layers and vocabulary are smaller."""
    monkeypatch.syspath_prepend(str(SUITE.parent))
    models = importlib.import_module("gpu_models")
    models.write_shape(tmp_path / "teacher", models.Shape(width, 64, 1, 4, 4, vocab=4_096))
    model = models.random_teacher(tmp_path / "teacher", torch.device("cpu"))
    tokenizer = open_tokenizer(tmp_path / "teacher", "--teacher")
    text = (SUITE.parents[1] / "README.md").read_text()[2_000:2_400]
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    logits, labels = model(input_ids=ids[:, :-1]).logits[0].float(), ids[0, 1:, None]
    ranks = (logits > logits.gather(1, labels)).sum(1)
    assert (ranks < 64).float().mean() > 0.9


def test_it_refuses_to_start_where_caskd_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SUITE.parent))
    suite = importlib.import_module("gpu_suite")
    monkeypatch.setattr(suite, "_version", lambda package: None)
    monkeypatch.setattr(sys, "argv", [str(SUITE), "--toy", "--out", str(tmp_path / "out")])
    assert suite.main() == 2
    assert "pip install -e" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""Sums become averages, and the file has each step once."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from caskd.train.data.student_tokens import LeftOut
from caskd.train.loss.eval_stats import EvalMetrics
from caskd.train.metrics import MetricsFile, confidence_metrics, delegation_metrics, step_metrics

ROOT = Path(__file__).resolve().parents[3]

SUMS = {
    "loss": 6.0,
    "num_rows": 12.0,
    "num_kept": 3.0,
    "student_correct": 2.0,
    "num_measured": 8.0,
    "teacher_correct": 9.0,
    "tail_mass": 0.5,
    "teacher_kl": 1.0,
    "num_distilled": 4.0,
    "acceptance_low": 1.5,
    "acceptance_high": 2.5,
    "unsure_kl": 9.0,
    "num_unsure": 6.0,
}


def test_each_average_has_its_own_denominator() -> None:
    assert step_metrics(SUMS) == {
        "loss": 0.5,
        "keep_fraction": 0.25,
        "student_accuracy": 0.25,
        "teacher_accuracy": 0.75,
        "tail_mass": 0.125,
        "kl": 0.25,
        "acceptance_low": 0.375,
        "acceptance_high": 0.625,
    }
    assert confidence_metrics(SUMS) == {"unsure_share": 0.75, "unsure_kl": 1.5}
    without = step_metrics(SUMS, knows_topk=False)
    assert without["acceptance_low"] is without["acceptance_high"] is None


def test_what_was_not_read_is_none() -> None:
    metrics = step_metrics({**SUMS, "num_distilled": 0.0, "num_measured": 0.0})
    assert metrics["tail_mass"] is metrics["kl"] is metrics["student_accuracy"] is None


def test_not_a_number_is_none() -> None:
    assert step_metrics({**SUMS, "loss": float("nan")})["loss"] is None


def test_a_resumed_run_drops_the_lines_it_takes_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as first:
        for step in range(1, 6):
            first.write({"step": step, "run": 1})
    path.write_text(path.read_text() + '{"step": 6, "lo')  # cut short by a crash
    with MetricsFile(path, 3) as second:
        second.write({"step": 4, "run": 2})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["run"]) for line in lines] == [(1, 1), (2, 1), (3, 1), (4, 2)]


def test_a_line_is_valid_json_or_it_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as file, pytest.raises(ValueError, match="JSON"):
        file.write({"step": 1, "loss": float("nan")})
    assert path.read_text() == ""


def test_the_page_of_metrics_has_every_key() -> None:
    delegation = delegation_metrics(SUMS, 1.0, 1.0, 1.0, "unacceptable")
    keys = {*step_metrics(SUMS), *confidence_metrics(SUMS), *delegation}
    keys |= {field.name for field in fields(EvalMetrics)} | {reason.value for reason in LeftOut}
    # What the loop, the log and the readers of spans add.
    for module in ("run/loop", "run/run_log", "run/validation", "data/span_batches"):
        source = (ROOT / "train" / f"{module}.py").read_text()
        keys.update(re.findall(r'metrics\["(\w+)"\]', source))
        keys.update(re.findall(r'"(\w*(?:seconds|per_second|mapped\w+))":', source))
    assert {"stopped", "lr", "nats_per_byte", "data_seconds", "mapped_mass"} <= keys
    page = (ROOT / "docs/metrics.md").read_text()
    assert not [key for key in keys | {"step", "tasks"} if f"`{key}`" not in page]

"""Metrics of a training step: averages of sums over ranks, and the lines of metrics.jsonl."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caskd.store.io import Progress, files, parse_json, read_regular

METRICS_FILE = "metrics.jsonl"
MAX_LOG_BYTES = 4 << 30


def step_metrics(
    sums: Mapping[str, float], *, knows_argmax: bool = True, knows_topk: bool = True
) -> dict[str, float | None]:
    """Averages of a step from its sums over all ranks and micro-steps.

    `loss` is per response token, whatever --normalise divides the gradient by. `tail_mass` and `kl`
    (nats, from the teacher) are per row with a teacher distribution, and None if no distribution
    was read. `student_accuracy` is over the rows that went through the student's head: all rows,
    except under masks that are known without the student. `teacher_accuracy` is None where the
    stores do not know the teacher's argmax. `acceptance_low` and `acceptance_high` bound the
    expected acceptance of the student as the teacher's draft model, per row with a teacher
    distribution; they are None where that is no top-k (`knows_topk`). A value that is not finite
    becomes None.
    """
    distilled = sums["num_distilled"]
    return {
        "loss": _ratio(sums["loss"], sums["num_rows"]),
        "keep_fraction": _ratio(sums["num_kept"], sums["num_rows"]),
        "student_accuracy": _ratio(sums["student_correct"], sums["num_measured"]),
        "teacher_accuracy": _ratio(sums["teacher_correct"], knows_argmax * sums["num_rows"]),
        "tail_mass": _ratio(sums["tail_mass"], distilled),
        "kl": _ratio(sums["teacher_kl"], distilled),
        "acceptance_low": _ratio(sums["acceptance_low"], knows_topk * distilled),
        "acceptance_high": _ratio(sums["acceptance_high"], knows_topk * distilled),
    }


def confidence_metrics(sums: Mapping[str, float]) -> dict[str, float | None]:
    """Averages of a step with a confidence term.

    `unsure_share` is the share of the measured rows that are trained to be unsure, `unsure_kl` the
    divergence of the student from the uniform distribution on them, in nats per such row.
    """
    return {
        "unsure_share": _ratio(sums["num_unsure"], sums["num_measured"]),
        "unsure_kl": _ratio(sums["unsure_kl"], sums["num_unsure"]),
    }


def delegation_metrics(
    sums: Mapping[str, float],
    num_delegated: float,
    delegated_loss: float,
    num_outside: float,
    rule: str,
) -> dict[str, float | None]:
    """Averages of a step that trains a CALL column.

    `delegated_share` is of all rows; for l2d and ova, of rows in which the student would defer.
    `delegated_loss` and `other_loss` are per delegated row and per other row. For the rules
    `unacceptable` and `fact-unacceptable`, `outside_topk` is the share of rows whose student argmax
    is outside the teacher's top-k, where its probability counts as 0.

    Args:
        sums: of the step.
        num_delegated: delegated rows.
        delegated_loss: sum of their losses.
        num_outside: rows whose student argmax is outside the top-k.
        rule: of the choice.
    """
    num_rows = sums["num_rows"]
    values = {
        "delegated_share": _ratio(num_delegated, num_rows),
        "delegated_loss": _ratio(delegated_loss, num_delegated),
        "other_loss": _ratio(sums["loss"] - delegated_loss, num_rows - num_delegated),
    }
    if rule.endswith("unacceptable"):
        values["outside_topk"] = _ratio(num_outside, num_rows)
    return values


def _ratio(value: float, count: float) -> float | None:
    return finite_or_none(value / count) if count else None


def finite_or_none(value: float) -> float | None:
    """The value, or None where JSON has no number for it (nan, infinity)."""
    return value if math.isfinite(value) else None


class MetricsFile:
    """metrics.jsonl: one JSON object per optimizer step, each written as one whole line.

    Args:
        path: of the file.
        done_steps: steps that the run has finished. It drops the lines of later steps, which a
            resumed run repeats, and a last line that a crash left incomplete. A resumed run is not
            stopped any more: it drops `stopped` from the line before.
    """

    def __init__(self, path: Path, done_steps: int) -> None:
        kept = map(_without_stop, lines_up_to(path, done_steps))
        files.replace_file(path, "".join(f"{line}\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(values, allow_nan=False) + "\n")
        self._file.flush()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        """Sync the lines to disk."""
        os.fsync(self._file.fileno())
        self._file.close()


def _without_stop(line: str) -> str:
    values = parse_json(line)
    return json.dumps(values) if values.pop("stopped", None) else line


def lines_up_to(path: Path, done_steps: int) -> list[str]:
    """The complete lines of steps up to `done_steps`; an empty list if there is no file."""
    lines = read_regular(path, MAX_LOG_BYTES).splitlines() if path.exists() else []
    return [line.decode() for line in lines if _step_of(line) <= done_steps]


def _step_of(line: bytes) -> float:
    try:
        return float(parse_json(line, constants=True)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def show_step(bar: Progress, metrics: Mapping[str, Any]) -> None:
    """Advance the progress bar by one step, and show the main metrics on it."""
    shown = {
        "loss": metrics["loss"],
        "keep": metrics["keep_fraction"],
        "acc": metrics["student_accuracy"],
    }
    parts = [f"{name} {value:.3f}" for name, value in shown.items() if value is not None]
    bar.advance(1, f"{' '.join(parts)} lr {metrics['lr']:.1e}")

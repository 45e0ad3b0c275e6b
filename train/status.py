"""`caskd status`: how far a training run is, read from its files by any machine; needs no torch."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from caskd.store.errors import UsageError
from caskd.store.io import StrangeFileError, parse_json, progress, read_json_object, tell
from caskd.train.metrics import METRICS_FILE, lines_up_to, show_step

RUN_CONFIG = "config.json"
SECONDS_BETWEEN_REFRESHES = 2.0
_SHOWN = ("step", "loss", "keep_fraction", "student_accuracy", "lr", "tokens_per_second")


@dataclass(frozen=True)
class StatusConfig:
    """Show how far a training run is, from its files."""

    run: tyro.conf.Positional[Path]
    """Directory of the run: --out of caskd train."""
    json: bool = False
    """Print one JSON object instead of text."""
    watch: bool = False
    """Show the progress until the last step; works on any machine that reads the directory."""


def status_command(config: StatusConfig) -> None:
    """Run `caskd status`."""
    if config.watch:
        watch(config.run)
    facts = run_status(config.run)
    tell(json.dumps(facts, indent=1) if config.json else status_text(config.run, facts))


def run_status(run: Path) -> dict[str, Any]:
    """The last step of a run, its number of steps, and whether a signal stopped it.

    Raises:
        UsageError: the directory holds no run.
    """
    try:
        steps = int(read_json_object(run / RUN_CONFIG, constants=True)["config"]["steps"])
        lines = lines_up_to(run / METRICS_FILE, steps)
        last: dict[str, Any] = parse_json(lines[-1]) if lines else {"step": 0}
        shown = {name: last.get(name) for name in _SHOWN}
        if type(shown["step"]) is not int or not all(map(_is_number, shown.values())):
            raise TypeError("a metric is no number")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, StrangeFileError):
        raise UsageError(
            f"{run}: is no training run; expected the --out of caskd train, with {RUN_CONFIG}; "
            "pass that directory"
        ) from None
    return {
        "steps": steps,
        **shown,
        "stopped": bool(last.get("stopped", False)),
    }


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def status_text(run: Path, facts: dict[str, Any]) -> str:
    """One line: the step, the main metrics, and what to run next."""
    parts = [f"step {facts['step']:,} of {facts['steps']:,}"]
    if facts["loss"] is not None:
        parts.append(f"loss {facts['loss']:.3f}")
    if facts["keep_fraction"] is not None:
        parts.append(f"keep {facts['keep_fraction']:.3f}")
    if facts["tokens_per_second"] is not None:
        parts.append(f"{facts['tokens_per_second']:,.0f} response tokens/s")
    if facts["stopped"]:
        parts.append("stopped by a signal; run caskd train with --resume")
    return f"{run}: {', '.join(parts)}"


def watch(run: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show the progress of a run until its last step, or until a signal stops it."""
    facts = run_status(run)
    with progress("train", facts["steps"], "steps", done=facts["step"]) as bar:
        while facts["step"] < facts["steps"] and not facts["stopped"]:
            sleep(SECONDS_BETWEEN_REFRESHES)
            before, facts = facts["step"], run_status(run)
            for _ in range(facts["step"] - before):
                show_step(bar, facts)

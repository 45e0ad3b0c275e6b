"""Log of a run: metrics.jsonl, eval.jsonl, trackers, progress bar and config.json."""

import json
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from caskd.store.io import Progress, files, progress, tell
from caskd.train.checkpoint import versions
from caskd.train.engine import Ranks
from caskd.train.metrics import METRICS_FILE, MetricsFile, show_step
from caskd.train.run.out_folder import RUN_CONFIG
from caskd.train.run.plan import RunPlan
from caskd.train.run.trackers import Track, trackers
from caskd.train.run.validation import EVAL_FILE, EvalFile


class RunLog:
    """Writes the metrics of a run. Only rank 0 writes; all ranks know all evaluations.

    Use it in a `with`.

    Attributes:
        bar: the progress bar.
        evaluations: eval.jsonl.
    """

    bar: Progress

    def __init__(self, plan: RunPlan, ranks: Ranks) -> None:
        self._plan, self._first = plan, ranks.rank == 0
        self._metrics: MetricsFile | None = None
        self._tracks: list[Track] = []
        self._open = ExitStack()
        out, done = plan.config.out, plan.first_step
        self.evaluations = EvalFile(out / EVAL_FILE, done, write=self._first)

    def __enter__(self) -> "RunLog":
        config, done = self._plan.config, self._plan.first_step
        bar_of = progress("train", config.steps, "steps", done=done, quiet=not self._first)
        if self._first:
            file = MetricsFile(config.out / METRICS_FILE, done)
            self._metrics = self._open.enter_context(file)
            self._tracks = self._open.enter_context(trackers(config))
        self.bar = self._open.enter_context(bar_of)
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def start_clock(self) -> None:
        """Start the clock of the next step."""
        self._started = time.perf_counter()

    def step(self, metrics: dict[str, Any], *, num_rows: int, data_seconds: float) -> None:
        """Write the metrics of a finished step, and advance the progress bar."""
        seconds = time.perf_counter() - self._started
        clock = {"data_seconds": data_seconds, "seconds": seconds}
        line = {**metrics, **clock, "tokens_per_second": num_rows / seconds}
        if self._metrics is not None:
            self._metrics.write(line)
            self._track("train", line)
            show_step(self.bar, line)

    def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
        """Write and print the metrics of an evaluation."""
        self.evaluations.add(step, metrics)
        self._track("eval", {"step": step, **metrics})
        if self._first:
            shown = (f"{k} {v:.4g}" for k, v in metrics.items() if isinstance(v, float))
            tell(f"step {step:,}: {' '.join(shown)}", flush=True)

    def _track(self, kind: str, values: Mapping[str, Any]) -> None:
        for track in self._tracks:
            track(int(values["step"]), {kind: values})


def describe_run(plan: RunPlan, ranks: Ranks) -> None:
    """Write config.json: the resolved options, stores, device, git state and versions."""
    config = plan.config
    config.out.mkdir(parents=True, exist_ok=True)
    cuda = ranks.device.type == "cuda"
    content = {
        "config": plan.options,
        "deepspeed": plan.settings,
        "stores": plan.store_records,
        "eval_store": plan.eval_store and {"seal": plan.eval_store.digest},
        "ranks": ranks.world_size,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "git": git_state(),
        "versions": versions(),
    }
    files.replace_file(config.out / RUN_CONFIG, json.dumps(content, indent=1).encode())


def git_state() -> dict[str, Any] | None:
    """Commit of the working directory, and whether tracked files differ from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changes)}


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()

"""`caskd demo`: every command once, on a corpus that it makes and a teacher that comes with it.

The demo owns nothing but its corpus, its models and the order of the story. Each step is a command
line that a user could type; it is printed, and run through the same table as `caskd` itself.
Training gets a process of its own, as DeepSpeed keeps one run per process.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caskd.cli.demo.demo_models import TEACHER, write_student
from caskd.cli.demo.demo_tasks import TASKS, write_corpus
from caskd.cli.main import run_command
from caskd.store.errors import UsageError

NUM_TRAIN = 16_000
NUM_TEST = 1_200
STEPS = 1_500
SWAPPED_SHARE = 0.15  # train responses that are another prompt's: what the mask is there for
# Matrices this small make threads wait for each other; and with one thread the figures do not
# depend on the number of cores.
NUM_THREADS = 1
OBJECTIVES = ("xent", "cat-xent")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole story on embedded tasks: CPU, minutes, nothing to download."""

    out: Path = Path("caskd-demo")
    """Folder for everything the demo makes; new or empty."""
    seed: int = 0
    """Of the corpus, the student's first weights and the order of examples."""


def demo(config: DemoConfig) -> None:
    """Run `caskd demo`."""
    story(config.out, config.seed, num_train=NUM_TRAIN, num_test=NUM_TEST, steps=STEPS)


def story(out: Path, seed: int, *, num_train: int, num_test: int, steps: int) -> None:
    """Capture the demo's teacher, train two students from the store, and measure both cascades.

    Args:
        out: folder to fill; it must not exist or be empty.
        seed: of the corpus, the student's first weights and the order of examples.
        num_train: examples that the teacher is captured on.
        num_test: examples that all three models answer.
        steps: optimizer steps of each student.

    Raises:
        UsageError: `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is there already; choose another --out or remove it first")
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading weights: these models are there at once
    torch.set_num_threads(NUM_THREADS)
    stages = Stages()
    print(f"{len(TASKS)} procedural tasks: {', '.join(TASKS)}")
    print(
        f"{num_train:,} train examples, {SWAPPED_SHARE:.0%} of them with another prompt's answer:"
    )
    print("labels are not always right, and the teacher, trained on right ones, can tell")
    _prepare(out, seed, num_train, num_test)
    stages.done("corpus, teacher and student")
    _capture(stages, out)
    for objective in OBJECTIVES:
        _train(stages, out, seed, steps, objective)
    for name in (*OBJECTIVES, "teacher"):
        _predict(stages, out, name)
    smalls = [
        word for name in reversed(OBJECTIVES) for word in ("--small", _predictions(out, name))
    ]
    report = str(out / "report")
    stages.run("eval", *smalls, "--large", _predictions(out, "teacher"), "--out", report)
    print(closing(out, stages.seconds))


class Stages:
    """Runs command lines, shows each as it would be typed, and keeps the time each one took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    def done(self, stage: str) -> None:
        """Book the time since the last stage ended."""
        now = time.monotonic()
        self.seconds[stage] = now - self._started
        self._started = now

    def run(self, command: str, *args: str, stage: str = "", own_process: bool = False) -> None:
        """Print a command line and run it, here or in a process of its own."""
        print(f"\n$ caskd {command} {shlex.join(args)}", flush=True)
        code = _in_own_process(command, args) if own_process else run_command(command, args)
        if code:
            raise SystemExit(code)
        self.done(stage or command)


def _in_own_process(command: str, args: Sequence[str]) -> int:
    words = [sys.executable, "-m", "caskd.cli", *command.split(), *args]
    env = {**os.environ, "OMP_NUM_THREADS": str(NUM_THREADS)}
    return subprocess.run(words, env=env, check=False).returncode


def _prepare(out: Path, seed: int, num_train: int, num_test: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_corpus(out / "train.jsonl", seed, "train", num_train, SWAPPED_SHARE)
    write_corpus(out / "test.jsonl", seed, "test", num_test)
    shutil.copytree(TEACHER, out / "models" / "teacher")
    write_student(out / "models" / "student", seed, hidden_size=64, num_layers=2)


def _capture(stages: Stages, out: Path) -> None:
    store = str(out / "store")
    stages.run(
        "precompute", "--teacher", str(out / "models" / "teacher"),
        "--data", str(out / "train.jsonl"), "--store", store,
        "--top-k", "16", "--shard-rows", "8192", "--dtype", "float32",
    )  # fmt: skip
    stages.run("store info", store)
    stages.run("store verify", store)
    stages.run("store show", store, "--example", "3")


def _train(stages: Stages, out: Path, seed: int, steps: int, objective: str) -> None:
    run = str(out / "runs" / objective)
    stages.run(
        "train", "--store", str(out / "store"), "--student", str(out / "models" / "student"),
        "--out", run, "--objective", objective, "--steps", str(steps), "--global-batch-size", "64",
        "--micro-batch-size", "64", "--lr", "6e-3", "--warmup-steps", str(steps // 6),
        "--seed", str(seed), stage=f"train {objective}", own_process=True,
    )  # fmt: skip
    stages.run("export", run, str(out / "models" / objective), stage=f"export {objective}")


def _predict(stages: Stages, out: Path, name: str) -> None:
    stages.run(
        "predict", "--model", str(out / "models" / name), "--data", str(out / "test.jsonl"),
        "--out", _predictions(out, name), "--max-new-tokens", "24", "--batch-size", "128",
        "--dtype", "float32", stage=f"predict {name}",
    )  # fmt: skip


def _predictions(out: Path, name: str) -> str:
    return str(out / "predictions" / f"{name}.parquet")


def closing(out: Path, seconds: dict[str, float]) -> str:
    """What the demo says last: times, places, and the commands for one's own model and data."""
    width = max(map(len, seconds))
    times = [f"  {stage.ljust(width)}  {spent:6.1f} s" for stage, spent in seconds.items()]
    return "\n".join(
        [
            "",
            *times,
            f"  {'all'.ljust(width)}  {sum(seconds.values()):6.1f} s",
            "",
            f"the report        {out / 'report' / 'index.html'}",
            f"the curve         {out / 'report' / 'deferral_curve.png'}",
            f"the store         {out / 'store'}",
            f"the models        {out / 'models'}",
            f"training metrics  {out / 'runs'}",
            "",
            "The same with your own models and data:",
            "",
            "  caskd precompute --teacher BIG_MODEL --data train.jsonl --store my-store --top-k 64",
            "  caskd train --store my-store --student SMALL_MODEL --out my-run --steps 1000",
            "  caskd export my-run my-model",
            "",
            "then caskd predict with each model and caskd eval, as above.",
        ]
    )

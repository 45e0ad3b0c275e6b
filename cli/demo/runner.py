"""`caskd demo`: runs every command once, on a generated corpus with a bundled teacher.

Each step is an ordinary `caskd` command line. The demo prints it and runs it through the table of
`caskd.cli.main`. Training runs in its own process, because DeepSpeed supports one run per process.

`demo.json` in the output folder holds the settings, so that the same command resumes after a kill:
each step resumes by itself, and a student that was exported is not trained again.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caskd.cli.demo.demo_models import TEACHER, write_student
from caskd.cli.demo.demo_tasks import TASKS, write_corpus
from caskd.cli.main import run_command
from caskd.store.errors import UsageError
from caskd.store.io import CLAIM, check_room, claimed, files, read_json_object, tell

NUM_TRAIN = 16_000
NUM_TEST = 1_200
STEPS = 1_500
SWAPPED_SHARE = 0.15  # train responses taken from another prompt: the label noise of the demo
# With such small matrices threads wait for each other; one thread also makes the results
# independent of the number of cores.
NUM_THREADS = 1
_NUM_BYTES = 50 << 20
"""The demo writes about that much."""
OBJECTIVES = ("xent", "cat-xent")
SETTINGS = "demo.json"
WORDS = {
    "train": (
        "keep: the share of tokens that count in the loss. xent keeps all; cat-xent only those "
        "whose label the student or the teacher would choose."
    ),
    "predict": (
        "log-probabilities: a model gives one to each token of its answer. Their average is its "
        "confidence."
    ),
    "eval": (
        "deferral: a question on which the small model is not confident goes to the large one. "
        "AUDC: the area under quality against the share of deferred questions; 1 is best. random "
        "and oracle: the same where chance, or the right answers, choose them. APGR: how much of "
        "the gap between both models the cascade closes, on average."
    ),
}
"""What a command's words mean, printed before it runs for the first time."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Run every step on embedded tasks: CPU, minutes, no download."""

    out: Path = Path("caskd-demo")
    """Folder for all outputs: new, empty, or of a demo that was stopped, which then goes on."""
    seed: int = 0
    """Seed of the corpus, the students' initial weights and the order of examples."""
    device: str = "auto"
    """Where every model runs: auto (a GPU if there is one), cpu, cuda, or cuda:N."""


def demo(config: DemoConfig) -> None:
    """Run `caskd demo`."""
    run_demo(
        config.out, config.seed, num_train=NUM_TRAIN, num_test=NUM_TEST, steps=STEPS,
        device=config.device,
    )  # fmt: skip


def run_demo(
    out: Path, seed: int, *, num_train: int, num_test: int, steps: int, device: str = "auto"
) -> None:
    """Capture the bundled teacher, train two students from the store and measure both cascades.

    Args:
        out: output folder; it must be empty, not exist, or be that of a demo with equal settings,
            which goes on where it was stopped.
        seed: seed of the corpus, the students' initial weights and the order of examples.
        num_train: number of captured examples.
        num_test: number of examples on which all three models predict.
        steps: optimizer steps of each student.
        device: of every model, as for --device; a demo that goes on may change it.

    Raises:
        UsageError: `out` holds something else, another process holds it, or the device is not
            there.
    """
    from caskd.models import pick_device

    pick_device(device)
    settings = {"seed": seed, "num_train": num_train, "num_test": num_test, "steps": steps}
    _check_out(out, settings)
    with claimed(out, "--out"):
        _check_out(out, settings)  # again: another demo may have begun before this one held it
        stages = Stages(device)
        _run_all(stages, out, seed, num_train=num_train, num_test=num_test, steps=steps)


def _check_out(out: Path, settings: dict[str, int]) -> None:
    """Refuse a folder that is neither empty nor of a demo with the same settings."""
    if not out.exists() or (out.is_dir() and {x.name for x in out.iterdir()} <= {CLAIM}):
        return
    found = _recorded(out)
    if found is None:
        raise UsageError(
            f"--out {out}: not an empty folder; expected a new or empty one, or that of a demo; "
            "pass another --out"
        )
    for name, value in settings.items():
        if found.get(name) != value:
            raise UsageError(
                f"--{name.replace('_', '-')} {value}: the demo in {out} was started with "
                f"{found.get(name)}; expected the same; pass it, or another --out"
            )


def _recorded(out: Path) -> dict[str, int] | None:
    """The settings of the demo in `out`; None if there is none."""
    try:
        return read_json_object(out / SETTINGS)
    except (OSError, ValueError):
        return None


def _run_all(
    stages: "Stages", out: Path, seed: int, *, num_train: int, num_test: int, steps: int
) -> None:
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the demo's models load at once
    torch.set_num_threads(NUM_THREADS)
    tell(f"{len(TASKS)} procedural tasks: {', '.join(TASKS)}")
    tell(f"{num_train:,} train examples, {SWAPPED_SHARE:.0%} of them with the response of another")
    tell("prompt: label noise, which the teacher, trained on clean labels, can detect")
    tell("Stop the demo whenever you like: the same command goes on.")
    settings = {"seed": seed, "num_train": num_train, "num_test": num_test, "steps": steps}
    if not (_recorded(out) or {}).get("prepared"):
        files.replace_file(out / SETTINGS, json.dumps(settings).encode())
        _prepare(out, seed, num_train, num_test)
        files.replace_file(out / SETTINGS, json.dumps({**settings, "prepared": 1}).encode())
    stages.done("corpus, teacher and student")
    _capture(stages, out)
    for objective in OBJECTIVES:
        _train(stages, out, seed, steps, objective)
    for name in (*OBJECTIVES, "teacher"):
        _predict(stages, out, name)
    cat_xent, xent, teacher = (_predictions(out, name) for name in ("cat-xent", "xent", "teacher"))
    report = str(out / "report")
    stages.run("eval", "--small", cat_xent, "--small", xent, "--large", teacher, "--out", report)
    tell(closing(out, stages.seconds, read_json_object(out / "report" / "summary.json")))


class Stages:
    """Runs command lines, prints each one, and records its duration.

    Args:
        device: of the models that they run.
    """

    def __init__(self, device: str = "auto") -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()
        self._explained: set[str] = set()

    @property
    def device_flag(self) -> list[str]:
        """The option of the commands that have one."""
        return [] if self.device == "auto" else ["--device", self.device]

    def done(self, stage: str) -> None:
        """Record the time since the previous stage ended."""
        now = time.monotonic()
        self.seconds[stage] = now - self._started
        self._started = now

    def run(self, command: str, *args: str, stage: str = "", own_process: bool = False) -> None:
        """Print a command line and run it, in this or in its own process."""
        if command in WORDS and command not in self._explained:
            self._explained.add(command)
            tell(f"\n{WORDS[command]}", flush=True)
        tell(f"\n$ caskd {command} {shlex.join(args)}", flush=True)
        if own_process:
            code = _in_own_process(command, args, visible_gpus(self.device))
        else:
            code = run_command(command, args)
        if code:
            raise SystemExit(code)
        self.done(stage or command)


def _in_own_process(command: str, args: Sequence[str], gpus: dict[str, str]) -> int:
    words = [sys.executable, "-m", "caskd.cli", *command.split(), *args]
    env = {**os.environ, **gpus, "OMP_NUM_THREADS": str(NUM_THREADS)}
    return subprocess.run(words, env=env, check=False).returncode


def visible_gpus(device: str) -> dict[str, str]:
    """The variable with which `caskd train`, which has no --device, runs on a device."""
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    if not number:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[int(number)] if visible else number}


def _prepare(out: Path, seed: int, num_train: int, num_test: int) -> None:
    check_room(out, "--out", _NUM_BYTES)
    shutil.rmtree(out / "models", ignore_errors=True)  # of a demo that was killed here
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
        *stages.device_flag,
    )  # fmt: skip
    stages.run("store info", store)
    stages.run("store verify", store)
    stages.run("store show", store, "--example", "3")


def _train(stages: Stages, out: Path, seed: int, steps: int, objective: str) -> None:
    run, model = out / "runs" / objective, out / "models" / objective
    if model.exists():  # it appears whole, and last
        tell(f"\n{model}: trained and exported before")
        return
    resume = ["--resume"] if (run / "config.json").exists() else []
    stages.run(
        "train", "--store", str(out / "store"), "--student", str(out / "models" / "student"),
        "--out", str(run), "--objective", objective, "--steps", str(steps),
        "--global-batch-size", "64", "--micro-batch-size", "64", "--lr", "6e-3",
        "--warmup-steps", str(steps // 6),
        "--seed", str(seed), *resume, stage=f"train {objective}", own_process=True,
    )  # fmt: skip
    stages.run("export", str(run), str(model), stage=f"export {objective}")


def _predict(stages: Stages, out: Path, name: str) -> None:
    stages.run(
        "predict", "--model", str(out / "models" / name), "--data", str(out / "test.jsonl"),
        "--out", _predictions(out, name), "--max-new-tokens", "24", "--batch-size", "128",
        "--dtype", "float32", *stages.device_flag, stage=f"predict {name}",
    )  # fmt: skip


def _predictions(out: Path, name: str) -> str:
    return str(out / "predictions" / f"{name}.parquet")


def closing(out: Path, seconds: dict[str, float], summary: Mapping[str, Any]) -> str:
    """Final output: durations, paths, the result in a sentence, and commands for own data.

    Args:
        out: folder of the demo.
        seconds: by stage.
        summary: content of the report's summary.json.
    """
    width = max(map(len, seconds))
    times = [f"  {stage.ljust(width)}  {spent:6.1f} s" for stage, spent in seconds.items()]
    return "\n".join(
        [
            "",
            *times,
            f"  {'total'.ljust(width)}  {sum(seconds.values()):6.1f} s",
            "",
            f"the report        {out / 'report' / 'index.html'}",
            f"the store         {out / 'store'}",
            f"the models        {out / 'models'}",
            f"training metrics  {out / 'runs'}",
            "",
            result(summary),
            f"The picture: {out / 'report' / 'deferral_curve.png'}",
            "",
            "The same with your own data (prompt and response, or messages) and models:",
            "",
            "  caskd init my-project --data train.jsonl --teacher BIG_MODEL --student SMALL_MODEL",
            "  sh my-project/run.sh",
            "  caskd status my-project/run --watch    # from another terminal",
        ]
    )


def result(summary: Mapping[str, Any]) -> str:
    """The result of the demo in a sentence."""
    first, second = summary["smalls"][:2]
    figures, other = first["all"], second["all"]
    return (
        f"With 30 % of the questions deferred to the teacher, the cascade of {first['name']} "
        f"answers {figures['quality_at_30']:.0%} correctly, and that of {second['name']} "
        f"{other['quality_at_30']:.0%}; alone the students answer "
        f"{figures['quality_small']:.0%} and {other['quality_small']:.0%}, "
        f"the teacher {figures['quality_large']:.0%}."
    )

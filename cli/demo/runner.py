"""`caskd demo`: runs every command once, on a generated corpus with a bundled teacher.

Each step is an ordinary `caskd` command line. The demo prints it and runs it through the table of
`caskd.cli.main`. The students train at the same time, each in its own process: DeepSpeed supports
one run per process, and each uses one core.

`demo.json` in the output folder holds the settings, so that the same command resumes after a kill:
each step resumes by itself, and a student that was exported is not trained again.
"""

import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from caskd.cli.demo.bar import DemoBar
from caskd.cli.demo.demo_models import TEACHER, write_student
from caskd.cli.demo.demo_tasks import TASKS, write_corpus
from caskd.cli.demo.own_process import run_together
from caskd.cli.demo.words import WORDS, closing
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
EXPECTED_SECONDS = {
    "prepare": 5.0, "precompute": 20.0, "store info": 0.5, "store verify": 0.5, "store show": 0.5,
    "train": 70.0, "export xent": 1.0, "export cat-xent": 1.0,
    "predict xent": 3.0, "predict cat-xent": 3.0, "predict teacher": 6.0, "eval": 10.0,
}  # fmt: skip
"""Of each stage on 2 cores, for the first forecast of the progress bar."""


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
        with DemoBar(EXPECTED_SECONDS) as bar:
            stages = Stages(device, bar)
            try:
                _run_all(stages, out, seed, num_train=num_train, num_test=num_test, steps=steps)
            except KeyboardInterrupt:
                tell("\nThe demo is stopped. Its work so far is kept; the same command goes on.")
                raise
        summary = read_json_object(out / "report" / "summary.json")
        tell(closing(out, stages.seconds, summary))


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

    from caskd.models import pick_device

    # transformers imports DeepSpeed, which otherwise guesses the accelerator and prints a warning.
    os.environ.setdefault("DS_ACCELERATOR", pick_device(stages.device).type)
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
    stages.done("prepare")
    _capture(stages, out)
    _train(stages, out, seed, steps)
    for name in (*OBJECTIVES, "teacher"):
        _predict(stages, out, name)
    cat_xent, xent, teacher = (_predictions(out, name) for name in ("cat-xent", "xent", "teacher"))
    report = str(out / "report")
    stages.run("eval", "--small", cat_xent, "--small", xent, "--large", teacher, "--out", report)


class Stages:
    """Runs command lines, prints each one, and records its duration.

    Args:
        device: of the models that they run.
        bar: shows the progress.
    """

    def __init__(self, device: str, bar: DemoBar) -> None:
        self.device = device
        self.bar = bar
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

    def run(self, command: str, *args: str, stage: str = "") -> None:
        """Print a command line and run it.

        Args:
            command: name of the command.
            args: its arguments.
            stage: its name among the durations; that of the command by default.
        """
        self._begin(command, stage or command, [args])
        self._ended(run_command(command, args), stage or command)

    def train(self, runs: Mapping[Path, Sequence[str]]) -> None:
        """Print the command lines of training runs, and run them at the same time.

        Args:
            runs: folder of a run -> the arguments of `caskd train`.
        """

        def watch() -> None:
            parts, notes = zip(*map(_training_progress, runs), strict=True)
            note = f"loss {', '.join(filter(None, notes))}" if any(notes) else ""
            self.bar.report("train", sum(parts) / len(parts), note)

        self._begin("train", "train", list(runs.values()))
        self._ended(_train_together(list(runs.values()), self.device, watch), "train")

    def _begin(self, command: str, stage: str, lines: Sequence[Sequence[str]]) -> None:
        self.bar.begin(stage)
        if command in WORDS and command not in self._explained:
            self._explained.add(command)
            tell(f"\n{WORDS[command]}", flush=True)
        for args in lines:
            tell(f"\n$ caskd {command} {shlex.join(args)}", flush=True)

    def _ended(self, code: int, stage: str) -> None:
        if code:
            raise SystemExit(code)
        self.done(stage)


def _train_together(lines: Sequence[Sequence[str]], device: str, watch: Callable[[], None]) -> int:
    more = {**visible_gpus(device), "OMP_NUM_THREADS": str(NUM_THREADS)}
    return run_together([["train", *args] for args in lines], more, watch)


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


def _train(stages: Stages, out: Path, seed: int, steps: int) -> None:
    """Train and export the students that are not there yet: they appear whole, and last."""
    names = [name for name in OBJECTIVES if not (out / "models" / name).exists()]
    if len(names) < len(OBJECTIVES):
        tell(f"\nalready exported: {', '.join(x for x in OBJECTIVES if x not in names)}")
    if names:
        folders = [out / "runs" / name for name in names]
        stages.train({
            run: [
                "--store", str(out / "store"), "--student", str(out / "models" / "student"),
                "--out", str(run), "--objective", name, "--steps", str(steps),
                "--global-batch-size", "64", "--micro-batch-size", "64", "--lr", "6e-3",
                "--warmup-steps", str(steps // 6), "--seed", str(seed),
                *(["--resume"] if (run / "config.json").exists() else []),
            ]
            for name, run in zip(names, folders, strict=True)
        })  # fmt: skip
    for name in names:
        model = str(out / "models" / name)
        stages.run("export", str(out / "runs" / name), model, stage=f"export {name}")


def _training_progress(run: Path) -> tuple[float, str]:
    """Finished share of a training run, and its name with its last loss."""
    from caskd.train.status import run_status

    try:
        facts = run_status(run)
    except UsageError:  # it has not begun
        return 0.0, ""
    if facts["loss"] is None:
        return 0.0, ""
    return facts["step"] / facts["steps"], f"{run.name} {facts['loss']:.2f}"


def _predict(stages: Stages, out: Path, name: str) -> None:
    stages.run(
        "predict", "--model", str(out / "models" / name), "--data", str(out / "test.jsonl"),
        "--out", _predictions(out, name), "--max-new-tokens", "24", "--batch-size", "128",
        "--dtype", "float32", *stages.device_flag, stage=f"predict {name}",
    )  # fmt: skip


def _predictions(out: Path, name: str) -> str:
    return str(out / "predictions" / f"{name}.parquet")

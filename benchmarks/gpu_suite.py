"""Everything that needs a GPU, in one command of about eight minutes.

    python benchmarks/gpu_suite.py --out DIR                      # on a machine with a CUDA device
    python benchmarks/gpu_suite.py --out DIR --steps loss capture --minutes 4
    python benchmarks/gpu_suite.py --out DIR --toy                # at toy sizes, on any machine

Nothing is downloaded: models of real shapes get random weights (gpu_models.py). Steps run in order
of worth, each in a process of its own with a time limit, and write their tables as they go, so that
whatever stops them leaves what was measured:

    tests      tests/gpu, and tests/numerics with the kernels on the device
    loss       the fused loss beside cross-entropy and distillation by others
    capture    an 8B teacher's capture beside its bare forward
    step       a 1B student's optimizer step from a store, beside plain cross-entropy and a teacher
    chain      capture, training, export, prediction and evaluation of the demo, with fewer examples

DIR gets suite.log, loss_cuda.csv, capture.csv, step.csv, aims.csv and profile.txt. The exit code is
1 where a check failed or a step could not run to its end; an aim that is missed is printed, and
fails nothing.
"""

import argparse
import csv
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from hardware import hardware

HERE = Path(__file__).parent
ROOT = HERE.parent
RIVALS = ("liger-kernel", "cut-cross-entropy", "flash-attn")
PACKAGES = ("torch", "triton", "transformers", "deepspeed", "pytest", *RIVALS)
CELLS = ("16384x4096x128256", "16384x2048x248320", "16384x576x49152")
BARE, NAIVE = "bare forward", "full logits, then top-k everywhere"  # measured, and no aim's
CHAIN = (
    "from pathlib import Path; from caskd.cli.demo import run_demo; "
    "run_demo(Path({out!r}), 0, num_train={train}, num_test={test}, steps={steps})"
)


@dataclass(frozen=True)
class Plan:
    """What the steps are told."""

    out: Path
    scratch: Path
    toy: bool
    rounds: int


@dataclass(frozen=True)
class Step:
    """Commands that run one after the other, and the seconds that all of them have."""

    commands: list[list[str]]
    limit: int


@dataclass(frozen=True)
class Aim:
    """A figure, and the most that it should be."""

    name: str
    value: float | None
    most: float

    @property
    def verdict(self) -> str:
        """For people."""
        if self.value is None:
            return "not measured"
        return "met" if self.value <= self.most else "missed"


def python(script: str, *words: str) -> list[str]:
    """The command of a script beside this one."""
    return [sys.executable, str(HERE / script), *words]


def models(plan: Plan, *names: str) -> list[str]:
    """The command that makes what a step needs and is not there yet."""
    return python("gpu_models.py", str(plan.scratch), *names, *["--toy"] * plan.toy)


def tests_step(plan: Plan) -> Step:
    """The kernels, the capture and the training against the CPU and against themselves."""
    folders = ["tests/gpu", "tests/numerics"]
    if plan.toy:
        folders = ["tests/gpu", "tests/numerics/test_topk.py"]
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *folders]
    # Which third parties warn depends on the machine; the kernels' own trial must not.
    words += ["-W", "default", "-W", "error::RuntimeWarning"]
    if find_spec("xdist") is not None and not plan.toy:
        words += ["-n", str(min(10, os.cpu_count() or 1))]
    return Step([[sys.executable, *words]], limit=180)


def loss_step(plan: Plan) -> Step:
    """The loss alone."""
    cells = ("64x32x512",) if plan.toy else CELLS
    words = ["--cells", *cells, "--rounds", str(plan.rounds), "--out", str(plan.out)]
    words += ["--tile-rows", "32" if plan.toy else "4096", "--profile"]
    return Step([python("bench_loss.py", *words)], limit=150)


def capture_step(plan: Plan) -> Step:
    """The capture, corpora with long prompts and with long answers."""
    sizes = (131_072, 16_384, 16_384, "cuda")
    if plan.toy:
        sizes = (2_000, 2_048, 2_048, "cuda" if torch.cuda.is_available() else "cpu")
    tokens, budget, shard_rows, device = map(str, sizes)
    words = [
        "--device", device, "--one-process", "--tokens", tokens, "--token-budget", budget,
        "--shard-rows", shard_rows, "--rounds", str(min(3, plan.rounds)), "--out", str(plan.out),
        "--dtype", "bfloat16", "--random-weights", "--profile", "--skip", BARE, NAIVE,
    ]  # fmt: skip
    bench = python("bench_capture.py", str(plan.scratch / "teacher"), *words)
    return Step([models(plan, "teacher"), bench], limit=180)


def step_step(plan: Plan) -> Step:
    """The optimizer step."""
    places = [f"--{name}={plan.scratch / name}" for name in ("student", "teacher", "store")]
    words = [*places, "--rounds", str(plan.rounds), "--batch", "4", f"--out={plan.out}"]
    bench = python("bench_step.py", *words, "--only-steps", "--random-weights", "--profile")
    return Step([models(plan, "store", "student", "teacher"), bench], limit=150)


def chain_step(plan: Plan) -> Step:
    """The demo with fewer examples and steps."""
    train, test, steps = (64, 16, 4) if plan.toy else (4_000, 240, 200)
    out = str(plan.scratch / "chain")
    program = CHAIN.format(out=out, train=train, test=test, steps=steps)
    return Step([[sys.executable, "-c", program]], limit=120)


STEPS = {
    "tests": tests_step,
    "loss": loss_step,
    "capture": capture_step,
    "step": step_step,
    "chain": chain_step,
}


def environment() -> Iterator[str]:
    """What is here, and what will be left out."""
    on_gpu = torch.cuda.is_available()
    yield f"processor    {hardware()}, {os.cpu_count()} cores"
    if on_gpu:
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield f"device       {torch.cuda.get_device_name()}, {memory:.0f} GiB"
    else:
        yield "device       no CUDA device"
    found = {package: _version(package) for package in ("caskd", *PACKAGES)}
    yield f"python       {platform.python_version()}"
    yield f"packages     {', '.join(f'{name} {is_at}' for name, is_at in found.items() if is_at)}"
    for name, is_at in found.items():
        if is_at is None:
            yield f"left out     what needs {name}, which is not installed"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_step(step: Step, log: Path, seconds: float) -> str:
    """Run a step's commands; what came of it."""
    ends = time.monotonic() + min(step.limit, seconds)
    paths = [str(ROOT / "src"), str(HERE), os.environ.get("PYTHONPATH", "")]
    surroundings = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    for command in step.commands:
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=surroundings, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(max(1.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                return "stopped: its time was over"
            finally:  # when this process is told to end, too
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if code:
            return f"failed: exit code {code}"
    return "done"


def aims(out: Path) -> list[Aim]:
    """What was wanted beside what was measured, as far as it was."""
    found: list[Aim] = []
    for cell in CELLS[:2]:
        rows, width, vocab = cell.split("x")
        at = {"N": rows, "H": width, "V": vocab}
        ours = _figure(out / "loss_cuda.csv", "wall_s", variant="caskd triton, 1 kept", **at)
        exact = {"variant": "cut-cross-entropy, exact"}
        for name, rival, most in (
            ("cut-cross-entropy, exact", exact, 1.10),
            ("cut-cross-entropy", {"variant": "cut-cross-entropy"}, 1.10),
            ("dense cross-entropy", {"variant": "dense cross-entropy"}, 1.00),
        ):
            theirs = _figure(out / "loss_cuda.csv", "wall_s", **rival, **at)
            found.append(Aim(f"loss, all rows, {cell}, over {name}", _ratio(ours, theirs), most))
    for kind in ("prompt-heavy", "response-heavy"):
        value = _figure(
            out / "capture.csv", "over_bare_rows_only", corpus=kind, arm="caskd capture"
        )
        found.append(Aim(f"capture, {kind}, over a bare forward, head on rows", value, 1.05))
    for kind, most in (("caskd dist", 1.03), ("caskd cat-dist", 1.00)):
        own = {"variant": kind, "figure": "over_cross_entropy"}
        found.append(
            Aim(
                f"step, {kind}, over cross-entropy", _figure(out / "step.csv", "value", **own), most
            )
        )
    waited = _figure(out / "step.csv", "value", variant="caskd cat-dist", figure="data_wait_share")
    found.append(Aim("step, waiting for data, share of the time", waited, 0.01))
    return found


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs


def _figure(table: Path, column: str, **wanted: str) -> float | None:
    """A number in the line of a table that has what is wanted; None where there is none."""
    if not table.exists():
        return None
    with table.open(newline="") as file:
        for line in csv.DictReader(file):
            if all(line.get(name) == value for name, value in wanted.items()):
                return float(line[column]) if line.get(column) else None
    return None


def write_aims(path: Path, found: list[Aim]) -> None:
    """A line for each."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["figure", "value", "at_most", "verdict"])
        for aim in found:
            shown = "" if aim.value is None else f"{aim.value:.4g}"
            writer.writerow([aim.name, shown, f"{aim.most:.2f}", aim.verdict])


def last_lines(log: Path, start: int, many: int) -> Iterator[str]:
    """The end of what a step wrote, its progress bars left out."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines()]
    yield from [line for line in lines if line and "it/s]" not in line][-many:]


def run(plan: Plan, names: list[str], minutes: float) -> dict[str, str]:
    """Every step within the time; what came of each."""
    ends = time.monotonic() + 60 * minutes
    log, outcomes = plan.out / "suite.log", {}
    log.touch()
    for name in names:
        left = ends - time.monotonic()
        if left < 5:
            outcomes[name] = "left out: no time"
            continue
        started, at = time.monotonic(), log.stat().st_size
        with log.open("a") as file:
            file.write(f"\n===== {name}\n")
        outcomes[name] = run_step(STEPS[name](plan), log, left)
        print(f"\n{name}: {outcomes[name]}, {time.monotonic() - started:.0f} s")
        many = 12 if outcomes[name] == "done" else 40
        print("\n".join(f"  {line[:200]}" for line in last_lines(log, at, many)), flush=True)
    return outcomes


def parse_arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables and the log")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all steps together")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument(
        "--rounds", type=int, default=5, help="of each timed thing; captures have 3"
    )
    parser.add_argument("--scratch", type=Path, help="where models go; kept if it is named")
    parser.add_argument("--toy", action="store_true", help="toy sizes, on any machine")
    arguments = parser.parse_args()
    if not (arguments.toy or torch.cuda.is_available()):
        parser.error("there is no CUDA device; --toy runs every step at toy sizes")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    if _version("caskd") is None:
        print(
            "caskd: not installed, though it can be imported; expected an installation, whose "
            f"version a capture records; run pip install -e {ROOT}",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    print("\n".join(environment()), flush=True)
    with tempfile.TemporaryDirectory(prefix="caskd-gpu-") as folder:
        scratch = (arguments.scratch or Path(folder)).resolve()
        plan = Plan(out, scratch, arguments.toy, arguments.rounds)
        outcomes = run(plan, arguments.steps, arguments.minutes)
    found = aims(out)
    write_aims(out / "aims.csv", found)
    print()
    for aim in found:
        shown = "-" if aim.value is None else f"{aim.value:.3f}"
        print(f"{aim.name:70} {shown:>8}  at most {aim.most:.2f}  {aim.verdict}")
    for name, outcome in outcomes.items():
        print(f"{name:12} {outcome}")
    return int(any(outcome.startswith(("failed", "stopped")) for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())

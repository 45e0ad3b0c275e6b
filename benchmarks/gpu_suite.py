"""Everything that needs a GPU, in one command of about eight minutes.

    python benchmarks/gpu_suite.py --out DIR                      # on a machine with a CUDA device
    python benchmarks/gpu_suite.py --out DIR --steps loss capture --minutes 4
    python benchmarks/gpu_suite.py --out DIR --toy                # at toy sizes, on any machine

Nothing is downloaded: models of real shapes get random weights (gpu_models.py). Steps run in order
of worth, each in a process of its own with a time limit, and write their tables as they go, so that
whatever stops them leaves what was measured:

    tests      tests/gpu, and tests/numerics with the kernels on the device
    loss       the fused loss beside cross-entropy and distillation by others
    capture    an 8B teacher's capture beside its bare forward, and with flash attention
    step       a 1B student's optimizer step from a store, beside plain cross-entropy and a teacher
    chain      the demo with fewer examples, and a training that is killed and resumed
    forecast   a capture's peak memory over the forecast of `plan --probe`
    devices    steps and a capture over several devices, where there are several
    blocks     the kernels' blocks, of which the fastest go into caskd's cache

DIR gets suite.log, the tables loss_cuda, capture, step, forecast, devices, blocks and aims.csv, and
profile.txt. The exit code is 1 where a check failed or a step could not run to its end; an aim that
is missed is printed, and fails nothing.
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
from dataclasses import dataclass, field
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
    "run_demo(Path({out!r}), 0, num_train={train}, num_test={test}, steps={steps}, "
    "device={device!r})"
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
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Aim:
    """A figure, the most that it should be, and the least."""

    name: str
    value: float | None
    most: float
    least: float = 0.0

    @property
    def verdict(self) -> str:
        """For people."""
        if self.value is None:
            return "not measured"
        return "met" if self.least <= self.value <= self.most else "missed"


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
        folders = ["tests/gpu", "tests/numerics/test_topk.py", "-k", "not to_its_end_on_a_cpu"]
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
    sizes = (2_000, 2_048, 2_048) if plan.toy else (131_072, 16_384, 16_384)
    tokens, budget, shard_rows = map(str, sizes)
    words = [
        "--device", device(plan.toy), "--one-process", "--tokens", tokens, "--token-budget", budget,
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
    """The demo with fewer examples and steps; a training on its store that SIGKILL ends."""
    train, test, steps = (64, 16, 4) if plan.toy else (4_000, 240, 200)
    chain = plan.scratch / "chain"
    program = CHAIN.format(
        out=str(chain), train=train, test=test, steps=steps, device=device(plan.toy)
    )
    places = [str(chain / name) for name in ("store", "models/student", "killed")]
    resume = python("gpu_resume.py", *places, "--steps", "4" if plan.toy else "20")
    return Step([[sys.executable, "-c", program], resume], limit=150)


def forecast_step(plan: Plan) -> Step:
    """The forecast of a capture's memory; that of a training stands in step.csv."""
    tokens, budget, rows = ("2000", "2048", "2048") if plan.toy else ("65536", "16384", "16384")
    words = ["--device", device(plan.toy), "--tokens", tokens, "--token-budget", budget]
    words += ["--shard-rows", rows, "--random-weights", "--out", str(plan.out)]
    bench = python("bench_forecast.py", str(plan.scratch / "teacher"), *words)
    return Step([models(plan, "teacher"), bench], limit=90)


def devices_step(plan: Plan) -> Step:
    """Every ZeRO stage over all devices, and two workers of a capture."""
    places = [f"--{name}={plan.scratch / name}" for name in ("student", "teacher", "store")]
    words = [*places, f"--out={plan.out}", *["--on-cpu"] * plan.toy]
    if not plan.toy:
        words += ["--tokens", "131072", "--token-budget", "16384", "--shard-rows", "16384"]
    bench = python("bench_devices.py", *words)
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if plan.toy else {}
    made = models(plan, "store", "student", "teacher")
    return Step([made, bench], limit=180, environment=hidden)


def blocks_step(plan: Plan) -> Step:
    """The kernels' blocks; the toys' go into a cache beside the tables."""
    words, set_ = ["--out", str(plan.out)], {}
    if plan.toy:
        words += ["--device", "cpu", "--rows", "2", "--columns", "5003", "--rounds", "1"]
        set_ = {"TRITON_INTERPRET": "1", "CASKD_CACHE": str(plan.out / "cache")}
    return Step([python("bench_blocks.py", *words)], limit=60, environment=set_)


def device(toy: bool) -> str:
    """Where models run; toys run on a GPU, too, where there is one."""
    return "cpu" if toy and not torch.cuda.is_available() else "cuda"


STEPS = {
    "tests": tests_step,
    "loss": loss_step,
    "capture": capture_step,
    "step": step_step,
    "chain": chain_step,
    "forecast": forecast_step,
    "devices": devices_step,
    "blocks": blocks_step,
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
    ends = time.monotonic() + seconds
    paths = [str(ROOT / "src"), str(HERE), os.environ.get("PYTHONPATH", "")]
    surroundings = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **step.environment,
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
    own = {"variant": "caskd cat-dist"}
    waited = _figure(out / "step.csv", "value", figure="data_wait_share", **own)
    found.append(Aim("step, waiting for data, share of the time", waited, 0.01))
    peak = _figure(out / "step.csv", "value", figure="peak_mb", **own)
    forecast = _figure(out / "step.csv", "value", figure="forecast_mb")
    name = "step, caskd cat-dist, peak memory over train --dry-run"
    found.append(Aim(name, _ratio(peak, forecast), 1.10, 0.90))
    probed = _figure(out / "forecast.csv", "measured_over_forecast", what="capture")
    found.append(Aim("capture, peak memory over plan --probe", probed, 1.10, 0.90))
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
        writer.writerow(["figure", "value", "at_least", "at_most", "verdict"])
        for aim in found:
            shown = "" if aim.value is None else f"{aim.value:.4g}"
            limits = [f"{limit:.2f}" for limit in (aim.least, aim.most)]
            writer.writerow([aim.name, shown, *limits, aim.verdict])


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
        step = STEPS[name](plan)
        # Toys may be slow: a machine without a GPU is not timed.
        outcomes[name] = run_step(step, log, left if plan.toy else min(step.limit, left))
        print(f"\n{name}: {outcomes[name]}, {time.monotonic() - started:.0f} s")
        many = 12 if outcomes[name] == "done" else 40
        print("\n".join(f"  {line[:200]}" for line in last_lines(log, at, many)), flush=True)
    return outcomes


def parse_arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables and the log")
    parser.add_argument("--minutes", type=float, help="for all steps together: 8, or 60 for toys")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--rounds", type=int, help="of each timed thing: 5, captures 3; toys 1")
    parser.add_argument("--scratch", type=Path, help="where models go; kept if it is named")
    parser.add_argument("--toy", action="store_true", help="toy sizes, on any machine")
    arguments = parser.parse_args()
    if not (arguments.toy or torch.cuda.is_available()):
        parser.error("there is no CUDA device; --toy runs every step at toy sizes")
    arguments.rounds = arguments.rounds or (1 if arguments.toy else 5)
    arguments.minutes = arguments.minutes or (60.0 if arguments.toy else 8.0)
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

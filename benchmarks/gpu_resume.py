"""A training that is killed and resumed ends as one that nobody disturbed, bit for bit.

    python benchmarks/gpu_resume.py STORE STUDENT DIR --steps 20

Runs `caskd train --deterministic` three times: undisturbed; until SIGKILL in the middle of a step,
after half of the steps were saved; and once more, with --resume. Compares metrics and weights. The
exit code is 1 where they differ. The kill and the comparison are those of the tests.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from caskd.cli.main import main as caskd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.killed_runs import check_equal_runs, dying
from helpers.training import read_metrics


def train_words(arguments: argparse.Namespace, out: Path) -> list[str]:
    """A command line of caskd, with two micro-steps a step."""
    return [
        "train", "--store", str(arguments.store), "--student", str(arguments.student),
        "--out", str(out), "--objective", "cat-dist", "--steps", str(arguments.steps),
        "--save-every", str(arguments.steps // 2), "--global-batch-size", "32",
        "--micro-batch-size", "16", "--deterministic",
    ]  # fmt: skip


def run(words: list[str], *, die_after: int | None = None) -> int:
    """The exit code of `caskd WORDS` in a process of its own; negative where a signal ended it."""
    extra = [] if die_after is None else ["--die-after", str(die_after)]
    command = [sys.executable, str(Path(__file__)), "--caskd", *extra, *words]
    return subprocess.run(command, check=False).returncode


def killed_caskd(words: list[str]) -> int:
    """caskd in this process, which dies by SIGKILL after so many micro-steps, if it is told to."""
    if words[0] != "--die-after":
        return caskd(words)
    with dying(int(words[1]), lambda: os.kill(os.getpid(), signal.SIGKILL)):
        return caskd(words[2:])


def check(arguments: argparse.Namespace) -> None:
    """Assert that the resumed run is the undisturbed one."""
    whole, cut = arguments.folder / "whole", arguments.folder / "cut"
    assert run(train_words(arguments, whole)) == 0
    saved = arguments.steps // 2
    # In the second micro-step of the step after the next: that step's work is lost, and one more.
    code = run(train_words(arguments, cut), die_after=2 * (saved + 1) + 1)
    assert code == -signal.SIGKILL, f"expected a kill, got exit code {code}"
    before = len(read_metrics(cut))
    assert before == saved + 1, f"killed after step {before} of {arguments.steps}"
    assert run([*train_words(arguments, cut), "--resume"]) == 0
    check_equal_runs(cut, whole, arguments.steps)
    print(
        f"killed after step {before} of {arguments.steps} (saved: {saved}) and resumed: metrics "
        "and weights equal those of the undisturbed run, bit for bit"
    )


def main() -> int:
    if sys.argv[1:2] == ["--caskd"]:
        return killed_caskd(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("--steps", type=int, default=20)
    check(parser.parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())

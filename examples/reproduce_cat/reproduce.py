"""Reproduce the orderings of Cascade-Aware Training (arXiv 2406.00060) with caskd's own commands.

    python reproduce.py WORK --data SOURCES --scale cpu
    python reproduce.py WORK --data SOURCES --scale gpu --teacher LARGE --student SMALL

You may interrupt it at any time: the same command resumes, and `report.py WORK` shows the results
so far. `--list` prints every command line and runs nothing.
"""

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path

from jobs import Recipe
from lanes import Lanes
from measures import reports
from scales import SCALES


def main() -> None:
    """Read the command line, run the remaining jobs, and evaluate the finished runs."""
    args = _arguments()
    scale = SCALES[args.scale]
    if args.scale == "gpu" and not (args.teacher and args.student):
        raise SystemExit("--scale gpu needs initial models; pass --teacher LARGE --student SMALL")
    models = (here_or_hub(args.teacher), here_or_hub(args.student))
    recipe = Recipe(args.data.resolve(), scale, *models)
    if args.list:
        for job in recipe.jobs():
            print(*(("python",) if job.script else ("caskd",)), shlex.join(job.words))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)  # recorded paths are relative
    lanes = Lanes(args.lanes, args.threads)
    note("plan.json", {"scale": args.scale, "pools": recipe.plan()})
    note("run.json", {"hardware": hardware(), "lanes": args.lanes, "threads": args.threads})
    sys.exit(carry_out(recipe, lanes, args.minutes))


def carry_out(recipe: Recipe, lanes: Lanes, minutes: float | None = None) -> int:
    """Run the remaining jobs, evaluate the finished runs, print the progress; the exit code."""
    jobs = list(recipe.jobs())
    until = None if minutes is None else time.time() + 60 * minutes
    failed = lanes.run(jobs, until)
    failed += lanes.run(list(reports(recipe)))
    left = sum(not job.makes.exists() for job in jobs)
    more = "; rerun the same command to resume" if left else ""
    print(f"{len(jobs) - left} of {len(jobs)} commands done{more}")
    return 1 if failed else 0


def note(name: str, content: dict[str, object]) -> None:
    """Write a JSON file that describes the folder."""
    Path(name).write_text(json.dumps(content, indent=1) + "\n")


def here_or_hub(model: str | None) -> str | None:
    """The absolute path of a folder, or an unchanged hub id."""
    return str(Path(model).resolve()) if model and Path(model).exists() else model


def hardware() -> str:
    """Description of the processors or GPUs."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "work", type=Path, help="working folder, including the checkpoint of each run"
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the public data sets, see pools.py"
    )
    parser.add_argument("--scale", choices=tuple(SCALES), default="cpu")
    parser.add_argument("--teacher", help="transformers model to fine-tune as the large model")
    parser.add_argument("--student", help="transformers model that all small models start from")
    parser.add_argument("--lanes", type=int, default=1, help="commands to run in parallel")
    parser.add_argument("--threads", type=int, default=1, help="threads of each command")
    parser.add_argument("--minutes", type=float, help="start no command after this many minutes")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Compare objectives with cat-xent, as plan.md says.

    python run_better.py WORK --data SOURCES --teacher SMOLLM2 --student SMOLLM2_6_LAYERS

Without --teacher and --student the pretrained pool is left out. You may interrupt it at any time:
the same command resumes, and `better_report.py WORK` shows the results so far.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import reproduction  # noqa: F401
from better_contrasts import contrast_rows, wins_and_gains
from better_jobs import Comparison, distinct
from better_plan import BASES, PRETRAINED, SCREENED_POOLS, choose, promising, screened_arms, winner
from better_runs import CONFIRMATION, SCREENING, run_rows, runs_of
from jobs import Job
from lanes import Lanes
from reproduce import hardware, note


class Stages:
    """Runs the jobs of each stage; stops at the first that is not finished."""

    def __init__(self, lanes: Lanes, until: float | None) -> None:
        self._lanes, self._until = lanes, until
        self.unfinished = False

    def finish(self, name: str, jobs: Iterable[Job]) -> bool:
        """Run what is left of a stage; whether it is finished then."""
        if self.unfinished:
            return False
        planned = distinct(jobs)
        left = sum(not job.makes.exists() for job in planned)
        print(f"{name}: {len(planned) - left} of {len(planned)} commands done", flush=True)
        self._lanes.run(planned, self._until)
        self.unfinished = not all(job.makes.exists() for job in planned)
        return not self.unfinished


def carry_out(comparison: Comparison, stages: Stages) -> int:
    """All stages in the order of plan.md; the exit code."""
    work = Path()
    if stages.finish("screening", comparison.screening()):
        seen = runs_of(run_rows(work), SCREENING)
        able = {pool: promising(seen, pool) for pool in SCREENED_POOLS}
        stages.finish("controls of the screening", comparison.controls(able))
    if not stages.unfinished:
        seen = runs_of(run_rows(work), SCREENING)
        chosen = {pool: choose(seen, pool) for pool in SCREENED_POOLS}
        note("chosen.json", {"candidates": chosen})
        print(f"candidates: {json.dumps(chosen)}", flush=True)
        stages.finish("confirmation", comparison.confirmation(chosen))
    if not stages.unfinished:
        found = [row for row in contrast_rows(work) if row["stage"] == CONFIRMATION]
        best = winner(*wins_and_gains(found))
        note("winner.json", {"winner": best})
        for number in range(1, len(PRETRAINED) + 1):  # each removes the weights of earlier ones
            seeds = PRETRAINED[:number]
            stages.finish(f"pretrained pool, seed {seeds[-1]}", comparison.pretrained(best, seeds))
    everything = {
        pool: [arm for arm in screened_arms(pool) if arm not in BASES[:1]]
        for pool in SCREENED_POOLS
    }
    stages.finish("other controls", comparison.controls(everything))
    print("unfinished; the same command resumes" if stages.unfinished else "finished", flush=True)
    return int(stages.unfinished)


def main() -> None:
    """Read the command line and run the stages."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path, help="working folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data sets")
    parser.add_argument("--teacher", type=Path, help="pretrained model of stage 3")
    parser.add_argument("--student", type=Path, help="its first layers")
    parser.add_argument("--lanes", type=int, default=1, help="commands to run in parallel")
    parser.add_argument("--threads", type=int, default=1, help="threads of each command")
    parser.add_argument("--minutes", type=float, help="start no command after this many minutes")
    parser.add_argument("--list", action="store_true", help="print stage 1, run nothing")
    args = parser.parse_args()
    models = [None if path is None else path.resolve() for path in (args.teacher, args.student)]
    comparison = Comparison(args.data.resolve(), *models)
    if args.list:
        for job in distinct(comparison.screening()):
            print(*(("python",) if job.script else ("caskd",)), *job.words)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)  # recorded paths are relative
    note("run.json", {"hardware": hardware(), "lanes": args.lanes, "threads": args.threads})
    until = None if args.minutes is None else time.time() + 60 * args.minutes
    sys.exit(carry_out(comparison, Stages(Lanes(args.lanes, args.threads), until)))


if __name__ == "__main__":
    main()

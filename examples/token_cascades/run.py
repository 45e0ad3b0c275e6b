"""Token cascades on small models trained from scratch: delegation, routers, speculative cascades.

    python run.py WORK --data SOURCES
    python report.py WORK

You may interrupt it at any time: the same command resumes, and report.py shows the results so far.
`--list` prints the command lines and runs nothing; those of the answers need the finished models.
SOURCES holds the sets of `../reproduce_cat/prepare_data.py`.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reproduce_cat"))

from jobs import Job, Recipe, _PoolJobs  # noqa: E402
from lanes import Lanes  # noqa: E402
from plan import (  # noqa: E402
    ARMS,
    NEEDS_LARGE,
    ONLINE_ARMS,
    ONLINE_EXAMPLES,
    ONLINE_SHARES,
    PLAIN,
    PLAIN_RULES,
    ROUTER_LABEL,
    SEEDS,
)
from pools import POOLS  # noqa: E402
from scales import SCALES  # noqa: E402

SCALE = SCALES["cpu"]


class PoolOf(_PoolJobs):
    """The commands of one pool."""

    def models(self) -> Iterator[Job]:
        """The data, the large model, and its rows of the parts that are read."""
        yield from self.data()
        yield from self._captured("clean")
        marked = self._data / "student-marked.jsonl"
        words = (str(HERE / "mark.py"), str(self._data / "student.jsonl"), str(marked))
        yield Job(marked, words, needs=(self._parts,), script=True)
        large = self._model("clean")
        if not self._pool.is_text:
            yield self._store(large, "test", self._root / "test-store")
            yield self._store(large, "calibration", self._root / "calibration-store")

    def students(self, seed: int) -> Iterator[Job]:
        """Every arm of one seed, and what each decides on the test part."""
        yield from self._pretrained(seed)
        for arm in ARMS[self.name]:
            folder = self._folder(arm, seed)
            store = self._root / "clean" / "store"
            extra: tuple[str, ...] = () if arm == PLAIN else ("--delegate", arm)
            needs: tuple[Path, ...] = ()
            if arm.startswith("fact-"):
                needs = (self._data / "student-marked.jsonl",)
                extra += ("--data", str(needs[0]))
            yield from self._trained(
                store, self._root / f"pretrained-{seed}", folder / "run", folder / "student",
                PLAIN, self._steps.arm, SCALE.arm_lr, seed, extra, needs,
            )  # fmt: skip
            router = folder / "router"
            if arm == PLAIN:
                words = ("router", "fit", "--store", str(store), "--label", ROUTER_LABEL)
                words += ("--student", str(folder / "student"), "--out", str(router))
                yield Job(router / "router.json", words, needs=(folder / "student",))
            for part in ("test",) if self._pool.is_text else ("test", "calibration"):
                yield self._rows(folder, part, arm == PLAIN)

    def online(self, seed: int) -> Iterator[Job]:
        """Answers that two models write together, at thresholds from the calibration part."""
        from rows import thresholds

        wanted = [(PLAIN, rule) for rule in (*PLAIN_RULES, NEEDS_LARGE)]
        wanted += [(arm, "call") for arm in ONLINE_ARMS]
        yield self._answers(self._model("clean"), self._root / "online-large.parquet", ())
        alone = self._folder(PLAIN, seed)
        yield self._answers(alone / "student", alone / "online-small.parquet", ())
        for arm, rule in wanted:
            folder = self._folder(arm, seed)
            known = folder / "calibration.npz"
            if not known.exists():
                continue
            for share, flags in thresholds(known, rule, ONLINE_SHARES).items():
                if rule == "router":
                    flags = (*flags, "--router", str(folder / "router"))
                large = ("--large", str(self._model("clean")), *flags)
                out = folder / f"online-{rule}-{share:g}.parquet"
                yield self._answers(folder / "student", out, large)

    def _answers(self, model: Path, out: Path, flags: tuple[str, ...]) -> Job:
        job = self._predicted(model, "test", out)
        return Job(out, (*job.words, "--limit", str(ONLINE_EXAMPLES), *flags), needs=job.needs)

    def _rows(self, folder: Path, part: str, has_router: bool) -> Job:
        out, store = folder / f"{part}.npz", self._root / f"{part}-store"
        words = (str(HERE / "rows.py"), str(store), str(folder / "student"), str(out))
        needs = (folder / "student", store / "seal.json")
        if has_router:
            words += ("--router", str(folder / "router"))
            needs += (folder / "router" / "router.json",)
        return Job(out, words, needs=needs, script=True)

    def _folder(self, arm: str, seed: int) -> Path:
        return self._root / "clean" / f"{arm}-{seed}"


def stages(sources: Path) -> Iterator[list[Job]]:
    """The jobs, pool by pool: the models; then the answers."""
    recipe = Recipe(sources, SCALE)
    pools = [PoolOf(recipe, name, SCALE.pools[name]) for name in ARMS]
    for pool in pools:
        yield [*pool.models(), *(job for seed in SEEDS for job in pool.students(seed))]
    yield [
        job
        for seed in SEEDS
        for pool in pools
        if not POOLS[pool.name].is_text
        for job in pool.online(seed)
    ]


def main() -> None:
    """Run the remaining jobs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data sets")
    parser.add_argument("--lanes", type=int, default=1, help="commands to run in parallel")
    parser.add_argument("--minutes", type=float, help="start no command after this many minutes")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    args = parser.parse_args()
    sources = args.data.resolve()
    until = None if args.minutes is None else time.time() + 60 * args.minutes
    if args.list:
        for job in (job for stage in stages(sources) for job in unique(stage)):
            print(*(("python",) if job.script else ("caskd",)), shlex.join(job.words))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)  # recorded paths are relative
    lanes, failed, left = Lanes(args.lanes, 1), 0, 0
    for stage in stages(sources):
        jobs = unique(stage)
        failed += len(lanes.run(jobs, until))
        left += sum(not job.makes.exists() for job in jobs)
    print(f"{left} commands left{'; rerun the same command to resume' if left else ''}")
    sys.exit(1 if failed else 0)


def unique(jobs: list[Job]) -> list[Job]:
    """Each job once, in order."""
    return list({job.makes: job for job in reversed(jobs)}.values())[::-1]


if __name__ == "__main__":
    main()

"""The commands of the comparison as data, by stage."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import reproduction  # noqa: F401
from arms import CONTROL, FLAGS, LATE, Flags, control_of
from better_plan import (
    CONDITIONS,
    DEVELOPMENT,
    FRESH,
    MIXED,
    PRETRAINED,
    PRETRAINED_POOL,
    SCREENED_POOLS,
    SCREENING_PART,
    SMALL,
    TEST_PART,
    confirmed_arms,
    screened_arms,
)
from jobs import Job, PoolJobs, Recipe

SCRIPT = Path(__file__).resolve().with_name("train_arm.py")
WEIGHTS = "weights.npz"


class Arms(PoolJobs):
    """The jobs of one pool."""

    def folder(self, condition: str, arm: str, seed: int) -> Path:
        """Folder of a run."""
        return self._root / condition / f"{arm}-{seed}"

    def run(self, condition: str, arm: str, seed: int, part: str) -> Iterator[Job]:
        """Train one arm, or a control, and predict one part of the data."""
        base, is_control = arm.removeprefix(CONTROL), arm.startswith(CONTROL)
        folder, of_arm = (self.folder(condition, name, seed) for name in (arm, base))
        predicted = folder / f"{part}.parquet"
        if predicted.exists() and self.name == PRETRAINED_POOL:
            _tidy(folder)
            return
        options = FLAGS.get(base)
        draws = options is not None and options.draws
        yield from self.captured(condition, draws=draws)
        yield from self.pretrained(seed)
        objective, extra, needs = "xent", (), (of_arm / WEIGHTS,) if is_control else ()
        if options is not None:
            objective, extra = self._flags(options, base, of_arm, is_control)
            needs = (of_arm / f"{part}.parquet",) if is_control else ()
        train, export = self.trained(
            self.store(condition, draws=draws), self._root / f"pretrained-{seed}",
            folder / "run", folder / "student", objective, self._steps.arm, self._scale.arm_lr,
            seed, extra, needs,
        )  # fmt: skip
        if options is None:
            recorded = folder / WEIGHTS
            rule = ("--rule", base, "--record", str(recorded))
            rule += ("--shuffled", str(of_arm / WEIGHTS)) if is_control else ()
            words = (str(SCRIPT), *rule, *train.words[1:])
            train = replace(train, makes=recorded, words=words, script=True)
            export = replace(export, needs=(recorded,))
        yield from (train, export, self.predicted(folder / "student", part, predicted))

    def _flags(
        self, options: Flags, base: str, of_arm: Path, is_control: bool
    ) -> tuple[str, tuple[str, ...]]:
        """Objective and further flags of an arm of `FLAGS`, or of its control."""
        if is_control:
            fractions = ("--keep-fraction-from", str(of_arm / "run"))
            return str(options.control), (*options.flags, *fractions)
        late = ("--mask-from-step", str(self._steps.arm // 2)) if base == LATE else ()
        return options.objective, (*options.flags, *late)


def _tidy(folder: Path) -> None:
    """Remove the weights of a run that is measured: those of a pretrained student are large."""
    for name in ("run/checkpoints", "student"):
        shutil.rmtree(folder / name, ignore_errors=True)


@dataclass(frozen=True)
class Comparison:
    """All jobs of the comparison. Paths are relative to the working folder."""

    sources: Path
    teacher: Path | None = None
    """Pretrained teacher of stage 3; without it there is no stage 3."""
    student: Path | None = None

    def pool(self, name: str) -> Arms:
        """The jobs of a pool."""
        if name != PRETRAINED_POOL:
            return Arms(Recipe(self.sources, SMALL), name, SMALL.pools[name])
        recipe = Recipe(self.sources, MIXED, str(self.teacher), str(self.student))
        return Arms(recipe, name, MIXED.pools[name])

    def screening(self) -> Iterator[Job]:
        """Stage 1: all arms of a seed before the next seed."""
        yield from self._runs({p: screened_arms(p) for p in SCREENED_POOLS}, DEVELOPMENT)

    def controls(self, arms: Mapping[str, Iterable[str]]) -> Iterator[Job]:
        """Controls of some arms of each pool in stage 1."""
        named = {
            pool: tuple(name for arm in own if (name := control_of(arm)))
            for pool, own in arms.items()
        }
        yield from self._runs(named, DEVELOPMENT)

    def confirmation(self, candidates: Mapping[str, Sequence[str]]) -> Iterator[Job]:
        """Stage 2."""
        arms = {pool: confirmed_arms(own) for pool, own in candidates.items() if own}
        yield from self._runs(arms, FRESH, TEST_PART)

    def pretrained(self, candidate: str | None, seeds: Sequence[int] = PRETRAINED) -> Iterator[Job]:
        """Some seeds of stage 3; removes the weights of runs that are measured."""
        if self.teacher is not None:
            arms = confirmed_arms([candidate] if candidate else [])
            yield from self._runs({PRETRAINED_POOL: arms}, seeds, TEST_PART, CONDITIONS[:1])

    def _runs(
        self,
        arms: Mapping[str, Sequence[str]],
        seeds: Sequence[int],
        part: str = SCREENING_PART,
        conditions: Sequence[str] = CONDITIONS,
    ) -> Iterator[Job]:
        pools = {name: self.pool(name) for name in arms}
        for of_pool in pools.values():
            yield from of_pool.data()
        for seed in seeds:
            for name, of_pool in pools.items():
                for condition in conditions:
                    for arm in arms[name]:
                        yield from of_pool.run(condition, arm, seed, part)


def distinct(jobs: Iterable[Job]) -> list[Job]:
    """The jobs, each once: arms share some."""
    found: dict[Path, Job] = {}
    for job in jobs:
        found.setdefault(job.makes, job)
    return list(found.values())

"""The commands of the reproduction as data: inputs, outputs and order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, starmap
from pathlib import Path
from typing import Any

from pools import POOLS
from scales import ADDED, CONDITIONS, PRIMARY, RULE_ARMS, SECONDARY, TEXT_ARMS, Scale, Steps

HERE = Path(__file__).parent
LAST_NOISE = "-noisy40"
NUM_DRAWS = 50
"""Draws of a row, in a store of draws."""
ROUNDS = (0, 3, 5, 6, 7, 8, 9, 10)
"""Seeds run in these rounds over all arms, so that a stop leaves arms that can be compared."""


@dataclass(frozen=True)
class Job:
    """A command line: arguments of `caskd`, or of a script in this folder."""

    makes: Path
    """This path exists exactly when the job is done."""
    words: tuple[str, ...]
    needs: tuple[Path, ...] = ()
    script: bool = False
    resumes: Path | None = None
    """Run folder of a training that `--resume` can continue."""


@dataclass(frozen=True)
class Recipe:
    """The data, the models and the scale of a study. Paths are relative to the working folder."""

    sources: Path
    scale: Scale
    teacher: str | None = None
    student: str | None = None

    def plan(self) -> dict[str, dict[str, Any]]:
        """The arms and seeds of every pool and condition, as plan.json holds them."""
        return {
            pool: {"conditions": _arms(pool, steps)} for pool, steps in self.scale.pools.items()
        }

    def jobs(self) -> Iterator[Job]:
        """Yield all jobs by priority: a few seeds of every arm first."""
        pools = [PoolJobs(self, pool, steps) for pool, steps in self.scale.pools.items()]
        plan, yielded = self.plan(), set[Path]()
        wanted = chain(
            *(of_pool.data() for of_pool in pools),
            *(
                of_pool.arms(condition, plan[of_pool.name]["conditions"].get(condition, {}), seeds)
                for seeds in starmap(range, pairwise(ROUNDS))
                for condition in CONDITIONS
                for of_pool in pools
            ),
        )
        for job in wanted:  # arms repeat the jobs that they share
            if job.makes not in yielded:
                yielded.add(job.makes)
                yield job


def _arms(pool: str, steps: Steps) -> dict[str, dict[str, list[int]]]:
    """Condition -> arm -> seeds of one pool."""
    primary, added, secondary = (
        list(range(number))
        for number in (steps.primary_seeds, steps.added_seeds, steps.secondary_seeds)
    )
    if POOLS[pool].is_text:
        return {"clean": dict.fromkeys(TEXT_ARMS, secondary)}
    conditions = {
        name: dict.fromkeys(PRIMARY, seeds)
        for name in CONDITIONS
        if (seeds := added if name in ADDED else primary)
    }
    if secondary:
        conditions["clean"] |= dict.fromkeys(SECONDARY, secondary)
    return conditions


class PoolJobs:
    """The jobs of one pool, by stage."""

    def __init__(self, recipe: Recipe, name: str, steps: Steps) -> None:
        self._recipe, self._scale, self._steps = recipe, recipe.scale, steps
        self.name, self._pool = name, POOLS[name]
        self._root = Path(name)
        self._data = self._root / "data"
        # The last part that prepare_data.py writes.
        self._parts = self._data / f"student{'' if self._pool.is_text else LAST_NOISE}.jsonl"

    def data(self) -> Iterator[Job]:
        """The parts of the data, and the initial models."""
        words = ("prepare_data.py", str(self._recipe.sources), str(self._data))
        yield Job(self._parts, (*words, "--pool", self.name), script=True)
        for name, given, shape in (
            ("teacher-init", self._recipe.teacher, self._scale.teacher_shape),
            ("student-init-0", self._recipe.student, self._scale.student_shape),
        ):
            if given is None and shape is not None:
                yield self._from_scratch(name, shape, seed=0)
        yield self._text_store("pretrain", self._root / "pretrain-text")

    def arms(
        self, condition: str, arms: Mapping[str, Sequence[int]], seeds: range
    ) -> Iterator[Job]:
        """Some seeds of every arm of a condition, after the jobs that they depend on."""
        for seed in seeds:
            for arm in (arm for arm, own in arms.items() if seed in own):
                yield from self.captured(condition)
                yield from self.pretrained(seed)
                yield from self._arm(condition, arm, seed)

    def captured(self, condition: str, *, draws: bool = False) -> Iterator[Job]:
        """Capture the teacher on the student's part of the data, on which it was not trained."""
        suffix, teacher = CONDITIONS[condition]
        yield from self._teacher(teacher)
        store, kept = self.store(condition, draws=draws), ("--top-k", str(self._scale.top_k))
        kept = ("--sample", str(NUM_DRAWS)) if draws else kept
        yield self._store(self._model(teacher), f"student{suffix}", store, kept)

    def store(self, condition: str, *, draws: bool = False) -> Path:
        """The store of a condition's teacher: its top-k, or draws of it."""
        return self._root / condition / ("store-draws" if draws else "store")

    def _teacher(self, name: str) -> Iterator[Job]:
        """Train a teacher on its own part, and predict the test set."""
        start = self._recipe.teacher or self._root / "teacher-init"
        if self._steps.teacher_reading:
            read = self._root / "teacher-read"
            steps = self._steps.teacher_reading
            yield from self._fine_tuned("teacher-prompts", start, read, steps)
            start = read
        model = self._model(name)
        part = "teacher" if name == "clean" else f"teacher-{name}"
        yield from self._fine_tuned(part, start, model, self._steps.teacher)
        if self._pool.is_text:
            kept = ("--top-k", str(self._scale.top_k))
            yield self._store(model, "test", self._root / "test-store", kept)
            return
        for part in ("test", "calibration"):
            yield self.predicted(model, part, self._root / f"teacher-{name}-{part}.parquet")

    def _fine_tuned(self, part: str, start: Path | str, model: Path, steps: int) -> Iterator[Job]:
        """Train a teacher, or one stage of it."""
        text, run = self._root / f"{model.name}-text", self._root / f"{model.name}-run"
        yield self._text_store(part, text)
        rate = self._scale.teacher_lr
        yield from self.trained(text, start, run, model, "xent", steps, rate, seed=0)

    def pretrained(self, seed: int) -> Iterator[Job]:
        """Train the student that all arms of a seed start from."""
        text = self._root / "pretrain-text"
        start: Path | str = self._recipe.student or self._root / f"student-init-{seed}"
        if isinstance(start, Path) and seed and self._scale.student_shape is not None:
            yield self._from_scratch(start.name, self._scale.student_shape, seed)
        yield from self.trained(
            text, start, self._root / f"pretrained-{seed}-run",
            self._root / f"pretrained-{seed}", "xent", self._steps.pretrain,
            self._scale.pretrain_lr, seed,
        )  # fmt: skip

    def _arm(self, condition: str, arm: str, seed: int) -> Iterator[Job]:
        """Train, export and evaluate one student."""
        folder = self._root / condition / f"{arm}-{seed}"
        extra: tuple[str, ...] = ()
        needs: tuple[Path, ...] = ()
        if arm.startswith("random"):
            masked = self._root / condition / f"{arm.replace('random', 'cat')}-{seed}"
            extra, needs = ("--keep-fraction-from", str(masked / "run")), (masked / "student",)
        model = folder / "student"
        yield from self.trained(
            self.store(condition), self._root / f"pretrained-{seed}",
            folder / "run", model, arm, self._steps.arm, self._scale.arm_lr, seed, extra, needs,
        )  # fmt: skip
        if self._pool.is_text:
            return
        yield self.predicted(model, "test", folder / "test.parquet")
        if arm in RULE_ARMS and condition == "clean" and seed < self._steps.secondary_seeds:
            yield self.predicted(model, "calibration", folder / "calibration.parquet")

    def _model(self, teacher: str) -> Path:
        return self._root / f"teacher-{teacher}"

    def _store(self, model: Path, part: str, store: Path, kept: tuple[str, ...]) -> Job:
        words = ("precompute", "--teacher", str(model), "--store", str(store))
        words = (*words, *kept, *self._text(part))
        return Job(store / "seal.json", words, needs=(self._parts, model))

    def _text(self, part: str) -> tuple[str, ...]:
        """Options for reading a part, equal for all stores."""
        words = ("--data", str(self._data / f"{part}.jsonl"))
        words += ("--shard-rows", str(self._scale.shard_rows))
        if self._pool.is_text:
            words += ("--max-length", "256", "--on-long", "truncate")
        return words if self._pool.eos else (*words, "--no-eos")

    def _from_scratch(self, name: str, shape: tuple[int, int], seed: int) -> Job:
        data, out = self._data / "teacher.jsonl", self._root / name
        size = ("--hidden-size", str(shape[0]), "--layers", str(shape[1]), "--seed", str(seed))
        words = ("make_models.py", str(data), str(out), *size)
        return Job(out, words, needs=(self._parts,), script=True)

    def _text_store(self, part: str, store: Path) -> Job:
        """A store for plain cross-entropy, which reads tokens only: any model may fill it."""
        student = self._recipe.student or str(self._root / "student-init-0")
        words = ("precompute", "--teacher", student, "--store", str(store), "--top-k", "1")
        starts = () if self._recipe.student else (Path(student),)
        return Job(store / "seal.json", (*words, *self._text(part)), needs=(self._parts, *starts))

    def trained(
        self, store: Path, start: str, run: Path, model: Path, objective: str, steps: int,
        lr: float, seed: int, extra: tuple[str, ...] = (), needs: tuple[Path, ...] = (),
    ) -> Iterator[Job]:  # fmt: skip
        scale = self._scale
        train = (
            "train", "--store", str(store), "--student", str(start), "--out", str(run),
            "--objective", objective, "--steps", str(steps), "--seed", str(seed),
            "--global-batch-size", str(self._steps.batch),
            "--token-budget", str(scale.token_budget), "--lr", f"{lr:g}",
            "--warmup-steps", str(min(50, steps // 10)), "--dtype", scale.dtype, *extra,
        )  # fmt: skip
        starts = (start,) if isinstance(start, Path) else ()
        saved = run / "checkpoints" / f"step-{steps:08d}" / "COMPLETE"
        yield Job(saved, train, needs=(store / "seal.json", *starts, *needs), resumes=run)
        yield Job(model, ("export", str(run), str(model)), needs=(saved,))

    def predicted(self, model: Path, part: str, out: Path) -> Job:
        data = self._data / f"{part}.jsonl"
        words = (
            "predict", "--model", str(model), "--data", str(data), "--out", str(out),
            "--references-column", "answers", "--batch-size", str(self._scale.predict_batch),
            "--max-new-tokens", str(self._pool.max_new_tokens),
        )  # fmt: skip
        return Job(out, words, needs=(self._parts, model))

"""Every command of the reproduction, as data: what it needs, what it makes, and in which order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pools import POOLS
from scales import CONDITIONS, PRIMARY, RULE_ARMS, SECONDARY, TEXT_ARMS, Scale, Steps

HERE = Path(__file__).parent
ROUNDS = (3, 5, 6, 7, 8, 9)
"""Seeds after which what has fewer catches up: a stop leaves arms that can be compared."""


@dataclass(frozen=True)
class Job:
    """A command line: words after `caskd`, or a script of this folder."""

    makes: Path
    """There when the job is done, and not before."""
    words: tuple[str, ...]
    needs: tuple[Path, ...] = ()
    script: bool = False
    resumes: Path | None = None
    """Run folder of a training, which `--resume` continues."""


@dataclass(frozen=True)
class Recipe:
    """What is run, on which data, and with which models. Its paths are relative to one folder."""

    sources: Path
    scale: Scale
    teacher: str | None = None
    student: str | None = None

    def plan(self) -> dict[str, dict[str, Any]]:
        """The arms and seeds of every pool and condition, as plan.json holds them."""
        primary = list(range(self.scale.primary_seeds))
        secondary = list(range(self.scale.secondary_seeds))
        others = dict.fromkeys(CONDITIONS, dict.fromkeys(PRIMARY, primary))
        others["clean"] = others["clean"] | dict.fromkeys(SECONDARY, secondary)
        text = {"clean": dict.fromkeys(TEXT_ARMS, secondary)}
        return {
            pool: {"conditions": text if POOLS[pool].is_text else others}
            for pool in self.scale.pools
        }

    def jobs(self) -> Iterator[Job]:
        """All of them, in the order in which they are wanted."""
        pools = [_PoolJobs(self, pool, steps) for pool, steps in self.scale.pools.items()]
        labelled = [of_pool for of_pool in pools if not of_pool.is_text]
        for of_pool in pools:
            yield from of_pool.data()
        ends = [end for end in ROUNDS if end < self.scale.primary_seeds]
        for start, end in pairwise([0, *ends, self.scale.primary_seeds]):
            yield from self._round(labelled, start, end)
            for of_pool in pools if start == 0 else ():
                if of_pool.is_text:
                    yield from of_pool.captured("clean")
                    for seed in range(self.scale.secondary_seeds):
                        yield from of_pool.pretrained(seed)
                        for arm in TEXT_ARMS:
                            yield from of_pool.arm("clean", arm, seed)

    def _round(self, pools: "Sequence[_PoolJobs]", start: int, end: int) -> Iterator[Job]:
        """Some more seeds of every arm, by condition."""
        for condition in CONDITIONS:
            for of_pool in pools if start == 0 else ():
                yield from of_pool.captured(condition)
            for seed in range(start, end):
                for of_pool in pools:
                    if condition == next(iter(CONDITIONS)):
                        yield from of_pool.pretrained(seed)
                    for arm in PRIMARY:
                        yield from of_pool.arm(condition, arm, seed)
        for seed in range(start, min(end, self.scale.secondary_seeds)):
            for arm in SECONDARY:
                for of_pool in pools:
                    yield from of_pool.arm("clean", arm, seed)


class _PoolJobs:
    """The jobs of one pool, by stage."""

    def __init__(self, recipe: Recipe, name: str, steps: Steps) -> None:
        self._recipe, self._scale, self._steps = recipe, recipe.scale, steps
        self._name, self._pool = name, POOLS[name]
        self.is_text = self._pool.is_text
        self._root = Path(name)
        self._teachers: set[str] = set()
        self._data = self._root / "data"

    def data(self) -> Iterator[Job]:
        """The parts, and the models to start from."""
        words = ("prepare_data.py", str(self._recipe.sources), str(self._data))
        yield Job(self._data / "test.jsonl", (*words, "--pool", self._name), script=True)
        for name, given, shape in (
            ("teacher-init", self._recipe.teacher, self._scale.teacher_shape),
            ("student-init-0", self._recipe.student, self._scale.student_shape),
        ):
            if given is None and shape is not None:
                yield self._from_scratch(name, shape, seed=0)
        yield self._text_store("pretrain", self._root / "pretrain-text")

    def captured(self, condition: str) -> Iterator[Job]:
        """The teacher's outputs on the student's part, which it was not trained on."""
        suffix, teacher = CONDITIONS[condition]
        yield from self._teacher(teacher)
        store = self._root / condition / "store"
        yield self._captured(self._model(teacher), f"student{suffix}", store)

    def _teacher(self, name: str) -> Iterator[Job]:
        """A teacher trained on its own part, and its answers to the test set; once."""
        if name in self._teachers:
            return
        self._teachers.add(name)
        suffix = "" if name == "clean" else f"-{name}"
        text, model = self._root / f"teacher-{name}-text", self._model(name)
        start = self._recipe.teacher or self._root / "teacher-init"
        yield self._text_store(f"teacher{suffix}", text)
        run = self._root / f"teacher-{name}-run"
        yield from self._trained(
            text, start, run, model, "xent", self._steps.teacher, self._scale.teacher_lr, seed=0
        )
        if self.is_text:
            yield self._captured(model, "test", self._root / "test-store")
            return
        for part in ("test", "calibration"):
            yield self._predicted(model, part, self._root / f"teacher-{name}-{part}.parquet")

    def pretrained(self, seed: int) -> Iterator[Job]:
        """The student from which every arm of a seed branches."""
        text = self._root / "pretrain-text"
        start: Path | str = self._recipe.student or self._root / f"student-init-{seed}"
        if isinstance(start, Path) and seed and self._scale.student_shape is not None:
            yield self._from_scratch(start.name, self._scale.student_shape, seed)
        yield from self._trained(
            text, start, self._root / f"pretrained-{seed}-run",
            self._root / f"pretrained-{seed}", "xent", self._steps.pretrain,
            self._scale.pretrain_lr, seed,
        )  # fmt: skip

    def arm(self, condition: str, arm: str, seed: int) -> Iterator[Job]:
        """One student: trained, exported, asked."""
        folder = self._root / condition / f"{arm}-{seed}"
        extra: tuple[str, ...] = ()
        needs: tuple[Path, ...] = ()
        if arm.startswith("random"):
            twin = self._root / condition / f"{arm.replace('random', 'cat')}-{seed}"
            extra, needs = ("--keep-fraction-from", str(twin / "run")), (twin / "student",)
        model = folder / "student"
        yield from self._trained(
            self._root / condition / "store", self._root / f"pretrained-{seed}",
            folder / "run", model, arm, self._steps.arm, self._scale.arm_lr, seed, extra, needs,
        )  # fmt: skip
        if self.is_text:
            return
        yield self._predicted(model, "test", folder / "test.parquet")
        if arm in RULE_ARMS and condition == "clean" and seed < self._scale.secondary_seeds:
            yield self._predicted(model, "calibration", folder / "calibration.parquet")

    def _model(self, teacher: str) -> Path:
        return self._root / f"teacher-{teacher}"

    def _captured(self, model: Path, part: str, store: Path) -> Job:
        words = ("precompute", "--teacher", str(model), "--store", str(store))
        kept = ("--top-k", str(self._scale.top_k))
        return Job(store / "seal.json", (*words, *kept, *self._text(part)), needs=(model,))

    def _text(self, part: str) -> tuple[str, ...]:
        """How a part is read, by every store alike."""
        words = ("--data", str(self._data / f"{part}.jsonl"))
        words += ("--shard-rows", str(self._scale.shard_rows))
        if self.is_text:
            words += ("--max-length", "256", "--on-long", "truncate")
        return words if self._pool.eos else (*words, "--no-eos")

    def _from_scratch(self, name: str, shape: tuple[int, int], seed: int) -> Job:
        data, out = self._data / "teacher.jsonl", self._root / name
        size = ("--hidden-size", str(shape[0]), "--layers", str(shape[1]), "--seed", str(seed))
        words = ("make_models.py", str(data), str(out), *size)
        return Job(out, words, needs=(self._data / "test.jsonl",), script=True)

    def _text_store(self, part: str, store: Path) -> Job:
        """A store for plain cross-entropy, which reads its tokens only: any model may fill it."""
        student = self._recipe.student or str(self._root / "student-init-0")
        words = ("precompute", "--teacher", student, "--store", str(store), "--top-k", "1")
        needs = (self._data / "test.jsonl", Path(student)) if self._recipe.student is None else ()
        return Job(store / "seal.json", (*words, *self._text(part)), needs=needs)

    def _trained(
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

    def _predicted(self, model: Path, part: str, out: Path) -> Job:
        data = self._data / f"{part}.jsonl"
        words = (
            "predict", "--model", str(model), "--data", str(data), "--out", str(out),
            "--references-column", "answers", "--batch-size", str(self._scale.predict_batch),
            "--max-new-tokens", str(self._pool.max_new_tokens),
        )  # fmt: skip
        return Job(out, words, needs=(model,))

"""What is measured of each finished run, from the predictions alone."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import reproduction  # noqa: F401
from arms import CONTROL, RULES
from better_jobs import WEIGHTS
from better_plan import (
    CONDITIONS,
    DEVELOPMENT,
    FRESH,
    PRETRAINED,
    PRETRAINED_POOL,
    SCREENED_POOLS,
    SCREENING_PART,
    TEST_PART,
    Run,
)
from report_read import Row, read_lines
from scales import CONDITIONS as TEACHERS

from caskd.eval.answers import Ragged, read_predictions
from caskd.eval.curves import deferral_curve

FloatArray = npt.NDArray[np.float64]
SCREENING, CONFIRMATION, PRETRAINED_STAGE = "screening", "confirmation", "pretrained"


@dataclass(frozen=True)
class Stage:
    """Which runs a stage has."""

    name: str
    pools: Sequence[str]
    conditions: Sequence[str]
    seeds: Sequence[int]
    part: str


STAGES = (
    Stage(SCREENING, SCREENED_POOLS, CONDITIONS, DEVELOPMENT, SCREENING_PART),
    Stage(CONFIRMATION, SCREENED_POOLS, CONDITIONS, FRESH, TEST_PART),
    Stage(PRETRAINED_STAGE, (PRETRAINED_POOL,), CONDITIONS[:1], PRETRAINED, TEST_PART),
)


@dataclass(frozen=True, eq=False)
class Cascade:
    """The answers of a small model, joined with those of the large one."""

    score: FloatArray
    """[E] deferral score, the rule `average`."""
    small: FloatArray
    """[E] quality of the small model's answers."""
    large: FloatArray
    questions: list[str]
    """[E] digest of each question."""


@cache
def cascade(small: Path, large: Path) -> Cascade:
    """Read two files of predictions.

    Raises:
        SystemExit: they answer different examples.
    """
    ours, theirs = read_predictions(str(small)), read_predictions(str(large))
    if ours.strings("example_id") != theirs.strings("example_id"):
        raise SystemExit(f"{small} and {large} answer different examples")
    logprobs = Ragged.of_column(ours.columns.column("token_logprobs"))
    return Cascade(
        score=-logprobs.mean(),
        small=ours.numbers("quality"),
        large=theirs.numbers("quality"),
        questions=ours.strings("question_digest"),
    )


def files(work: Path, stage: Stage) -> Iterator[tuple[str, str, str, int, Path, Path]]:
    """Pool, condition, arm, seed, predictions and the large model's, of every finished run."""
    for pool in stage.pools:
        for condition in stage.conditions:
            large = work / pool / f"teacher-{TEACHERS[condition][1]}-{stage.part}.parquet"
            for small in sorted((work / pool / condition).glob(f"*-[0-9]*/{stage.part}.parquet")):
                arm, _, seed = small.parent.name.rpartition("-")
                if int(seed) in stage.seeds:
                    yield pool, condition, arm, int(seed), small, large


def run_rows(work: Path) -> list[Row]:
    """One line for every finished run."""
    seconds = _seconds(work)
    return [
        {
            "stage": stage.name, "pool": pool, "condition": condition, "arm": arm, "seed": seed,
            **figures(cascade(small, large)), "mean_weight": _mean_weight(small.parent, arm),
            "seconds": round(seconds[small.parent.relative_to(work).as_posix()], 1),
        }
        for stage in STAGES
        for pool, condition, arm, seed, small, large in files(work, stage)
    ]  # fmt: skip


def figures(answers: Cascade) -> Row:
    """What is measured of a cascade."""
    curve = deferral_curve(answers.score, answers.small, answers.large)
    return {
        "num_examples": answers.small.size, "quality_small": float(answers.small.mean()),
        "quality_large": float(answers.large.mean()), "audc": curve.audc,
        "audc_over_random": curve.audc - curve.random_audc,
    }  # fmt: skip


def runs_of(rows: Sequence[Row], stage: str) -> list[Run]:
    """The runs of a stage, as plan.md's choice reads them."""
    names = ("pool", "condition", "arm", "seed", "audc", "audc_over_random")
    return [Run(*(row[name] for name in names)) for row in rows if row["stage"] == stage]


def _mean_weight(folder: Path, arm: str) -> float | None:
    """Mean over the rows of all steps; for a mask, of the fractions that it kept."""
    if arm.removeprefix(CONTROL) in RULES:
        with np.load(folder / WEIGHTS) as file:
            return float(file["weights"].mean())
    metrics = read_lines(folder / "run" / "metrics.jsonl")
    return float(np.mean([line["keep_fraction"] for line in metrics]))


def _seconds(work: Path) -> dict[str, float]:
    """Folder of a run -> seconds of its commands."""
    found: dict[str, float] = defaultdict(float)
    path = work / "seconds.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        for parent in Path(record["job"]).parents:
            found[parent.as_posix()] += record["seconds"]
    return found

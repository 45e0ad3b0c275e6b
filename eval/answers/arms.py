"""Arms: an arm is one way to train a small model, with predictions of each training seed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from caskd.eval.answers.predictions_file import Predictions, read_predictions
from caskd.store.io import strip_control


@dataclass(frozen=True)
class Run:
    """Predictions of one small model, with its label and its arm."""

    label: str
    arm: str
    predictions: Predictions


def split_name(value: str) -> tuple[str | None, str]:
    """Name and file of `--small NAME=FILE`; the name is None for a file alone."""
    name, equals, file = value.partition("=")
    if not equals or not name or Path(value).exists():
        return None, value
    return name, file


def read_runs(values: Sequence[str]) -> list[Run]:
    """Open every `--small`; files with the same NAME are the seeds of one arm, in order.

    A file without a NAME is its own arm. Its name is the model's, with the file's if several models
    share a name.

    Raises:
        UsageError: a file is missing or not a predictions file.
    """
    named = [split_name(value) for value in values]
    predictions = [read_predictions(file) for _, file in named]
    models = [strip_control(answers.model_name) for answers in predictions]
    arms = []
    for (name, _), model, answers in zip(named, models, predictions, strict=True):
        file = strip_control(answers.source).removesuffix(".parquet")
        alone = models.count(model) == 1
        arms.append(strip_control(name) if name else model if alone else f"{model} ({file})")
    labeled = label_seeds(arms, {strip_control(name) for name, _ in named if name})
    return [Run(*names, answers) for names, answers in zip(labeled, predictions, strict=True)]


def label_seeds(names: Sequence[str], given: Collection[str]) -> list[tuple[str, str]]:
    """Label and arm of each small model.

    Args:
        names: names of the arms, one for each small model.
        given: names that the user set; equal ones are seeds of one arm.
    """
    # The same unnamed file twice is not a second seed: a number distinguishes the two.
    arms = [
        f"{name} #{number}" if name not in given and names.count(name) > 1 else name
        for number, name in enumerate(names, 1)
    ]
    seeds = [arms[:index].count(arm) for index, arm in enumerate(arms)]
    return [
        (f"{arm} seed {seed}" if arms.count(arm) > 1 else arm, arm)
        for arm, seed in zip(arms, seeds, strict=True)
    ]


def seeds_of(arms: Sequence[str]) -> dict[str, list[int]]:
    """Indices of the seeds of each arm, in the order given."""
    indices = sorted(range(len(arms)), key=lambda index: (arms.index(arms[index]), index))
    return {arm: list(group) for arm, group in groupby(indices, key=lambda index: arms[index])}

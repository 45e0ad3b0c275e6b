"""What is compared: an arm is one way to train a small model, with predictions for each seed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from caskd.eval.answers.predictions_file import Predictions, read_predictions
from caskd.store.io import plain


@dataclass(frozen=True)
class Run:
    """One small model: its predictions, and the arm that it is a seed of."""

    label: str
    arm: str
    predictions: Predictions


def split_name(value: str) -> tuple[str | None, str]:
    """Name and file of `--small NAME=FILE`; the name is None where only a file is given."""
    name, equals, file = value.partition("=")
    if not equals or not name or Path(value).exists():
        return None, value
    return name, file


def read_runs(values: Sequence[str]) -> list[Run]:
    """Open every `--small`; files of one NAME are the seeds of one arm, in the order given.

    Without a NAME a file is an arm of its own, called after its model, and after its file too where
    models share a name.

    Raises:
        UsageError: a file is missing or not a predictions file.
    """
    named = [split_name(value) for value in values]
    predictions = [read_predictions(file) for _, file in named]
    models = [plain(one.model_name) for one in predictions]
    arms = []
    for (name, _), model, one in zip(named, models, predictions, strict=True):
        file = plain(one.source).removesuffix(".parquet")
        alone = models.count(model) == 1
        arms.append(plain(name) if name else model if alone else f"{model} ({file})")
    labeled = label_seeds(arms, {plain(name) for name, _ in named if name})
    return [Run(*names, one) for names, one in zip(labeled, predictions, strict=True)]


def label_seeds(names: Sequence[str], given: Collection[str]) -> list[tuple[str, str]]:
    """Label and arm of each small model.

    Args:
        names: of the arms, one for each small model.
        given: the names that the user gave: those that stand there several times are seeds.
    """
    # The same unnamed file twice is no second seed: it is told apart by its number.
    arms = [
        f"{name} #{number}" if name not in given and names.count(name) > 1 else name
        for number, name in enumerate(names, 1)
    ]
    indices = [arms[:index].count(arm) for index, arm in enumerate(arms)]
    return [
        (f"{arm} seed {index}" if arms.count(arm) > 1 else arm, arm)
        for arm, index in zip(arms, indices, strict=True)
    ]


def seeds_of(arms: Sequence[str]) -> dict[str, list[int]]:
    """For each arm the places of its seeds, in the order given."""
    indices = sorted(range(len(arms)), key=lambda index: (arms.index(arms[index]), index))
    return {arm: list(group) for arm, group in groupby(indices, key=lambda index: arms[index])}

"""Stored answers under another metric."""

import pytest

from caskd.eval import tasks
from caskd.eval.answers import read_predictions
from caskd.eval.config import EvalConfig
from caskd.eval.study.experiment import read_experiment
from caskd.eval.study.rescoring import rescore
from caskd.store.errors import UsageError

STORED = {"sum": {"metric": "exact_match", "normalize": "squad"},
          "sort": {"metric": "chrf", "normalize": None}}  # fmt: skip


@pytest.fixture
def stored(predictions_file):
    """Four answers of the tasks sort, sum, sort, sum."""
    return predictions_file(
        "a", [0.25, 0.5, 0.75, 1.0], metadata={"tasks": STORED},
        text=["a b", "u v", "b", "B."], reference=["a b", "u", "c", "b"],
        references=[None, None, ["c", "b"], None], options=[None, None, None, ["a", "b"]],
    )  # fmt: skip


def test_only_the_task_that_is_named_is_scored_anew(stored):
    found = rescore(read_predictions(stored), ["sum=token_f1"])
    assert found.numbers("quality").tolist() == pytest.approx([0.25, 2 / 3, 0.75, 1.0])
    assert found.metadata["quality"] == "chrf (sort); token_f1 (sum)"


def test_a_metric_alone_is_that_of_all_others(stored):
    found = rescore(read_predictions(stored), ["exact_match", "sum=accuracy"])
    assert found.numbers("quality").tolist() == [1.0, 0.0, 1.0, 1.0]
    assert found.metadata["quality"] == "accuracy (sum); exact_match (sort)"


def test_without_a_flag_nothing_changes(stored):
    read = read_predictions(stored)
    assert rescore(read, []) is read
    same = rescore(read, ["sort=chrf"])
    assert same.metadata["quality"] == tasks.describe(
        {"sort": tasks.Task("chrf"), "sum": tasks.Task("exact_match", normalize="squad")}
    )


def test_every_file_of_an_experiment_is_scored_anew(predictions_file):
    text = ["x", "y", "x", "x"]
    small = predictions_file("s", [0.0] * 4, text=text)
    large = predictions_file("l", [0.0] * 4, model="large")
    config = EvalConfig(small=(small,), large=large, out="", task_metric=("exact_match",))
    pair = read_experiment(config, config.small).tests[0]
    assert pair.small_quality.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert pair.large_quality.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("rouge", "metric 'rouge'"),
        ("product=chrf", "'product'; expected one of 'sort', 'sum'"),
    ],
)
def test_mistakes_of_users(stored, flag, message):
    with pytest.raises(UsageError, match=message):
        rescore(read_predictions(stored), [flag])

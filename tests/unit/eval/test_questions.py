"""Repeated questions are one unit: asking each ten times over makes no interval narrower."""

import numpy as np
import pytest
from scipy.stats import binomtest

from caskd.eval.answers import question_names, question_units
from caskd.eval.config import EvalConfig
from caskd.eval.next_token.teacher_forcing import _first_asked
from caskd.eval.stats import (
    area_replicates,
    mcnemar,
    mean_replicates,
    pooled_replicates,
    replicates_by_task,
)
from caskd.eval.stats.intervals import flip_p_value
from caskd.eval.study import analyze
from caskd.eval.study.contrast import seed_warnings
from caskd.store import StoreBatch

COUNT, TIMES = 60, 10


@pytest.fixture(scope="module")
def asked():
    """Score, small and large quality of each question."""
    generator = np.random.default_rng(5)
    score = generator.normal(size=COUNT)
    small = (generator.uniform(size=COUNT) < 0.5).astype(float)
    large = (generator.uniform(size=COUNT) < 0.8).astype(float)
    return score, small, large


def many(array):
    return np.repeat(array, TIMES)


UNITS = many(np.arange(COUNT))


def test_units_are_equal_digests():
    assert question_units(["b", "a", "c"]) is None
    assert question_units(["b", "a", "b"]).tolist() == [1, 0, 1]
    assert question_units(["", ""]) is None  # without digests each example is its own unit
    assert len(set(question_units(["", "a", "", "a"]).tolist())) == 3
    assert question_names(["d", ""], ["0", "1"]) == ["d", "example 1"]


def test_every_replicate_is_that_of_the_questions_asked_once(asked):
    score, small, large = asked
    once, often = [(score, small)], [(many(score), many(small))]
    np.testing.assert_allclose(
        area_replicates(often, many(large), units=UNITS), area_replicates(once, large), atol=1e-12
    )
    np.testing.assert_allclose(
        mean_replicates(np.stack([many(small)]), units=UNITS), mean_replicates(np.stack([small]))
    )
    tasks = np.arange(COUNT) < 25
    pairs = [
        (
            replicates_by_task(often, many(large), [np.flatnonzero(many(tasks))], units=UNITS)[0],
            replicates_by_task(once, large, [np.flatnonzero(tasks)])[0],
            ("area", "small", "large"),
        ),
        (
            pooled_replicates(often, many(large), 0.6, units=UNITS),
            pooled_replicates(once, large, 0.6),
            ("rate", "small", "large"),
        ),
    ]
    for found, expected, names in pairs:
        for name in names:
            np.testing.assert_allclose(
                getattr(found, name), getattr(expected, name), atol=1e-12, err_msg=name
            )


def test_above_the_exact_limit_too(asked, monkeypatch):
    monkeypatch.setattr("caskd.eval.stats.bootstrap.EXACT_UP_TO", 100)
    score, small, large = asked
    wide = area_replicates([(many(score), many(small))], many(large), units=UNITS).std()
    exact = area_replicates([(score, small)], large).std()
    assert wide == pytest.approx(exact, rel=0.1)
    assert mean_replicates(np.stack([many(small)]), units=UNITS).std() == pytest.approx(
        mean_replicates(np.stack([small])).std(), rel=0.1
    )


def test_mcnemar_over_questions(asked):
    _, small, large = asked
    once, often = mcnemar(large, small), mcnemar(many(large), many(small), UNITS)
    assert often.p_value == pytest.approx(once.p_value, rel=1e-9)
    assert often.only_first == TIMES * once.only_first
    assert mcnemar(many(large), many(small)).p_value < often.p_value / 100


@pytest.mark.parametrize(("ones", "minus"), [(7, 2), (5, 5), (30, 11), (1, 0)])
def test_the_flip_test_of_equal_sizes_is_binomial(ones, minus):
    net = np.repeat([1, -1, 0], [ones, minus, 4])
    assert flip_p_value(net) == pytest.approx(binomtest(ones, ones + minus).pvalue)


def test_the_flip_test_by_hand():
    # 3 +- 1: of the sums 4, 2, -2, -4 those as far out as 2 are all, as 4 are half.
    assert flip_p_value(np.array([3, -1])) == pytest.approx(1.0)
    assert flip_p_value(np.array([3, 1])) == pytest.approx(0.5)
    assert flip_p_value(np.array([0, 0])) == 1.0


def test_the_whole_study_counts_questions(predictions_file, tmp_path, asked):
    score, small, large = asked

    def study(times):
        shared = {
            "example_id": [f"e{i}" for i in range(COUNT * times)],
            "question_digest": [f"q{i:03d}" for i in np.repeat(np.arange(COUNT), times)],
            "task": ["one"] * (COUNT * times),
        }

        def file(name, quality, score):
            values = np.repeat(-np.abs(score), times)[:, None].tolist()
            return predictions_file(
                f"{name}{times}", np.repeat(quality, times), token_logprobs=values, **shared
            )

        config = EvalConfig(
            small=(f"a={file('a', small, score)}", f"b={file('b', small[::-1], score[::-1])}"),
            large=file("large", large, score), out=str(tmp_path / "r"), rule=("average", "sum"),
            operating_point="deferral_rate<=0.5",
        )  # fmt: skip
        return analyze(config)

    once, often = study(1), study(TIMES)
    assert (once.num_questions, once.resampled) == (COUNT, "examples")
    assert (often.num_questions, often.resampled) == (COUNT, "questions")
    for ours, theirs in zip(
        [*once.comparisons.between_arms, *once.comparisons.more],
        [*often.comparisons.between_arms, *often.comparisons.more],
        strict=True,
    ):
        assert ours.difference.low == pytest.approx(theirs.difference.low, abs=1e-9)
        assert ours.difference.high == pytest.approx(theirs.difference.high, abs=1e-9)
    assert once.point.quality.low == pytest.approx(often.point.quality.low)
    assert once.point.against_large.p_value == pytest.approx(often.point.against_large.p_value)
    [ours], [theirs] = once.comparisons.at_one_rate, often.comparisons.at_one_rate
    assert ours[2].p_value == pytest.approx(theirs[2].p_value)


def test_examples_of_a_store_with_one_prompt_are_one_question():
    def batch(*examples):
        tokens, response = zip(*examples, strict=True)
        offsets = np.cumsum([0, *map(len, tokens)])
        none = np.zeros(0, np.int64)
        return StoreBatch(
            np.arange(len(tokens)) + 4, np.concatenate(tokens).astype(np.uint32),
            np.concatenate(response).astype(np.uint8), offsets, none, none, none,
        )  # fmt: skip

    asked, other = ([1, 5, 6], [0, 0, 1]), ([1, 5, 7, 8], [0, 0, 1, 1])
    longer, plain = ([1, 5, 6, 9], [0, 0, 0, 1]), ([1, 6, 6], [0, 1, 1])
    found = _first_asked(batch(asked, longer, other, plain, plain, asked))
    assert found.tolist() == [4, 5, 4, 7, 8, 4]  # plain text has no question: each its own


def test_one_seed_against_three_warns():
    [warning] = seed_warnings(["a", "b", "b", "b", "b", "b"])
    assert warning.startswith("One seed of a:")
    assert [line[:9] for line in seed_warnings(["a", "b", "b", "b", "c", "c"])] == [
        "One seed ", "b and c: ",
    ]  # fmt: skip
    assert not list(seed_warnings(["a"]))
    assert not list(seed_warnings([*"aaaaa", *"bbbbb"]))

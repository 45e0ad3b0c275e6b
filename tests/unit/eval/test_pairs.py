"""Joining a small and a large model, and the costs and differences on top."""

import numpy as np
import pytest
from helpers.paired import paired_difference

from caskd.eval import deferral_curve
from caskd.eval.curves import token_cost
from caskd.eval.curves.cost import example_cost
from caskd.eval.rules import Pair
from caskd.store.errors import CaskdError, IdentityError, UsageError

SMALL, LARGE = [0, 1, 0, 1], [1, 1, 0, 0]


def test_joined_by_id_whatever_the_order(predictions_file):
    straight = predictions_file("small", SMALL)
    mixed = predictions_file("mixed", SMALL, order=[2, 0, 3, 1])
    large = predictions_file("large", LARGE)
    joined = Pair.from_files(mixed, large)
    assert joined.small_quality.tolist() == SMALL
    assert joined.large_quality.tolist() == LARGE
    assert joined.small.strings("example_id") == ["e0", "e1", "e2", "e3"]
    assert len(Pair.from_files(straight, large)) == 4


def test_the_curve_is_that_of_its_score(predictions_file):
    joined = Pair.from_files(predictions_file("s", SMALL), predictions_file("l", LARGE))
    logprobs = joined.small.token_logprobs()
    assert joined.score().tolist() == [-float(np.float64(one).mean()) for one in logprobs]
    expected = deferral_curve(joined.score(), SMALL, LARGE)
    assert joined.curve().quality.tolist() == expected.quality.tolist()
    assert joined.curve().audc == expected.audc


def test_one_task(predictions_file):
    joined = Pair.from_files(predictions_file("s", SMALL), predictions_file("l", LARGE))
    curve = joined.curve(task="sum")
    assert curve.num_examples == 2
    assert (curve.quality_small, curve.quality_large) == (1.0, 0.5)
    with pytest.raises(UsageError):
        joined.curve(task="nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qualities": [0, 1, 0]}, r"1 only in l\.parquet \(first 'e3'\)"),
        ({"qualities": [0, 1, 0, 1, 1]}, r"1 only in s\.parquet \(first 'e4'\)"),
        ({"example_id": ["e0", "e1", "e2", "z"]}, r"1 only in s.*'z'.*1 only in l.*'e3'"),
        ({"question_digest": ["q0", "q1", "other", "q3"]}, r"1 examples \(first 'e2'\).*question"),
        ({"reference": ["x", "y", "y", "x"]}, r"2 examples \(first 'e1'\).*reference"),
        ({"prompt_digest": ["p0", "p1", "p2", "other"]}, "another prompt_digest"),
        ({"metadata": {"quality": "bleu"}}, "measures bleu"),
    ],
)
def test_predictions_that_do_not_belong_together(predictions_file, changes, message):
    arguments = {"qualities": SMALL, **changes}
    small, large = predictions_file("s", **arguments), predictions_file("l", LARGE)
    with pytest.raises(IdentityError, match=message) as caught:
        Pair.from_files(small, large)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_models_with_unlike_tokenizers_share_the_question_not_the_tokens(predictions_file):
    other = {"name": "m", "num_parameters": 3, "tokenizer_digest": "another"}
    small = predictions_file(
        "s", SMALL, prompt_digest=["a", "b", "c", "d"], metadata={"model": other}
    )
    assert len(Pair.from_files(small, predictions_file("l", LARGE))) == 4


def test_every_mistake_is_the_users_to_mend(tmp_path):
    with pytest.raises(CaskdError):
        Pair.from_files(str(tmp_path / "a"), str(tmp_path / "b"))


def test_costs_by_hand():
    rate = np.array([0.0, 0.5, 1.0])
    assert token_cost(rate, 10, 100).tolist() == [20.0, 120.0, 220.0]
    score = np.array([0.0, 5.0])  # the second example goes first
    cost = example_cost(score, 10, np.array([1.0, 3.0]), 100, np.array([10.0, 20.0]))
    assert cost.tolist() == [40.0, 40.0 + 200 * 10.0, 40.0 + 200 * 15.0]


def synthetic(seed, skill, count=400):
    generator = np.random.default_rng(seed)
    hard = np.random.default_rng(0).uniform(size=count)
    small = (generator.uniform(size=count) < skill * (1 - hard)).astype(float)
    return hard + generator.normal(size=count) * 0.1, small


def test_a_real_difference_is_shown_and_none_is_not():
    large = np.ones(400)
    good, bad = synthetic(1, 1.0), synthetic(2, 0.4)
    difference = paired_difference(good, bad, large, num_draws=200)
    areas = [deferral_curve(*one, large).audc for one in (good, bad)]
    assert difference.value == areas[0] - areas[1]
    assert difference.low < difference.value < difference.high
    assert difference.verdict == "the first is better"
    swapped = paired_difference(bad, good, large, num_draws=200)
    assert (swapped.low, swapped.high) == pytest.approx((-difference.high, -difference.low))
    assert swapped.verdict == "the second is better"
    same = paired_difference(good, good, large, num_draws=200)
    assert (same.low, same.high, same.verdict) == (0.0, 0.0, "no difference shown")
    alike = paired_difference(good, synthetic(3, 1.0), large, num_draws=200)
    assert alike.low < 0.0 < alike.high
    assert alike.verdict == "no difference shown"


def test_the_interval_is_a_function_of_the_seed(monkeypatch):
    large, first, second = np.ones(400), synthetic(1, 1.0), synthetic(2, 0.9)
    once = paired_difference(first, second, large, num_draws=100, seed=5)
    assert paired_difference(first, second, large, num_draws=100, seed=6) != once
    monkeypatch.setattr(
        "caskd.eval.stats.bootstrap._DRAWS_BYTES", 8 * 400 * 7
    )  # seven draws a tile
    assert paired_difference(first, second, large, num_draws=100, seed=5) == once


def test_unequal_cascades_have_no_difference():
    with pytest.raises(UsageError, match="got 3 and 400 examples"):
        paired_difference(synthetic(1, 1.0), (np.ones(3), np.ones(3)), np.ones(400))

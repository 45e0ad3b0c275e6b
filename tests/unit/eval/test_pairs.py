"""Joining a small and a large model, and the costs and differences on top."""

import numpy as np
import pytest
from helpers.cascades import join_files

from caskd.eval import deferral_curve
from caskd.eval.curves import shares, token_cost
from caskd.eval.stats import area_replicates
from caskd.store.errors import CaskdError, IdentityError, UsageError

SMALL, LARGE = [0, 1, 0, 1], [1, 1, 0, 0]


def test_joined_by_id_whatever_the_order(predictions_file):
    straight = predictions_file("small", SMALL)
    mixed = predictions_file("mixed", SMALL, order=[2, 0, 3, 1])
    large = predictions_file("large", LARGE)
    joined = join_files(mixed, large)
    assert joined.small_quality.tolist() == SMALL
    assert joined.large_quality.tolist() == LARGE
    assert joined.small.strings("example_id") == ["e0", "e1", "e2", "e3"]
    assert len(join_files(straight, large)) == 4


def test_the_score_is_that_of_the_small_models_answers(predictions_file):
    joined = join_files(predictions_file("s", SMALL), predictions_file("l", LARGE))
    logprobs = joined.small.columns.column("token_logprobs").to_pylist()
    assert joined.score("average").tolist() == [-np.mean(row) for row in logprobs]
    with pytest.raises(UsageError, match="rule 'mean'"):
        joined.score("mean")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qualities": [0, 1, 0]}, r"1 only in l\.parquet \(first 'e3'\)"),
        ({"qualities": [0, 1, 0, 1, 1]}, r"1 only in s\.parquet \(first 'e4'\)"),
        ({"example_id": ["e0", "e1", "e2", "z"]}, r"1 only in s.*'z'.*1 only in l.*'e3'"),
        ({"question_digest": ["q0", "q1", "other", "q3"]}, r"1 examples \(first 'e2'\).*question"),
        ({"reference": ["x", "y", "y", "x"]}, r"2 examples \(first 'e1'\).*reference"),
        (
            {"prompt_digest": ["p0", "p1", "p2", "other"]},
            r"1 examples \(first 'e3'\).*prompt_digest.*--data",
        ),
        (
            {"metadata": {"quality": "bleu"}},
            "s.parquet and l.parquet.*bleu.*exact_match.*rerun caskd predict",
        ),
        ({"metadata": {"text": {"rule": 2}}}, r"s\.parquet has text rule 2, .* has 1"),
    ],
)
def test_predictions_that_do_not_belong_together(predictions_file, changes, message):
    arguments = {"qualities": SMALL, **changes}
    small, large = predictions_file("s", **arguments), predictions_file("l", LARGE)
    with pytest.raises(IdentityError, match=message) as caught:
        join_files(small, large)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_models_with_unlike_tokenizers_share_the_question_not_the_tokens(predictions_file):
    other = {"name": "m", "num_parameters": 3, "tokenizer_digest": "another"}
    small = predictions_file(
        "s", SMALL, prompt_digest=["a", "b", "c", "d"], metadata={"model": other}
    )
    assert len(join_files(small, predictions_file("l", LARGE))) == 4


def test_every_mistake_is_a_users_error(tmp_path):
    with pytest.raises(CaskdError):
        join_files(str(tmp_path / "a"), str(tmp_path / "b"))


def test_costs_by_hand():
    rate = np.array([0.0, 0.5, 1.0])
    assert token_cost(rate, 10, 100).tolist() == [20.0, 120.0, 220.0]
    score = np.array([0.0, 5.0])  # the second example goes first
    small, large = 2 * 10 * np.array([1.0, 3.0]), 2 * 100 * np.array([10.0, 20.0])
    cost = shares(small, large).mean(score)
    assert cost.tolist() == [40.0, 40.0 + 200 * 10.0, 40.0 + 200 * 15.0]


def synthetic(seed, skill, count=400):
    generator = np.random.default_rng(seed)
    hard = np.random.default_rng(0).uniform(size=count)
    small = (generator.uniform(size=count) < skill * (1 - hard)).astype(float)
    return hard + generator.normal(size=count) * 0.1, small


def difference(compare_arms, first, second):
    [contrast] = compare_arms({"first": [first], "second": [second]}, np.ones(400))
    return contrast.difference


def test_a_real_difference_is_shown_and_none_is_not(compare_arms):
    good, bad = synthetic(1, 1.0), synthetic(2, 0.4)
    found = difference(compare_arms, good, bad)
    areas = [deferral_curve(*series, np.ones(400)).audc for series in (good, bad)]
    assert found.value == pytest.approx(areas[0] - areas[1], abs=1e-12)
    assert found.low < found.value < found.high
    assert found.verdict == "the first is better"
    swapped = difference(compare_arms, bad, good)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    assert swapped.verdict == "the second is better"
    same = difference(compare_arms, good, good)
    assert (same.low, same.high, same.verdict) == (0.0, 0.0, "no difference shown")
    alike = difference(compare_arms, good, synthetic(3, 1.0))
    assert alike.low < 0.0 < alike.high
    assert alike.verdict == "no difference shown"


def test_replicates_are_a_function_of_the_seed(monkeypatch):
    large, series = np.ones(400), [synthetic(1, 1.0), synthetic(2, 0.9)]
    once = area_replicates(series, large, num_replicates=100, seed=5)
    assert (area_replicates(series, large, num_replicates=100, seed=6) != once).any()
    bytes_of_seven = 8 * 400 * 7
    monkeypatch.setattr("caskd.eval.stats.bootstrap._TILE_BYTES", bytes_of_seven)
    np.testing.assert_array_equal(area_replicates(series, large, num_replicates=100, seed=5), once)


def test_cascades_of_other_examples_are_refused():
    with pytest.raises(UsageError, match="got 3 and 400 examples"):
        area_replicates([synthetic(1, 1.0), (np.ones(3), np.ones(3))], np.ones(400))

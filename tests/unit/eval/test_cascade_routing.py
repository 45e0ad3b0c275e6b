"""Cascade routing: values by hand, and decisions that its formula gives."""

import numpy as np
import pytest
from helpers.outcome_tables import COUNT, LARGE, SCORE, SMALL, measure, rows
from scipy.stats import norm

from caskd.eval.curves import Beliefs, CascadeRouter, expected_best


def test_the_expected_best_is_that_of_a_conditional_normal():
    beliefs = Beliefs(np.array([0.5, 0.7]), np.array([[0.04, 0.02], [0.02, 0.05]]), np.ones(2))
    best = expected_best(beliefs, np.array([[0.3, 9.0], [0.9, 9.0]]), 0b01)
    for example, seen in enumerate((0.3, 0.9)):
        mean = 0.7 + 0.02 / 0.04 * (seen - 0.5)
        deviation = np.sqrt(0.05 - 0.02**2 / 0.04)
        z = (mean - seen) / deviation
        by_hand = seen + (mean - seen) * norm.cdf(z) + deviation * norm.pdf(z)
        assert best[0b11, example] == pytest.approx(by_hand, abs=2e-3)
        assert best[0b01, example] == pytest.approx(seen)
    assert np.isneginf(best[[0b00, 0b10]]).all()


CERTAIN = Beliefs(np.array([0.5, 0.6, 0.9]), np.zeros((3, 3)), np.array([1.0, 2.0, 10.0]))


@pytest.mark.parametrize(
    ("price", "ran", "answerer"),
    [
        (0.0, 0b100, 2),  # 0.9: no other set has a better best, and {2} is cheapest of those
        (0.03, 0b100, 2),  # .9 - .3 = .6 > .6 - .06 = .54 > .5 - .03
        (0.05, 0b010, 1),  # .6 - .1 = .5 > .5 - .05 = .45 > .9 - .5 = .4
        (0.2, 0b001, 0),  # .5 - .2 = .3 > .6 - .4 = .2 > .9 - 2
    ],
)
def test_without_uncertainty_one_model_is_routed_to(price, ran, answerer):
    router = CascadeRouter(CERTAIN, np.array([[0.5, 0.6, 0.9]]))
    assert [found.tolist() for found in router.route(price)] == [[ran], [answerer]]


def test_it_goes_on_after_a_bad_answer_and_returns_the_best_one():
    # Independent estimates: the first is 0 or 1, the second about 0.8.
    beliefs = Beliefs(np.array([0.5, 0.8]), np.diag([0.25, 1e-4]), np.array([1.0, 4.0]))
    estimates = np.array([[0.0, 0.8], [1.0, 0.8], [0.75, 0.7]])
    router = CascadeRouter(beliefs, estimates)
    # Going on is worth .8 - 0 = .8 > 4 x .02, 0 and about .05 < .08.
    ran, answerer = router.route(0.02)
    assert ran.tolist() == [0b11, 0b01, 0b01]
    assert answerer.tolist() == [1, 0, 0]
    ran, answerer = router.route(0.01)  # .05 > 4 x .01; the first answer is still the better one
    assert ran.tolist() == [0b11, 0b01, 0b11]
    assert answerer.tolist() == [1, 0, 0]
    quality = np.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    cost = np.array([[1.0, 4.0], [2.0, 4.0], [3.0, 5.0]])
    spent, gained, shares = router.measure(0.01, quality, cost)
    assert (spent, gained) == (pytest.approx((5 + 2 + 8) / 3), 1.0)
    assert shares.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_beliefs_are_the_moments_of_the_calibration_examples():
    estimates = np.array([[0.0, 1.0], [1.0, 0.5], [0.5, 0.0]])
    beliefs = Beliefs.of(estimates, np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]]))
    assert beliefs.mean.tolist() == [0.5, 0.5]
    assert beliefs.covariance.tolist() == [[0.25, -0.125], [-0.125, 0.25]]
    assert beliefs.cost.tolist() == [3.0, 5.0]
    assert beliefs.lambdas[0] == 0


def chained(tmp_path, *, of_last=True, **options):
    """The chain's summary of a table whose scores are those of `rows`, for all models."""
    table = [
        {**row, "score": SCORE[i % COUNT] + (0.0 if row["model"] == "tiny" else 0.5)}
        for i, row in enumerate(rows())
    ]
    table += [{**row, "model": "mid", "cost": 4.0, "quality": LARGE[i]}
              for i, row in enumerate(table[:COUNT])]  # fmt: skip
    if not of_last:
        table = [{**row, "score": None} if row["model"] == "big" else row for row in table]
    flags = {"small": (), "chain": ("tiny", "mid"), "calibration": 0.5, **options}
    return measure(tmp_path, table, **flags)["chain"]


def test_it_stands_beside_the_chain(tmp_path):
    chain = chained(tmp_path)
    points = chain["cascade_routing"]["points"]
    assert len(points) > 1
    # "mid" has the answers of "big" for less: nothing is ever answered by "big" where cost counts.
    assert all(point["share answered by 3: big"] == 0 for point in points if point["lambda"] > 1)
    for point in points:
        assert sum(v for k, v in point.items() if k.startswith("share")) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"calibration": None}, "pass --calibration 0.5"),
        ({"of_last": False}, "the last model's scores"),
    ],
)
def test_what_it_lacks_is_named(tmp_path, options, fact):
    routing = chained(tmp_path, **options)["cascade_routing"]
    assert fact in routing["left_out"]
    assert "points" not in routing


def test_estimates_are_those_of_the_scores(tmp_path):
    # "big" is right where "tiny" is wrong, "mid" never is, and the scores of "tiny" tell.
    told = {
        "tiny": (SMALL, 1 - SMALL, 1.0),
        "mid": (0 * SMALL, 1 + 0 * SMALL, 4.0),
        "big": (1 - SMALL, SMALL, 10.0),
    }
    table = [
        {"example_id": f"q{i}", "model": name, "quality": quality[i], "score": score[i],
         "cost": cost}
        for name, (quality, score, cost) in told.items()
        for i in range(COUNT)
    ]  # fmt: skip
    chain = measure(tmp_path, table, small=(), chain=("tiny", "mid"), calibration=0.5)["chain"]
    best = chain["cascade_routing"]["points"][-1]
    assert best["quality"] == 1.0
    # Every answer of "big" costs that of "tiny", too; "mid" is never asked.
    assert best["cost"] == pytest.approx(1 + 10 * best["share answered by 3: big"])
    assert best["share answered by 2: mid"] == 0

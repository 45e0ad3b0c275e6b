"""The decision of a report: a pure function of measured points, and its sentence."""

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.cascades import join_files
from helpers.outcome_tables import config, rows

from caskd.eval.config import EvalConfig
from caskd.eval.curves import shares
from caskd.eval.report.opening import slider_series
from caskd.eval.stats import interval, mean_replicates
from caskd.eval.study import CostLine, analyze, sentence
from caskd.eval.study.decision import (
    Decision,
    Point,
    cheapest,
    cost_change,
    measure_points,
    verdict,
)
from caskd.eval.study.operating_point import Estimate


def point(rate, lead, high, cost, *, quality=0.9, threshold=0.5):
    own = Estimate(mean=quality, low=quality - 0.02, high=quality + 0.02)
    against = Estimate(mean=lead, low=lead - 0.02, high=high)
    return Point(threshold=threshold, deferral_rate=rate, quality=own, lead=against, cost=cost)


LINE = [
    point(0.0, -0.20, -0.15, 1.0),
    point(0.3, -0.03, -0.001, 4.0),
    point(0.4, -0.01, 0.0, 5.0),
    point(0.6, 0.01, 0.03, 7.0),
    point(1.0, 0.0, 0.0, 11.0),
]


def test_the_cheapest_point_whose_interval_reaches_the_large_model():
    assert cheapest(LINE) == 2
    assert cheapest(LINE[::-1]) == 2
    assert cheapest([LINE[0], LINE[1], LINE[4]]) == 2


def test_cost_and_not_rate_is_cheapest_and_rate_without_costs():
    dear = [*LINE, point(0.2, 0.0, 0.01, 9.0), point(0.7, 0.0, 0.01, 3.0)]
    assert cheapest(dear) == 6
    unknown = [replace(one, cost=None) for one in dear]
    assert cheapest(unknown) == 5
    assert cheapest([*unknown[:6], dear[6]]) == 5  # some are known: the rate compares all


def test_of_equally_cheap_points_the_better():
    assert cheapest([point(0.3, -0.01, 0.0, 4.0), point(0.3, 0.02, 0.04, 4.0)]) == 1


@pytest.mark.parametrize(
    ("expected", "rate", "high", "change"),
    [
        ("defer", 0.4, 0.0, -0.5),
        ("defer", 0.4, 0.0, None),
        ("worse", 0.4, -1e-9, -0.5),
        ("small", 0.0, 0.1, -0.9),
        ("large", 0.0, 0.1, 0.2),
        ("large", 0.9, 0.1, 0.0),
        ("large", 1.0, 0.0, None),
        ("large", 1.0, 0.0, -0.1),
    ],
)
def test_a_verdict(expected, rate, high, change):
    assert verdict(rate, high, change) == expected
    assert verdict(rate, high, change, met=False) == "missed"


def test_the_change_of_cost_is_against_the_large_model_alone():
    assert cost_change(5.8, 10.0) == pytest.approx(-0.42)
    assert cost_change(None, 10.0) is cost_change(5.0, None) is cost_change(5.0, 0.0) is None


def decision(**changes):
    fields = {
        "verdict": "defer", "small": "SMALL", "large": "LARGE", "rule": "average",
        "point": point(0.31, -0.01, 0.01, 5.8, quality=0.86), "quality_large": 0.87,
        "cost_change": -0.42, "cost_unit": "FLOPs per token", "chosen_on": "test",
        "constraint": None,
    }  # fmt: skip
    return Decision(**{**fields, **changes})


def test_the_sentence_of_a_cascade_that_pays():
    text = sentence(decision())
    for fact in ("Defer 31 %", "SMALL", "LARGE alone", "0.860 [0.840, 0.880]", "\u221242 %"):
        assert fact in text
    assert "not known" in sentence(decision(cost_change=None))


@pytest.mark.parametrize(
    ("word", "facts"),
    [
        ("small", ["SMALL alone", "0.860 [0.840, 0.880]", "0.870", "\u221242 %"]),
        ("large", ["LARGE", "31 %", "\u221242 %"]),
        ("worse", ["worse than LARGE", "0.860 [0.840, 0.880]", "0.870"]),
        ("missed", ["quality>=0.9", "0.860 [0.840, 0.880]"]),
    ],
)
def test_the_reason_why_none_pays(word, facts):
    constraint = "quality>=0.9" if word == "missed" else None
    text = sentence(decision(verdict=word, constraint=constraint))
    assert text.startswith("No cascade")
    for fact in facts:
        assert fact in text


def test_points_are_those_of_the_curve_and_intervals_those_of_the_examples(predictions_file):
    generator = np.random.default_rng(4)
    small, large = (generator.uniform(size=50) < share for share in (0.5, 0.9))
    pair = join_files(
        predictions_file("small", small.astype(int)), predictions_file("large", large.astype(int))
    )
    score = np.round(generator.uniform(size=50), 1)
    thresholds = np.array([np.inf, 0.7, 0.7 + 1e-9, score.min()])
    cost = shares(np.full(50, 1.0), np.arange(50.0))
    found = measure_points(score, pair, thresholds, cost)
    for one, threshold in zip(found, thresholds, strict=True):
        deferred = score >= threshold
        quality = np.where(deferred, pair.large_quality, pair.small_quality)
        values = np.stack([quality, quality - pair.large_quality])
        replicates = mean_replicates(values)
        assert one.deferral_rate == deferred.mean()
        assert one.cost == pytest.approx(1.0 + np.arange(50.0)[deferred].sum() / 50)
        for got, own, ours in zip((one.quality, one.lead), values, replicates, strict=True):
            assert got.mean == pytest.approx(own.mean(), abs=1e-12)
            assert (got.low, got.high) == pytest.approx(interval(ours), abs=1e-12)
    assert found[0].deferral_rate == 0.0
    assert found[1].deferral_rate > found[2].deferral_rate
    assert (found[3].deferral_rate, found[3].lead) == (1.0, Estimate(mean=0.0, low=0.0, high=0.0))


def test_the_slider_starts_at_the_decision_and_holds_no_infinity():
    line = CostLine("small", [replace(LINE[0], threshold=math.inf), *LINE[1:]], 10.0)
    series = slider_series(line, 0.41)
    assert series["start"] == 2
    assert series["threshold"] == [None, 0.5, 0.5, 0.5, 0.5]
    assert series["cost"] == [1.0, 4.0, 5.0, 7.0, 11.0]
    assert series["large"] == 10.0
    unknown = CostLine("small", [replace(one, cost=None) for one in LINE], None)
    assert slider_series(unknown, 0.0)["cost"] is None


def test_with_an_operating_point_it_is_the_decision(tmp_path):
    options = {"operating_point": "deferral_rate<=0.4"}
    found = analyze(config(tmp_path, rows(), **options))
    assert found.decision.constraint == "deferral_rate<=0.4"
    assert found.decision.point.threshold == found.point.threshold
    assert found.decision.point.quality.mean == pytest.approx(found.point.quality.mean)
    assert found.decision.point.cost == pytest.approx(found.point.cost.mean)


def test_a_calibration_split_chooses_and_the_rest_measures(study, tmp_path):
    files = {"small": (study("small", count=300),), "large": study("large", skill=2.0, seed=1,
             parameters=100, count=300)}  # fmt: skip
    options = {"rule": ("average",), "out": str(tmp_path / "r")}
    whole = analyze(EvalConfig(**files, **options))
    split = analyze(EvalConfig(**files, **options, calibration=0.5))
    assert (whole.decision.chosen_on, split.decision.chosen_on) == ("test", "calibration")
    deferred = split.results[0].main.scores.score >= split.decision.point.threshold
    assert split.decision.point.deferral_rate == deferred.mean()
    assert whole.decision.verdict == "defer"
    line = whole.cost_lines[0]
    assert line.large_cost == 200.0
    assert [line.points[0].deferral_rate, line.points[-1].deferral_rate] == [0.0, 1.0]
    assert whole.decision.point.cost == pytest.approx(20 + 200 * whole.decision.point.deferral_rate)
    others = [one for one in line.points if one.cost < whole.decision.point.cost]
    assert others
    assert all(one.lead.high < 0 for one in others)

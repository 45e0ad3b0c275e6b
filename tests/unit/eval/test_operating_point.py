"""The one cascade to ship: the best of all, written down, and honest about where it was chosen."""

import json
import math

import numpy as np
import pytest
from helpers.cascades import join_files

from caskd.eval.config import EvalConfig
from caskd.eval.serving import cascade_fields
from caskd.eval.serving.cascade_file import read_cascade
from caskd.eval.study import analyze
from caskd.eval.study.operating_point import (
    Constraint,
    check_quality_bounds,
    parse_constraint,
)
from caskd.store.errors import UsageError


@pytest.mark.parametrize(
    ("text", "constraint"),
    [
        ("quality>=0.86", Constraint("quality", 0.86)),
        (" cost <= 5e8 ", Constraint("cost", 5e8)),
        ("deferral_rate<=.3", Constraint("deferral_rate", 0.3)),
    ],
)
def test_a_constraint(text, constraint):
    assert parse_constraint(text) == constraint
    assert parse_constraint(str(constraint)) == constraint


@pytest.mark.parametrize(
    "text",
    ["", "quality", "quality<=0.8", "cost>=3", "speed>=1", "quality>=", "quality>=1e", "cost<=inf"],
)
def test_no_constraint(text):
    with pytest.raises(UsageError, match=r"expected quality>=0\.86, cost<=5e8 or"):
        parse_constraint(text)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"operating_point": "quality>=7"}, ["quality>=7", "from 0 to 1"]),
        ({"operating_point": "quality>=-0.1"}, ["quality>=-0.1", "from 0 to 1"]),
        ({"operating_point": "deferral_rate<=1.5"}, ["deferral_rate<=1.5", "from 0 to 1"]),
        ({"operating_point": "deferral_rate<=-1"}, ["deferral_rate<=-1", "from 0 to 1"]),
        ({"operating_point": "cost<=-5"}, ["cost<=-5", "0 or more"]),
        ({"target_quality": 1.2}, ["--target-quality 1.2", "from 0 to 1"]),
        ({"target_quality": math.nan}, ["--target-quality nan", "from 0 to 1"]),
    ],
)
def test_a_bound_that_no_cascade_can_have_is_refused(files, tmp_path, options, facts):
    with pytest.raises(UsageError) as caught:
        analyze(EvalConfig(**files, out=str(tmp_path / "r"), rule=("average",), **options))
    for fact in facts:
        assert fact in str(caught.value)


def test_a_metric_without_bounds_takes_any_finite_bound():
    check_quality_bounds(20.0, Constraint("quality", -3.0), bounded=False)
    with pytest.raises(UsageError, match="finite"):
        check_quality_bounds(math.inf, None, bounded=False)


@pytest.fixture
def files(study):
    return {
        "small": (study("a", parameters=10, seed=1), study("b", parameters=20, seed=2, skill=1.2)),
        "large": study("large", parameters=100, skill=1.8, seed=3),
    }


def settings(files, rules):
    """Every small model, rule and threshold: rank and what it gives, one by one."""
    for file in files["small"]:
        pair = join_files(file, files["large"])
        sizes = 2.0 * pair.small.num_parameters, 2.0 * pair.large.num_parameters
        for rule in rules:
            score = pair.score(rule)
            for threshold in [math.inf, *np.unique(score)]:
                deferred = score >= threshold
                quality = np.where(deferred, pair.large_quality, pair.small_quality).mean()
                rate = deferred.mean()
                cost = sizes[0] + rate * sizes[1]
                yield {"quality": quality, "deferral_rate": rate, "cost": cost}


@pytest.mark.parametrize("text", ["quality>=0.8", "cost<=120", "deferral_rate<=0.25"])
def test_it_is_the_best_of_all_settings(files, tmp_path, text):
    rules = ("average", "min", "entropy")
    config = EvalConfig(**files, out=str(tmp_path / "r"), rule=rules, operating_point=text)
    point = analyze(config).point
    constraint = parse_constraint(text)
    found = {name: getattr(point, name).mean for name in ("quality", "deferral_rate", "cost")}
    every = list(settings(files, rules))
    if constraint.quantity == "quality":
        best = min(one["cost"] for one in every if one["quality"] >= constraint.bound)
        assert found["cost"] == pytest.approx(best)
    else:
        best = max(one["quality"] for one in every if one[constraint.quantity] <= constraint.bound)
        assert found["quality"] == pytest.approx(best)
    assert any(all(one[name] == pytest.approx(found[name]) for name in found) for one in every)
    assert point.met
    assert point.chosen_on == "test"
    for name in found:
        assert getattr(point, name).low <= found[name] <= getattr(point, name).high
    count = len(point.result.pair)
    rate = found["deferral_rate"]
    width = point.deferral_rate.high - point.deferral_rate.low
    assert width == pytest.approx(2 * 1.96 * math.sqrt(rate * (1 - rate) / count), rel=0.15)


def test_of_two_models_that_reach_the_quality_the_cheaper_one_is_chosen(predictions_file, tmp_path):
    cheap = predictions_file("cheap", [1, 1, 1, 0, 0], model="cheap", parameters=10)
    better = predictions_file("better", [1, 1, 1, 1, 0], model="better", parameters=30)
    large = predictions_file("large", [1, 1, 1, 1, 1], model="large", parameters=100)
    for small in ((cheap, better), (better, cheap)):
        config = EvalConfig(
            small=small, large=large, out=str(tmp_path / "r"), operating_point="quality>=0.6"
        )
        point = analyze(config).point
        assert point.result.label == "cheap"
        assert point.threshold == math.inf
        assert (point.quality.mean, point.cost.mean) == (0.6, 20.0)


def test_a_constraint_that_nothing_meets_says_what_comes_nearest(files, tmp_path):
    config = EvalConfig(**files, out=str(tmp_path / "r"), operating_point="cost<=3")
    with pytest.raises(UsageError, match=r"--operating-point 'cost<=3': .* cost 20"):
        analyze(config)


def test_with_a_calibration_split_it_is_chosen_there(files, tmp_path):
    config = EvalConfig(
        **files, out=str(tmp_path / "r"), rule=("average",), operating_point="deferral_rate<=0.3",
        calibration=0.5,
    )  # fmt: skip
    found = analyze(config)
    point = found.point
    assert point.chosen_on == "calibration"
    assert len(point.result.pair) == found.split["num_test"] < 240
    assert found.split["num_fit"] == 0  # nothing to fit: all of it chooses
    assert found.split["num_test"] + found.split["num_calibration"] == 240
    marks = [row for row in found.threshold_drift if row["wanted_rate"] == 0.3]
    assert point.threshold in [row["threshold"] for row in marks]
    for row in found.threshold_drift:
        assert row["rate_calibration"] <= row["wanted_rate"]
        assert row["drift"] == pytest.approx(row["rate_test"] - row["rate_calibration"])


def test_the_file_is_read_as_it_was_written(files, tmp_path):
    config = EvalConfig(
        **files,
        out=str(tmp_path / "r"),
        rule=("p-ik",),
        operating_point="quality>=0.7",
        calibration=0.5,
    )
    point = analyze(config).point
    (tmp_path / "cascade.json").write_text(json.dumps(cascade_fields(point), allow_nan=False))
    read = read_cascade(str(tmp_path / "cascade.json"))
    assert (read.rule, read.threshold) == ("p-ik", point.threshold)
    pair = point.result.pair
    assert read.router.score(pair).tolist() == point.scores.score.tolist()
    assert read.small["name"] in ("a", "b")
    assert read.expected["quality"]["mean"] == point.quality.mean


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "expected a cascade.json"),
        ({"version": 3}, "version is 3; expected 1 or 2"),
        ({"rule": "mean"}, "expected a cascade.json"),
        ({"rule": "p-ik"}, "expected a cascade.json"),
        ({"router": {"kind": "__import__"}}, "expected a cascade.json"),
        ({"threshold": "high"}, "threshold is 'high'; expected a finite number, or null"),
        ({"small": None}, "expected a cascade.json"),
    ],
)
def test_other_files_are_refused(files, tmp_path, change, message):
    config = EvalConfig(
        **files, out=str(tmp_path / "r"), rule=("average",), operating_point="cost<=9e9"
    )
    fields = cascade_fields(analyze(config).point)
    path = tmp_path / "cascade.json"
    path.write_text(json.dumps({**fields, **change}))
    with pytest.raises(UsageError, match=message):
        read_cascade(str(path))
    path.write_text("[]")
    with pytest.raises(UsageError, match=r"expected a cascade\.json"):
        read_cascade(str(path))
    with pytest.raises(UsageError, match=r"does not exist; .*caskd eval"):
        read_cascade(str(tmp_path / "no.json"))

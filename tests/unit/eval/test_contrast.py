"""Differences between arms by every measure, against the same measured by hand."""

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.cascades import file_curve, repeated_examples
from scipy import stats

from caskd.cli.main import main
from caskd.eval import deferral_curve
from caskd.eval.config import EvalConfig
from caskd.eval.evaluate import evaluate
from caskd.eval.stats import area_replicates
from caskd.eval.stats.bootstrap import example_weights
from caskd.eval.study import analyze
from caskd.eval.study.contrast import figure_replicates, find_target

pytestmark = pytest.mark.usefixtures("without_figures")

COUNT = 200
TASKS = ["few"] * 30 + ["easy"] * 70 + ["hard"] * 100


@pytest.fixture
def arms(predictions_file):
    """Files of two arms of three seeds and of a large model; the first arm is better."""
    hard = np.random.default_rng(5).uniform(size=COUNT)

    def write(name, seed, skill, parameters):
        generator = np.random.default_rng(seed)
        sure = np.stack([-hard * generator.uniform(size=COUNT), -hard], axis=1).tolist()
        quality = np.round(np.clip(skill - hard + 0.2 * generator.normal(size=COUNT), 0, 1), 2)
        return predictions_file(
            name, quality, task=TASKS, token_logprobs=sure, model=name, parameters=parameters
        )

    return {
        "cat": [write(f"cat{seed}", [1, seed], 0.9, 10) for seed in range(3)],
        "xent": [write(f"xent{seed}", [2, seed], 0.7, 10) for seed in range(3)],
        "large": write("large", [3], 1.4, 100),
    }


def report(arms, out, names=("cat", "xent"), seeds=3, **options):
    small = tuple(f"{name}={file}" for name in names for file in arms[name][:seeds])
    return evaluate(
        EvalConfig(small=small, large=arms["large"], rule=("average",), out=str(out), **options)
    )


def by_measure(summary):
    return {(one["task"], one["measure"]): one for one in summary["contrasts"]}


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_difference_is_that_of_the_curves(arms, tmp_path):
    summary = report(arms, tmp_path / "report")
    found = by_measure(summary)
    assert set(found) == {
        *((task, name) for task in ("all", "easy", "hard")
          for name in ("audc", "quality_small", "audc_over_random")),
        ("all", "rate_at_quality"), ("all", "cost_at_quality"),
        ("within_task", "audc"), ("within_task", "audc_over_random"),
    }  # fmt: skip
    files = [*arms["cat"], *arms["xent"]]
    whole = [file_curve(file, arms["large"]) for file in files]
    tasks = {
        task: [file_curve(file, arms["large"], task=task) for file in files] for task in set(TASKS)
    }
    values = {("all", "audc"): [one.audc for one in whole]}
    for task, curves in {"all": whole, **tasks}.items():
        values[task, "audc"] = [one.audc for one in curves]
        values[task, "quality_small"] = [one.quality_small for one in curves]
        values[task, "audc_over_random"] = [one.audc - one.random_audc for one in curves]
    for name in ("audc", "audc_over_random"):
        parts = [TASKS.count(task) * np.array(values[task, name]) for task in tasks]
        values["within_task", name] = sum(parts) / COUNT
    middle = (np.mean(values["all", "quality_small"][:3]) + whole[0].quality_large) / 2
    assert summary["target_quality"] == pytest.approx(middle)
    rates = np.array([one.rate_for(summary["target_quality"]) for one in whole])
    values["all", "rate_at_quality"] = rates
    values["all", "cost_at_quality"] = 2 * 10 + rates * 2 * 100
    for key, one in found.items():
        apart = np.array(values[key][:3]) - np.array(values[key][3:])
        reach = stats.t.ppf(0.975, 2) * apart.std(ddof=1) / np.sqrt(3)
        assert one["difference"] == pytest.approx(apart.mean(), abs=1e-12), key
        assert one["seed_low"] == pytest.approx(apart.mean() - reach, abs=1e-12), key
        assert one["seed_high"] == pytest.approx(apart.mean() + reach, abs=1e-12), key
        assert one["low"] < one["difference"] < one["high"]
        assert (one["seed_interval"], one["num_seeds"]) == ("paired t", 3)
    assert found["all", "quality_small"]["verdict"] == "the first is better"
    assert found["all", "cost_at_quality"]["verdict"] == "the first is better"
    assert found["all", "cost_at_quality"]["difference"] < 0.0
    [pooled] = summary["differences"]
    assert pooled.pop("audc_difference") == found["all", "audc"]["difference"]
    assert pooled.items() <= found["all", "audc"].items()


def test_every_draw_is_that_of_repeated_examples(arms, tmp_path):
    small = (arms["cat"][0], arms["xent"][0])
    config = EvalConfig(small=small, large=arms["large"], rule=("average",), out=str(tmp_path))
    measured = analyze(config).results
    series = [(one.main.scores.score, one.pair.small_quality) for one in measured]
    large = measured[0].pair.large_quality
    drawn = {
        (one.task, one.measure): one.replicates
        for one in figure_replicates(
            measured, area_replicates(series, large), find_target(measured, 0.6)
        )
    }
    [weights] = example_weights(COUNT, 1000, 0)
    parts = [np.flatnonzero(np.array(TASKS) == task) for task in ("few", "easy", "hard")]
    for draw, place in np.ndindex(20, 2):
        score, quality = series[place]
        whole, *tasks = (
            deferral_curve(*repeated_examples(part, weights[draw], score, quality, large))
            for part in (np.arange(COUNT), *parts)
        )
        gains = [one.audc - one.random_audc for one in (whole, *tasks)]
        sizes = [one.num_examples for one in tasks]
        rate = whole.rate_for(0.6)
        expected = {
            ("all", "audc"): whole.audc,
            ("all", "quality_small"): whole.quality_small,
            ("all", "audc_over_random"): gains[0],
            ("all", "rate_at_quality"): rate,
            ("all", "cost_at_quality"): 20.0 + 200.0 * rate,
            ("within_task", "audc"): np.average([one.audc for one in tasks], weights=sizes),
            ("within_task", "audc_over_random"): np.average(gains[1:], weights=sizes),
            ("easy", "audc"): tasks[1].audc,
            ("easy", "quality_small"): tasks[1].quality_small,
            ("hard", "audc_over_random"): gains[3],
        }
        for key, value in expected.items():
            assert drawn[key][place, draw] == pytest.approx(value), key


def test_the_tables_hold_the_same(arms, tmp_path):
    summary = report(arms, tmp_path / "report")
    rows = read_csv(tmp_path / "report" / "differences.csv")
    assert [(row["task"], row["measure"]) for row in rows] == list(by_measure(summary))
    for row, one in zip(rows, summary["contrasts"], strict=True):
        for name in ("difference", "low", "high", "seed_low", "seed_high"):
            assert float(row[name]) == one[name]
        assert row["audc_difference"] == (row["difference"] if row["measure"] == "audc" else "")
        assert (row["first_rule"], row["second_rule"]) == ("average", "average")
    seeds = read_csv(tmp_path / "report" / "seeds.csv")
    keys = [(arm, str(seed), task) for arm in ("cat", "xent") for seed in range(3)
            for task in ("all", "within_task", "easy", "few", "hard")]  # fmt: skip
    assert [(row["arm"], row["seed"], row["task"]) for row in seeds] == keys
    for (task, name), one in by_measure(summary).items():
        ours, theirs = (
            np.mean([float(row[name]) for row in seeds if (row["arm"], row["task"]) == (arm, task)])
            for arm in ("cat", "xent")
        )
        assert ours - theirs == pytest.approx(one["difference"], abs=1e-12)
    within = seeds[1]
    for name in ("quality_at_30", "quality_small", "num_examples"):
        parts = [int(row["num_examples"]) * float(row[name]) for row in seeds[2:5]]
        mean = COUNT if name == "num_examples" else sum(parts) / COUNT
        assert float(within[name]) == pytest.approx(mean)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<details><summary>By task</summary>" in page
    assert "AUDC over random, within tasks" in page


@pytest.mark.slow
def test_an_arm_against_its_twin_is_exactly_nothing(arms, tmp_path):
    twins = {**arms, "twin": arms["cat"]}
    for seeds in (1, 3):
        summary = report(twins, tmp_path / "report", names=("cat", "twin"), seeds=seeds)
        assert len(summary["contrasts"]) == 13
        for one in summary["contrasts"]:
            assert one["difference"] == one["low"] == one["high"] == 0.0
            assert one["seed_low"] == one["seed_high"] == (None if seeds == 1 else 0.0)
            assert one["verdict"] == "no difference shown"


@pytest.mark.slow
def test_exchanged_arms_exchange_the_sign(arms, tmp_path):
    target = {"target_quality": 0.5}
    ours = by_measure(report(arms, tmp_path / "report", **target))
    theirs = by_measure(report(arms, tmp_path / "report", names=("xent", "cat"), **target))
    for key, one in ours.items():
        other = theirs[key]
        assert one["difference"] == -other["difference"]
        assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))
        assert (one["seed_low"], one["seed_high"]) == (-other["seed_high"], -other["seed_low"])


def shuffled(file, order):
    table = pq.read_table(file)
    pq.write_table(table.take(order), file)


@pytest.mark.slow
def test_the_order_of_the_examples_changes_no_difference(arms, tmp_path):
    before = report(arms, tmp_path / "report")
    orders = np.random.default_rng(0)
    for file in (*arms["cat"], *arms["xent"]):
        shuffled(file, orders.permutation(COUNT))
    again = report(arms, tmp_path / "report")
    assert again["contrasts"] == before["contrasts"]  # the large model's order is the report's
    shuffled(arms["large"], orders.permutation(COUNT))
    names = ("difference", "seed_low", "seed_high")
    again = report(arms, tmp_path / "report")["contrasts"]
    for one, other in zip(again, before["contrasts"], strict=True):
        assert [one[name] for name in names] == [other[name] for name in names]


def test_one_seed_has_no_interval_over_seeds(arms, tmp_path, capsys):
    summary = report(arms, tmp_path / "report", seeds=1)
    assert {one["seed_interval"] for one in summary["contrasts"]} == {None}
    assert "over seeds" not in capsys.readouterr().out
    assert {row["seed_low"] for row in read_csv(tmp_path / "report" / "differences.csv")} == {""}


def test_a_target_that_no_seed_reaches(arms, tmp_path):
    summary = report(arms, tmp_path / "report", target_quality=1.0)
    assert summary["target_quality"] == 1.0
    for arm in summary["arms"]:
        assert (arm["num_seeds_short"], arm["rate_at_quality"]) == (3, 1.0)
        assert arm["cost_at_quality"] == 220.0
    one = by_measure(summary)["all", "cost_at_quality"]
    assert one["difference"] == one["low"] == one["high"] == 0.0
    rows = read_csv(tmp_path / "report" / "seeds.csv")
    assert [row["reaches_target"] for row in rows if row["task"] == "all"] == ["no"] * 6


@pytest.mark.parametrize("value", ["1.5", "nan", "-0.1"])
def test_a_target_that_is_no_quality(arms, tmp_path, capsys, value):
    words = ["--small", arms["cat"][0], "--large", arms["large"], "--out", str(tmp_path / "report")]
    assert main(["eval", *words, f"--target-quality={value}"]) == 2
    assert "expected a quality from 0 to 1" in capsys.readouterr().err

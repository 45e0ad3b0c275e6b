"""Thresholds with a guarantee: promised means hold over 2,000 repeats, and small samples defer."""

import math

import numpy as np
import pytest

from caskd.eval.config import EvalConfig
from caskd.eval.curves import quantile_bound, safe_threshold
from caskd.eval.evaluate import evaluate
from caskd.eval.report.report import cascade_summary
from caskd.eval.study import analyze
from caskd.eval.study.guarantee import parse_promise
from caskd.store.errors import UsageError

pytestmark = pytest.mark.usefixtures("without_figures")

REPEATS = 2000


def slow_threshold(score, loss, limit, units):
    """Every threshold tried, question by question."""
    names = sorted(set(units))
    best = -math.inf
    for threshold in [*np.unique(score), math.inf]:
        kept = np.where(score < threshold, loss, 0.0)
        means = [kept[np.asarray(units) == name].mean() for name in names]
        if (sum(means) + 1) / (len(names) + 1) <= limit + 1e-12:
            best = max(best, float(threshold))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_the_threshold_is_the_highest_that_is_safe(seed):
    generator = np.random.default_rng(seed)
    score = generator.integers(0, 6, 30).astype(float)
    loss = generator.integers(0, 3, 30) / 2
    units = generator.integers(0, 14, 30) * 3 if seed % 2 else np.arange(30)
    for limit in (0.02, 0.1, 0.2, 0.35, 0.9):
        found = safe_threshold(score, loss, limit, units if seed % 2 else None)
        assert found == slow_threshold(score, loss, limit, units), limit


@pytest.mark.parametrize(("count", "limit"), [(40, 0.1), (150, 0.05), (30, 0.04)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_mean_risk_of_2000_repeats_is_as_promised(count, limit, ties):
    """A uniform score that is the chance of a wrong answer: keeping below t costs t²/2."""
    generator = np.random.default_rng(count)
    score = generator.uniform(size=(REPEATS, count))
    wrong = (generator.uniform(size=score.shape) < score).astype(float)
    if ties:
        score = np.floor(score * 20) / 20  # a block keeps 1/20 of the examples
    found = [safe_threshold(s, w, limit) for s, w in zip(score, wrong, strict=True)]
    risk = np.clip(found, 0.0, 1.0) ** 2 / 2
    error = risk.std() / math.sqrt(REPEATS)
    assert risk.mean() <= limit + 2 * error
    # Not by deferring more than it must: at most 2 / (n + 1) below, and a block with ties.
    assert risk.mean() >= limit - 2 / (count + 1) - 2 * error - (0.02 if ties else 0.0)


def test_the_mean_regret_of_2000_repeats_is_as_promised():
    """Repeated questions: three samples of each have one score and share their luck."""
    generator = np.random.default_rng(1)
    questions, samples, limit = 40, 3, 0.08
    units = np.repeat(np.arange(questions), samples)
    found = np.empty(REPEATS)
    for repeat in range(REPEATS):
        score = generator.uniform(size=questions)
        wrong = np.repeat(generator.uniform(size=questions) < score, samples)
        right = generator.uniform(size=questions * samples) < 0.7
        found[repeat] = safe_threshold(np.repeat(score, samples), wrong * right, limit, units)
    regret = 0.7 * np.clip(found, 0.0, 1.0) ** 2 / 2
    assert regret.mean() <= limit + 2 * regret.std() / math.sqrt(REPEATS)
    assert regret.mean() >= limit - 2 / (questions + 1)


def test_too_few_examples_defer_everything():
    score, right = np.arange(19.0), np.zeros(19)
    assert safe_threshold(score[:18], right[:18], 0.05) == -math.inf
    assert safe_threshold(score, right, 0.05) == math.inf  # 1 / 20 is exactly the bound
    assert safe_threshold(score, right, 0.05, np.arange(19) // 2) == -math.inf


def test_a_new_cost_exceeds_its_bound_as_seldom_as_promised():
    generator = np.random.default_rng(2)
    values = generator.exponential(size=(REPEATS, 61))
    over = [row[-1] > quantile_bound(row[:-1], 0.1) for row in values]
    rate, error = np.mean(over), math.sqrt(0.1 * 0.9 / REPEATS)
    assert 0.1 - 1 / 61 - 2 * error <= rate <= 0.1 + 2 * error
    assert quantile_bound(np.arange(18.0), 0.05) is None
    assert quantile_bound(np.arange(19.0), 0.05) == 18.0
    assert quantile_bound(np.array([1.0, 5.0, 2.0, 3.0]), 0.5, np.array([7, 7, 2, 2])) == 5.0


@pytest.mark.parametrize("text", ["risk<=0", "risk<=1", "risk>=.1", "cost<=.1", "risk<=x", ""])
def test_other_promises_are_refused(text):
    with pytest.raises(UsageError, match="--guarantee"):
        parse_promise(text)


def files(predictions_file, count=160):
    generator = np.random.default_rng(0)
    hard = generator.uniform(size=count)
    small, large = (generator.uniform(size=(2, count)) > [hard, 0.4 * hard]).astype(float)
    logprobs = [[-value] for value in hard]
    return {
        "small": (predictions_file("small", small, token_logprobs=logprobs),),
        "large": predictions_file("large", large, parameters=100),
    }


def test_the_report_states_the_promise_and_its_assumption(predictions_file, tmp_path, capsys):
    out = tmp_path / "report"
    config = EvalConfig(
        **files(predictions_file), out=str(out), rule=("average",), calibration=0.5,
        guarantee="risk<=.2",
    )  # fmt: skip
    summary = evaluate(config)
    found = summary["guarantee"]
    assert found["promise"] == "risk<=0.2"
    assert found["num_questions"] == summary["split"]["num_calibration"]
    [row] = found["thresholds"]
    assert 0.0 < row["deferral_rate"] < 1.0
    assert row["quality"] >= 1 - row["risk"] - row["deferral_rate"]
    assert row["wrong_if_kept"] == pytest.approx(row["risk"] / (1 - row["deferral_rate"]))
    page = (out / "index.html").read_text()
    assert "exchangeable" in page
    assert "risk&lt;=0.2" in page
    assert "Guarantee risk<=0.2" in capsys.readouterr().out
    assert (out / "guarantee.csv").exists()
    figures = summary["smalls"][0]["rules"]["average"]
    assert 0.0 < figures["ece_isotonic"] < figures["ece"]


def test_a_guarantee_needs_other_examples_and_enough_of_them(predictions_file, tmp_path):
    options = {**files(predictions_file), "out": str(tmp_path / "r"), "rule": ("average",)}
    with pytest.raises(UsageError, match="--calibration"):
        analyze(EvalConfig(**options, guarantee="risk<=.2"))
    config = EvalConfig(**options, guarantee="regret<=.01", calibration=0.3)
    [row] = cascade_summary(analyze(config))["guarantee"]["thresholds"]
    assert row["answer"] == "defer everything"
    assert (row["threshold"], row["deferral_rate"], row["regret"]) == (None, 1.0, 0.0)
    assert row["wrong_if_kept"] is None

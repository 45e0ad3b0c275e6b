"""Measures on redrawn examples, task by task, against the same measured on repeated examples."""

import numpy as np
import pytest
from helpers.cascades import repeated_examples

from caskd.eval import deferral_curve
from caskd.eval.stats import pooled_replicates, replicates_by_task
from caskd.eval.stats.bootstrap import example_weights


def cascades(count, seeds=(1, 2), digits=1):
    """Scores with ties and broken qualities of small models, and of a large one."""
    hard = np.random.default_rng(count).uniform(size=count)
    series = []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        small = np.round(generator.uniform(size=count) * (1 - hard), 2)
        series.append((np.round(hard + 0.3 * generator.normal(size=count), digits), small))
    return series, np.round(np.random.default_rng(7).uniform(0.5, 1.0, size=count), 2)


def test_draws_are_those_of_repeated_examples():
    series, large = cascades(60)
    tasks = [np.arange(2), np.arange(2, 25), np.arange(25, 60)[::-1]]
    drawn = replicates_by_task(series, large, tasks, num_replicates=40, seed=3)
    pooled = pooled_replicates(series, large, 0.6, num_replicates=40, seed=3)
    [weights] = example_weights(60, 40, 3)
    empty = reached = 0
    for draw, place in np.ndindex(40, 2):
        score, small = series[place]
        curve = deferral_curve(
            *repeated_examples(np.arange(60), weights[draw], score, small, large)
        )
        rate = curve.rate_for(0.6)
        assert pooled.rate[place, draw] == pytest.approx(1.0 if rate is None else rate)
        assert pooled.small[place, draw] == pytest.approx(curve.quality_small)
        assert pooled.large[draw] == pytest.approx(curve.quality_large)
        reached += rate is not None
        for task, places in zip(drawn, tasks, strict=True):
            own = repeated_examples(places, weights[draw], score, small, large)
            assert task.size[draw] == len(own[0])
            if not len(own[0]):
                empty += 1
                assert task.area[place, draw] == task.small[place, draw] == 0.0
                continue
            curve = deferral_curve(*own)
            assert task.area[place, draw] == pytest.approx(curve.audc)
            assert task.small[place, draw] == pytest.approx(curve.quality_small)
            assert task.large[draw] == pytest.approx(curve.quality_large)
    assert empty > 0
    assert reached > 0


def test_a_quality_that_is_there_at_once_and_one_that_never_is():
    series, large = cascades(60)
    assert not pooled_replicates(series, large, 0.0, num_replicates=20).rate.any()
    assert (pooled_replicates(series, large, 1.0, num_replicates=20).rate == 1.0).all()


def test_many_examples_are_drawn_to_first_order(monkeypatch):
    series, large = cascades(3000, digits=4)
    tasks = [np.arange(1000), np.arange(1000, 3000)]
    exact = replicates_by_task(series, large, tasks)[1], pooled_replicates(series, large, 0.6)
    for module in ("bootstrap", "task_replicates"):
        monkeypatch.setattr(f"caskd.eval.stats.{module}.EXACT_UP_TO", 1500)
    monkeypatch.setattr("caskd.eval.stats.task_replicates.MAX_BLOCKS", 200)
    linear = replicates_by_task(series, large, tasks)[1], pooled_replicates(series, large, 0.6)
    for ours, theirs in [
        (linear[0].area, exact[0].area), (linear[0].small, exact[0].small),
        (linear[1].rate, exact[1].rate), (linear[1].small, exact[1].small),
    ]:  # fmt: skip
        spread = theirs.std(axis=1)
        np.testing.assert_allclose(ours.std(axis=1), spread, rtol=0.1)
        np.testing.assert_allclose(ours.mean(axis=1), theirs.mean(axis=1), atol=0.14 * spread.max())

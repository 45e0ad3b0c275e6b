"""Chains of three and four models, against every setting tried one by one."""

import itertools

import numpy as np
import pytest

from caskd.eval.curves import Link, apply_thresholds, chain_frontier
from caskd.store.errors import UsageError


def chain(seed, count, models, digits=1):
    generator = np.random.default_rng(seed)
    hard = generator.uniform(size=count)
    links = [
        Link(
            score=np.round(hard + 0.4 * generator.normal(size=count), digits),
            quality=(generator.uniform(size=count) < 0.6 + 0.1 * place - 0.5 * hard).astype(float),
            cost=generator.uniform(1.0, 2.0, size=count) * 3**place,
        )
        for place in range(models - 1)
    ]
    return links, (generator.uniform(size=count) < 0.9).astype(float), np.full(count, 60.0)


def naive(links, quality, cost, thresholds):
    """Example by example."""
    spent = gained = 0.0
    answerers = []
    for place in range(quality.size):
        for number, (link, threshold) in enumerate(zip(links, thresholds, strict=True)):
            spent += link.cost[place]
            if link.score[place] < threshold:
                gained += link.quality[place]
                answerers.append(number)
                break
        else:
            spent, gained = spent + cost[place], gained + quality[place]
            answerers.append(len(links))
    return spent / quality.size, gained / quality.size, answerers


@pytest.mark.parametrize(("models", "count"), [(3, 25), (3, 60), (4, 12)])
def test_the_frontier_is_that_of_all_settings(models, count):
    links, quality, cost = chain(models, count, models)
    found = chain_frontier(links, quality, cost)
    grids = [[*np.unique(link.score), np.inf] for link in links]
    settings = [naive(links, quality, cost, t)[:2] for t in itertools.product(*grids)]
    assert found.num_settings == len(settings)
    unbeaten, best = [], -1.0
    for spent, gained in sorted(settings, key=lambda point: (round(point[0], 9), -point[1])):
        if gained > best + 1e-9:
            unbeaten.append((spent, gained))
            best = gained
    np.testing.assert_allclose(np.stack([found.cost, found.quality], axis=1), unbeaten, atol=1e-9)
    for point, thresholds in enumerate(found.thresholds):
        spent, gained, answerers = naive(links, quality, cost, thresholds)
        assert apply_thresholds(links, quality, cost, thresholds)[:2] == pytest.approx(
            (spent, gained)
        )
        assert apply_thresholds(links, quality, cost, thresholds)[2].tolist() == answerers
        shares = np.bincount(answerers, minlength=models) / count
        np.testing.assert_allclose(found.answered[point], shares, atol=1e-12)


def test_many_scores_are_thinned_to_quantiles_and_the_ends_stay():
    links, quality, cost = chain(0, 5000, 3, digits=9)
    found = chain_frontier(links, quality, cost)
    assert found.num_settings <= 1 << 18
    assert found.cost[0] == pytest.approx(links[0].cost.mean())
    assert found.quality[0] == pytest.approx(links[0].quality.mean())
    assert (np.diff(found.cost) > 0).all()
    assert (np.diff(found.quality) > 0).all()
    assert found.quality_at(found.cost[3]) == found.quality[3]
    assert found.quality_at(found.cost[0] / 2) is None


def test_the_order_of_the_examples_changes_nothing():
    links, quality, cost = chain(5, 400, 3)
    shuffled = np.random.default_rng(0).permutation(400)
    again = [
        Link(*(getattr(link, f)[shuffled] for f in ("score", "quality", "cost"))) for link in links
    ]
    first, second = (
        chain_frontier(links, quality, cost),
        chain_frontier(again, quality[shuffled], cost[shuffled]),
    )
    np.testing.assert_allclose(first.cost, second.cost)
    np.testing.assert_array_equal(first.thresholds, second.thresholds)


@pytest.mark.parametrize("models", [2, 9])
def test_too_short_or_too_long(models):
    with pytest.raises(UsageError, match=f"{models} models; expected 3 to 7"):
        chain_frontier(*chain(0, 5, models))

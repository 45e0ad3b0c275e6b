"""Chains of three and four models, against every setting tried one by one."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from caskd.eval.answers import read_predictions
from caskd.eval.curves import Link, Price, apply_thresholds, chain_frontier, shares
from caskd.eval.rules import ROUTERS, Pair, RuleScores
from caskd.eval.study.chain import measure_chain
from caskd.store.errors import UsageError


def chain(seed, count, models, digits=1, saves=1.0):
    generator = np.random.default_rng(seed)
    hard = generator.uniform(size=count)
    links = [
        Link(
            score=np.round(hard + 0.4 * generator.normal(size=count), digits),
            quality=(generator.uniform(size=count) < 0.6 + 0.1 * place - 0.5 * hard).astype(float),
            cost=generator.uniform(1.0, 2.0, size=count) * 3**place,
            saved=generator.uniform(0.0, 1.0, size=count) * saves,
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
            spent += link.cost[place] - link.saved[place]
            if link.score[place] < threshold:
                spent += link.saved[place]
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
        Link(*(getattr(link, f)[shuffled] for f in ("score", "quality", "cost", "saved")))
        for link in links
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


def test_a_chain_that_skips_its_second_model_costs_what_two_models_do():
    """A rule that decides before generation saves what a deferred example's answer would cost."""
    (first, second), _, cost = chain(7, 50, 3)
    first = Link(first.score, first.quality, first.cost, saved=first.cost)
    never = Link(second.score, second.quality, second.cost, saved=second.cost)
    two = shares(first.cost, second.cost, saved=first.cost)
    for threshold in (*np.unique(first.score), np.inf):
        found = apply_thresholds([first, never], np.ones(50), cost, [threshold, np.inf])[0]
        assert found == pytest.approx(two.of(first.score >= threshold).mean())


@pytest.mark.parametrize("rule", ["prompt-router", "hidden-router"])
def test_a_chain_pays_no_answer_that_its_rule_defers_before(predictions_file, rule):
    count, generator = 40, np.random.default_rng(3)
    answers = [
        read_predictions(predictions_file(n, (generator.random(count) < q), parameters=p))
        for n, q, p in (("a", 0.3, 10), ("b", 0.6, 100), ("c", 0.9, 1000))
    ]
    tests = [Pair(small, answers[2]) for small in answers[:2]]
    router = SimpleNamespace(kind=ROUTERS[rule])
    scores = [RuleScores(rule, generator.random(count), None, router) for _ in tests]
    found = measure_chain(tests, None, scores, None)
    each = np.array([20.0, 200.0, 2000.0])
    assert len(found.cost) > 3
    np.testing.assert_allclose(found.cost, found.chosen.answered @ each)
    prices = {"model": Price(1e6, 1e6)}
    kept = measure_chain(tests, None, scores, prices)
    reads, writes = (tests[0].large.numbers(f"{n}_tokens") for n in ("prompt", "output"))
    least = writes.mean() + reads.mean()  # of one model
    assert kept.cost[0] == pytest.approx(least)
    others = [RuleScores("average", one.score, None) for one in scores]
    assert measure_chain(tests, None, others, None).cost.max() > found.cost.max()

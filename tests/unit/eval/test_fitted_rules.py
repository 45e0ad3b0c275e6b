"""Fitted rules: they find what is there, on examples that they were not fitted on."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from helpers.cascades import join_files

from caskd.eval import deferral_curve
from caskd.eval.answers import digest, read_predictions
from caskd.eval.inference import with_questions
from caskd.eval.rules import ROUTERS, Pair, Router, score_pairs
from caskd.eval.rules.fitted import SURE, fit_router, hashed_ngrams
from caskd.store.errors import UsageError

COUNT = 400


@pytest.fixture
def halves(study):
    """Examples to fit on, and examples to judge on."""
    large = read_predictions(study("large", skill=1.8, parameters=100, seed=1, count=COUNT))
    small = read_predictions(study("small", count=COUNT))
    hard = np.random.default_rng([99, 0]).uniform(size=COUNT)
    texts = [f"{'hard' if h > 0.5 else 'easy'} question {i}" for i, h in enumerate(hard)]
    small = with_questions(small, {digest(text.encode()): text for text in texts})
    pair = Pair(small, large)
    return pair.take(np.arange(COUNT // 2)), pair.take(np.arange(COUNT // 2, COUNT))


def fitted(name, fit):
    return fit_router(ROUTERS[name], fit, fit.small_quality, fit.large_quality)


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_a_router_beats_random_on_other_examples(halves, name):
    fit, test = halves
    score = fitted(name, fit).score(test)
    curve = deferral_curve(score, test.small_quality, test.large_quality)
    assert curve.audc > curve.random_audc + 0.02


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_a_router_is_its_numbers(halves, name):
    fit, test = halves
    router = fitted(name, fit)
    again = Router.from_json(json.loads(json.dumps(router.to_json())))
    assert again.score(test).tolist() == router.score(test).tolist()
    assert fitted(name, fit).score(test).tolist() == router.score(test).tolist()


def test_the_test_examples_qualities_are_never_looked_at(halves):
    fit, test = halves
    before, _ = score_pairs([test], [fit], list(ROUTERS))
    wrong = np.zeros(len(test))
    test.small_quality, test.large_quality = wrong, wrong
    after, _ = score_pairs([test], [fit], list(ROUTERS))
    for name in ROUTERS:
        assert before[0][name].score.tolist() == after[0][name].score.tolist()


def test_numpy_and_scikit_learn_agree(halves, monkeypatch):
    from sklearn.neural_network import MLPClassifier

    scored = []
    original = MLPClassifier.score

    def score_and_keep(self, inputs, label):
        accuracy = original(self, inputs, label)
        scored.append((accuracy, self.predict_proba(inputs)[:, 1], inputs))
        return accuracy

    monkeypatch.setattr(MLPClassifier, "score", score_and_keep)
    fit, _ = halves
    router = fitted("hidden-router", fit)
    _, expected, inputs = max(scored, key=lambda each: each[0])  # the first of the best
    np.testing.assert_allclose(router._forward(inputs * router.scale + router.mean), expected)


def test_the_questions_that_stop_the_training_are_others_than_those_it_reads(halves, monkeypatch):
    from sklearn.neural_network import MLPClassifier

    seen = {}
    for name in ("partial_fit", "score"):
        original = getattr(MLPClassifier, name)

        def keep(self, inputs, label, name=name, original=original, **options):
            seen[name] = {tuple(row) for row in inputs}
            return original(self, inputs, label, **options)

        monkeypatch.setattr(MLPClassifier, name, keep)
    fit, _ = halves
    four_each = fit.take(np.repeat(np.arange(50), 4))  # the same question and features four times
    units = np.repeat(np.arange(50), 4)
    kind = ROUTERS["hidden-router"]
    qualities = four_each.small_quality, four_each.large_quality
    fit_router(kind, four_each, *qualities, units=units)
    assert seen["score"].isdisjoint(seen["partial_fit"])
    assert len(seen["score"]) == 10


def test_repeated_questions_are_no_further_evidence(halves):
    fit, _ = halves
    many = fit.take(np.repeat(np.arange(10), 10))
    qualities = many.small_quality, many.large_quality
    with pytest.raises(UsageError, match="edge-inference: got 10 calibration questions"):
        fit_router(ROUTERS["edge-inference"], many, *qualities, units=np.repeat(np.arange(10), 10))


def test_p_ik_with_p_t_defers_unsure_first_tokens_before_all_others(halves):
    fit, test = halves
    score = fitted("p-ik-and-p-t", fit).score(test)
    unsure = np.exp(test.lists("token_logprobs").first()) < SURE
    assert 0 < unsure.sum() < unsure.size
    assert score[unsure].min() > score[~unsure].max()
    np.testing.assert_allclose(score - unsure, fitted("p-ik", fit).score(test))


def test_a_router_of_another_model_is_refused(halves):
    fit, test = halves
    router = fitted("p-ik", fit)
    wide = dataclasses.replace(router, mean=np.zeros(7), scale=np.ones(7))
    with pytest.raises(UsageError, match="width is 4; expected 7"):
        wide.score(test)


def test_examples_that_teach_nothing(halves):
    fit, _ = halves
    few = fit.take(np.arange(10))
    with pytest.raises(UsageError, match="p-ik: got 10 calibration questions"):
        fitted("p-ik", few)
    fit.small_quality = np.ones(len(fit))
    with pytest.raises(UsageError, match="0 of them with the rarer"):
        fitted("p-ik", fit)


def test_without_scikit_learn_it_says_what_to_install(halves, monkeypatch):
    fit, _ = halves
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(UsageError, match=r"pip install 'caskd\[routers\]'"):
        fitted("p-ik", fit)


def test_rules_that_nobody_asked_for_are_left_out_with_a_line(predictions_file):
    pair = join_files(predictions_file("s", [0, 1] * 30), predictions_file("l", [1] * 60))
    scored, left_out = score_pairs([pair], [pair], [])
    assert list(scored[0])[:3] == ["average", "sum", "min"]
    assert "p-ik" not in scored[0]
    assert {line.split(":")[0] for line in left_out} >= {"entropy", "margin", "option", "p-ik"}
    with pytest.raises(UsageError, match=r"s\.parquet: holds no token_entropies"):
        score_pairs([pair], None, ["entropy"])
    with pytest.raises(UsageError, match=r"--rule p-ik: .*--calibration"):
        score_pairs([pair], None, ["p-ik"])
    with pytest.raises(UsageError, match=r"rule 'mean': .*average"):
        score_pairs([pair], None, ["mean"])
    with pytest.raises(UsageError, match="questions with --data"):
        score_pairs([pair], [pair], ["prompt-router"])


def test_hashed_words_and_pairs():
    table = hashed_ngrams(["a b", "A  b", "b a", ""])
    assert table[0].tolist() == table[1].tolist()
    assert table[0].tolist() != table[2].tolist()
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), [1.0, 1.0, 1.0, 0.0])

"""Costs along the curve: every example deferred one by one, prices, seconds, corpus BLEU."""

import json

import numpy as np
import pytest
import sacrebleu
from helpers.cascades import join_files

from caskd.eval.curves import (
    Price,
    bleu_curve,
    ngram_counts,
    price_of,
    read_prices,
    shares,
    tail_seconds,
    token_cost,
)
from caskd.eval.rules import RuleScores
from caskd.eval.study.measure import cost_shares
from caskd.store.errors import UsageError

SCORE = np.array([0.0, 2.0, 2.0, 1.0])
SMALL, LARGE = np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 20.0, 30.0, 40.0])
DEFERRED = [threshold <= SCORE for threshold in (np.inf, 2.0, 1.0, 0.0)]


def test_the_small_model_is_always_paid():
    expected = [(SMALL + LARGE * deferred).mean() for deferred in DEFERRED]
    np.testing.assert_allclose(shares(SMALL, LARGE).mean(SCORE), expected)
    for deferred, mean in zip(DEFERRED, expected, strict=True):
        assert shares(SMALL, LARGE).of(deferred).mean() == mean


def test_a_decision_before_generation_saves_the_answer():
    saved = SMALL / 2  # the half that writes the answer
    expected = [(SMALL - saved * deferred + LARGE * deferred).mean() for deferred in DEFERRED]
    np.testing.assert_allclose(shares(SMALL, LARGE, saved=saved).mean(SCORE), expected)
    rate = np.array([0.0, 0.5, 1.0])
    assert token_cost(rate, 10, 100, before_generation=True).tolist() == [20.0, 110.0, 200.0]


def test_the_tail_is_the_95th_percentile_at_each_point():
    rate, tail = tail_seconds(SCORE, shares(SMALL, LARGE))
    assert rate.tolist() == [deferred.mean() for deferred in DEFERRED]
    expected = [np.quantile(SMALL + LARGE * deferred, 0.95) for deferred in DEFERRED]
    np.testing.assert_allclose(tail, expected)


def test_money_by_hand(predictions_file):
    small = predictions_file("s", [0, 1], model="small")  # prompts of 3 and 4, answers of 2 tokens
    large = predictions_file("l", [1, 1], model="large")
    pair = join_files(small, large)
    prices = {"small": Price(1.0, 10.0), "large": Price(100.0, 1000.0)}
    scored = RuleScores("average", np.array([0.0, 1.0]), None)
    cost = cost_shares(pair, scored, prices)["money"].mean(scored.score)
    always = (23.0 + 24.0) / 2 / 1e6
    np.testing.assert_allclose(
        cost, [always, always + 2400.0 / 2 / 1e6, always + (2300.0 + 2400.0) / 2 / 1e6]
    )


@pytest.mark.parametrize("name", ["prices.json", "prices.toml"])
def test_a_price_list(tmp_path, name):
    entries = {"my/model": {"prompt": 2.5, "output": 10}, "free": {"prompt": 0, "output": 0}}
    text = json.dumps(entries)
    if name.endswith("toml"):
        text = '["my/model"]\nprompt = 2.5\noutput = 10\n[free]\nprompt = 0\noutput = 0\n'
    (tmp_path / name).write_text(text)
    prices = read_prices(str(tmp_path / name))
    assert prices == {"my/model": Price(2.5, 10.0), "free": Price(0.0, 0.0)}
    with pytest.raises(UsageError, match="no entry for 'other' \\(it has free, my/model\\)"):
        price_of(prices, "other")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a price list in JSON or TOML"),
        ("[1]", "not a price list"),
        ('{"m": {"prompt": 1}}', "expected prompt and output"),
        ('{"m": {"prompt": -1, "output": 1}}', "expected prompt and output"),
        ('{"m": {"prompt": true, "output": 1}}', "expected prompt and output"),
        ('{"m": {"prompt": NaN, "output": 1}}', "expected prompt and output"),
        ('{"m": 3}', "got 3 for 'm'; expected prompt and output"),
    ],
)
def test_other_price_lists(tmp_path, text, message):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_prices(str(tmp_path / "p.json"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="does not exist"):
        read_prices(str(tmp_path / "no.json"))


WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "ran",
    "to",
    "house",
    ".",
    ",",
    "Bär",
    "猫",
    "犬",
]


def texts(seed, count=40):
    generator = np.random.default_rng(seed)
    references = [
        " ".join(generator.choice(WORDS, generator.integers(3, 12))) for _ in range(count)
    ]

    def noisy(share):
        return [
            " ".join(word if generator.uniform() > share else str(generator.choice(WORDS))
                     for word in reference.split())
            for reference in references
        ]  # fmt: skip

    return references, noisy(0.6), noisy(0.1), np.round(generator.uniform(size=count), 1)


@pytest.mark.parametrize("tokenizer", ["13a", "char", "zh"])
def test_corpus_bleu_is_sacrebleus_at_every_threshold(tokenizer):
    references, small, large, score = texts(0)
    expected = [[reference] for reference in references]
    counts = [ngram_counts(answers, expected, tokenizer) for answers in (small, large)]
    rate, value = bleu_curve(score, *counts, tokenizer)
    thresholds = [np.inf, *sorted(set(score.tolist()), reverse=True)]
    assert len(rate) == len(thresholds)
    for place, threshold in enumerate(thresholds):
        deferred = score >= threshold
        mixed = np.where(deferred, large, small).tolist()
        expected = sacrebleu.corpus_bleu(mixed, [references], tokenize=tokenizer, force=True)
        assert rate[place] == deferred.mean()
        assert value[place] == pytest.approx(expected.score, abs=1e-9)


def test_a_tokenizer_that_sacrebleu_lacks():
    with pytest.raises(UsageError, match=r"--bleu klingon: .*sacrebleu"):
        ngram_counts(["a"], [["a"]], "klingon")

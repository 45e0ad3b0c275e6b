"""Deferral scores from token log-probabilities."""

import numpy as np
import pytest

from caskd.eval.rules import RULES, deferral_scores
from caskd.store.errors import UsageError


def test_average_is_minus_the_mean_of_each_answer():
    scores = deferral_scores([[-1.0, -3.0], [-0.5], np.float32([-0.25, -0.25, -1.0])])
    assert scores.tolist() == [2.0, 0.5, 0.5]


@pytest.mark.parametrize("rule", sorted(RULES))
def test_with_one_token_every_rule_orders_as_that_token(rule):
    logprobs = np.array([-0.1, -2.0, -0.7])
    scores = deferral_scores([[value] for value in logprobs], rule)
    assert np.argsort(scores).tolist() == np.argsort(-logprobs).tolist()


@pytest.mark.parametrize(
    ("answers", "rule", "message"),
    [
        ([[-1.0]], "mean", "got rule 'mean', expected one of average"),
        ([], "average", "got no example"),
        ([[-1.0], []], "average", r"without tokens \(example 1\)"),
        ([[-1.0, float("nan")]], "average", r"score nan \(example 0\)"),
    ],
)
def test_refused(answers, rule, message):
    with pytest.raises(UsageError, match=message):
        deferral_scores(answers, rule)

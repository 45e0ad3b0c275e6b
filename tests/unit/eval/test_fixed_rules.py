"""Deferral scores from what was stored of each answer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caskd.eval import deferral_curve
from caskd.eval.answers import Ragged
from caskd.eval.rules import deferral_scores, fixed_rule
from caskd.eval.rules.fixed import RULES
from caskd.store.errors import UsageError

SIX = ("average", "sum", "min", "max", "quantile-0.4", "first-token")
logprobs = st.lists(
    st.lists(st.floats(-30.0, 0.0, width=32), min_size=1, max_size=6), min_size=1, max_size=8
)


def scores(rows, rule):
    found = fixed_rule(rule)
    assert found is not None
    return deferral_scores(Ragged.of(rows), found)


def test_every_rule_by_hand():
    rows = [[-1.0, -3.0], [-0.5], [-0.25, -0.25, -1.0]]
    assert scores(rows, "average").tolist() == [2.0, 0.5, 0.5]
    assert scores(rows, "sum").tolist() == [4.0, 0.5, 1.5]
    assert scores(rows, "min").tolist() == [3.0, 0.5, 1.0]
    assert scores(rows, "max").tolist() == [1.0, 0.5, 0.25]
    assert scores(rows, "first-token").tolist() == [1.0, 0.5, 0.25]
    assert scores(rows, "entropy").tolist() == [-2.0, -0.5, -0.5]  # a mean; entropies are positive
    assert scores([[2.0, 4.0], [1.0]], "margin").tolist() == [-3.0, -1.0]


def test_an_option_is_judged_among_the_options():
    rows = np.log([[0.2, 0.2], [0.6, 0.2]])
    np.testing.assert_allclose(scores(rows, "option"), -np.log([0.5, 0.75]))


@given(logprobs, st.floats(0.0, 1.0))
def test_quantiles_are_numpys(rows, share):
    found = scores(rows, f"quantile-{share!r}")
    np.testing.assert_allclose(found, [-np.quantile(row, share) for row in rows], atol=1e-12)


@given(logprobs)
def test_the_ends_of_the_quantiles_are_min_and_max(rows):
    assert scores(rows, "quantile-0").tolist() == scores(rows, "min").tolist()
    assert scores(rows, "quantile-1").tolist() == scores(rows, "max").tolist()


@given(st.lists(st.tuples(st.floats(-9, 0), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_with_one_token_all_six_rules_give_the_same_curve(rows):
    logprob, small, large = (np.array(part) for part in zip(*rows, strict=True))
    curves = [deferral_curve(scores(logprob[:, None], rule), small, large) for rule in SIX]
    for curve in curves[1:]:
        assert curve.quality.tolist() == curves[0].quality.tolist()
        assert curve.threshold.tolist() == curves[0].threshold.tolist()


def test_rules_are_called_by_their_names():
    assert all(name == rule.name for name, rule in RULES.items())
    assert fixed_rule("mean") is None


@pytest.mark.parametrize("name", ["quantile-", "quantile-x", "quantile-1.5", "quantile-nan"])
def test_a_quantile_that_is_none(name):
    with pytest.raises(UsageError, match="expected quantile-Q with Q from 0 to 1"):
        fixed_rule(name)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "got no example"),
        ([[-1.0], []], r"example 1: .*token_logprobs"),
        ([[-1.0, float("nan")]], r"example 0: score is nan"),
    ],
)
def test_refused(answers, message):
    with pytest.raises(UsageError, match=message):
        scores(answers, "average")

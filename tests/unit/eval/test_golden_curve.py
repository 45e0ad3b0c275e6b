"""A curve of real outcomes, and sums over it that were worked out elsewhere.

`routellm_mmlu.csv` counts, for each length of an MMLU prompt in characters, how often Mixtral-8x7B
(small) and GPT-4 (large) were right: 14,042 questions, from github.com/lm-sys/RouteLLM (Apache-2.0,
responses under routellm/evals/mmlu) on questions of MMLU (MIT).
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from caskd.eval import deferral_curve

TABLE = Path(__file__).parents[2] / "data" / "routellm_mmlu.csv"
# small right, large right, by column of the table
OUTCOMES = {"both_wrong": (0, 0), "only_large": (0, 1), "only_small": (1, 0), "both_right": (1, 1)}


@pytest.fixture(scope="module")
def outcomes():
    """Prompt length, small and large quality [14042]."""
    rows = []
    with TABLE.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, (small, large) in OUTCOMES.items():
                rows += [(int(row["prompt_length"]), small, large)] * int(row[name])
    return np.array(rows, dtype=float).T


def test_longest_prompt_first(outcomes):
    curve = deferral_curve(*outcomes)
    assert curve.num_examples == 14_042
    assert curve.quality_small == pytest.approx(0.680815, abs=1e-6)
    assert curve.quality_large == pytest.approx(0.805797, abs=1e-6)
    assert curve.random_audc == pytest.approx(0.743306, abs=1e-6)
    assert curve.oracle_audc == pytest.approx(0.841432, abs=1e-6)
    assert curve.audc == pytest.approx(0.754024, abs=1e-6)
    assert curve.apgr == pytest.approx(0.5858, abs=5e-5)


def test_the_oracle_and_its_peak(outcomes):
    _, small, large = outcomes
    curve = deferral_curve(large - small, small, large)
    assert curve.audc == curve.oracle_audc
    best = int(np.argmax(curve.quality))
    assert curve.quality[best] == pytest.approx(0.858638, abs=1e-6)
    assert curve.deferral_rate[best] == pytest.approx(0.177824, abs=1e-6)


def test_a_constant_score_is_the_random_line(outcomes):
    _, small, large = outcomes
    curve = deferral_curve(np.zeros_like(small), small, large)
    assert curve.audc == curve.random_audc
    assert curve.cpt(0.5) == pytest.approx(0.5)


def test_cpt_is_where_the_share_of_the_lead_is_recovered(outcomes):
    curve = deferral_curve(*outcomes)
    for share in (0.2, 0.5, 0.8):
        wanted = curve.quality_small + share * curve.gap
        rate = curve.cpt(share)
        assert curve.quality_at(rate) == pytest.approx(wanted, abs=1e-12)
        before = curve.deferral_rate < rate - 1e-9
        assert (curve.quality[before] < wanted).all()

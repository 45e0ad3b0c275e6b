"""The calibration split depends on the questions and the seed, and on nothing else."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest

from caskd.eval.study.experiment import calibration_mask, check_same_model
from caskd.store.errors import IdentityError, UsageError

NAMES = [f"question {number}" for number in range(2000)]


def test_a_share_of_the_questions():
    marked = calibration_mask(NAMES, 0.3, 0)
    assert abs(marked.mean() - 0.3) < 0.03


def test_neither_order_nor_company_matters():
    marked = calibration_mask(NAMES, 0.3, 0)
    shuffled = np.random.default_rng(0).permutation(len(NAMES))
    again = calibration_mask([NAMES[place] for place in shuffled], 0.3, 0)
    assert again.tolist() == marked[shuffled].tolist()
    assert calibration_mask(NAMES[:700], 0.3, 0).tolist() == marked[:700].tolist()
    assert calibration_mask(["q", "q", *NAMES], 0.3, 0)[:2].tolist() in ([0, 0], [1, 1])


def test_a_larger_share_keeps_what_calibrated_before_and_a_seed_redraws():
    small, large = (calibration_mask(NAMES, share, 0) for share in (0.2, 0.5))
    assert (large | ~small).all()
    other = calibration_mask(NAMES, 0.5, 1)
    assert 0.4 < (other == large).mean() < 0.6


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(UsageError, match="between 0 and 1"):
        calibration_mask(NAMES, share, 0)


def test_an_empty_side():
    with pytest.raises(UsageError, match="leaves one side of 2 examples empty"):
        calibration_mask(["a", "a"], 0.5, 0)


MEASURED = {
    "model": {"name": "a", "weights_digest": "w", "revision": None, "dtype": "float32"},
    "decoding": {"max_new_tokens": 4, "hidden_layer": -1, "stop_ids": [2], "batch_size": 8},
    "text": {"rule": 2, "template": None},
    "tasks": {"sum": {"metric": "chrf", "stop": ["."]}},
    "token_cascade": {"rule": "call", "call_threshold": 1.0, "small": {"weights_digest": "s"}},
}


def compare(*path_and_value):
    """Compare with metadata in which one field has another value."""
    *path, last, value = path_and_value
    changed = copy.deepcopy(MEASURED)
    inner = changed
    for key in path:
        inner = inner[key]
    inner[last] = value
    files = (SimpleNamespace(source=f"{n}.parquet", metadata=m)
             for n, m in (("test", MEASURED), ("other", changed)))  # fmt: skip
    check_same_model(*files, "--small", "--calibration-small")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.weights_digest", "x"),
        ("model.dtype", "bfloat16"),
        ("decoding.max_new_tokens", 5),
        ("decoding.hidden_layer", -2),
        ("text.rule", 1),
        ("tasks.sum.stop", []),
        ("token_cascade.call_threshold", 2.0),
        ("token_cascade.small.weights_digest", "x"),
    ],
)
def test_calibration_answers_of_another_system_are_refused(path, value):
    with pytest.raises(IdentityError, match=rf"--calibration-small other.*{path} is .*--small tes"):
        compare(*path.split("."), value)


def test_what_changes_no_score_may_differ():
    compare("model", "name", "copy of a")
    compare("model", "revision", "1")  # the test file names none
    compare("decoding", "batch_size", 1)
    compare("tasks", "other", {"metric": "chrf", "stop": []})
    compare("token_cascade", "calibration", {"prompts": 2})

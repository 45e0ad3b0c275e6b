"""`train(config, row_weights=RULE)`: a caller's own weights of rows."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import capture, config_for, read_metrics

from caskd.store.errors import IdentityError, UsageError
from caskd.train import train

pytestmark = pytest.mark.slow

BETTER = Path(__file__).parents[2] / "examples" / "better_than_cat"


class Either:
    """The mask of cat-xent as a rule of weights, times `size`."""

    fields, needs_student = ("label_rank",), True

    def __init__(self, size=1.0, shift=0):
        self.name, self.size, self.shift = f"either {size:g}", size, shift

    def values(self, step, batch):
        return np.roll(batch.column("label_rank") == 0, self.shift).astype(np.float32)

    def weights(self, rows, right):
        assert bool((rows.answers.diff() >= 0).all())
        return self.size * torch.maximum(rows.values, right.float())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    capture(root)
    train(config_for(root, "cat", objective="cat-xent"))
    return root


def losses(root, out):
    return [line["loss"] for line in read_metrics(root / out)]


@pytest.mark.parametrize("layout", [{}, {"micro_batch_size": 8, "token_budget": 64}])
def test_the_mask_of_cat_xent_as_weights_trains_the_same(root, layout):
    out = f"rule-{len(layout)}"
    train(config_for(root, out, objective="xent", **layout), Either())
    wanted = losses(root, "cat")
    assert losses(root, out) == pytest.approx(wanted, rel=1e-5)
    assert 0 < read_metrics(root / "cat")[0]["keep_fraction"] < 1
    train(config_for(root, f"{out}-shifted", objective="xent", **layout), Either(shift=1))
    assert losses(root, f"{out}-shifted") != pytest.approx(wanted, rel=1e-3)


def test_a_run_goes_on_with_its_own_rule_alone(root):
    half = config_for(root, "half", objective="xent", save_every=3, resume=False)
    train(half, Either(0.5))
    config = config_for(root, "half", objective="xent", save_every=3, resume=True)
    for other in (None, Either(0.25)):
        with pytest.raises(IdentityError, match=r"^row_weights .*either 0\.5"):
            train(config, other)
    assert losses(root, "half")[0] == pytest.approx(losses(root, "cat")[0] / 2, rel=1e-5)


def test_weights_and_a_call_token_are_refused(root):
    with pytest.raises(UsageError, match=r"either 1.*--delegate loss"):
        train(config_for(root, "none", objective="xent", delegate="loss"), Either())
    assert not (root / "none").exists()


def test_an_arm_and_its_control_train_with_equal_weights(root, monkeypatch):
    monkeypatch.syspath_prepend(str(BETTER))
    import train_arm

    words = [
        *("train", "--store", str(root / "store"), "--student", str(root / "student")),
        *("--objective", "xent", "--steps", "3", "--global-batch-size", "8"),
        *("--micro-batch-size", "4", "--dtype", "float32", "--seed", "1"),
    ]
    for name, extra in (("arm", ()), ("control", ("--shuffled", str(root / "arm.npz")))):
        record = ("--rule", "soft-either", "--record", str(root / f"{name}.npz"), *extra)
        out = ("--out", str(root / f"{name}-run"))
        monkeypatch.setattr(sys, "argv", ["train_arm.py", *record, *words[1:], *out])
        train_arm.main()
    ours, theirs = (np.load(root / f"{name}.npz") for name in ("arm", "control"))
    assert ours["sizes"].tolist() == theirs["sizes"].tolist()
    assert ours["sizes"].sum() == len(ours["weights"])
    ends = np.cumsum(ours["sizes"])[:-1]
    for mine, its in zip(*(np.split(f["weights"], ends) for f in (ours, theirs)), strict=True):
        np.testing.assert_array_equal(np.sort(mine), np.sort(its))
        assert not np.array_equal(mine, its)
    assert len(np.unique(ours["weights"])) > 10

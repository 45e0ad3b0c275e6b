"""Training from stores that lack a field: it goes on without it, or stops and names the field."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import stores
from helpers.format2_stores import make_store

from caskd.store.errors import UsageError
from caskd.train.data import StoreMix, teacher_rows
from caskd.train.integrations import StoreDataset
from caskd.train.loss import cascade_aware_loss
from caskd.train.metrics import step_metrics
from caskd.train.objectives import OBJECTIVES
from caskd.train.run.validation import open_eval_store


@pytest.mark.parametrize("name", ["cat-xent", "cat-dist", "cat-xent-l", "cat-dist-l"])
def test_a_mask_of_the_teacher_needs_its_argmax(tmp_path: Path, name: str) -> None:
    mix = StoreMix([make_store(tmp_path / "s", "draws")], [1.0])
    with pytest.raises(UsageError, match=r"capture\.argmax is unknown.*cat-dist-s"):
        mix.check_known(OBJECTIVES[name], "none")
    with pytest.raises(UsageError, match=r"capture\.argmax"):
        StoreDataset(str(mix.stores[0].root), objective=name)


@pytest.mark.parametrize("name", ["xent", "dist", "cat-xent-s", "cat-dist-s", "random-dist"])
def test_other_objectives_take_draws_without_an_argmax(tmp_path: Path, name: str) -> None:
    mix = StoreMix([make_store(tmp_path / "s", "draws")], [1.0])
    mix.check_known(OBJECTIVES[name], "none")
    assert not mix.knows_argmax


def test_the_confidence_of_a_cascade_needs_the_argmax(tmp_path: Path) -> None:
    mix = StoreMix([make_store(tmp_path / "s", "draws")], [1.0])
    mix.check_known(OBJECTIVES["xent"], "none", "gatekeeper")
    with pytest.raises(UsageError, match=r"capture\.argmax is unknown.*--confidence gatekeeper"):
        mix.check_known(OBJECTIVES["xent"], "none", "cascade-gatekeeper")


def test_the_bucket_needs_the_tail(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", "imported")
    mix = StoreMix([store], [1.0])
    assert mix.knows_argmax
    with pytest.raises(UsageError, match=r"capture\.tail is unknown.*--tail renormalise"):
        mix.check_known(OBJECTIVES["cat-dist"], "bucket")
    mix.check_known(OBJECTIVES["cat-dist"], "renormalise")
    mix.check_known(OBJECTIVES["cat-xent"], "bucket")  # reads no tail
    with pytest.raises(UsageError, match=r"--eval-store.*capture\.tail"):
        open_eval_store(str(store.root), store.spec)


def test_accuracy_of_an_unknown_argmax_is_none() -> None:
    names = ("loss", "num_rows", "num_kept", "student_correct", "num_measured", "teacher_correct")
    others = ("tail_mass", "teacher_kl", "acceptance_low", "acceptance_high")
    sums = dict.fromkeys((*names, "num_distilled", *others), 2.0)
    assert step_metrics(sums)["teacher_accuracy"] == 1.0
    assert step_metrics(sums, knows_argmax=False)["teacher_accuracy"] is None


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "drop"])
def test_the_loss_of_log_probabilities_is_that_of_logits(tmp_path: Path, tail: str) -> None:
    losses = []
    plain = stores.make_store(tmp_path / "plain", encoding="exact")
    for store in (plain, make_store(tmp_path / "served", "served")):
        batch = store.read(range(len(store)))
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(batch.num_rows, 8, generator=generator)
        head = torch.randn(len(stores.VOCAB), 8, generator=generator)
        labels = torch.from_numpy(batch.labels.astype(np.int64))
        losses.append(
            cascade_aware_loss(
                hidden, head, labels, teacher_rows(batch), objective="cat-dist", tail=tail
            ).loss
        )
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


def test_rows_of_another_program_are_read_only_if_accepted(tmp_path: Path) -> None:
    url = str(make_store(tmp_path / "s", "imported").root)
    with pytest.raises(UsageError, match=r"imported_from is toy.*accept_imported=True"):
        StoreDataset(url, objective="cat-xent")
    assert len(list(StoreDataset(url, objective="cat-xent", accept_imported=True))) == 18
    mix = StoreMix.open([url])
    with pytest.raises(UsageError, match=r"--store s: capture\.imported_from.*--accept-imported"):
        mix.check_imported("--accept-imported")
    mix.check_imported(None)
    ordinary = stores.make_store(tmp_path / "plain")
    StoreMix([ordinary], [1.0]).check_imported("--accept-imported")

"""What a caller's rule of row weights may read, and what it may return."""

from pathlib import Path

import numpy as np
import pytest
import torch

from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.train.data import check_weighed_fields, checked_weights
from caskd.train.data.row_weights import weighed_rows

DATA = Path(__file__).parents[2] / "data"


class Rule:
    """Reads `fields` and returns `found`."""

    name, needs_student = "mine", False

    def __init__(self, *fields, found=None):
        self.fields, self.found = fields, found

    def values(self, step, batch):
        return self.found

    def weights(self, rows, right):
        return rows.values


@pytest.mark.parametrize(
    ("store", "field", "said"),
    [
        ("golden-v2-draws", "argmax", "capture.argmax"),
        ("golden-v2-draws", "label_rank", "capture.argmax"),
        ("golden-v2-draws", "tail_mass", "sampled rows"),
        ("golden-v2-head", "topk_logits", "head_sampled rows"),
        ("golden-v2-fitted2", "topk_codes", "topk rows"),
    ],
)
def test_a_field_without_meaning_is_refused_by_name(store, field, said):
    opened = TeacherStore.open(DATA / store)
    with pytest.raises(UsageError, match=rf"^row_weights mine: .*{field}.*{said}"):
        check_weighed_fields(Rule("num_kept", field), [opened])


def test_fields_that_a_store_knows_are_not_refused():
    for store, field in (("golden-v2-draws", "sampled_counts"), ("golden-v2-head", "drawn_mass"),
                         ("golden-v2-fitted2", "label_rank")):  # fmt: skip
        check_weighed_fields(Rule(field), [TeacherStore.open(DATA / store)])
    check_weighed_fields(None, [])


@pytest.mark.parametrize("wrong", [-0.1, np.nan, np.inf])
def test_values_and_weights_that_are_no_weights_are_refused(wrong):
    store = TeacherStore.open(DATA / "golden-v2-head")
    batch = store.read(range(len(store)), ("num_kept",))
    good = np.linspace(0, 2, batch.num_rows)
    assert weighed_rows(Rule(found=good), 0, batch).values.dtype == torch.float32
    bad = np.append(good[1:], wrong)
    with pytest.raises(UsageError, match=r"^row_weights mine: the lowest weight"):
        checked_weights("mine", torch.from_numpy(bad))
    if wrong != -0.1:
        with pytest.raises(UsageError, match="not finite"):
            weighed_rows(Rule(found=bad), 0, batch)
    with pytest.raises(UsageError, match="shape"):
        weighed_rows(Rule(found=good[1:]), 0, batch)
    assert bool((checked_weights("mine", torch.from_numpy(good)) == torch.from_numpy(good)).all())

"""How often the host waits for the device in the forward and backward of a micro-step."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.training import capture
from helpers.waits import counted_waits
from transformers import AutoModelForCausalLM

from caskd.store import TeacherStore
from caskd.train.data.batches import collate, fields_to_read
from caskd.train.model.student import LossOptions, StudentWithLoss
from caskd.train.objectives import OBJECTIVES


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("waits")
    capture(root)
    return root


@pytest.mark.parametrize("name", ["xent", "dist", "cat-dist"])
def test_every_wait_of_a_micro_step_is_known(root, name):
    """The check of the rows, the rows that may count, and the live rows of the one tile.

    transformers waits twice more, for what it derives from the mask of a padded batch.
    """
    store = TeacherStore.open(root / "store")
    batch = collate(store.read(np.arange(6), fields_to_read(OBJECTIVES[name])), 0)
    model = AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float32)
    student = StudentWithLoss(model, LossOptions(OBJECTIVES[name], "bucket"))
    with counted_waits() as waits:
        loss, _ = student(batch)
        loss.backward()
    files = Counter(file for file, _ in waits)
    assert files.pop("masking_utils.py", 0) <= 2
    assert files == {"checks.py": 2, "api.py": 1, "tile.py": 1}, waits

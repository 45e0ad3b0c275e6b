"""An export in the columns of axolotl, in axolotl's own collator and loss.

`pip install --no-deps axolotl` is enough: the two files are loaded without the rest of the package.
"""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.training import capture
from transformers import AutoModelForCausalLM, AutoTokenizer

from caskd.store import TeacherStore
from caskd.store.exchange import export_store

FOUND = find_spec("axolotl")
pytestmark = pytest.mark.skipif(FOUND is None, reason="axolotl is not installed")


def load(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """A module of axolotl, whose packages are not imported."""
    assert FOUND is not None
    assert FOUND.submodule_search_locations is not None
    parents = name.split(".")[1:-1]
    for depth in range(len(parents) + 1):
        package = ".".join(["axolotl", *parents[:depth]])
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    path = Path(FOUND.submodule_search_locations[0], *name.split(".")[1:]).with_suffix(".py")
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def expected_sum(store: TeacherStore, model: Any) -> float:
    """Sum over the kept cells of p (log p - log q)."""
    total = 0.0
    for number in range(len(store)):
        batch = store.read([number])
        values = batch.column("topk_logits") - batch.column("logsumexp")[:, None]
        kept = np.arange(values.shape[1]) < batch.column("num_kept")[:, None]
        mass = np.where(kept, np.exp(values), 0.0).sum(1, keepdims=True)
        teacher = torch.from_numpy(values + np.log((1 - batch.column("tail_mass"))[:, None] / mass))
        ids = torch.from_numpy(batch.token_ids.astype(np.int64))[None]
        student = model(input_ids=ids).logits[0].log_softmax(-1)[batch.logit_positions]
        chosen = student.gather(1, torch.from_numpy(batch.column("topk_ids").astype(np.int64)))
        cells = teacher.exp() * (teacher - chosen)
        total += float(cells[torch.from_numpy(kept)].sum())
    return total


@torch.inference_mode()
def test_its_loss_is_that_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TeacherStore.open(str(capture(tmp_path, num=12)))
    export_store(store, "axolotl", tmp_path / "rows")
    records = pq.read_table(tmp_path / "rows").to_pylist()
    load(monkeypatch, "axolotl.utils.collators.batching")
    collator = load(monkeypatch, "axolotl.integrations.kd.collator").DataCollatorForKD
    loss = load(monkeypatch, "axolotl.integrations.kd.topk_logprob.forward_kl").loss
    batch = collator(AutoTokenizer.from_pretrained(tmp_path / "student"))(records)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=torch.float32)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = [batch[f"target_{name}"] for name in ("token_ids", "logprobs", "mask")]
    found = loss(logits, *targets, num_items_in_batch=1)
    assert float(found) == pytest.approx(expected_sum(store, model), rel=1e-5)
    shifted = loss(logits, *(target.roll(1, 1) for target in targets), num_items_in_batch=1)
    assert float(shifted) != pytest.approx(float(found), rel=1e-2)

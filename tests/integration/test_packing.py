"""Packed examples have the loss and gradient of each example alone."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import architectures
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.training import capture, config_for, read_metrics
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from caskd.store import TeacherStore
from caskd.train import train
from caskd.train.data import MicroBatch, collate, fields_to_read, keeps_examples_apart
from caskd.train.model import LossOptions, StudentWithLoss
from caskd.train.objectives import OBJECTIVES


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("packing")
    capture(directory)
    return directory


def loss_and_gradient(model: Any, batches: list[MicroBatch]) -> tuple[float, dict[str, Any]]:
    student = StudentWithLoss(model, LossOptions(OBJECTIVES["dist"], "bucket"))
    student.zero_grad()
    losses = [student(batch)[0] for batch in batches]
    sum(losses).backward()  # type: ignore[union-attr]
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    return sum(loss.item() for loss in losses), gradient


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_padded_and_alone_are_the_same(root: Path, attention: str) -> None:
    store = TeacherStore.open(root / "store")
    counts = store.token_counts()
    chosen = np.argsort(-counts, kind="stable")[::3]
    fields = fields_to_read(OBJECTIVES["dist"])
    model = AutoModelForCausalLM.from_pretrained(
        root / "student", dtype=torch.float32, attn_implementation=attention
    )
    packed = collate(store.read(chosen, fields), 0, packed=True)
    assert packed.attention_mask is None
    assert len(packed.input_ids) < len(chosen), "several examples share a row"
    ways = {
        "alone": [collate(store.read([i], fields), 0) for i in chosen],
        "padded": [collate(store.read(chosen, fields), 0)],
        "packed": [packed],
    }
    results = {name: loss_and_gradient(model, batches) for name, batches in ways.items()}
    loss, gradient = results["alone"]
    for name in ("padded", "packed"):
        assert results[name][0] == pytest.approx(loss, rel=1e-6), name
        for parameter, value in gradient.items():
            torch.testing.assert_close(results[name][1][parameter], value, rtol=1e-5, atol=2e-6)


def test_a_change_in_one_example_does_not_reach_its_neighbours(root: Path) -> None:
    store = TeacherStore.open(root / "store")
    chosen = np.argsort(-store.token_counts(), kind="stable")[:20]
    batch = collate(store.read(chosen, ("argmax", "num_kept")), 0, packed=True)
    model = AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float32)
    student = StudentWithLoss(model, LossOptions(OBJECTIVES["xent"], "bucket"))
    with torch.no_grad():
        assert batch.position_ids is not None
        row = int((batch.position_ids == 0).sum(1).argmax())
        before = student.hidden(batch.input_ids, None, batch.position_ids)
        changed = batch.input_ids.clone()
        changed[row, 0] += 1
        after = student.hidden(changed, None, batch.position_ids)
    differs = (before != after).any(-1)
    length = int((batch.position_ids[row].diff() != 1).nonzero()[0]) + 1
    assert differs[row, :length].all()
    assert differs.sum() == length


def test_the_probe_tells_who_can() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer).train()
    assert keeps_examples_apart(model)
    assert model.training
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    gpt = GPT2LMHeadModel(config)
    assert keeps_examples_apart(gpt)

    def deaf(**inputs: Any) -> Any:  # a model that does not heed the positions
        return original(**{**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])})

    original = model.base_model.forward
    deaf.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    model.base_model.forward = deaf
    assert not keeps_examples_apart(model)


def test_it_is_tested_beyond_each_window_and_off_where_positions_change() -> None:
    long = architectures.ORIGINAL + 10
    for name, packs in {"mistral": True, "phi3-longrope": False, "llama-dynamic": False}.items():
        model = architectures.build(name)
        assert keeps_examples_apart(model, architectures.ORIGINAL)
        assert keeps_examples_apart(model, long) == packs, name


def test_a_run_by_tokens_learns_the_same(root: Path, tmp_path: Path) -> None:
    lines = {}
    for name, options in (
        ("examples", {}),
        ("tokens", {"token_budget": 60}),
        ("many", {"token_budget": 400, "zero_stage": 2}),
    ):
        config = config_for(root, out=str(tmp_path / name), objective="cat-dist", **options)
        train(config)
        lines[name] = read_metrics(config.out)
    for name in ("tokens", "many"):
        for ours, theirs in zip(lines[name], lines["examples"], strict=True):
            for key in ("loss", "keep_fraction", "grad_norm", "kl"):
                assert ours[key] == pytest.approx(theirs[key], rel=2e-5), (name, key)


def test_a_student_that_cannot_pack_is_padded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caskd.train.run.start.keeps_examples_apart", lambda model, longest: False)
    config = config_for(root, out=str(tmp_path / "padded"), token_budget=60, steps=2)
    train(config)
    monkeypatch.undo()
    packed = config_for(root, out=str(tmp_path / "packed"), token_budget=60, steps=2)
    train(packed)
    ours, theirs = (read_metrics(c.out)[-1]["loss"] for c in (config, packed))
    assert ours == pytest.approx(theirs, rel=1e-5)

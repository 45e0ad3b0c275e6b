"""The teacher: layouts over several devices, batches, memory, and inference only."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.captures import config_for
from helpers.tiny import save_tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from caskd.models import SplitModel, pack, pad
from caskd.precompute.checkpoints import find_checkpoint, load_model
from caskd.precompute.planning.planner import plan
from caskd.precompute.rows.targets import TopKTargets
from caskd.precompute.teacher import transformers_teacher as teacher_module
from caskd.precompute.teacher.transformers_teacher import TransformersTeacher
from caskd.store.corpus import num_rows
from caskd.store.errors import UsageError
from caskd.store.write import ShardExample

CPU = torch.device("cpu")


def teacher_of(folder, *, vocab_size=50, dtype="auto"):
    source = find_checkpoint(str(folder), dtype)
    targets = TopKTargets(4, 1.0)
    return TransformersTeacher(source, vocab_size=vocab_size, targets=targets, device="cpu")


def example(length, response, vocab_size=50):
    mask = np.repeat([0, 1], [length - response, response]).astype(np.uint8)
    tokens = (np.arange(length) * 7 % vocab_size).astype(np.uint32)
    return ShardExample(0, tokens, mask, 0, num_rows(mask))


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


def test_no_tensor_of_all_positions_and_the_vocabulary(tmp_path, monkeypatch):
    vocab_size = 4000
    teacher = teacher_of(save_tiny(tmp_path / "wide", vocab_size=vocab_size), vocab_size=vocab_size)
    monkeypatch.setitem(teacher_module.TILE_BYTES, "cpu", 1 << 18)
    monkeypatch.setattr(teacher_module, "MIN_TILE_ROWS", 1)
    batch = [example(200, 150, vocab_size) for _ in range(6)]
    with Largest() as ours:
        fields = teacher.rows(batch)
    assert len(fields["argmax"]) == 900
    with Largest() as whole, torch.inference_mode():
        teacher.split.model(input_ids=torch.zeros(6, 200, dtype=torch.int64))
    assert whole.numel >= 1200 * vocab_size  # the watch sees such a tensor
    # A tile, or the weights of the head, which its product turns around.
    assert ours.numel <= max(1 << 16, 32 * vocab_size)


def test_rows_do_not_depend_on_how_many_are_taken_at_a_time(tmp_path, monkeypatch):
    teacher, batch = teacher_of(save_tiny(tmp_path / "big")), [example(40, 37), example(30, 9)]
    whole = teacher.rows(batch)
    for tile_rows, few in ((7, 1), (7, 7), (10, 3), (10, 20)):
        monkeypatch.setitem(teacher_module.TILE_BYTES, "cpu", 200 * tile_rows)
        monkeypatch.setitem(teacher_module.SLICE_LOGITS, "cpu", 50 * few)
        monkeypatch.setattr(teacher_module, "MIN_TILE_ROWS", 1)
        for name, values in teacher.rows(batch).items():
            np.testing.assert_allclose(values, whole[name], rtol=1e-5)


def test_it_is_frozen_and_in_eval_mode(tmp_path):
    teacher = teacher_of(save_tiny(tmp_path / "big"))
    model = teacher.split.model
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    "device_map",
    [
        "auto",
        {"": "cpu"},
        {
            "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
            "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu",
        },
    ],
)  # fmt: skip
def test_a_layout_over_several_devices_changes_nothing(tmp_path, device_map):
    source = find_checkpoint(str(save_tiny(tmp_path / "big", tie=False)), "auto")
    tokens = [np.array([5, 6, 7], np.uint32), np.array([9, 8], np.uint32)]
    positions = [np.arange(3), np.arange(2)]
    states = []
    for layout in (None, device_map):
        split = SplitModel(load_model(replace(source, device_map=layout), CPU), "--teacher")
        with torch.inference_mode():
            hidden = split.hidden_rows(pad(tokens), positions)
            states.append(split.logits(hidden, 50))
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-6)


def test_a_layout_and_a_device_exclude_each_other(tmp_path):
    folder = save_tiny(tmp_path / "big")
    with pytest.raises(UsageError, match="--device-map auto and --device cpu: both were given"):
        plan(config_for(folder, tmp_path, device="cpu", device_map="auto"))


def test_a_model_that_does_not_fit_says_what_to_type(tmp_path, monkeypatch):
    source = find_checkpoint(str(save_tiny(tmp_path / "big")), "auto")

    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("torch.nn.Module.to", full)
    with pytest.raises(UsageError, match=r"float32 do not fit on cpu .*--device-map auto"):
        load_model(source, CPU)


def test_an_attention_that_is_not_installed_is_one_line(tmp_path):
    folder = str(save_tiny(tmp_path / "big"))
    with pytest.raises(UsageError, match=r"flash_attention_2.*--attention sdpa or eager") as caught:
        find_checkpoint(folder, "bfloat16", attention="flash_attention_2")
    assert "\n" not in str(caught.value)


def test_flash_attention_needs_half_precision(tmp_path):
    folder = str(save_tiny(tmp_path / "big"))
    with pytest.raises(UsageError, match=r"flash_attention_2.*float32.*--dtype bfloat16"):
        find_checkpoint(folder, "auto", attention="flash_attention_2")


def leaking(sequences):
    """Packed with positions that do not restart: attention cannot see the border."""
    batch = pack(sequences)
    return replace(batch, position_ids=np.arange(batch.input_ids.shape[1])[None])


def test_a_flash_teacher_packs_and_one_that_leaks_pads(tmp_path, monkeypatch):
    """sdpa computes under the name of flash attention: both derive borders from positions."""
    source = find_checkpoint(str(save_tiny(tmp_path / "big")), "auto")
    model = teacher_module.load_model(source, torch.device("cpu"))
    monkeypatch.setattr(teacher_module, "load_model", lambda source, device: model)
    flash = replace(source, attention="flash_attention_2")
    options = {"vocab_size": 50, "targets": TopKTargets(4, 1.0), "device": "cpu"}
    assert teacher_module.TransformersTeacher(flash, **options).arrange is pack
    assert teacher_module.TransformersTeacher(source, **options).arrange is pad
    monkeypatch.setattr(teacher_module, "pack", leaking)
    assert teacher_module.TransformersTeacher(flash, **options).arrange is pad

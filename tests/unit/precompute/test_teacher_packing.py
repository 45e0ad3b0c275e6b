"""Padded or end to end: where each token stands, and that no example sees another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny import save_tiny, tiny_model, tiny_tokenizer

from caskd.models import SplitModel, is_same_together, pack, pad
from caskd.models.batching import Batch
from caskd.precompute.rows.targets import KeepTopK
from caskd.precompute.teacher import transformers_teacher as teacher_module
from caskd.precompute.teacher.source import find_checkpoint

SEQUENCES = [np.array(tokens, np.uint32) for tokens in ([5, 6, 7], [8], [9, 10, 11, 12], [13, 14])]


@pytest.mark.parametrize("arrange", [pad, pack])
def test_every_token_is_where_it_is_said_to_be(arrange):
    batch = arrange(SEQUENCES)
    flat_ids, flat_positions = batch.input_ids.reshape(-1), batch.position_ids.reshape(-1)
    for start, tokens in zip(batch.starts, SEQUENCES, strict=True):
        np.testing.assert_array_equal(flat_ids[start : start + len(tokens)], tokens)
        places = np.arange(len(tokens))
        np.testing.assert_array_equal(flat_positions[start : start + len(tokens)], places)


def test_padding_is_a_token_of_its_own_line_and_packing_has_none():
    padded, packed = pad(SEQUENCES), pack(SEQUENCES)
    assert padded.input_ids.tolist() == [
        [5, 6, 7, 5], [8, 8, 8, 8], [9, 10, 11, 12], [13, 14, 13, 13],
    ]  # fmt: skip
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 0, 1]]


def leaking(sequences):
    """End to end with one run of positions: the border that attention would need is missing."""
    batch = pack(sequences)
    positions = np.arange(batch.input_ids.shape[1])[None]
    return Batch(batch.input_ids, positions, batch.starts)


def left_padded(sequences):
    """Padding before the tokens, where they see it."""
    longest = max(map(len, sequences))
    ids = np.stack([np.pad(tokens, (longest - len(tokens), 0)) for tokens in sequences])
    starts = [n * longest + longest - len(tokens) for n, tokens in enumerate(sequences)]
    return Batch(ids.astype(np.int64), np.tile(np.arange(longest), (len(ids), 1)), np.array(starts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_check_tells_leaks_from_rounding(dtype, attention):
    model = tiny_model(tiny_tokenizer())
    for name, weight in model.named_parameters():
        if "self_attn" in name:
            weight.data.mul_(10)  # random layers of this size hardly attend
    model.to(dtype)
    model.set_attn_implementation(attention)
    split = SplitModel(model)
    assert is_same_together(split, pad, 50)
    assert is_same_together(split, pack, 50)
    assert not is_same_together(split, leaking, 50)
    assert not is_same_together(split, left_padded, 50)


@pytest.mark.parametrize("arrange", [pad, pack])
def test_another_example_changes_nothing(arrange):
    """The first and last tokens of a neighbor may be anything."""
    split = SplitModel(tiny_model(tiny_tokenizer()))
    places = [np.arange(len(tokens)) for tokens in SEQUENCES]
    with torch.inference_mode():
        before = split.hidden_rows(arrange(SEQUENCES), places)
        changed = [SEQUENCES[0], np.array([40], np.uint32), SEQUENCES[2] + 7, SEQUENCES[3]]
        after = split.hidden_rows(arrange(changed), places)
    own = np.repeat([0, 1, 2, 3], [len(tokens) for tokens in SEQUENCES])
    same = torch.from_numpy(np.isin(own, [0, 3]))
    torch.testing.assert_close(after[same], before[same], rtol=0, atol=1e-6)
    assert (after[~same] - before[~same]).abs().amax(dim=1).min() > 1e-2


def test_a_flash_teacher_packs_and_one_that_leaks_pads(tmp_path, monkeypatch):
    """No flash attention here, so its name is kept and sdpa computes: both take such positions."""
    source = find_checkpoint(str(save_tiny(tmp_path / "big")), "auto")
    model = teacher_module.load_model(source, torch.device("cpu"))
    monkeypatch.setattr(teacher_module, "load_model", lambda source, device: model)
    flash = replace(source, attention="flash_attention_2")
    options = {"vocab_size": 50, "targets": KeepTopK(4, 1.0), "device": "cpu"}
    assert teacher_module.TransformersTeacher(flash, **options).arrange is pack
    assert teacher_module.TransformersTeacher(source, **options).arrange is pad
    monkeypatch.setattr(teacher_module, "pack", leaking)
    assert teacher_module.TransformersTeacher(flash, **options).arrange is pad

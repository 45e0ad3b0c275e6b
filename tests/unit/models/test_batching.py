"""Padded or packed: positions of the tokens, examples that stay apart, and batches in a budget."""

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_model, tiny_tokenizer

from caskd.models import (
    SplitModel,
    arranged_groups,
    longest_first,
    num_in_batch,
    pack,
    pad,
    padded_batches,
)
from caskd.models.batching import Batch

SEQUENCES = [np.array(tokens, np.uint32) for tokens in ([5, 6, 7], [8], [9, 10, 11, 12], [13, 14])]


@pytest.mark.parametrize("arrange", [pad, pack])
def test_starts_are_those_of_the_tokens(arrange):
    batch = arrange(SEQUENCES)
    flat_ids = batch.input_ids.reshape(-1)
    for start, tokens in zip(batch.starts, SEQUENCES, strict=True):
        np.testing.assert_array_equal(flat_ids[start : start + len(tokens)], tokens)


def test_a_padded_model_counts_its_positions_itself():
    assert pad(SEQUENCES).position_ids is None


def test_padding_is_a_token_of_its_own_line_and_packing_has_none():
    padded, packed = pad(SEQUENCES), pack(SEQUENCES)
    assert padded.input_ids.tolist() == [
        [5, 6, 7, 5], [8, 8, 8, 8], [9, 10, 11, 12], [13, 14, 13, 13],
    ]  # fmt: skip
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 0, 1]]


def leaking(sequences):
    """Packed with positions that do not restart: attention cannot see the border."""
    batch = pack(sequences)
    positions = np.arange(batch.input_ids.shape[1])[None]
    return Batch(batch.input_ids, positions, batch.starts)


def left_padded(sequences):
    """Padded on the left, where causal attention sees the padding."""
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
    split = SplitModel(model, "--teacher")
    assert arranged_groups(split, pad, 50, "x").is_same_when_short()
    assert arranged_groups(split, pack, 50, "x").is_same_when_short()
    assert not arranged_groups(split, leaking, 50, "x").is_same_when_short()
    assert not arranged_groups(split, left_padded, 50, "x").is_same_when_short()


@pytest.mark.parametrize("arrange", [pad, pack])
def test_another_example_changes_nothing(arrange):
    """The first and last tokens of a neighbor may be anything."""
    split = SplitModel(tiny_model(tiny_tokenizer()), "--teacher")
    positions = [np.arange(len(tokens)) for tokens in SEQUENCES]
    with torch.inference_mode():
        before = split.hidden_rows(arrange(SEQUENCES), positions)
        changed = [SEQUENCES[0], np.array([40], np.uint32), SEQUENCES[2] + 7, SEQUENCES[3]]
        after = split.hidden_rows(arrange(changed), positions)
    own = np.repeat([0, 1, 2, 3], [len(tokens) for tokens in SEQUENCES])
    same = torch.from_numpy(np.isin(own, [0, 3]))
    torch.testing.assert_close(after[same], before[same], rtol=0, atol=1e-6)
    assert (after[~same] - before[~same]).abs().amax(dim=1).min() > 1e-2


def test_longest_first_keeps_the_order_of_equals():
    lengths = np.array([3, 5, 3, 9, 5], np.int32)
    assert longest_first(lengths).tolist() == [3, 1, 4, 0, 2]


@pytest.mark.parametrize(("longest", "budget", "count"), [(4, 16, 4), (5, 16, 3), (17, 16, 1)])
def test_a_batch_fits_its_budget_once_padded(longest, budget, count):
    assert num_in_batch(longest, budget) == count


def test_padded_batches_hold_every_example_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 40, size=60)
    batches = [batch.tolist() for batch in padded_batches(lengths, 64)]
    assert [index for batch in batches for index in batch] == longest_first(lengths).tolist()
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= 64
    for batch in batches[:-1]:  # no batch could take one example more
        assert (len(batch) + 1) * lengths[batch].max() > 64
    assert list(padded_batches(np.array([], np.int64), 64)) == []

"""Examples share a batch where each then has the numbers that it has alone, and only there."""

import numpy as np
import pytest
import torch
from helpers.architectures import ORIGINAL, build
from transformers import GenerationConfig

from caskd.models import (
    BatchGroups,
    LengthBorders,
    SplitModel,
    arranged_groups,
    check_causal,
    hidden_in_groups,
    length_borders,
    masked_groups,
    pad,
    probe_tokens,
)
from caskd.models.decoding.left_padding import decoding_groups, left_padded
from caskd.store.errors import UsageError

RIGHT = ["llama", "gpt2", "llama-yarn", "mistral", "gemma2", "gemma3", "mamba", "minimax", "opt"]
LENGTHS = [40, ORIGINAL + 1, ORIGINAL, 18, 5]
WHOLE = [[0, 1, 2, 3, 4]]
APART = [[0], [1], [2], [3], [4]]


def decoder(name, **changes):
    model = build(name, **changes)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[2], pad_token_id=0)
    return model, decoding_groups(model, [2], "--model x", "x")


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_is_right_keeps_its_batches(name, dtype, capsys):
    model, decoding = decoder(name)
    model.to(dtype)
    split = SplitModel(model, "--student")
    check_causal(split, "--student")
    assert arranged_groups(split, pad, 50, "x").groups(LENGTHS) == WHOLE
    assert masked_groups(split, "x").groups(LENGTHS) == WHOLE
    assert decoding.groups(LENGTHS, 8) == WHOLE
    assert not capsys.readouterr().err


@pytest.mark.parametrize("scale", [4.0, 1.0])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("rwkv", {}),
        ("minimax", {"layer_types": ["linear_attention", "full_attention"]}),
        ("bart", {}),
        ("git", {}),
        ("roformer", {"rotary_value": True}),
    ],
)
def test_prompts_of_a_model_that_heeds_their_padding_are_answered_alone(
    name, changes, scale, capsys
):
    _, groups = decoder(name, scale=scale, **changes)
    assert groups.groups([5]) == [[0]]
    assert not capsys.readouterr().err  # a prompt alone is right
    assert groups.groups(LENGTHS, 8) == APART
    assert groups.groups(LENGTHS, 8) == APART
    line = "warning: x produces different numbers in a batch than one example at a time; "
    assert capsys.readouterr().err == line + "examples run one at a time\n"


def test_longrope_never_mixes_both_sides_of_its_border():
    model, decoding = decoder("phi3-longrope")
    borders = length_borders(model.config)
    assert (borders.whole, borders.each) == ((ORIGINAL,), None)
    split = SplitModel(model, "--student")
    for groups in (arranged_groups(split, pad, 50, "x"), masked_groups(split, "x")):
        assert groups.groups(LENGTHS) == [[0, 1], [2, 3, 4]]
    # An answer that crosses the border does so at its own step.
    assert decoding.groups(LENGTHS, 6) == [[0, 1], [2], [3, 4]]
    assert decoding.groups([5, 7, 3], 6) == [[0, 1, 2]]


def test_dynamic_positions_are_each_examples_own():
    model, decoding = decoder("llama-dynamic")
    assert length_borders(model.config).each == ORIGINAL
    assert masked_groups(SplitModel(model, "--student"), "x").groups(LENGTHS) == [
        [0],
        [1],
        [2, 3, 4],
    ]
    assert decoding.groups(LENGTHS, 2) == [[0], [1], [2], [3, 4]]


@torch.no_grad()
@pytest.mark.parametrize("name", ["phi3-longrope", "llama-dynamic", "mistral", "gemma3", "llama"])
def test_hidden_states_are_those_of_each_alone_whatever_came_before(name):
    examples = [torch.from_numpy(probe_tokens(n, 50, n).astype(np.int64)) for n in LENGTHS]
    alone = [build(name).base_model(x[None]).last_hidden_state[0] for x in examples]
    split = SplitModel(build(name), "--student")
    groups = masked_groups(split, "x")
    ids = torch.nn.utils.rnn.pad_sequence(examples, batch_first=True)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    hidden = hidden_in_groups(split, groups, ids, mask)
    assert hidden.shape[:2] == ids.shape
    for ours, theirs in zip(hidden, alone, strict=True):
        torch.testing.assert_close(ours[: len(theirs)], theirs, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_each_alone():
    model = build("phi3-longrope").train()
    split = SplitModel(model, "--student")
    groups = masked_groups(split, "x")
    ids = torch.from_numpy(pad([probe_tokens(n, 50) for n in (30, 20)]).input_ids)
    mask = torch.tensor([[1] * 30, [1] * 20 + [0] * 10])
    hidden_in_groups(split, groups, ids, mask)[mask.bool()].square().sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for row, length in enumerate((30, 20)):
        split.hidden(ids[row : row + 1, :length]).square().sum().backward()
    assert ours
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-3)
    assert model.training


@pytest.mark.parametrize("scale", [4.0, 1.0])
@pytest.mark.parametrize(
    "name", ["gemma3-bidirectional", "xlnet", "cpmant", "bert-encoder", "reformer"]
)
def test_a_model_that_sees_later_tokens_is_refused(name, scale):
    model = build(name, scale=scale)
    with pytest.raises(UsageError, match=rf"--student x: {type(model).__name__} is not causal"):
        check_causal(model, "--student x")


def test_a_look_ahead_that_begins_at_a_border_is_found_there():
    """Reformer sorts what is longer than a chunk by content, so later tokens move earlier ones."""
    model, groups = decoder("reformer", lsh_attn_chunk_length=16, local_attn_chunk_length=16)
    check_causal(model, "--model x")
    groups.groups([10], 4)
    with pytest.raises(UsageError, match=r"--model x: Reformer.* is not causal: at 20 tokens"):
        groups.groups([10], 10)


class Counting:
    """A probe that counts, and fails beyond a length."""

    def __init__(self, fails_beyond=1000):
        self.together, self.causal, self.fails_beyond = [], [], fails_beyond

    def is_same_together(self, lengths, num_new):
        self.together.append((tuple(lengths), num_new))
        return max(lengths) <= self.fails_beyond

    def check_causal(self, length):
        self.causal.append(length)


def test_only_borders_that_an_example_exceeds_are_checked_and_once():
    probe = Counting()
    groups = BatchGroups(LengthBorders(local=(100, 4000)), probe, "x", print)
    groups.groups([90, 100])
    assert (probe.together, probe.causal) == ([((8, 5, 3), 0)], [])
    groups.groups([101])
    assert (len(probe.together), probe.causal) == (1, [101])  # one example needs no comparison
    groups.groups([300, 7])
    groups.groups([3000, 7])
    assert probe.together[1:] == [((105, 5), 0)]
    assert probe.causal == [101]


def test_examples_beyond_a_window_that_a_model_gets_wrong_go_alone():
    said = []
    groups = BatchGroups(LengthBorders(local=(100,)), Counting(fails_beyond=100), "x", said.append)
    assert groups.groups([120, 7, 101, 100]) == [[0], [1, 3], [2]]
    assert len(said) == 1
    assert "examples of more than 100 tokens run one at a time" in said[0]


def test_borders_are_read_from_the_config():
    assert length_borders(build("llama").config) == LengthBorders()
    assert length_borders(build("gemma2").config).local == (ORIGINAL,)
    assert length_borders(build("llama-yarn").config).local == (ORIGINAL,)
    assert length_borders(build("minimax").config).local == (8,)


def test_left_padding_hides_nothing_of_the_prompts():
    padded = left_padded([[5, 6, 7], [8]], 0)
    assert padded["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]

"""Rows of ragged, many-turn examples against one plain float32 forward for each."""

import numpy as np
import pytest
import torch
from helpers.tiny import save_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from caskd.precompute.checkpoints import find_checkpoint
from caskd.precompute.rows.targets import TopKTargets
from caskd.precompute.rows.topk import filler_rows
from caskd.precompute.teacher.transformers_teacher import TransformersTeacher
from caskd.precompute.workers.fill import TokenBudget, fill_shard
from caskd.store.corpus import logit_positions, num_rows, row_labels
from caskd.store.write import ShardExample, ShardWork

TOP_K, VOCAB = 5, 50
# Of the largest logit: float32 sums differ in their order only; bfloat16 has 8 bits.
TOLERANCE = {"float32": 1e-6, "bfloat16": 3e-2}


@pytest.fixture(scope="module")
def answerers(tmp_path_factory):
    """By dtype: a teacher that computes in it, and its rounded weights in a float32 model."""
    folder = save_tiny(tmp_path_factory.mktemp("models") / "big", vocab_size=VOCAB + 3)
    made = {}
    for dtype in TOLERANCE:
        teacher = TransformersTeacher(
            find_checkpoint(str(folder), dtype),
            vocab_size=VOCAB,
            targets=TopKTargets(TOP_K, 1.0),
            device="cpu",
        )
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).float()
        made[dtype] = teacher, plain.eval()
    return made


def ragged_work(source: np.random.Generator, num_examples: int) -> ShardWork:
    """Examples whose response tokens stand anywhere: several turns, all of it, or one token."""
    examples, row = [], 0
    for index in range(num_examples):
        length = int(source.integers(2, 30))
        mask = (source.random(length) < source.random()).astype(np.uint8)
        mask[source.integers(1, length)] = 1
        tokens = source.integers(0, VOCAB, length).astype(np.uint32)
        examples.append(ShardExample(index, tokens, mask, row, num_rows(mask)))
        row += num_rows(mask)
    return ShardWork(0, examples)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    num_examples=st.integers(1, 9),
    token_budget=st.integers(1, 200),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_rows_equal_a_plain_forward(answerers, seed, num_examples, token_budget, dtype):
    teacher, plain = answerers[dtype]
    work = ragged_work(np.random.default_rng(seed), num_examples)
    rows = filler_rows(work.num_rows + 3, TOP_K)
    assert fill_shard(work, teacher, rows, TokenBudget(token_budget), lambda done: None) == []
    assert not rows["num_kept"][work.num_rows :].any()
    for example in work.examples:
        place = slice(example.row_start, example.row_start + example.row_count)
        with torch.inference_mode():
            logits = plain(torch.from_numpy(example.token_ids.astype(np.int64))[None]).logits
        z = logits[0, logit_positions(example.is_response), :VOCAB].double().numpy()
        labels = row_labels(example.token_ids, example.is_response)
        check({name: values[place] for name, values in rows.items()}, z, labels, TOLERANCE[dtype])


def check(rows, z, labels, tolerance):
    """Rows [N] against plain logits z [N, V]; what near-ties can swap may be either."""
    size = np.abs(z).max()
    error = tolerance * size
    lse = np.logaddexp.reduce(z, axis=1)
    own = np.take_along_axis(z, labels[:, None].astype(np.int64), axis=1)
    at_ids = np.take_along_axis(z, rows["topk_ids"].astype(np.int64), axis=1)
    np.testing.assert_allclose(rows["topk_logits"], -np.sort(-z, axis=1)[:, :TOP_K], atol=error)
    np.testing.assert_allclose(rows["topk_logits"], at_ids, atol=error)
    np.testing.assert_allclose(rows["logsumexp"], lse, atol=error)
    np.testing.assert_allclose(rows["label_logit"], own[:, 0], atol=error)
    tail = 1 - np.exp(-np.sort(-z, axis=1)[:, :TOP_K] - lse[:, None]).sum(axis=1)
    np.testing.assert_allclose(rows["tail_mass"], tail, atol=4 * error)
    assert (rows["label_rank"] >= (z > own + 2 * error).sum(axis=1)).all()
    assert (rows["label_rank"] < (z >= own - 2 * error).sum(axis=1)).all()
    np.testing.assert_array_equal(rows["argmax"], rows["topk_ids"][:, 0])
    np.testing.assert_array_equal(rows["label_rank"] == 0, rows["argmax"] == labels)
    assert (rows["num_kept"] == TOP_K).all()
    for ids in rows["topk_ids"]:
        assert len(set(ids.tolist())) == TOP_K

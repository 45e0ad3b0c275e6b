"""Row fields against a naive sort in float64: every tie, every edge."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caskd.precompute.rows.topk import row_fields


def naive(logits: np.ndarray, labels: np.ndarray, k: int, min_mass: float = 1.0) -> dict:
    """The definitions, row by row, on one sorted list of (logit, id)."""
    out: dict = {
        name: []
        for name in ("ids", "logits", "num_kept", "lse", "label_logit", "tail", "argmax", "rank")
    }
    for z, y in zip(logits.astype(np.float64), labels, strict=True):
        order = np.lexsort((np.arange(len(z)), -z))
        lse = np.logaddexp.reduce(z)
        p = np.exp(z[order] - lse)
        tails = np.array([p[n:].sum() for n in range(1, k + 1)])
        enough = np.flatnonzero(tails <= 1.0 - min_mass) if min_mass < 1 else []
        kept = int(enough[0]) + 1 if len(enough) else k
        out["ids"].append(np.where(np.arange(k) < kept, order[:k], 0))
        out["logits"].append(np.where(np.arange(k) < kept, z[order[:k]], -np.inf))
        out["num_kept"].append(kept)
        out["lse"].append(lse)
        out["label_logit"].append(z[y])
        out["tail"].append(p[kept:].sum())
        out["argmax"].append(order[0])
        out["rank"].append(int(np.flatnonzero(order == y)[0]))
    return {name: np.array(values) for name, values in out.items()}


def check(logits: torch.Tensor, labels: torch.Tensor, k: int, min_mass: float = 1.0) -> None:
    got = row_fields(logits, labels, top_k=k, min_mass=min_mass)
    want = naive(logits.numpy(), labels.numpy(), k, min_mass)
    np.testing.assert_array_equal(got["num_kept"], want["num_kept"])
    np.testing.assert_array_equal(got["topk_ids"], want["ids"])
    np.testing.assert_array_equal(got["topk_logits"], want["logits"].astype(np.float32))
    np.testing.assert_array_equal(got["argmax"], want["argmax"])
    np.testing.assert_array_equal(got["label_rank"], want["rank"])
    np.testing.assert_array_equal(got["label_logit"], want["label_logit"].astype(np.float32))
    np.testing.assert_allclose(got["logsumexp"], want["lse"], rtol=1e-6, atol=1e-6)
    # At k = V nothing is outside; what float64 sums there is exactly 0 as well.
    np.testing.assert_allclose(got["tail_mass"], want["tail"], rtol=1e-4, atol=0)


def make(seed: int, num_rows: int, num_columns: int, shape: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if shape == "few values":  # most cells tie, across the k-th place too
        return torch.randint(-2, 2, (num_rows, num_columns), generator=generator).float()
    logits = torch.randn(num_rows, num_columns, generator=generator) * 4
    if shape == "bfloat16":
        return logits.bfloat16().float()
    if shape == "all equal":
        return torch.full_like(logits, 1.5)
    return logits


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    num_rows=st.integers(1, 6),
    num_columns=st.integers(1, 300),
    k_share=st.floats(0, 1),
    shape=st.sampled_from(["plain", "few values", "bfloat16", "all equal"]),
    min_mass=st.sampled_from([1.0, 0.999, 0.5, 0.03]),
)
def test_row_fields_equal_the_naive_sort(seed, num_rows, num_columns, k_share, shape, min_mass):
    logits = make(seed, num_rows, num_columns, shape)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, num_columns, num_rows))
    k = max(1, round(k_share * num_columns))
    if shape == "all equal" and min_mass < 1:
        min_mass = 1.0  # there a prefix's mass is n/V, and the rounding of n/V is not our subject
    check(logits, labels, k, min_mass)


@pytest.mark.parametrize("k", [1, 2, 5, 63, 64, 100])
def test_bfloat16_ties_across_the_boundary(k):
    logits = make(3, 40, 4000, "bfloat16")
    tied = [len(set(row)) < k + 1 for row in torch.topk(logits, k + 1).values.tolist()]
    assert k < 63 or any(tied)  # the case is really there
    check(logits, torch.arange(40), k)


@pytest.mark.parametrize("num_columns", [31, 32, 33, 64, 1000, 1023, 1024, 1025])
@pytest.mark.parametrize("shape", ["few values", "bfloat16", "all equal"])
def test_ties_within_and_between_blocks_and_in_a_short_last_one(num_columns, shape):
    logits = make(4, 30, num_columns, shape)
    logits[:10, -1] = logits.max()  # the last id ties with the first
    for k in (1, 2, 31, 32, 33):
        if k <= num_columns:
            check(logits, torch.arange(30) * 7 % num_columns, k)


def test_columns_cut_from_a_wider_head_are_not_copied_wrong():
    wide = make(9, 12, 200, "plain")
    wide[:, 150:] = 100.0
    labels = torch.arange(12)
    got, want = (row_fields(z, labels, top_k=3) for z in (wide[:, :150], wide[:, :150].clone()))
    for name, values in got.items():
        np.testing.assert_array_equal(values, want[name])


def test_the_whole_vocabulary_is_kept_when_k_is_v():
    logits = make(0, 7, 50, "plain")
    fields = row_fields(logits, torch.arange(7), top_k=50)
    check(logits, torch.arange(7), 50)
    assert (fields["tail_mass"] == 0).all()
    assert (np.sort(fields["topk_ids"], axis=1) == np.arange(50)).all()


def test_a_prefix_of_exactly_min_mass_is_enough():
    fields = row_fields(torch.zeros(1, 4), torch.tensor([0]), top_k=3, min_mass=0.5)
    assert (fields["num_kept"].tolist(), fields["tail_mass"].tolist()) == ([2], [0.5])


def test_ties_of_zero_and_minus_zero():
    logits = torch.tensor([[-0.0, 1.0, 0.0, -0.0, -1.0]])
    fields = row_fields(logits, torch.tensor([0]), top_k=3)
    assert fields["topk_ids"].tolist() == [[1, 0, 2]]


def test_label_rank_is_zero_exactly_when_label_argmax_and_first_agree():
    logits = make(5, 300, 12, "few values")
    labels = torch.arange(300) % 12
    fields = row_fields(logits, labels, top_k=3)
    first = fields["label_rank"] == 0
    assert first.any()
    assert not first.all()
    np.testing.assert_array_equal(first, fields["argmax"] == labels.numpy())
    np.testing.assert_array_equal(fields["argmax"], fields["topk_ids"][:, 0])


def test_labels_far_outside_the_top_k():
    logits = make(8, 20, 500, "few values")
    order = np.lexsort((np.arange(500)[None].repeat(20, 0), -logits.numpy()), axis=1)
    for place in (4, 100, 499):
        labels = torch.from_numpy(order[:, place].copy())
        assert (row_fields(logits, labels, top_k=4)["label_rank"] == place).all()


@pytest.mark.parametrize("tail", [1e-2, 1e-5, 1e-8, 1e-12])
def test_a_tiny_tail_keeps_its_digits(tail):
    num_tail = 200
    each = np.log(tail / num_tail)  # against two kept cells of probability one half
    logits = torch.full((1, 2 + num_tail), float(each))
    logits[0, :2] = float(np.log(0.5))
    fields = row_fields(logits, torch.tensor([0]), top_k=2)
    exact = naive(logits.numpy(), np.array([0]), 2)["tail"]
    np.testing.assert_allclose(fields["tail_mass"], exact, rtol=1e-5)
    np.testing.assert_allclose(fields["tail_mass"], tail, rtol=1e-2)


def test_min_mass_keeps_the_shortest_prefix_that_reaches_it():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.04, 0.01]]))
    for min_mass, kept in [(0.4, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4)]:
        fields = row_fields(logits, torch.tensor([4]), top_k=4, min_mass=min_mass)
        assert fields["num_kept"].tolist() == [kept]
        assert np.isneginf(fields["topk_logits"][0, kept:]).all()
        assert (fields["topk_ids"][0, kept:] == 0).all()
        lost = 1 - np.cumsum([0.5, 0.3, 0.15, 0.04])[kept - 1]
        np.testing.assert_allclose(fields["tail_mass"], [lost], rtol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_with_one_bad_logit_has_no_teacher_and_harms_no_other(bad):
    logits = make(1, 5, 30, "plain")
    clean = row_fields(logits, torch.arange(5), top_k=4)
    logits[2, 17] = bad
    fields = row_fields(logits, torch.arange(5), top_k=4)
    assert fields["num_kept"].tolist() == [4, 4, 0, 4, 4]
    assert np.isneginf(fields["topk_logits"][2]).all()
    for name in ("topk_ids", "logsumexp", "label_logit", "tail_mass", "argmax", "label_rank"):
        assert not fields[name][2].any()
        np.testing.assert_array_equal(
            np.delete(fields[name], 2, axis=0), np.delete(clean[name], 2, axis=0)
        )


def test_the_stored_dtypes():
    fields = row_fields(make(0, 2, 9, "plain"), torch.tensor([0, 1]), top_k=3)
    assert {name: str(values.dtype) for name, values in fields.items()} == {
        "topk_ids": "uint32", "topk_logits": "float32", "num_kept": "uint16",
        "logsumexp": "float32", "label_logit": "float32", "tail_mass": "float32",
        "argmax": "uint32", "label_rank": "uint32",
    }  # fmt: skip

"""Draws: right by the book, unbiased, and a function of seed, example and row alone."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caskd.precompute.rows.sampling import (
    MASS_BITS,
    count_draws,
    draw_ids,
    filler_draws,
    sampled_fields,
    uniforms,
)
from caskd.precompute.rows.topk import row_fields
from caskd.store.format import FIELD_DTYPES, SAMPLED
from caskd.store.write import ShardExample
from caskd.train import cascade_aware_loss
from caskd.train.loss import TeacherRows

V = 12


def example(index: int, rows: int) -> ShardExample:
    nothing = np.zeros(0, np.uint32)
    return ShardExample(index, nothing, nothing.astype(np.uint8), 0, rows)


def make_logits(num_rows: int, seed: int = 0, vocab: int = V, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_rows, vocab, generator=generator)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), num=st.sampled_from([1, 2, 7, 50]), vocab=st.integers(1, 9))
def test_a_tally_is_a_counter_in_order(seed: int, num: int, vocab: int) -> None:
    draws = np.random.default_rng(seed).integers(0, vocab, (5, num))
    ids, counts = count_draws(draws)
    for line, own_ids, own_counts in zip(draws, ids, counts, strict=True):
        wanted = sorted(Counter(line.tolist()).items(), key=lambda c: (-c[1], c[0]))
        cells = list(zip(own_ids.tolist(), own_counts.tolist(), strict=True))
        assert cells == [*wanted, *[(0, 0)] * (num - len(wanted))]


def test_a_number_meets_its_id_in_the_cumulative_distribution() -> None:
    logits = make_logits(40)
    numbers = np.random.default_rng(1).random((40, 30))
    p = torch.softmax(logits.double(), 1).numpy()
    edges = p.cumsum(1)
    got = draw_ids(logits, numbers).numpy()
    above = np.take_along_axis(edges, got, 1)
    below = above - np.take_along_axis(p, got, 1)
    assert (below - 1e-6 <= numbers).all()
    assert (numbers <= above + 1e-6).all()


def test_the_ends_of_the_unit_interval_and_ids_that_cannot_be() -> None:
    lost = -(MASS_BITS + 1.1) * float(np.log(2))  # less than half a unit of mass
    logits = torch.tensor([[lost, 0.0, lost, 1.0, lost]])
    ends = np.array([[0.0, np.nextafter(1.0, 0.0)]])
    assert draw_ids(logits, ends).tolist() == [[1, 3]]


@pytest.mark.parametrize("num_samples", [1, 50])
def test_a_certain_teacher_is_drawn_every_time(num_samples: int) -> None:
    logits = torch.full((3, V), -200.0)
    logits[torch.arange(3), torch.tensor([0, 5, V - 1])] = 30.0
    numbers = uniforms([example(0, 3)], num_samples, 0)
    fields = sampled_fields(logits, torch.tensor([0, 0, 0]), numbers)
    assert fields["num_kept"].tolist() == [1, 1, 1]
    assert fields["sampled_ids"][:, 0].tolist() == [0, 5, V - 1]
    assert fields["sampled_counts"][:, 0].tolist() == [num_samples] * 3
    assert not fields["sampled_counts"][:, 1:].any()


def test_the_columns_are_those_of_a_top_k_and_counts_add_up() -> None:
    logits, labels = make_logits(30, vocab=200), torch.arange(30)
    fields = sampled_fields(logits, labels, uniforms([example(4, 30)], 50, 1))
    columns = row_fields(logits, labels, top_k=8)
    for name in ("logsumexp", "label_logit", "argmax", "label_rank"):
        np.testing.assert_allclose(fields[name], columns[name], rtol=2e-7)
    assert (fields["sampled_counts"].sum(1) == 50).all()
    assert ((fields["sampled_counts"] > 0).sum(1) == fields["num_kept"]).all()
    assert {name: str(v.dtype) for name, v in fields.items()} == {
        name: FIELD_DTYPES[name] for name in SAMPLED.fields
    }
    filler = filler_draws(3, 50)
    assert {name: (v.dtype, v.shape[1:]) for name, v in filler.items()} == {
        name: (v.dtype, v.shape[1:]) for name, v in fields.items()
    }
    assert not any(values.any() for values in filler.values())


def test_a_row_with_nan_or_inf_has_no_draws_and_harms_no_other() -> None:
    logits, labels = make_logits(5), torch.arange(5)
    numbers = uniforms([example(0, 5)], 20, 0)
    clean = sampled_fields(logits, labels, numbers)
    logits[1, 3], logits[3, 0], logits[4, 2] = torch.nan, torch.inf, -torch.inf
    fields = sampled_fields(logits, labels, numbers)
    for name, values in fields.items():
        assert not values[[1, 3, 4]].any(), name
        np.testing.assert_array_equal(values[[0, 2]], clean[name][[0, 2]])


def test_draws_are_keyed_by_seed_example_and_row_alone() -> None:
    one, two, three = example(7, 4), example(8, 2), example(2**40, 3)
    together = uniforms([one, two, three], 6, 5)
    assert together.shape == (9, 6)
    np.testing.assert_array_equal(uniforms([three], 6, 5), together[6:])
    np.testing.assert_array_equal(uniforms([two, one], 6, 5), together[[4, 5, 0, 1, 2, 3]])
    np.testing.assert_array_equal(uniforms([example(7, 2)], 6, 5), together[:2])
    assert len(np.unique(together)) == together.size  # no two rows, and no two examples, agree
    assert not np.isin(uniforms([one], 6, 6), together).any()


def test_the_first_draws_are_what_they_have_always_been() -> None:
    """A store is resumed by later versions: the stream must never change."""
    numbers = uniforms([example(3, 1)], 3, 2)[0]
    generator = np.random.Generator(np.random.Philox(key=np.array([2, 3], np.uint64)))
    np.testing.assert_array_equal(numbers, generator.random(3))
    assert numbers.tolist() == [0.7610667216567514, 0.9915572947594423, 0.4329498833562745]


def test_a_row_keeps_the_draws_that_it_has_always_had() -> None:
    """Probabilities of 1, 2, 4 and 1 eighths; every number is 0.002 or more from an edge."""
    logits = torch.tensor([[1.0, 2.0, 4.0, 1.0]]).log().expand(2, 4).contiguous()
    numbers = uniforms([example(0, 1), example(6, 1)], 8, 11)
    assert draw_ids(logits, numbers).tolist() == [
        [1, 2, 2, 2, 2, 0, 2, 2], [2, 2, 2, 2, 2, 2, 3, 2],
    ]  # fmt: skip
    fields = sampled_fields(logits, torch.tensor([2, 1]), numbers)
    assert fields["num_kept"].tolist() == [3, 2]
    assert fields["sampled_ids"][:, :3].tolist() == [[2, 0, 1], [2, 3, 0]]
    assert fields["sampled_counts"][:, :3].tolist() == [[6, 1, 1], [7, 1, 0]]


def counts_over_seeds(logits: torch.Tensor, num_seeds: int, num_samples: int) -> np.ndarray:
    """How often each id was drawn, over many seeds: [rows, V]."""
    total = np.zeros(tuple(logits.shape), np.int64)
    labels, rows = torch.zeros(len(logits), dtype=torch.int64), np.arange(len(logits))
    for seed in range(num_seeds):
        numbers = uniforms([example(0, len(logits))], num_samples, seed)
        fields = sampled_fields(logits, labels, numbers)
        np.add.at(total, (rows[:, None], fields["sampled_ids"]), fields["sampled_counts"])
    return total


def test_counts_are_unbiased() -> None:
    """Chi-square of 300 x 50 draws of each row against softmax, 11 degrees of freedom."""
    logits = make_logits(16)
    total = counts_over_seeds(logits, 300, 50)
    wanted = 300 * 50 * torch.softmax(logits.double(), 1).numpy()
    chi_square = ((total - wanted) ** 2 / wanted).sum(1)
    assert chi_square.max() < 37.4  # p = 1e-4 a row
    assert 5 < chi_square.mean() < 17  # neither too far nor too near: 11 is what chance gives


def test_a_biased_draw_would_be_noticed() -> None:
    """The same test refuses what a top-k renormalised to one would give."""
    logits = make_logits(16)
    p = torch.softmax(logits.double(), 1).numpy()
    top = np.where(p >= np.sort(p, 1)[:, -4:-3], p, 0)
    total = 300 * 50 * top / top.sum(1, keepdims=True)
    assert ((total - 300 * 50 * p) ** 2 / (300 * 50 * p)).sum(1).min() > 37.4


def gradient(hidden: torch.Tensor, weight: torch.Tensor, teacher: TeacherRows) -> torch.Tensor:
    leaf = weight.clone().requires_grad_()
    labels = torch.zeros(len(hidden), dtype=torch.int64)
    sums = cascade_aware_loss(hidden, leaf, labels, teacher, objective="dist", w=0.0, tail="none")
    sums.loss.backward()
    assert leaf.grad is not None
    return leaf.grad


def dense_teacher(p: torch.Tensor) -> TeacherRows:
    zeros = torch.zeros(len(p), dtype=p.dtype)
    return TeacherRows(
        argmax=p.argmax(1),
        topk_ids=torch.arange(p.shape[1]).expand_as(p).contiguous(),
        topk_logits=p.log(),
        num_kept=torch.full((len(p),), p.shape[1]),
        logsumexp=zeros,
        tail_mass=zeros,
    )


def test_the_gradient_under_draws_is_that_of_the_whole_distribution() -> None:
    """Mean over 400 seeds against the dense gradient, in standard errors of that mean."""
    logits = make_logits(6).double()
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, 5, generator=generator, dtype=torch.float64)
    full = gradient(hidden, weight, dense_teacher(torch.softmax(logits, 1)))
    seen = []
    for seed in range(400):
        numbers = uniforms([example(0, 6)], 10, seed)
        fields = sampled_fields(logits.float(), torch.zeros(6, dtype=torch.int64), numbers)
        p = torch.zeros(6, V, dtype=torch.float64)
        ids, counts = fields["sampled_ids"].astype(np.int64), fields["sampled_counts"]
        p.scatter_add_(1, torch.from_numpy(ids), torch.from_numpy(counts / 10))
        seen.append(gradient(hidden, weight, dense_teacher(p)))
    draws = torch.stack(seen)
    z = (draws.mean(0) - full) / (draws.std(0) / 400**0.5)
    assert z.abs().max() < 4.5
    assert 0.6 < z.std() < 1.4

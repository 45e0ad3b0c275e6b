"""A step is split: every example once, equally many parts per rank, no part over budget."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caskd.store.errors import UsageError
from caskd.train.data import MicroBatchSplit, accumulation_steps, check_budget
from caskd.train.data.packing import restarting_positions, row_starts

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=24)


@given(lengths, st.sampled_from([1, 2, 4]), st.integers(40, 160), st.booleans())
def test_a_budget_holds_and_ranks_take_equally_many_parts(
    counts: list[int], world_size: int, token_budget: int, packed: bool
) -> None:
    tokens = np.array(counts * world_size, np.int32)
    examples = np.arange(len(tokens))
    split = MicroBatchSplit(
        world_size=world_size, micro_batch_size=1, token_budget=token_budget, packed=packed
    )
    parts = split.parts(examples, tokens)
    assert {len(ranks) for ranks in parts} == {world_size}
    flat = [part for ranks in parts for part in ranks]
    assert sorted(np.concatenate(flat)) == examples.tolist()
    for part in flat:
        sizes = tokens[part].tolist()
        num_rows = row_starts(sizes)[1] if packed else len(sizes)
        assert 0 < num_rows * max(sizes) <= token_budget


@settings(max_examples=50)
@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 3]), st.integers(1, 3))
def test_parts_of_a_fixed_size(world_size: int, micro: int, accumulation: int) -> None:
    batch = world_size * micro * accumulation
    tokens = np.arange(100, 0, -1).astype(np.int32)
    parts = MicroBatchSplit(world_size=world_size, micro_batch_size=micro).parts(
        np.arange(batch), tokens
    )
    assert len(parts) == accumulation_steps(batch, micro, world_size) == accumulation
    assert all(len(part) == micro for ranks in parts for part in ranks)
    np.testing.assert_array_equal(np.concatenate([p for r in parts for p in r]), np.arange(batch))


def test_budgets_by_hand() -> None:
    tokens = np.array([8, 3, 5, 3, 1], np.int32)

    def parts(packed: bool) -> list[list[int]]:
        split = MicroBatchSplit(world_size=1, micro_batch_size=1, token_budget=16, packed=packed)
        return [ranks[0].tolist() for ranks in split.parts(np.arange(5), tokens)]

    assert parts(packed=False) == [[0, 2], [1, 3, 4]]  # 2 x 8, 3 x 3
    assert parts(packed=True) == [[0, 2, 1], [3, 4]]  # rows 8 | 5 3, both full


@given(lengths)
def test_packed_examples_do_not_overlap(counts: list[int]) -> None:
    counts.sort(reverse=True)
    starts, num_rows = row_starts(counts)
    width = counts[0]
    taken = np.concatenate([s + np.arange(n) for s, n in zip(starts, counts, strict=True)])
    assert len(set(taken.tolist())) == len(taken) == sum(counts)
    assert all(s // width == (s + n - 1) // width for s, n in zip(starts, counts, strict=True))
    assert max(taken) < num_rows * width
    positions = restarting_positions(np.array(starts), np.array(counts), num_rows)
    assert positions.shape == (num_rows, width)
    for start, count in zip(starts, counts, strict=True):
        assert positions.flat[start : start + count].tolist() == list(range(count))
    rest = np.setdiff1d(np.arange(positions.size), taken)
    runs = np.split(rest, np.flatnonzero(np.diff(rest) > 1) + 1)
    assert all(positions.flat[run[0]] == 0 for run in runs if len(run)), "a rest is no example's"


def test_the_longest_come_first_and_equal_lengths_stay_in_order() -> None:
    counts = np.array([7, 5, 9, 5, 9], np.int32)
    ((part,),) = MicroBatchSplit(world_size=1, micro_batch_size=4).parts(
        np.array([1, 2, 3, 4]), counts
    )
    assert part.tolist() == [2, 4, 1, 3]


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    assert accumulation_steps(12, 2, 3) == 2
    with pytest.raises(UsageError, match="pass --global-batch-size 12"):
        accumulation_steps(10, 2, 3)
    check_budget(100, 8, 2, longest=100)
    with pytest.raises(UsageError, match="--token-budget 101"):
        check_budget(100, 8, 2, longest=101)
    with pytest.raises(UsageError, match="pass --global-batch-size 9"):
        check_budget(100, 8, 3, longest=10)

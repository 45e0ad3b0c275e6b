"""The order is a pure function: every example once an epoch, the same however it is split."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from caskd.train.data.order import WINDOW_BLOCKS, ExampleOrder, blocks_of, permutation


def order_of(sizes: list[int], seed: int) -> ExampleOrder:
    ends = np.cumsum([0, *sizes])
    blocks = tuple(np.arange(a, b) for a, b in itertools.pairwise(ends))
    return ExampleOrder(blocks=blocks, seed=seed)


orders = st.builds(
    order_of, st.lists(st.integers(1, 9), min_size=1, max_size=15), st.integers(0, 99)
)


@given(orders, st.integers(0, 3))
def test_every_example_comes_once_an_epoch(order: ExampleOrder, epoch: int) -> None:
    size = order.num_examples
    seen = order.at(np.arange(epoch * size, (epoch + 1) * size))
    assert sorted(seen) == list(range(size))


@given(orders, st.integers(1, 12), st.integers(0, 6))
def test_position_alone_decides(order: ExampleOrder, batch: int, step: int) -> None:
    """A resumed run, which never saw the steps before, reads what the uninterrupted one reads."""
    whole = np.concatenate(
        [order.at(np.arange(s * batch, (s + 1) * batch)) for s in range(step + 1)]
    )
    fresh = ExampleOrder(blocks=order.blocks, seed=order.seed)
    last = np.arange(step * batch, (step + 1) * batch)
    np.testing.assert_array_equal(fresh.at(last), whole[step * batch :])
    np.testing.assert_array_equal(fresh.at(np.arange(len(whole))), whole)


@given(orders)
def test_reads_stay_within_a_window_of_blocks(order: ExampleOrder) -> None:
    """At most WINDOW_BLOCKS blocks are open at any time, and each is opened once an epoch."""
    block_of = np.repeat(np.arange(len(order.blocks)), [len(b) for b in order.blocks])
    visited = block_of[order.at(np.arange(order.num_examples))]
    spans = [np.flatnonzero(visited == block) for block in range(len(order.blocks))]
    opened = [
        sum(span[0] <= position <= span[-1] for span in spans)
        for position in range(order.num_examples)
    ]
    assert max(opened) <= WINDOW_BLOCKS


def test_seed_and_epoch_change_the_order() -> None:
    order, other = order_of([50, 50], 1), order_of([50, 50], 2)
    first, second = order.at(np.arange(100)), order.at(np.arange(100, 200))
    assert list(first) != list(second)
    assert list(first) != list(other.at(np.arange(100)))
    assert list(first) != sorted(first)


def test_permutation_is_the_same_for_ever() -> None:
    """These figures were written down once; a change would reorder every run that is resumed."""
    assert permutation(8, 3, 1).tolist() == PERMUTATION_8_3_1
    assert permutation(0, 3).tolist() == []


PERMUTATION_8_3_1 = [5, 6, 3, 7, 0, 1, 2, 4]


def test_blocks_are_the_shards_without_empty_examples() -> None:
    counts = np.array([3, 0, 2, 4, 0, 1], np.int32)
    starts = np.array([0, 0, 3, 8, 0, 16])
    blocks = blocks_of(counts, starts, shard_rows=8)
    assert [block.tolist() for block in blocks] == [[0, 2], [3], [5]]
    assert blocks_of(np.zeros(3, np.int32), np.zeros(3, np.int64), 8) == ()

"""Who takes which shard, and what it costs when nobody tells anybody."""

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.workers.scheduling import Seat, next_shard, seat_of
from caskd.store.errors import UsageError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}


def config(**changes):
    return PrecomputeConfig(teacher="t", data=("d",), store="s", **changes)


@pytest.mark.parametrize(
    ("flags", "environ", "seat"),
    [
        ({}, {}, Seat()),
        ({}, {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, Seat()),
        ({"worker": 2, "num_workers": 3}, {}, Seat(2, 3)),
        ({"executor": "torchrun"}, TORCHRUN, Seat(3, 4, 1)),
        ({"executor": "ray", "num_workers": 8}, {}, Seat()),
    ],
)
def test_flags_and_launcher_give_a_seat(flags, environ, seat):
    assert seat_of(config(**flags), environ) == seat


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        ({}, TORCHRUN, "add --executor torchrun"),
        ({"executor": "ray"}, TORCHRUN, "add --executor torchrun"),
        ({"executor": "torchrun"}, {}, "torchrun --nproc-per-node"),
        ({"executor": "torchrun", "worker": 0}, TORCHRUN, "leave them out"),
        ({"executor": "torchrun", "num_workers": 4}, TORCHRUN, "leave them out"),
        ({"executor": "ray", "worker": 0}, {}, "leave --worker out"),
        ({"num_workers": 4}, {}, r"add --worker 0 \(to 3\)"),
        ({"num_workers": 4, "worker": 4}, {}, "expected 0 to 3"),
        ({"worker": -1}, {}, "expected 0 to 0"),
        ({"num_workers": 0}, {}, "expected 1 or more"),
        ({"executor": "torchrun", "device": "cuda:1"}, TORCHRUN, "leave --device out"),
        ({"executor": "ray", "device_map": "auto"}, {}, "leave --device-map out"),
    ],
)
def test_contradictions_are_refused_with_what_to_type(flags, environ, message):
    with pytest.raises(UsageError, match=message):
        seat_of(config(**flags), environ)


def test_those_who_plan_and_those_who_wait():
    assert Seat().plans
    assert not Seat(0, 4).plans  # an array's tasks start in any order, perhaps never together
    assert not Seat(0, 4).waits
    assert Seat(0, 4, gpu=0).plans
    assert Seat(4, 8, gpu=0).waits  # the first of another node
    assert [Seat(i, 2, gpu=i).speaks for i in range(2)] == [True, False]


@given(st.sets(st.integers(0, 200), min_size=1), st.integers(1, 9), st.data())
def test_own_shards_first_and_always_one_that_is_left(left, count, data):
    index = data.draw(st.integers(0, count - 1))
    chosen = next_shard(sorted(left), index, count)
    own = [shard for shard in sorted(left) if shard % count == index]
    assert chosen in left
    assert not own or chosen == own[0]


def duplicated(num_shards, seconds, seed):
    """Work begun twice, in shards, when each worker sees only what is committed."""
    rng, count = random.Random(seed), len(seconds)
    committed, begun, wasted = set(), 0.0, 0.0
    taken = [set() for _ in range(count)]
    events = [(rng.random() * 1e-3, index, None) for index in range(count)]
    in_hand = {}
    while events:
        now, index, shard = heapq.heappop(events)
        if shard is not None and in_hand.get(index, (None,))[0] == shard:
            committed.add(shard)
            begun += 1
            for other, (theirs, since) in list(in_hand.items()):
                if theirs == shard:
                    if other != index:  # it notices after its next batch and goes on
                        wasted += (now - since) / seconds[other]
                        heapq.heappush(events, (now, other, None))
                    del in_hand[other]
        elif shard is not None:
            continue  # was overtaken
        left = [s for s in range(num_shards) if s not in committed and s not in taken[index]]
        if left:
            shard = next_shard(left, index, count)
            taken[index].add(shard)
            in_hand[index] = (shard, now)
            duration = seconds[index] * rng.uniform(0.9, 1.1)
            heapq.heappush(events, (now + duration, index, shard))
    assert committed == set(range(num_shards))
    return wasted / num_shards


@pytest.mark.parametrize(
    ("seconds", "bound"),
    [
        ([1.0] * 8, 0.05),
        ([1.0] * 7 + [10.0], 0.10),  # one is slow
        ([1.0] * 4 + [1e9] * 4, 0.10),  # half of them are dead, a shard in hand each
        ([1.0, 1e9], 0.05),
    ],
    ids=["equal", "one slow", "half dead", "one of two dead"],
)
def test_little_is_computed_twice(seconds, bound):
    shares = [duplicated(160, seconds, seed) for seed in range(5)]
    assert max(shares) <= bound, shares

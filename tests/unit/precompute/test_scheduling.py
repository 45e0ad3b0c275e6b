"""Which worker takes which shard, and how many shards are computed twice."""

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.workers.scheduling import WorkerInfo, next_shard, worker_info
from caskd.store.errors import UsageError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}


def config(**changes):
    return PrecomputeConfig(teacher="t", data=("d",), store="s", **changes)


@pytest.mark.parametrize(
    ("flags", "environ", "info"),
    [
        ({}, {}, WorkerInfo()),
        ({}, {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, WorkerInfo()),
        ({"worker": 2, "num_workers": 3}, {}, WorkerInfo(2, 3)),
        ({"executor": "torchrun"}, TORCHRUN, WorkerInfo(3, 4, 1)),
        ({"executor": "ray", "num_workers": 8}, {}, WorkerInfo()),
    ],
)
def test_flags_and_launcher_decide_which_worker_it_is(flags, environ, info):
    assert worker_info(config(**flags), environ) == info


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        ({}, TORCHRUN, "add --executor torchrun"),
        ({"executor": "ray"}, TORCHRUN, "add --executor torchrun"),
        ({"executor": "torchrun"}, {}, "torchrun --nproc-per-node"),
        ({"executor": "torchrun", "worker": 0}, TORCHRUN, "omit both"),
        ({"executor": "torchrun", "num_workers": 4}, TORCHRUN, "omit both"),
        ({"executor": "ray", "worker": 0}, {}, "--worker 0.*expected no --worker.*omit it"),
        ({"num_workers": 4}, {}, r"add --worker 0 \(to 3\)"),
        ({"num_workers": 4, "worker": 4}, {}, "expected 0 to 3"),
        ({"worker": -1}, {}, "expected 0 to 0"),
        ({"num_workers": 0}, {}, "expected 1 or more"),
        ({"executor": "torchrun", "device": "cuda:1"}, TORCHRUN, "omit --device"),
        ({"executor": "ray", "device_map": "auto"}, {}, "omit --device-map"),
    ],
)
def test_contradictions_are_refused_with_the_next_command(flags, environ, message):
    with pytest.raises(UsageError, match=message):
        worker_info(config(**flags), environ)


def test_workers_that_plan_and_workers_that_wait():
    assert WorkerInfo().plans
    assert not WorkerInfo(0, 4).plans  # an array's tasks start in any order, perhaps never together
    assert not WorkerInfo(0, 4).waits_for_plan
    assert WorkerInfo(0, 4, gpu=0).plans
    assert WorkerInfo(4, 8, gpu=0).waits_for_plan  # the first of another node
    assert [WorkerInfo(i, 2, gpu=i).prints for i in range(2)] == [True, False]


@given(st.sets(st.integers(0, 200), min_size=1), st.integers(1, 9), st.data())
def test_own_shards_first_and_always_one_that_is_left(left, count, data):
    index = data.draw(st.integers(0, count - 1))
    chosen = next_shard(sorted(left), index, count)
    own = [shard for shard in sorted(left) if shard % count == index]
    assert chosen in left
    assert not own or chosen == own[0]


@pytest.mark.parametrize(
    ("pending", "rank", "world_size", "shard"),
    [
        ([0, 2, 4, 6, 8, 10, 12, 14], 1, 2, 12),  # its half is 8 to 14
        ([0, 4, 8, 12, 16, 20, 24, 28], 1, 4, 12),  # its quarter is 8 and 12
        ([0, 4, 8, 12, 16, 20, 24, 28], 3, 4, 28),
        ([7], 0, 8, 7),
    ],
)
def test_a_helper_starts_in_the_middle_of_its_part(pending, rank, world_size, shard):
    assert next_shard(pending, rank, world_size) == shard


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

"""Random masks keep the requested share of rows, and the same rows for any split of a step."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import stores
from helpers.tiny import write_jsonl

from caskd.precompute.rows.sampling import uniforms
from caskd.store import StoreBatch, TeacherStore
from caskd.store.errors import UsageError
from caskd.store.write import ShardExample
from caskd.train.data import (
    BatchReader,
    MicroBatchSplit,
    RandomMask,
    StoreMix,
    collate,
    read_fractions,
)


def batch_of(counts: list[int], first: int = 0, label: int = 0) -> StoreBatch:
    """Examples `first`, `first` + 1, ... of so many rows, without tokens."""
    total = sum(counts)
    return StoreBatch(
        example_indices=np.arange(first, first + len(counts)),
        token_ids=np.zeros(0, np.uint32),
        is_response=np.zeros(0, np.uint8),
        token_offsets=np.zeros(len(counts) + 1, np.int64),
        row_offsets=np.cumsum([0, *counts]),
        logit_positions=np.zeros(total, np.int64),
        labels=np.full(total, label, np.uint32),
    )


def constant(fraction: float, steps: int = 3, seed: int = 0) -> RandomMask:
    return RandomMask(seed, np.full(steps, fraction))


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.95])
def test_the_rate_is_the_one_asked_for(fraction: float) -> None:
    counts = [1, 7, 250] * 100
    kept = constant(fraction).keep(1, batch_of(counts))
    deviation = (sum(counts) * fraction * (1 - fraction)) ** 0.5
    assert abs(kept.sum() - sum(counts) * fraction) < 4 * deviation
    firsts = kept[np.cumsum([0, *counts])[:-1]]  # of each example: they must not agree
    assert abs(firsts.mean() - fraction) < 4 * (fraction * (1 - fraction) / len(counts)) ** 0.5


def test_the_ends_of_the_range_keep_all_and_nothing() -> None:
    assert constant(1.0).keep(0, batch_of([5000])).all()
    assert not constant(0.0).keep(0, batch_of([5000])).any()


def test_a_row_s_number_is_its_own() -> None:
    """Neighbors, their order and labels change nothing; step, seed, example and row do."""
    counts, mask = [4, 600, 9], constant(0.5)
    whole = mask.keep(1, batch_of(counts))
    assert np.array_equal(whole[4:604], mask.keep(1, batch_of([600], first=1)))
    assert np.array_equal(whole[4:10], mask.keep(1, batch_of([6], first=1)))
    assert np.array_equal(whole, mask.keep(1, batch_of(counts, label=9)))
    for other in (
        mask.keep(2, batch_of([600], first=1)),
        constant(0.5, seed=1).keep(1, batch_of([600], first=1)),
        mask.keep(1, batch_of([600], first=2)),
        whole[5:605],
    ):
        assert 200 < (other != whole[4:604]).sum() < 400


def test_a_row_kept_at_a_rate_is_kept_at_higher_ones() -> None:
    """One number a row, compared: so equal rates give equal masks, and near ones near masks."""
    low, high = (constant(rate).keep(0, batch_of([3000])) for rate in (0.3, 0.4))
    assert not (low & ~high).any()


def test_the_stream_has_golden_values() -> None:
    """The mask of a published run must not change: Philox, from position (step + 1) * 2^192 on."""
    mask = RandomMask(7, np.array([0.5, 0.5, 0.25]))
    kept = [mask.keep(step, batch_of([20, 12], first=2)) for step in range(3)]
    assert ["".join("01"[bit] for bit in row.tolist()) for row in kept] == [
        "11010000111110111110101011101111",
        "00111100010100101000111010100010",
        "10010100000010000111010100001000",
    ]
    raw = np.random.Philox(key=[7, 2], counter=[0, 0, 0, 1]).random_raw(20)
    assert kept[0][:20].tolist() == (raw < 1 << 63).tolist()


@pytest.mark.parametrize("num_samples", [1, 3])
def test_the_mask_is_independent_of_the_samples_of_a_store_with_the_same_seed(
    num_samples: int,
) -> None:
    rows = 3000
    nothing = np.zeros(0, np.uint32)
    example = ShardExample(2, nothing, nothing.astype(np.uint8), 0, rows)
    samples = uniforms([example], num_samples, seed=7)
    mask = RandomMask(7, np.full(4, 0.5))
    for step in range(4):
        kept = mask.keep(step, batch_of([rows], first=2))
        for stream in (samples[:, 0], samples.flatten()[:rows]):
            agreeing = int((kept == (stream < 0.5)).sum())
            assert abs(agreeing - rows / 2) < 4 * (rows / 4) ** 0.5


SPLITS = [
    *(MicroBatchSplit(world_size=1, micro_batch_size=size) for size in (1, 4, 8)),
    MicroBatchSplit(world_size=2, micro_batch_size=2),
    MicroBatchSplit(world_size=4, micro_batch_size=1),
    *(
        MicroBatchSplit(world_size=2, micro_batch_size=1, token_budget=40, packed=p)
        for p in (False, True)
    ),
]


def kept_rows(store: TeacherStore, split: MicroBatchSplit) -> list[list[tuple[int, ...]]]:
    """Of each step, the kept rows of all ranks: two tokens and the teacher's."""
    mix = StoreMix([store], [1.0])
    steps: list[list[tuple[int, ...]]] = [[] for _ in range(4)]
    for rank in range(split.world_size):
        reader = BatchReader(
            store=mix, order=mix.order(seed=0), row_fields=("argmax",), pad_id=0,
            global_batch_size=8, split=split, rank=rank, pin_memory=False,
            mask=RandomMask(3, np.array([0.5, 0.2, 1.0, 0.5])),
        )  # fmt: skip
        for step in reader.steps(0, 4):
            for micro in step.micro_batches:
                assert micro.keep is not None
                assert micro.keep.shape == micro.labels.shape
                before = micro.input_ids.flatten()[micro.gather_index]
                columns = torch.stack([before, micro.labels, micro.teacher.argmax], dim=1)
                steps[step.step] += map(tuple, columns[micro.keep].tolist())
    return [sorted(rows) for rows in steps]


def test_any_split_of_a_step_keeps_the_same_rows(tmp_path: Path) -> None:
    store = stores.make_store(tmp_path / "s", num=60)
    expected = kept_rows(store, SPLITS[0])
    counts = [len(rows) for rows in expected]
    assert 0 < counts[1] < counts[0] < counts[2]
    for split in SPLITS[1:]:
        assert kept_rows(store, split) == expected, split


def test_an_objective_that_makes_its_own_mask_is_given_none(tmp_path: Path) -> None:
    store = stores.make_store(tmp_path / "s")
    assert collate(store.read([0, 1]), pad_id=0).keep is None


def line(step: int, fraction: object = 0.5) -> dict[str, object]:
    return {"step": step, "keep_fraction": fraction}


def test_the_fractions_of_the_first_steps_are_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write_jsonl(file, [line(1, 1), line(2, 0.25), line(3, 0.0)])
    with file.open("a") as stream:
        stream.write('{"step": 4, "keep_fr')  # a run that is still being written
    assert read_fractions(tmp_path, 3).tolist() == [1.0, 0.25, 0.0]
    assert read_fractions(file, 2).tolist() == [1.0, 0.25]
    masks = [RandomMask(0, read_fractions(file, steps)) for steps in (2, 2, 3)]
    assert masks[0].digest == masks[1].digest != masks[2].digest
    with pytest.raises(UsageError, match=r"line 4 is not .* step 4"):
        read_fractions(tmp_path, 4)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(1), line(2)], r"2 steps are recorded; expected the 3"),
        ([], r"0 steps are recorded; expected the 3"),
        ([line(1), line(3), line(4)], "line 2 is not .* step 2"),
        ([line(1), line(2), line(3, None)], "line 3 is not .* step 3"),
        ([line(1, 1.5), line(2), line(3)], "line 1 is not .* step 1"),
        ([line(1, float("nan")), line(2), line(3)], "line 1 is not .* step 1"),
        ([line(1), [2, 0.5], line(3)], "line 2 is not .* step 2"),
        ([line(1), {"step": 2}, line(3)], "line 2 is not .* step 2"),
    ],
)
def test_what_is_no_record_of_the_steps_is_refused(
    tmp_path: Path, lines: list[object], message: str
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    with pytest.raises(UsageError, match=message) as caught:
        read_fractions(tmp_path, 3)
    assert "\n" not in str(caught.value)


def test_a_missing_record_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match=r"metrics\.jsonl") as caught:
            read_fractions(path, 3)
        assert "\n" not in str(caught.value)

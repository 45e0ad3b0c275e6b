"""Padding and the gather index, on a toy batch that can be checked by hand."""

import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers import stores

from caskd.store import StoreBatch, TeacherStore
from caskd.train.data import (
    BatchReader,
    MicroBatchSplit,
    Prefetcher,
    StoreMix,
    collate,
    fields_to_read,
)
from caskd.train.data.prefetch import StalledError
from caskd.train.objectives import OBJECTIVES


def toy() -> StoreBatch:
    """[10 11 | 12 13] and [20 | 21 22 23], the response behind the bar."""
    return StoreBatch(
        example_indices=np.array([4, 2]),
        token_ids=np.array([10, 11, 12, 20, 21, 22, 23], np.uint32),
        is_response=np.array([0, 0, 1, 0, 1, 1, 1], np.uint8),
        token_offsets=np.array([0, 3, 7]),
        row_offsets=np.array([0, 1, 4]),
        logit_positions=np.array([1, 0, 1, 2]),
        labels=np.array([12, 21, 22, 23], np.uint32),
        argmax=np.array([12, 9, 9, 23], np.uint32),
        num_kept=np.array([2, 2, 2, 0], np.uint16),
    )


def test_the_gathered_position_stands_before_its_label() -> None:
    batch = collate(toy(), pad_id=7)
    assert batch.input_ids.tolist() == [[10, 11, 12, 7], [20, 21, 22, 23]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    flat = batch.input_ids.flatten()
    assert flat[batch.gather_index].tolist() == [11, 20, 21, 22]
    assert flat[batch.gather_index + 1].tolist() == batch.labels.tolist() == [12, 21, 22, 23]


def test_teacher_rows_are_what_was_read() -> None:
    teacher = collate(toy(), pad_id=7).teacher
    assert teacher.argmax.tolist() == [12, 9, 9, 23]
    assert teacher.argmax.dtype == torch.int64
    assert teacher.num_kept is not None
    assert teacher.num_kept.tolist() == [2, 2, 2, 0]
    assert teacher.topk_ids is None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_distillation_reads_the_top_k(name: str) -> None:
    read = fields_to_read(OBJECTIVES[name])
    assert "argmax" in read
    assert ("topk_logits" in read) == ("dist" in name)


def test_read_ahead_keeps_the_order_and_ends() -> None:
    with Prefetcher(iter(range(20)), "toy") as items:
        assert list(items) == list(range(20))
        assert items.seconds_waited > 0


def test_an_exception_of_the_reader_is_raised_where_the_item_is_asked_for() -> None:
    def failing():  # type: ignore[no-untyped-def]
        yield 1
        raise KeyError("shard 7")

    with Prefetcher(failing(), "toy") as items:
        iterator = iter(items)
        assert next(iterator) == 1
        with pytest.raises(KeyError, match="shard 7"):
            next(iterator)


def test_a_reader_that_hangs_is_named_where_the_item_is_asked_for() -> None:
    go_on = threading.Event()

    def hanging():  # type: ignore[no-untyped-def]
        yield 1
        go_on.wait()

    with Prefetcher(hanging(), "s3://cask/mix", timeout=0.05) as items:
        iterator = iter(items)
        assert next(iterator) == 1
        with pytest.raises(StalledError, match=r"s3://cask/mix: .*0\.05 s .*1 batches.*--resume"):
            next(iterator)
        go_on.set()


def test_leaving_early_ends_the_thread() -> None:
    taken = []

    def endless():  # type: ignore[no-untyped-def]
        while True:
            taken.append(len(taken))
            yield taken[-1]

    with Prefetcher(endless(), "toy", ahead=2) as items:
        assert next(iter(items)) == 0
    after = len(taken)
    assert after <= 5  # one taken, two queued, one in hand, one being read
    assert not items._thread.is_alive()


class ListeningStore(TeacherStore):
    """Notes what is announced and what is read."""

    announced: ClassVar[set[int]] = set()
    surprises: ClassVar[list[int]] = []

    def prefetch(self, indices, fields=None):  # type: ignore[no-untyped-def]
        self.announced.update(np.asarray(indices).tolist())
        super().prefetch(indices, fields)

    def read(self, indices, fields=None):  # type: ignore[no-untyped-def]
        self.surprises.extend(i for i in np.asarray(indices).tolist() if i not in self.announced)
        return super().read(indices, fields)


def test_examples_are_announced_a_window_before_they_are_read(tmp_path: Path) -> None:
    root = stores.make_store(tmp_path / "s", num=200).root
    store = ListeningStore.open(root)
    mix = StoreMix([store], [1.0])
    order = mix.order(seed=0)
    reader = BatchReader(
        store=mix, order=order, row_fields=("argmax",), pad_id=0, global_batch_size=4,
        split=MicroBatchSplit(world_size=1, micro_batch_size=2), rank=0, pin_memory=False,
    )  # fmt: skip
    ahead = order.examples_per_window // 4
    assert ahead > 1
    for batch in reader.steps(0, 3 * ahead):
        if batch.step < ahead:
            store.surprises.clear()  # nobody could announce the first window
    assert store.surprises == []

"""The dataset's order depends on the position only, and a saved position resumes exactly."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from helpers import stores
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from caskd.store import TeacherStore
from caskd.store.errors import StoreNotFoundError, UsageError
from caskd.train import StoreDataset
from caskd.train.data import StoreMix, stream_positions

WORLDS, READERS = (1, 2, 4), (0, 1, 2)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("dataset")
    return str(stores.make_store(root / "s", num=40).root)


def rounds(span: range, batch: int, world_size: int, readers: int) -> list[list[int]]:
    """What all ranks take together, round by round, their workers in turn as a DataLoader does."""
    by_rank = []
    for rank in range(world_size):
        workers = [
            stream_positions(
                span, batch_size=batch, rank=rank, world_size=world_size, worker=worker,
                num_workers=max(readers, 1),
            )
            for worker in range(max(readers, 1))
        ]  # fmt: skip
        taken = (next(workers[i % len(workers)], None) for i in itertools.count())
        by_rank.append([b.tolist() for b in itertools.takewhile(lambda b: b is not None, taken)])
    together = itertools.zip_longest(*by_rank, fillvalue=[])
    return [[p for part in parts for p in part] for parts in together]


def test_every_resize_at_every_step_keeps_the_order(url: str) -> None:
    """The examples of each step after any resize are those of the uninterrupted run."""
    order = StoreMix.open([url]).order(seed=3)
    global_batch, steps = 4, 3 * order.num_examples // 4
    expected = order.at(np.arange(steps * global_batch)).reshape(steps, global_batch)
    first_epoch = order.at(np.arange(order.num_examples))
    assert len(set(first_epoch.tolist())) == order.num_examples
    shapes = [(world, readers) for world in WORLDS for readers in READERS]
    streams = {
        (shape, step): rounds(range(step * 4, steps * 4), global_batch // shape[0], *shape)
        for shape in shapes
        for step in range(steps)
    }
    for step, before, after in itertools.product(range(steps), shapes, shapes):
        taken = [*streams[before, 0][:step], *streams[after, step]]
        assert len(taken) == steps
        assert taken == streams[(1, 0), 0], (step, before, after)
    positions = np.array(streams[(4, 2), 0]).reshape(-1)
    np.testing.assert_array_equal(order.at(positions).reshape(steps, -1), expected)


@settings(max_examples=50)
@given(st.data())
def test_three_resizes_an_epoch(url: str, data: st.DataObject) -> None:
    size = data.draw(st.integers(8, 120))
    global_batch = data.draw(st.sampled_from([4, 8, 12]))
    stops = sorted(
        data.draw(st.lists(st.integers(0, size // global_batch), min_size=3, max_size=3))
    )
    taken: list[int] = []
    for first, last in itertools.pairwise([0, *stops, None]):
        world = data.draw(st.sampled_from(WORLDS))
        readers = data.draw(st.sampled_from(READERS))
        span = range(first * global_batch, size)
        parts = rounds(span, global_batch // world, world, readers)
        count = None if last is None else last - first
        taken += [p for part in parts[:count] for p in part]
    assert taken == list(range(size))


def ids_of(loader: Any) -> list[tuple[int, ...]]:
    """The tokens of each example, in the order that a loader gives them."""
    return [tuple(x[m > 0].tolist()) for b in loader for x, m in pairs(b)]


def pairs(batch: dict[str, torch.Tensor]) -> Any:
    return zip(batch["input_ids"], batch["attention_mask"], strict=True)


def tokens_in_order(url: str, seed: int, epoch: int = 0) -> list[tuple[int, ...]]:
    mix = StoreMix.open([url])
    order = mix.order(seed)
    size = order.num_examples
    batch = mix.read(order.at(np.arange(epoch * size, (epoch + 1) * size)), ())
    ends = batch.token_offsets[1:-1]
    return [tuple(part.tolist()) for part in np.split(batch.token_ids, ends)]


def test_an_example_says_what_the_store_says(url: str) -> None:
    store = TeacherStore.open(url)
    (order,) = StoreMix.open([url]).order(2).orders
    for place, example in zip(range(10), StoreDataset(url, seed=2), strict=False):
        batch = store.read([int(order.at(np.array([place]))[0])])
        assert example["input_ids"].tolist() == batch.token_ids.tolist()
        positions = example["logit_positions"]
        assert positions.tolist() == batch.logit_positions.tolist()
        counted = (example["labels"] != -100).nonzero().squeeze(1)
        assert counted.tolist() == (positions + 1).tolist()
        assert example["labels"][counted].tolist() == batch.labels.tolist()
        assert example["teacher_topk_ids"].tolist() == batch.column("topk_ids").tolist()
        assert example["teacher_tail_mass"].tolist() == batch.column("tail_mass").tolist()
    assert "teacher_topk_ids" not in next(iter(StoreDataset(url, objective="cat-xent")))
    with pytest.raises(UsageError, match=r"objective 'random-xent' .*'xent' and keep="):
        StoreDataset(url, objective="random-xent")


def test_collated_rows_stand_before_their_labels(url: str) -> None:
    examples = list(itertools.islice(StoreDataset(url), 3))
    batch = StoreDataset.collate(examples, pad_id=1)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    labels = batch["labels"].flatten()[batch["gather_index"] + 1]
    assert labels.tolist() == batch["labels"][batch["labels"] != -100].tolist()
    assert len(labels) == len(batch["teacher_argmax"]) == len(batch["teacher_topk_ids"])
    bare = [{name: e[name] for name in ("input_ids", "labels")} for e in examples]
    assert set(StoreDataset.collate(bare)) == {"input_ids", "labels", "attention_mask"}


@pytest.mark.parametrize(("workers", "start"), [(0, None), (1, "fork"), (2, "fork")])
@pytest.mark.slow
def test_a_plain_dataloader(url: str, workers: int, start: str | None) -> None:
    """test_persistent_workers_see_each_new_epoch has the workers that are spawned."""
    dataset = StoreDataset(url, seed=1, batch_size=4)
    loader = DataLoader(
        dataset, batch_size=4, collate_fn=dataset.collate, num_workers=workers,
        multiprocessing_context=start,
    )  # fmt: skip
    assert ids_of(loader) == tokens_in_order(url, seed=1)
    dataset.set_epoch(1)
    assert ids_of(loader) == tokens_in_order(url, seed=1, epoch=1)


@pytest.mark.parametrize("workers", READERS)
@pytest.mark.slow
def test_a_stateful_dataloader_resumes_exactly(url: str, workers: int) -> None:
    def loader() -> StatefulDataLoader:
        dataset = StoreDataset(url, seed=4, batch_size=4)
        return StatefulDataLoader(
            dataset, batch_size=4, collate_fn=dataset.collate, num_workers=workers
        )

    whole = ids_of(loader())
    assert whole == tokens_in_order(url, seed=4)
    for taken in (1, 5, -(-len(whole) // 4)):
        interrupted = loader()
        for _ in zip(range(taken), interrupted, strict=False):
            state = interrupted.state_dict()
        resumed = loader()
        resumed.load_state_dict(state)
        assert ids_of(resumed) == whole[taken * 4 :]
        assert ids_of(resumed) == whole, "the next pass is a whole one again"


def test_ranks_share_an_epoch(url: str) -> None:
    readers = [StoreDataset(url, rank=r, world_size=4, batch_size=3) for r in range(4)]
    parts = [[tuple(e["input_ids"].tolist()) for e in reader] for reader in readers]
    assert sorted(itertools.chain(*parts)) == sorted(tokens_in_order(url, seed=0))
    batches = {-(-len(part) // 3) for part in parts}
    assert len(batches) == 1, "no rank waits for another at the end"


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_persistent_workers_see_each_new_epoch(url: str, context: str, workers: int) -> None:
    def batches(dataset: StoreDataset, **options: Any) -> list[list[int]]:
        loader = DataLoader(dataset, batch_size=4, collate_fn=StoreDataset.collate, **options)
        return [ids(loader) for epoch in (0, 1, 4, 4, 2) if dataset.set_epoch(epoch) is None]

    def ids(loader: Any) -> list[int]:
        return [int(token) for batch in loader for token in batch["input_ids"].flatten()]

    expected = batches(StoreDataset(url, batch_size=4))
    assert expected[0] != expected[1] != expected[2] == expected[3]
    kept = {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": context}
    assert batches(StoreDataset(url, batch_size=4), **kept) == expected


def test_an_endless_stream_goes_on_with_the_next_epoch(url: str) -> None:
    first, second = tokens_in_order(url, 0), tokens_in_order(url, 0, epoch=1)
    stream = itertools.islice(StoreDataset(url, num_epochs=None), len(first) + len(second))
    assert [tuple(e["input_ids"].tolist()) for e in stream] == first + second


def test_a_state_of_another_reader_is_refused(url: str) -> None:
    state = StoreDataset(url, rank=0, world_size=2).state_dict()
    with pytest.raises(UsageError, match=r"world_size is 1; expected 2"):
        StoreDataset(url).load_state_dict(state)
    with pytest.raises(UsageError, match="pass both, or neither"):
        StoreDataset(url, rank=0)
    with pytest.raises(StoreNotFoundError, match=r"no store\.json"):
        StoreDataset(f"{url}-none")

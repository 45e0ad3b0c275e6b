"""Training data from s3:// yields the same examples as the local store, for every rank."""

import faulthandler
import os
import shutil
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from helpers.s3_server import BUCKET, environment, s3_server
from helpers.stores import make_store
from torch.utils.data import DataLoader

from caskd.store import push_store
from caskd.train import StoreDataset
from caskd.train.data import BatchReader, MicroBatchSplit, Prefetcher, StoreMix

URL = f"s3://{BUCKET}/casks/toy"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store on the disk, which is at URL, too."""
    root = tmp_path_factory.mktemp("remote")
    make_store(root / "store", num=40, shard_rows=16)
    with s3_server() as port, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(port, CASKD_CACHE=str(root / "cache")).items():
            patch.setenv(name, value)
        push_store(root / "store", URL)
        yield root / "store"


def test_the_reader_gives_the_batches_of_the_local_store(local: Path) -> None:
    def batches(name: str) -> list[torch.Tensor]:
        mix = StoreMix.open([name])
        reader = BatchReader(
            store=mix, order=mix.order(seed=1), row_fields=("argmax", "topk_ids"), pad_id=0,
            global_batch_size=8, split=MicroBatchSplit(world_size=2, micro_batch_size=4), rank=1,
            pin_memory=False,
        )  # fmt: skip
        with Prefetcher(reader.steps(3, 9), name) as steps:
            parts = [part for step in steps for part in step.micro_batches]
        return [x for p in parts for x in (p.input_ids, p.labels, p.teacher.topk_ids)]

    ours, theirs = batches(URL), batches(str(local))
    assert len(ours) == len(theirs) == 18
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def show_where_it_hangs(worker: int) -> None:
    """The threads' stacks go to stderr before the loader gives up."""
    faulthandler.dump_traceback_later(80)


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
@pytest.mark.slow
def test_workers_of_every_kind(local: Path, start: str) -> None:
    remote, here = (StoreDataset(url, batch_size=8) for url in (URL, str(local)))
    first = next(iter(remote))  # requests were made here: their threads do not survive a fork
    assert torch.equal(first["input_ids"], next(iter(here))["input_ids"])

    def batches(dataset: StoreDataset, **workers: object) -> list[dict[str, torch.Tensor]]:
        return list(DataLoader(dataset, batch_size=8, collate_fn=dataset.collate, **workers))  # type: ignore[arg-type]

    if start == "forkserver":  # one that a test before started has the environment of that time
        forkserver._forkserver._stop()
    expected = batches(here)
    shutil.rmtree(os.environ["CASKD_CACHE"])  # so that the workers make requests
    for dataset in (remote, here) if start == "fork" else (remote,):
        found = batches(
            dataset, num_workers=2, multiprocessing_context=start, timeout=100,
            worker_init_fn=show_where_it_hangs,
        )  # fmt: skip
        for ours, theirs in zip(found, expected, strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

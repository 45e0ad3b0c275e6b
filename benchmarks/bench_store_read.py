"""Rows per second of caskd and of other readers on the same rows, with a warm page cache.

    python benchmarks/bench_store_read.py STORE [STORE ...] [--work FOLDER]

The rows of each store (with encoding exact) are repeated to at least --rows and written once as a
compact caskd store and once in the format of every rival. There are three orders: sequential;
block-shuffled (examples shuffled within windows of --window rows, as in training); random examples.
Every reader decodes to the same row fields in batches of --batch examples, and its first batch is
compared with caskd's. The cache of decoded chunks holds --cache-mib, a window but not the store, so
every pass decodes every row again; random examples rarely hit it. First one process reads, then two
at the same time.

The table has wall time and processor time; on a shared machine compare the latter. Figures are
medians over rounds, with all readers in turn within a round. Writes results/store_read.csv.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rival_readers import READERS, Read
from store_rows import read_rows, setting, write_store, write_table

from caskd.store.read import TeacherStore, arrays

SHARD_ROWS = 65_536
ARGMAX = "caskd, argmax only"
ORDERS = ("sequential", "block-shuffled", "random example")
MAX_SECONDS = 4.0  # a slow reader stops then; its rate is that of the rows read so far


def order_of(store: TeacherStore, kind: str, window: int) -> np.ndarray:
    """Every example once, in one of the three orders."""
    rng = np.random.default_rng(0)
    if kind == "sequential":
        return np.arange(len(store))
    if kind == "random example":
        return rng.permutation(len(store))
    block = store.index.row_start // window
    return np.concatenate([rng.permutation(np.flatnonzero(block == b)) for b in np.unique(block)])


def batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Batches of examples."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


def one_pass(read: Read, order: np.ndarray, batch: int) -> tuple[int, float, float]:
    """Rows read, wall seconds and processor seconds."""
    rows, wall, cpu = 0, time.perf_counter(), time.process_time()
    for chosen in batches(order, batch):
        rows += len(read(chosen)[0])
        if time.perf_counter() - wall > MAX_SECONDS:
            break
    return rows, time.perf_counter() - wall, time.process_time() - cpu


def argmax_pass(source: Path, order: np.ndarray, batch: int) -> tuple[int, float, float]:
    """The figures of `one_pass` for CAT-Xent, which reads one field, in tenfold batches."""
    store = TeacherStore.open(source)
    store.read([0], ("argmax",))  # the example axis is loaded once in a run
    return one_pass(
        lambda chosen: [store.read(chosen, ("argmax",)).column("argmax")], order, 10 * batch
    )


def _in_a_process(name: str, folder: Path, source: Path, args: Any, start: Any, out: Any) -> None:
    limit_cache(args.cache_mib, TeacherStore.open(source))
    read = READERS[name][3](folder, source)
    order = order_of(TeacherStore.open(source), "block-shuffled", args.window)
    one_pass(read, order, args.batch)
    start.wait()
    out.put(one_pass(read, order, args.batch))


def two_processes(name: str, folder: Path, source: Path, args: Any) -> tuple[float, float]:
    """Rows per wall second and per processor second of two block-shuffled readers in parallel."""
    context = multiprocessing.get_context("spawn")
    start, out = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=_in_a_process, args=(name, folder, source, args, start, out))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    found = [out.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    rows, walls, cpus = zip(*found, strict=True)
    return sum(rows) / max(walls), sum(rows) / sum(cpus)


def check_equal(read: Read, ours: Read, order: np.ndarray) -> None:
    """Compare the first batch with that of caskd."""
    for theirs, own in zip(read(order[:8]), ours(order[:8]), strict=True):
        np.testing.assert_array_equal(theirs, own)


def bytes_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def limit_cache(mebibytes: int, store: TeacherStore) -> int:
    """Limit the cache of stores opened from now on; return its largest number of rows."""
    arrays.CACHE_BYTES = mebibytes << 20
    rows = arrays.CACHE_BYTES // (8 * store.spec.top_k)
    if 2 * rows > store.spec.num_rows:
        raise SystemExit(f"the cache holds {rows:,} rows, so it would hide reads; raise --rows")
    return rows


def open_readers(source: Path, work: Path) -> dict[str, Read]:
    """Write and open every format whose library is installed, and compare it with caskd."""
    order = order_of(TeacherStore.open(source), "random example", 1)
    readers: dict[str, Read] = {}
    for name, (library, _, write, reader) in READERS.items():
        if find_spec(library) is None:
            print(f"{name}: skipped, {library} is not installed")
            continue
        folder = folder_of(name, work)
        if write is not None and not folder.exists():
            folder.mkdir(parents=True)
            write(folder, source)
        readers[name] = reader(folder, source)
        check_equal(readers[name], readers["caskd"], order)
    return readers


def folder_of(name: str, work: Path) -> Path:
    """Folder of a reader's files."""
    return work / "".join(c for c in name if c.isalnum())


def measure(source: Path, work: Path, args: Any) -> list[dict[str, Any]]:
    """One line per reader and order."""
    store, table = TeacherStore.open(source), []
    for kind in ORDERS:
        order = order_of(store, kind, args.window)
        # In a large store a random example rarely hits the cache.
        cached_rows = limit_cache(8 if kind == "random example" else args.cache_mib, store)
        readers = open_readers(source, work)
        passes = {
            name: partial(one_pass, read, order, args.batch) for name, read in readers.items()
        }
        if kind == "block-shuffled":
            passes[ARGMAX] = partial(argmax_pass, source, order, args.batch)
        times: dict[str, list[tuple[int, float, float]]] = {name: [] for name in passes}
        for turn in range(args.rounds + 1):
            for name, run in passes.items():
                taken = run()
                if turn:  # the first round warms up
                    times[name].append(taken)
        for name, taken in times.items():
            line = {"reader": name, "order": kind, "processes": 1, "cached_rows": cached_rows}
            table.append(line | _rates(taken) | _facts(name, source, work, store))
            print(table[-1])
    for name in readers:
        wall, cpu = two_processes(name, folder_of(name, work), source, args)
        line = {"reader": name, "order": "block-shuffled", "processes": 2}
        speeds = {"rows_per_s": round(wall), "rows_per_cpu_s": round(cpu)}
        table.append(line | speeds | _facts(name, source, work, store))
        print(table[-1])
    return table


def _rates(taken: list[tuple[int, float, float]]) -> dict[str, int]:
    walls, cpus = ([rows / t[i] for rows, *t in taken] for i in (0, 1))
    return {
        "rows_per_s": round(statistics.median(walls)),
        "rows_per_cpu_s": round(statistics.median(cpus)),
        "rows_per_cpu_s_min": round(min(cpus)),
        "rows_per_cpu_s_max": round(max(cpus)),
    }


def _facts(name: str, source: Path, work: Path, store: TeacherStore) -> dict[str, Any]:
    known = "caskd" if name == ARGMAX else name
    folder = folder_of(known, work) if READERS[known][2] else source / "data.zarr"
    size = bytes_of(folder)
    return {
        "checksums": READERS[known][1],
        "bytes_per_row": round(size / store.spec.num_rows, 1),
        "rows": store.spec.num_rows,
        "mean_rows_per_example": round(store.spec.num_rows / len(store), 1),
        "data": source.name,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="+", type=Path, help="sealed stores with encoding exact")
    parser.add_argument("--rows", type=int, default=262_144)
    parser.add_argument("--window", type=int, default=SHARD_ROWS)
    parser.add_argument("--batch", type=int, default=64, help="examples read at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache-mib", type=int, default=40)
    parser.add_argument("--work", type=Path, help="folder for the stores; default: a temporary one")
    parser.add_argument("--notes", default="", help="text of the notes column, e.g. shared machine")
    args = parser.parse_args()
    table = []
    with TemporaryDirectory() as temporary:
        for path in args.stores:
            work = (args.work or Path(temporary)) / path.name
            source = work / path.name
            if not source.exists():
                rows = read_rows([str(path)])
                repeats = -(-args.rows // rows.num_rows)
                work.mkdir(parents=True)
                write_store(source, rows, "compact", shard_rows=SHARD_ROWS, repeats=repeats)
            table += measure(source, work, args)
    columns = {
        "batch_examples": args.batch, "window_rows": args.window, "rounds": args.rounds,
        "cache_mib": args.cache_mib, "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }  # fmt: skip
    write_table("store_read", table, columns | setting(args.notes))


if __name__ == "__main__":
    main()

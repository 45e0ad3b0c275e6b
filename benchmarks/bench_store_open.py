"""Time to open stores of 10^5 to 10^9 rows, and of `caskd store info` on them.

    python benchmarks/bench_store_open.py

The stores are synthetic. Every commit record, the list of their digests, the seal and the whole
example axis are real. The files of the token axis hold zeros, and those of the rows are listed but
not written, because neither opening nor `caskd store info` reads them. The page cache is warm;
figures are medians over rounds. `index_s` is the first use of the example axis, once per training
run: the only part that grows with the examples. Writes results/store_open.csv.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from store_rows import setting, write_table

from caskd.store.commits import (
    CommitRecord,
    FileRecord,
    all_units,
    commit_record,
    seal_content,
    unit_files,
)
from caskd.store.format import DIGEST_LIST, StoreSpec, canonical_json, encode_whole, layout
from caskd.store.inspect import store_info
from caskd.store.read import TeacherStore

SHARD_ROWS, TOP_K, VOCAB = 65_536, 64, 49_152
FILE_BYTES = 1 << 20


def spec_of(num_rows: int, rows_per_example: int) -> StoreSpec:
    """A store whose examples all have the same number of rows, after half as many prompt tokens."""
    per_shard = SHARD_ROWS // rows_per_example
    num_examples = num_rows // rows_per_example
    identity = {
        "teacher": {"name": "synthetic", "revision": None, "weights_digest": "0", "adapter": None},
        "vocabulary": {"size": VOCAB, "digest": "0", "tokenizer_digest": "0"},
        "text": {
            "kind": "prompt", "eos": True, "max_length": 2048, "on_long": "error",
            "template_digest": None,
        },
        "corpus": {"digest": "0", "num_records": num_examples},
        "capture": {
            "kind": "topk", "top_k": TOP_K, "min_mass": 1.0, "load_dtype": "float32",
            "logits_dtype": "float32", "attention": "sdpa", "quantization": None,
            "temperature": 1.0,
        },
        "encoding": "fitted2",
    }  # fmt: skip
    return StoreSpec(
        identity=identity,
        num_examples=num_examples,
        num_tokens=num_examples * rows_per_example * 3 // 2,
        num_rows=num_examples * rows_per_example,
        num_shards=-(-num_examples // per_shard),
        shard_rows=SHARD_ROWS,
        chunk_rows=layout.chunk_rows_for(SHARD_ROWS),
        tasks=("",),
    )


def example_axis(spec: StoreSpec) -> dict[str, np.ndarray]:
    """The example arrays of `spec`, next-fit."""
    example = np.arange(spec.num_examples, dtype=np.int64)
    rows, tokens = (n // spec.num_examples for n in (spec.num_rows, spec.num_tokens))
    per_shard = SHARD_ROWS // rows
    columns = {
        "token_start": example * tokens,
        "token_count": np.full(len(example), tokens),
        "row_start": example // per_shard * SHARD_ROWS + example % per_shard * rows,
        "row_count": np.full(len(example), rows),
        "status": np.zeros(len(example)),
        "source_index": example,
        "task": np.zeros(len(example)),
    }
    return {a.name: columns[a.name].astype(a.dtype) for a in layout.EXAMPLE_LAYOUTS}


def write_synthetic(root: Path, spec: StoreSpec) -> None:
    """Write a store: real metadata and example axis, stubs for tokens and rows."""
    axis = example_axis(spec)
    contents = {"store.json": spec.to_json(), "data.zarr/zarr.json": layout.GROUP_METADATA}
    for array in layout.EXAMPLE_LAYOUTS:
        contents.update(encode_whole(array, axis[array.name]))
    per_shard = SHARD_ROWS // int(axis["row_count"][0])
    for unit in all_units(spec):
        here = 0
        if unit not in (commit_record.PLAN, commit_record.PILOT):
            here = min(per_shard, spec.num_examples - int(unit) * per_shard)
        facts: dict[str, Any] = {
            "num_rows": here * int(axis["row_count"][0]),
            "statuses": {"ok": here} if here else {},
        }
        if unit not in (commit_record.PLAN, commit_record.PILOT):
            facts["non_finite_examples"] = []
        names, there = unit_files(spec, unit), unit == commit_record.PLAN
        listed = [_file(root, name, contents.get(name), there) for name in names]
        record = CommitRecord(unit, tuple(listed), facts)
        _write(root / commit_record.record_name(unit), record.to_json())
    totals, digest_list = seal_content(root, spec)
    _write(root / DIGEST_LIST, digest_list)
    _write(root / "seal.json", canonical_json(totals))


def _file(root: Path, name: str, data: bytes | None, there: bool) -> FileRecord:
    """Record of a file: written from `data`, as zeros if it is `there`, else only listed."""
    if data is not None:
        _write(root / name, data)
        return FileRecord.of(name, data)
    if there:
        _write(root / name, b"")
        with (root / name).open("r+b") as file:
            file.truncate(FILE_BYTES)
    digest = hashlib.sha256(name.encode()).hexdigest()
    return FileRecord(name, FILE_BYTES, "00000000", digest, "00000000")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median wall time, after one run that does not count."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken[1:]), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [10**5, 10**6, 10**7, 10**8, 10**9]
    parser.add_argument("--rows", type=int, nargs="+", default=sizes)
    parser.add_argument("--rows-per-example", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--notes", default="", help="text of the notes column, e.g. shared machine")
    args = parser.parse_args()
    table = []
    for num_rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            root, spec = Path(folder) / "store", spec_of(num_rows, args.rows_per_example)
            write_synthetic(root, spec)
            row = {
                "rows": spec.num_rows,
                "examples": spec.num_examples,
                "shards": spec.num_shards,
                "open_s": seconds(lambda root=root: TeacherStore.open(root), args.rounds),
                "info_s": seconds(lambda root=root: store_info(root), args.rounds),
                "index_s": seconds(lambda root=root: TeacherStore.open(root).index, args.rounds),
            }
        table.append(row)
        print(row)
    write_table("store_open", table, {"rounds": args.rounds} | setting(args.notes))


if __name__ == "__main__":
    main()

"""Bytes per row of draws by field, and the speed of reading them, in each encoding.

    python benchmarks/bench_store_sampled.py STORE ...

Takes sealed stores written with `caskd precompute --sample N [--head H] --encoding exact`, and
writes their rows in each encoding and several sizes of shards. `compact` is of earlier versions.
`rows_bytes` is the total of the row axis, with lists and orders of ids. Speed is rows per second of
processor time for the fields that training reads. Writes results/store_sampled.csv.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from store_rows import StoredRows, read_rows, setting, write_store, write_table

from caskd.store.format import layout
from caskd.store.inspect import store_info
from caskd.store.read import TeacherStore

SHARDS = (2048, 8192, 65_536)
ENCODINGS = ("compact", "fitted2", "exact")
CELLS = ("num_kept", "sampled_ids", "sampled_counts")
EXAMPLES_AT_ONCE = 256


def measure(name: str, rows: StoredRows, encoding: str, shard_rows: int) -> dict[str, Any]:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        store = write_store(path, rows, encoding, shard_rows=shard_rows)
        info, num_rows = store_info(path), rows.num_rows
        sizes = store.seal["bytes"]
        for field in CELLS:
            found = np.concatenate([batch.column(field) for batch in batches(store, (field,))])
            assert np.array_equal(found, rows.fields[field]), field
        started = time.process_time()
        for _ in batches(TeacherStore.open(path), ("argmax", *CELLS)):
            pass
        seconds = time.process_time() - started
    fields = {f"{name}_bytes": f["bytes_per_row"] for name, f in info["fields"].items()}
    orders = sizes.get(layout.ID_ORDER.name, 0) / num_rows
    return {
        "store": name,
        "kind": store.spec.kind,
        "rows": num_rows,
        "num_samples": store.spec.num_samples,
        "head": store.spec.identity["capture"].get("head"),
        "encoding": encoding,
        "shard_rows": shard_rows,
        "mean_num_kept": round(float(rows.fields["num_kept"].mean()), 2),
        **fields,
        "id_order_bytes": round(orders, 3),
        "rows_bytes": round(sum(fields.values()) + orders, 3),
        "read_rows_per_cpu_s": round(num_rows / seconds),
    }


def batches(store: TeacherStore, fields: tuple[str, ...]) -> Any:
    """Every example, in order."""
    for start in range(0, len(store), EXAMPLES_AT_ONCE):
        yield store.read(range(start, min(start + EXAMPLES_AT_ONCE, len(store))), fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="+", help="sealed stores of draws with encoding exact")
    parser.add_argument("--notes", default="", help="text of the notes column, e.g. shared machine")
    args = parser.parse_args()
    table = []
    for url in args.stores:
        rows = read_rows([url])
        for shard_rows in SHARDS:
            for encoding in ENCODINGS:
                table.append(measure(Path(url).name, rows, encoding, shard_rows))
                print(table[-1])
    write_table("store_sampled", table, setting(args.notes))


if __name__ == "__main__":
    main()

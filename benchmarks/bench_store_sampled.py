"""Bytes per row of sampled stores by field, and the speed of reading them.

    python benchmarks/bench_store_sampled.py STORE ...

Takes sealed stores written with `caskd precompute --sample N`. `rows_bytes` is the total of the row
axis; further columns have tokens, examples, and the arrays that a store holds once (vocabulary,
orders of ids). Speed is rows per second of processor time for the fields that training reads.
Writes results/store_sampled.csv.
"""

import argparse
import time
from typing import Any

import numpy as np
from store_rows import setting, write_table

from caskd.store.format import layout
from caskd.store.inspect import store_info
from caskd.store.read import TeacherStore

TRAINING = ("argmax", "num_kept", "sampled_ids", "sampled_counts")
EXAMPLES_AT_ONCE = 256


def measure(url: str) -> dict[str, Any]:
    """One line of the table."""
    store = TeacherStore.open(url)
    if store.spec.kind != "sampled":
        raise SystemExit(f"{url} is a {store.spec.kind} store; expected one made with --sample")
    info, rows = store_info(url), store.spec.num_rows
    fields = {f"{name}_bytes": f["bytes_per_row"] for name, f in info["fields"].items()}
    sizes = store.seal["bytes"]

    def per_row(*names: str) -> float:
        return round(sum(sizes[name] for name in names if name in sizes) / rows, 3)

    kept = [batch.column("num_kept") for batch in batches(store, ("num_kept",))]
    started = time.process_time()
    for _ in batches(store, TRAINING):
        pass
    seconds = time.process_time() - started
    once = ("vocab_bytes", "vocab_offsets", layout.ID_ORDER.name)
    return {
        "store": store.name,
        "rows": rows,
        "teacher_dtype": store.spec.identity["capture"]["load_dtype"],
        "num_samples": store.spec.num_samples,
        "encoding": store.spec.encoding,
        "num_orders": 0 if store.id_order is None else len(store.id_order),
        "mean_num_kept": round(float(np.concatenate(kept).mean()), 2),
        **fields,
        "rows_bytes": round(sum(fields.values()), 3),
        "token_axis_bytes": per_row("token_ids", "is_response"),
        "example_axis_bytes": per_row(*(array.name for array in layout.EXAMPLE_LAYOUTS)),
        "once_a_store_bytes": per_row(*once),
        "read_rows_per_cpu_s": round(rows / seconds),
    }


def batches(store: TeacherStore, fields: tuple[str, ...]) -> Any:
    """Every example, in order."""
    for start in range(0, len(store), EXAMPLES_AT_ONCE):
        yield store.read(range(start, min(start + EXAMPLES_AT_ONCE, len(store))), fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--notes", default="", help="text of the notes column, e.g. shared machine")
    args = parser.parse_args()
    table = [measure(url) for url in args.stores]
    for row in table:
        print(row)
    write_table("store_sampled", table, setting(args.notes))


if __name__ == "__main__":
    main()

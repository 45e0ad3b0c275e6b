"""Size by field, error and speed of the encodings `compact` and `fitted2` on the same rows.

    python benchmarks/bench_store_fitted.py STORE [STORE ...]

The stores have encoding exact and one teacher. Sizes are those of sealed stores of all rows, by
shard size, and of row arrays by kind of text and cut to a mass. Each kind of a `fitted2` line is a
shard of its own, its lists included. Times are processor times of one core, medians over rounds,
with both encodings in turn; reading includes opening the store. Writes results/store_fitted.csv.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_store_encoding import cut_to_mass, errors
from store_rows import StoredRows, encoded, fit_orders, read_rows, setting, write_store, write_table

from caskd.store.format import ROW_ENCODINGS, encode_shards, layout
from caskd.store.read import TeacherStore, arrays

SHARDS = (2048, 8192, 65_536)
ENCODINGS = ("compact", "fitted2")
MASSES = (1.0, 0.999, 0.99)


def by_field(sizes: dict[str, int], num_rows: int) -> dict[str, float]:
    """Bytes per row of each field, and of everything."""
    field_of = {
        array.name: array.field or array.name
        for key, encoding in ROW_ENCODINGS.items()
        if key[0] == "topk"
        for array in encoding.arrays
    }
    field_of |= {"topk_id_lists": "id_lists", "topk_id_common": "id_lists", "id_order": "id_lists"}
    field_of |= {"topk_id_list": "choice", "topk_id_order": "choice"}
    groups: dict[str, float] = {}
    for name, size in sizes.items():
        group = f"{field_of.get(name, name)}_bytes"
        groups[group] = groups.get(group, 0.0) + size / num_rows
    groups = {name: round(size, 3) for name, size in groups.items()}
    return groups | {"total_bytes": round(sum(sizes.values()) / num_rows, 3)}


def whole_store(rows: StoredRows, encoding: str, shard_rows: int, folder: Path) -> dict[str, Any]:
    """Sizes and errors of a sealed store."""
    began = time.process_time()
    store = write_store(folder, rows, encoding, shard_rows=shard_rows)
    seconds = time.process_time() - began
    batch = store.read(range(len(store)))
    log_p = batch.column("topk_logits").astype(np.float64) - batch.column("logsumexp")[:, None]
    # Tied cells may stand in another sequence: compare by id.
    true, found = (
        np.take_along_axis(values, np.argsort(ids, axis=1, kind="stable"), axis=1)
        for values, ids in (
            (rows.fields["topk_logits"], rows.fields["topk_ids"]),
            (log_p, batch.column("topk_ids")),
        )
    )
    by_id = {**rows.fields, "topk_logits": true}
    assert np.array_equal(np.sort(batch.column("topk_ids"), 1), np.sort(rows.fields["topk_ids"], 1))
    return {
        "what": "whole store", "encoding": encoding, "shard_rows": shard_rows,
        "rows": rows.num_rows, **by_field(store.seal["bytes"], rows.num_rows),
        **errors(by_id, found, batch.column("tail_mass")),
        "plan_to_seal_rows_per_s": round(rows.num_rows / seconds),
    }  # fmt: skip


def row_arrays(fields: dict[str, np.ndarray], encoding: str, vocab_size: int) -> dict[str, float]:
    """Bytes per row of the row arrays of these rows in one shard, with its lists or orders."""
    num_rows = len(fields["num_kept"])
    padded = -(-num_rows // 512) * 512
    shard = {
        name: np.concatenate(
            [values, np.zeros((padded - num_rows, *values.shape[1:]), values.dtype)]
        )
        for name, values in fields.items()
    }
    shard["topk_logits"][num_rows:] = -np.inf
    chosen, orders, sizes = ROW_ENCODINGS["topk", encoding], None, {}
    if chosen.uses_id_orders:
        pilot = slice(None, None, max(1, num_rows // 2048))
        kept = fields["num_kept"][pilot]
        number = layout.num_orders(num_rows)
        orders = fit_orders(fields["topk_ids"][pilot], kept, vocab_size, number)
        flat = orders.reshape(-1)
        sizes["id_order"] = sum(map(len, encode_shards(layout.ID_ORDER, flat)))
        stored = encoded("topk", shard, orders)
    else:
        stored = chosen.encode(shard, vocab_size)
    cells = fields["topk_ids"].shape[1]
    for array in (*chosen.layouts(cells, 512, padded), *chosen.tables(vocab_size, padded)):
        sizes[array.name] = sum(map(len, encode_shards(array, stored[array.name])))
    return by_field(sizes, num_rows)


def by_kind(rows: StoredRows) -> list[dict[str, Any]]:
    """Row arrays by kind of text and kept mass."""
    table, kinds = [], rows.kinds
    for mass in MASSES:
        fields = rows.fields if mass == 1.0 else cut_to_mass(rows.fields, mass)
        for kind in ("all", *dict.fromkeys(kinds.tolist())):
            chosen = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
            part = {name: values[chosen] for name, values in fields.items()}
            for encoding in ENCODINGS:
                row = {
                    "what": "row arrays and tables", "encoding": encoding, "kind": kind,
                    "min_mass": mass, "rows": int(chosen.sum()),
                    "mean_num_kept": round(float(part["num_kept"].mean()), 2),
                    **row_arrays(part, encoding, len(rows.vocab)),
                }  # fmt: skip
                table.append(row)
    return table


def rate(work: Callable[[], int]) -> float:
    """Rows per second of processor time."""
    began = time.process_time()
    rows = work()
    return rows / (time.process_time() - began)


def shuffled(store: TeacherStore, fields: tuple[str, ...] | None, batch: int) -> int:
    """Read every example once, shuffled within windows of 16,384 rows."""
    fresh, rng = TeacherStore.open(store.root), np.random.default_rng(0)
    fresh.read([0])
    block = fresh.index.row_start // 16_384
    order = [rng.permutation(np.flatnonzero(block == b)) for b in np.unique(block)]
    every = np.concatenate(order)
    parts = [every[start : start + batch] for start in range(0, len(every), batch)]
    return sum(fresh.read(part, fields).num_rows for part in parts)


def one_by_one(store: TeacherStore) -> int:
    """Read random examples of 20 to 40 rows, one at a time, each from a chunk not in the cache."""
    kept, arrays.CACHE_BYTES = arrays.CACHE_BYTES, 1
    try:
        return short_examples(TeacherStore.open(store.root))
    finally:
        arrays.CACHE_BYTES = kept


def short_examples(store: TeacherStore) -> int:
    """Read 300 random examples of 20 to 40 rows, one at a time."""
    counts = store.row_counts()
    chosen = np.flatnonzero((counts >= 20) & (counts <= 40))
    chosen = np.random.default_rng(0).permutation(chosen)[:300]
    return sum(store.read([example]).num_rows for example in chosen)


def speeds(stores: dict[str, TeacherStore], rounds: int) -> list[dict[str, Any]]:
    """Reading rates of the stores, in turn within a round."""
    ways: dict[str, Callable[[TeacherStore], int]] = {
        "block-shuffled": lambda store: shuffled(store, None, 64),
        "argmax alone": lambda store: shuffled(store, ("argmax",), 640),
        "one by one": one_by_one,
        "one by one, in the cache": short_examples,
    }
    for store in stores.values():
        store.read(range(len(store)))
    table = []
    for way, work in ways.items():
        found: dict[str, list[float]] = {name: [] for name in stores}
        for _ in range(rounds):
            for name, store in stores.items():
                found[name].append(rate(lambda s=store, w=work: w(s)))  # type: ignore[misc]
        for name in stores:
            row = {"what": f"reading, {way}", "encoding": name, "shard_rows": SHARDS[-1]}
            table.append(row | {"rows_per_s": round(statistics.median(found[name]))})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="+", help="sealed stores with encoding exact")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", default="store_fitted", help="name of the table in results/")
    parser.add_argument("--notes", default="", help="text of the notes column, e.g. shared machine")
    args = parser.parse_args()
    rows = read_rows(args.stores)
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        stores = {}
        for shard_rows in SHARDS:
            for encoding in ENCODINGS:
                path = Path(folder) / f"{encoding}-{shard_rows}"
                table.append(whole_store(rows, encoding, shard_rows, path))
                stores[encoding] = TeacherStore.open(path)
        table += speeds(stores, args.rounds)
    table += by_kind(rows)
    for row in table:
        print({name: value for name, value in row.items() if value is not None})
    columns = {"vocab_size": len(rows.vocab), "k": rows.fields["topk_ids"].shape[1]}
    write_table(args.table, table, columns | {"rounds": args.rounds} | setting(args.notes))


if __name__ == "__main__":
    main()

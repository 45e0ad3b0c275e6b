"""Size, error and speed of caskd's and other encodings of the same rows.

    python benchmarks/bench_store_encoding.py STORE [STORE ...]

The stores have encoding exact and one teacher. Every encoding encodes all their rows, once with the
original ids and once with widened ids: mapped, in order, to a random subset of a larger vocabulary.
Times are processor times, medians over rounds. Writes results/store_encoding.csv.

Dimension letters: N rows, k cells per row, V vocabulary.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rival_encodings import RIVALS
from store_rows import StoredRows, encoded, fit_orders, read_rows, setting, write_store, write_table

from caskd.store.format import ROW_ENCODINGS, encode_shards, layout
from caskd.store.read import TeacherStore

WIDE_VOCAB = 151_936
SHARD_ROWS = 16_384
COLUMNS = ("logsumexp", "label_logit", "tail_mass", "argmax", "label_rank", "num_kept")
TOKENS = ("token_ids", "is_response")
CONSTANT = ("vocab_bytes", "vocab_offsets", "id_order", "metadata")
ARRAY_OF = {"topk_id_codes": "ids", "topk_id_order": "ids", "topk_ids": "ids",
            "topk_logit_steps": "values", "topk_logits": "values"}  # fmt: skip
BIG_STORE_ROWS = 1 << 19


def widened(rows: StoredRows, seed: int = 0) -> StoredRows:
    """The same rows with every id mapped, in order, to a random subset of WIDE_VOCAB ids."""
    rng = np.random.default_rng(seed)
    wide_ids = np.sort(rng.choice(WIDE_VOCAB, len(rows.vocab), replace=False)).astype(np.uint32)
    moved = {name: wide_ids[rows.fields[name]] for name in ("topk_ids", "argmax")}
    examples = [
        replace(example, token_ids=wide_ids[example.token_ids]) for example in rows.examples
    ]
    vocab = [b""] * WIDE_VOCAB
    for wide_id, token in zip(wide_ids.tolist(), rows.vocab, strict=True):
        vocab[wide_id] = token
    identity = {**rows.identity, "vocabulary": {**rows.identity["vocabulary"], "size": WIDE_VOCAB}}
    return replace(
        rows, examples=examples, fields={**rows.fields, **moved}, vocab=vocab, identity=identity
    )


def cut_to_mass(fields: dict[str, np.ndarray], min_mass: float) -> dict[str, np.ndarray]:
    """The same rows, each cut to its shortest prefix that holds this mass."""
    p = np.exp(fields["topk_logits"].astype(np.float64) - fields["logsumexp"][:, None])
    mass = p.cumsum(1)
    kept = np.minimum((mass < min_mass).sum(1) + 1, p.shape[1])
    rest = np.where(np.arange(p.shape[1]) >= kept[:, None], p, 0).sum(1)
    padding = np.arange(p.shape[1]) >= kept[:, None]
    return {
        **fields,
        "topk_ids": np.where(padding, 0, fields["topk_ids"]).astype(np.uint32),
        "topk_logits": np.where(padding, -np.inf, fields["topk_logits"]).astype(np.float32),
        "num_kept": kept.astype(np.uint16),
        "tail_mass": (fields["tail_mass"] + rest).astype(np.float32),
    }


def errors(exact: dict[str, np.ndarray], log_p: np.ndarray, tail: np.ndarray | None) -> dict:
    """Error of the log-probabilities, and of the whole distribution with one tail bucket.

    With `tail` None a reader computes the tail as 1 minus the mass of the kept cells.
    """
    true = exact["topk_logits"].astype(np.float64) - exact["logsumexp"][:, None]
    cells = np.arange(true.shape[1]) < exact["num_kept"][:, None]
    difference = np.abs(np.where(cells, log_p - np.where(cells, true, 0), 0))
    true_tail = exact["tail_mass"].astype(np.float64)
    p = _distribution(true, cells, true_tail)
    given = log_p.astype(np.float64)
    if tail is None:
        tail = np.clip(1 - np.where(cells, np.exp(given), 0).sum(1), 1e-6, 1)
    q = _distribution(given, cells, tail.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(p > 0, p * (np.log(p) - np.log(np.maximum(q, 1e-300))), 0).sum(1)
    return {
        "max_logit_error": float(f"{difference.max():.3g}"),
        "mean_logit_error": float(f"{difference.sum() / cells.sum():.3g}"),
        "max_probability_error": float(f"{np.abs(p - q).max():.3g}"),
        "mean_kl": float(f"{kl.mean():.3g}"),
        "max_kl": float(f"{kl.max():.3g}"),
    }


def _distribution(log_p: np.ndarray, cells: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """[N, k + 1] with the tail last; the cells are rescaled to 1 minus the tail."""
    p = np.where(cells, np.exp(np.where(cells, log_p, 0)), 0)
    p *= ((1 - tail) / p.sum(1))[:, None]
    return np.concatenate([p, tail[:, None]], axis=1)


def rate(work: Callable[[], object], num_rows: int, rounds: int) -> int:
    """Rows per second of processor time."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return round(num_rows / statistics.median(times))


def array_bytes(fields: dict[str, np.ndarray], orders: np.ndarray | None) -> dict[str, int]:
    """Bytes of the row arrays of these rows alone, in shards of their own."""
    encoding = ROW_ENCODINGS["topk", "exact" if orders is None else "compact"]
    stored = fields if orders is None else encoded("topk", fields, orders)
    arrays = encoding.layouts(fields["topk_ids"].shape[1], 512, SHARD_ROWS)
    return {a.name: sum(map(len, encode_shards(a, stored[a.name]))) for a in arrays}


def sizes(by_array: dict[str, int], num_rows: int) -> dict[str, float]:
    """Bytes per row by purpose, and in total."""
    groups: dict[str, float] = {}
    for name, size in by_array.items():
        group = ARRAY_OF.get(name, name)
        if name in TOKENS:
            group = "token_axis"
        elif name in CONSTANT:
            group = "vocabulary_and_id_order"
        elif group not in ("ids", "values", *COLUMNS):
            group = "example_axis"
        groups[group] = groups.get(group, 0) + size / num_rows
    groups["total"] = sum(groups.values())
    groups["total_without_vocabulary"] = groups["total"] - groups.get("vocabulary_and_id_order", 0)
    return {f"{name}_bytes": round(value, 3) for name, value in groups.items()}


def our_store(rows: StoredRows, encoding: str, rounds: int) -> tuple[dict[str, Any], np.ndarray]:
    """Write a store of the rows; return sizes, errors and speeds, and its orders of ids."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        store = write_store(Path(folder) / "store", rows, encoding, shard_rows=SHARD_ROWS)
        write_seconds = time.process_time() - start
        batch = store.read(range(len(store)))
        assert all(
            np.array_equal(batch.column(name), rows.fields[name])
            for name in ("topk_ids", "argmax", "label_rank", "logsumexp", "label_logit")
        )
        log_p = batch.column("topk_logits").astype(np.float64) - batch.column("logsumexp")[:, None]
        row = {
            "encoding": f"caskd {encoding}",
            **sizes(store.seal["bytes"], rows.num_rows),
            **errors(rows.fields, log_p, batch.column("tail_mass")),
            "encode_rows_per_s": rate(
                lambda: array_bytes(rows.fields, store.id_order), rows.num_rows, rounds
            ),
            "decode_rows_per_s": rate(lambda: _read_all(store), rows.num_rows, rounds),
            "plan_to_seal_rows_per_s": round(rows.num_rows / write_seconds),
            "num_orders": None if store.id_order is None else len(store.id_order),
        }
        return row, store.id_order


def _read_all(store: TeacherStore) -> None:
    fresh = TeacherStore.open(store.root)
    for start in range(0, len(fresh), 64):
        fresh.read(range(start, min(start + 64, len(fresh))))


def rivals(rows: StoredRows, rounds: int) -> list[dict[str, Any]]:
    """Sizes, errors and speeds of every rival, which keep ids and values only."""
    ids, table = rows.fields["topk_ids"], []
    log_p = rows.fields["topk_logits"] - rows.fields["logsumexp"][:, None]
    size, top_k, num_rows = len(rows.vocab), ids.shape[1], rows.num_rows
    for rival in RIVALS:
        encoded = rival.encode(ids, log_p, size)
        back_ids, back = rival.decode(encoded, top_k, size)
        assert np.array_equal(back_ids, ids)
        table.append(
            {
                "encoding": rival.name,
                "ids_bytes": round(encoded.ids_bytes / num_rows, 3),
                "values_bytes": round(encoded.values_bytes / num_rows, 3),
                "total_bytes": round((encoded.ids_bytes + encoded.values_bytes) / num_rows, 3),
                **errors(rows.fields, back, None),
                "encode_rows_per_s": rate(
                    partial(rival.encode, ids, log_p, size), num_rows, rounds
                ),
                "decode_rows_per_s": rate(
                    partial(rival.decode, encoded, top_k, size), num_rows, rounds
                ),
            }
        )
    return table


def by_kind(rows: StoredRows, orders: np.ndarray) -> list[dict[str, Any]]:
    """Row arrays by kind of text, whole and cut to a mass, with the orders of ids of one store."""
    table, kinds = [], rows.kinds
    for min_mass in (1.0, 0.999, 0.99):
        fields = rows.fields if min_mass == 1.0 else cut_to_mass(rows.fields, min_mass)
        for kind in ("all", *dict.fromkeys(kinds.tolist())):
            chosen = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
            part = {name: values[chosen] for name, values in fields.items()}
            table.append(
                {
                    "encoding": "caskd compact, row arrays only",
                    "kind": kind,
                    "rows": int(chosen.sum()),
                    "min_mass": min_mass,
                    "mean_num_kept": round(float(part["num_kept"].mean()), 2),
                    **sizes(array_bytes(part, orders), int(chosen.sum())),
                }
            )
    return table


def as_in_a_big_store(rows: StoredRows) -> dict[str, Any]:
    """Row arrays with the pilot and the orders of ids of a store of BIG_STORE_ROWS."""
    pilot = np.linspace(0, rows.num_rows - 1, BIG_STORE_ROWS // 128).round().astype(int)
    ids, kept = rows.fields["topk_ids"][pilot], rows.fields["num_kept"][pilot]
    orders = fit_orders(ids, kept, len(rows.vocab), layout.num_orders(BIG_STORE_ROWS))
    return {
        "encoding": f"caskd compact, row arrays, pilot and orders of {BIG_STORE_ROWS:,} rows",
        "num_orders": len(orders),
        **sizes(array_bytes(rows.fields, orders), rows.num_rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="+", help="sealed stores with encoding exact")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--notes", default="", help="text of the notes column, e.g. shared machine")
    args = parser.parse_args()
    narrow = read_rows(args.stores)
    table: list[dict[str, Any]] = []
    variants = {"as they are": narrow, "widened in order, random subset": widened(narrow)}
    for ids, rows in variants.items():
        compact, orders = our_store(rows, "compact", args.rounds)
        exact, _ = our_store(rows, "exact", args.rounds)
        part = [compact, exact, *rivals(rows, args.rounds), as_in_a_big_store(rows)]
        if rows is narrow:
            part += by_kind(rows, orders)
        for row in part:
            table.append({"vocab_size": len(rows.vocab), "ids": ids, "rows": rows.num_rows} | row)
            print({name: value for name, value in table[-1].items() if value is not None})
    columns = {"k": narrow.fields["topk_ids"].shape[1], "rounds": args.rounds}
    write_table("store_encoding", table, columns | setting(args.notes))


if __name__ == "__main__":
    main()

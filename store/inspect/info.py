"""Summary of a store from its metadata, and from a bounded sample of its label ranks."""

from pathlib import Path
from typing import Any

import numpy as np

from caskd.store.errors import StoreError
from caskd.store.format import ROW_KINDS, unusual_capture
from caskd.store.inspect.capture_progress import CaptureStatus, shards_text
from caskd.store.io import bytes_text, counted, escape_control
from caskd.store.read import TeacherStore

MEASURED_BLOCKS, BLOCK_EXAMPLES = 16, 128
"""Examples whose label ranks are read: all of a small store, evenly spaced blocks of a larger."""


def store_info(url: str | Path) -> dict[str, Any]:
    """Identity, counts and sizes of the store at `url`, sealed or not (JSON types only)."""
    store = TeacherStore.open(url, allow_unsealed=True)
    spec = store.spec
    # Without a seal, the totals come from the records of the committed shards.
    capture = None if store.sealed else CaptureStatus(store.root, spec)
    if capture is None:
        sizes, rows, statuses = store.seal["bytes"], spec.num_rows, store.seal["statuses"]
    else:
        capture.refresh()
        sizes, rows, statuses = capture.sizes, capture.num_rows, dict(capture.statuses)
    field_of = {array.name: array.field for array in spec.row_encoding.arrays if array.field}
    return {
        "name": store.name,
        "teacher": spec.teacher,
        "kind": spec.kind,
        "sealed": store.sealed,
        "digest": store.digest if store.sealed else None,
        "num_examples": spec.num_examples,
        "num_rows": spec.num_rows,
        "num_tokens": spec.num_tokens,
        **{
            key: spec.identity["capture"][key] if key in spec.row_kind.cells_keys else None
            for kind in ROW_KINDS.values()
            for key in kind.cells_keys
        },
        "vocab_size": spec.vocab_size,
        "encoding": spec.encoding,
        "capture_fields": spec.capture_fields,
        "num_shards": spec.num_shards,
        "num_committed_shards": capture.num_committed_shards if capture else spec.num_shards,
        "failed_shards": capture.failed_shards() if capture else [],
        "shard_rows": spec.shard_rows,
        "statuses": statuses,
        "label_is_argmax": _label_is_argmax(store) if store.sealed else None,
        "tasks": list(spec.tasks),
        "bytes": sum(sizes.values()),
        "bytes_per_row": round(sum(sizes.values()) / rows, 3) if rows else None,
        "fields": {
            field_of.get(array.name, array.name): {
                "dtype": array.dtype,
                "cells": array.cells or 1,
                "bytes_per_row": round(sizes.get(array.name, 0) / rows, 3) if rows else None,
            }
            for array in spec.row_layouts()
        },
        "identity": spec.identity,
    }


def _label_is_argmax(store: TeacherStore) -> dict[str, Any] | None:
    """Share of rows with label_rank 0; None where ranks are not known or cannot be read."""
    if store.spec.capture_fields["argmax"] == "unknown":
        return None
    last = max(len(store) - BLOCK_EXAMPLES, 0)
    blocks = np.unique(np.linspace(0, last, MEASURED_BLOCKS).astype(np.int64))
    chosen = np.unique(np.add.outer(blocks, np.arange(BLOCK_EXAMPLES)))
    try:
        batch = store.read(chosen[chosen < len(store)], ("num_kept", "label_rank"))
    except (StoreError, OSError):
        return None  # caskd store verify names the damage
    ranks = batch.column("label_rank")[batch.column("num_kept") > 0]
    if not len(ranks):
        return None
    return {"share": float((ranks == 0).mean()), "num_rows": len(ranks)}


def info_rows(info: dict[str, Any]) -> dict[str, str]:
    """The main facts of `store_info` in words, by name; those that are empty are left out."""
    state = "sealed"
    shards = counted(info["num_shards"], "shard")
    if not info["sealed"]:
        state = f"NOT sealed: {info['num_committed_shards']} of {shards} committed"
    per_row = info["bytes_per_row"]
    size = bytes_text(info["bytes"])
    if per_row:
        size += f", {per_row:,.1f} bytes per row with its tokens"
    rows = [
        ("store", f"{info['name']} ({state})"),
        ("teacher", info["teacher"]),
        ("examples", f"{info['num_examples']:,}"),
        ("rows", f"{info['num_rows']:,} in {shards} of {info['shard_rows']:,}"),
        ("kept", _kept(info)),
        ("capture", unusual_capture(info["identity"])),
        ("tasks", ", ".join(info["tasks"][:8]) + (" ..." if len(info["tasks"]) > 8 else "")),
        ("size", size),
    ]
    if info["statuses"]:
        listed = ", ".join(f"{n:,} {status}" for status, n in sorted(info["statuses"].items()))
        rows.append(("statuses", listed if info["sealed"] else f"{listed}, so far"))
    if info["label_is_argmax"]:
        measured = info["label_is_argmax"]
        rows.append(
            (
                "labels",
                f"{measured['share']:.1%} are the teacher's argmax (label_rank 0), measured on "
                f"{counted(measured['num_rows'], 'row')}",
            )
        )
    if info["failed_shards"]:
        rows.append(
            ("failed", f"{shards_text(info['failed_shards'])}; caskd precompute retries them")
        )
    return {name: value for name, value in rows if value}


def info_text(info: dict[str, Any]) -> str:
    """`store_info` as a table for a terminal."""
    lines = [f"{name:<9} {escape_control(value)}" for name, value in info_rows(info).items()]
    lines.append("fields    name, type, bytes per row")
    for name, array in info["fields"].items():
        kind = array["dtype"] + (f" x {array['cells']}" if array["cells"] > 1 else "")
        cost = "-" if array["bytes_per_row"] is None else f"{array['bytes_per_row']:,.2f}"
        lines.append(f"          {name:<16} {kind:<14} {cost:>8}")
    return "\n".join(lines)


def _kept(info: dict[str, Any]) -> str:
    kind = ROW_KINDS[info["kind"]]
    return f"{kind.kept_of_text(info, info['vocab_size'])}, {info['encoding']}"

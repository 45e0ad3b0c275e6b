"""Rebuild the commit record of the plan or the pilot from its files.

Only the seal proves that a rebuilt record equals the original, so an unsealed store rebuilds none.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from caskd.store.commits import CommitRecord, FileRecord, commit_record, unit_files
from caskd.store.errors import CaskdError, UnreadableError
from caskd.store.format import SEAL, STATUSES, Array, ShardFile, StoreSpec, layout, untrusted_json
from caskd.store.io import files


def rebuilt_record(
    root: Path, spec: StoreSpec, unit: str, proven: str | None
) -> CommitRecord | None:
    """The record of the plan or the pilot, from its files.

    Args:
        root: of the store.
        spec: of the store.
        unit: the plan or the pilot.
        proven: sha256 of the sealed record, if known.

    Returns:
        None if the files do not give the sealed record.

    Raises:
        UnreadableError: a file cannot be read.
    """
    if proven is None:
        return None
    try:
        names = unit_files(spec, unit)
        if unit == commit_record.PLAN:
            vocab = root / layout.VOCAB_LAYOUTS[0].key(0)
            names += [f"{vocab.parent.relative_to(root)}/{n}" for n in files.entries(vocab.parent)]
        described = tuple(FileRecord.of(name, _read(root, name)) for name in names)
        record = CommitRecord(unit, described, _facts(root, spec, unit))
    except UnreadableError:
        raise
    except CaskdError:
        return None
    return record if record.digest == proven else None


def _read(root: Path, name: str) -> bytes:
    with files.open_inside(root, name) as handle:
        return b"".join(files.blocks(handle))


def _facts(root: Path, spec: StoreSpec, unit: str) -> dict[str, Any]:
    """The counts in the record of the plan or the pilot."""
    statuses: Counter[str] = Counter()
    if unit == commit_record.PLAN:
        status, rows = (_example_array(root, spec, name) for name in ("status", "row_count"))
        statuses.update(STATUSES[value] for value in status[rows == 0])
    facts: dict[str, Any] = {"num_rows": 0, "statuses": dict(statuses)}
    if unit == commit_record.PLAN and spec.format_version > 1:
        facts["counts"] = _sealed_counts(root)
    return facts


def _sealed_counts(root: Path) -> dict[str, int]:
    """The counts of the plan, which the seal repeats; empty if it cannot be parsed."""
    value = untrusted_json.parse_json(_read(root, SEAL), SEAL)
    return dict(value["counts"]) if untrusted_json.is_seal(value) and "counts" in value else {}


def _example_array(root: Path, spec: StoreSpec, name: str) -> Array:
    array = next(a for a in layout.EXAMPLE_LAYOUTS if a.name == name)
    parts = []
    for shard in range(-(-spec.num_examples // array.shard)):
        left = spec.num_examples - shard * array.shard
        with files.reading(array.key(shard)):
            opened = ShardFile(root / array.key(shard), array)
            parts += [opened.chunk(i) for i in range(-(-min(left, array.shard) // array.chunk))]
    return np.concatenate(parts)[: spec.num_examples]

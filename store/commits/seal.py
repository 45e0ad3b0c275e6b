"""The seal: totals and a digest over all commits, computed from the commit records alone."""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from caskd.store.commits import commit_record, publish
from caskd.store.commits.ledger import all_units
from caskd.store.errors import CorruptError
from caskd.store.format import (
    DIGEST_LIST,
    README,
    SEAL,
    STAGING,
    STORE_JSON,
    StoreSpec,
    canonical_json,
)
from caskd.store.io import faults, files

Readme = Callable[[StoreSpec, Mapping[str, Any]], str]


def seal_content(
    root: Path, spec: StoreSpec, rebuilt: Mapping[str, bytes] | None = None
) -> tuple[dict[str, Any], bytes]:
    """The required content of `seal.json` and `commits/commits.sha256`.

    Args:
        root: of the store.
        spec: of the store.
        rebuilt: records, by unit, that count in place of those on disk.

    Raises:
        CorruptError: a record is missing, or the counts do not add up to those of store.json.
    """
    num_bytes: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    num_rows, digests = 0, {}
    for unit in all_units(spec):
        data = (rebuilt or {}).get(unit) or commit_record.read_bytes(root, unit)
        digests[unit] = hashlib.sha256(data).hexdigest()
        record = commit_record.CommitRecord.from_json(data, unit)
        statuses.update(record.facts["statuses"])
        counts.update(record.facts.get("counts", {}))
        num_rows += record.facts["num_rows"]
        num_bytes.update(record.bytes_by_array())
    if num_rows != spec.num_rows or statuses.total() != spec.num_examples:
        raise CorruptError(
            f"{root.name}: commits hold {num_rows:,} rows and {statuses.total():,} examples, "
            f"but {STORE_JSON} has {spec.num_rows:,} and {spec.num_examples:,}"
        )
    digest_list = commit_record.digest_list(digests)
    totals = {
        "num_examples": spec.num_examples,
        "num_rows": num_rows,
        "num_shards": spec.num_shards,
        "statuses": dict(statuses),
        "bytes": dict(num_bytes),
        "commits_digest": hashlib.sha256(digest_list).hexdigest(),
    }
    if spec.format_version > 1:
        totals["counts"] = dict(counts)
    return totals, digest_list


def write_seal(root: Path, spec: StoreSpec, readme: Readme) -> dict[str, Any]:
    """Seal a store whose shards are all committed; a second call changes nothing.

    Args:
        root: of the store.
        spec: of the store.
        readme: returns the text of README.md for the spec and the totals.

    Returns:
        The content of `seal.json`.

    Raises:
        CorruptError: a committed file is missing or differs from its record.
    """
    sealed = files.size_inside(root, SEAL) is not None
    if not sealed:
        _check_files(root, spec)
    totals, digest_list = seal_content(root, spec)
    faults.point("seal.checked")
    if not sealed:
        # Another process may seal meanwhile and remove staging; its seal is compared below.
        with contextlib.suppress(FileNotFoundError):
            _write(root, totals, digest_list, readme(spec, totals))
    if files.read_small(root, SEAL) != canonical_json(totals):
        raise CorruptError(f"{root}/{SEAL}: differs from the totals of the commit records")
    publish.sweep(root)
    return totals


def _check_files(root: Path, spec: StoreSpec) -> None:
    """Check the sha256 of every committed file: after sealing, none is computed again."""
    for unit in all_units(spec):
        for item in commit_record.read_record(root, unit).file_records:
            digest = hashlib.sha256()
            with files.open_inside(root, item.name) as handle:
                for block in files.blocks(handle):
                    digest.update(block)
            if digest.hexdigest() != item.sha256:
                raise CorruptError(
                    f"{root}/{item.name}: its sha256 differs from commit {unit}",
                    cure=f"run caskd store repair {root}, then the capture again",
                )


def _write(root: Path, totals: dict[str, Any], digest_list: bytes, readme: str) -> None:
    scratch = root / STAGING
    files.replace_file(root / DIGEST_LIST, digest_list, scratch)
    faults.point("seal.digests")
    files.replace_file(root / README, readme.encode(), scratch)
    faults.point("seal.card")
    files.create_exclusive(root / SEAL, canonical_json(totals), scratch)
    faults.point("seal.sealed")

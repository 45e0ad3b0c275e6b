"""The seal: totals and one digest over every commit, a pure function of the commit records."""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from caskd.store.commits import commit_record, publish
from caskd.store.commits.ledger import DIGEST_LIST, all_units
from caskd.store.errors import CorruptError
from caskd.store.format import StoreSpec, canonical_json
from caskd.store.io import faults, files

Readme = Callable[[StoreSpec, Mapping[str, Any]], str]


def seal_content(root: Path, spec: StoreSpec) -> tuple[dict[str, Any], bytes]:
    """What `seal.json` and `commits/commits.sha256` must hold, from the commit records alone.

    Raises:
        CorruptError: a record is missing, or the counts do not add up to what was planned.
    """
    num_bytes: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    num_rows, digests = 0, {}
    for unit in all_units(spec):
        data = files.read_small(root, commit_record.record_name(unit), commit_record.RECORD_LIMIT)
        digests[unit] = hashlib.sha256(data).hexdigest()
        record = commit_record.CommitRecord.from_json(data, unit)
        statuses.update(record.facts["statuses"])
        num_rows += record.facts["num_rows"]
        num_bytes.update(record.bytes_by_array())
    if num_rows != spec.num_rows or statuses.total() != spec.num_examples:
        raise CorruptError(
            f"{root.name}: commits hold {num_rows:,} rows and {statuses.total():,} examples, "
            f"but store.json says {spec.num_rows:,} and {spec.num_examples:,}."
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
    return totals, digest_list


def write_seal(root: Path, spec: StoreSpec, readme: Readme) -> dict[str, Any]:
    """Seal a store whose shards are all committed; sealing twice changes nothing.

    `readme` makes the text of README.md from the spec and the totals.

    Raises:
        CorruptError: a committed file is missing or differs from its record.
    """
    sealed = files.size_inside(root, "seal.json") is not None
    if not sealed:
        _check_files(root, spec)
    totals, digest_list = seal_content(root, spec)
    faults.point("seal.checked")
    if not sealed:
        # A twin may seal meanwhile and sweep staging away; what it wrote is compared below.
        with contextlib.suppress(FileNotFoundError):
            _write(root, totals, digest_list, readme(spec, totals))
    if files.read_small(root, "seal.json") != canonical_json(totals):
        raise CorruptError(f"{root}/seal.json: differs from what the commits add up to.")
    publish.sweep(root)
    return totals


def _check_files(root: Path, spec: StoreSpec) -> None:
    """Re-read what will never be computed again with the strong digest."""
    for unit in all_units(spec):
        for item in commit_record.read_record(root, unit).file_records:
            digest = hashlib.sha256()
            with files.open_inside(root, item.name) as handle:
                for block in files.blocks(handle):
                    digest.update(block)
            if digest.hexdigest() != item.sha256:
                raise CorruptError(
                    f"{root}/{item.name}: its sha256 differs from commit {unit}. "
                    f"Run caskd store repair {root}, then the capture again."
                )


def _write(root: Path, totals: dict[str, Any], digest_list: bytes, readme: str) -> None:
    scratch = root / commit_record.STAGING
    files.replace_file(root / DIGEST_LIST, digest_list, scratch)
    faults.point("seal.digests")
    files.replace_file(root / "README.md", readme.encode(), scratch)
    faults.point("seal.card")
    files.create_exclusive(root / "seal.json", canonical_json(totals), scratch)
    faults.point("seal.sealed")

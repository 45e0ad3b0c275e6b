"""The seal: totals and one digest over every commit, a pure function of the commit records."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from caskd.store import commits
from caskd.store.errors import CorruptError
from caskd.store.spec import StoreSpec


def all_units(spec: StoreSpec) -> list[str]:
    """Every commit that a finished store has, the plan first."""
    pilot = [commits.PILOT] if spec.encoding == "compact" else []
    return [commits.PLAN, *pilot, *map(commits.shard_unit, range(spec.num_shards))]


def seal_content(root: Path, spec: StoreSpec) -> tuple[dict[str, Any], bytes]:
    """What `seal.json` and `commits/commits.sha256` must hold, from the commit records alone.

    Raises:
        CorruptError: a record is missing, or the counts do not add up to what was planned.
    """
    num_bytes: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    num_rows = 0
    for unit in all_units(spec):
        record = commits.read_record(root, unit)
        statuses.update(record.facts["statuses"])
        num_rows += record.facts["num_rows"]
        num_bytes.update(record.bytes_by_array())
    if num_rows != spec.num_rows or statuses.total() != spec.num_examples:
        raise CorruptError(
            f"{root.name}: commits hold {num_rows:,} rows and {statuses.total():,} examples, "
            f"but store.json says {spec.num_rows:,} and {spec.num_examples:,}."
        )
    digests = commits.commits_digest_list(root, all_units(spec))
    totals = {
        "num_examples": spec.num_examples,
        "num_rows": num_rows,
        "num_shards": spec.num_shards,
        "statuses": dict(statuses),
        "bytes": dict(num_bytes),
        "commits_digest": hashlib.sha256(digests).hexdigest(),
    }
    return totals, digests

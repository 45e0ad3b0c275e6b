"""What a sealed store at a place consists of, each step checked against the one before.

seal.json -> commits_digest -> commits/commits.sha256 -> commit records -> files
"""

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import google_crc32c

from caskd.store.commits import PLAN, CommitRecord, FileRecord, all_units
from caskd.store.errors import CorruptError, IncompleteError, StoreNotFoundError, UnsafeError
from caskd.store.format import StoreSpec, untrusted_json
from caskd.store.io import value_text
from caskd.store.storage import RetryPolicy, Storage, read_file, read_whole

SEAL = "seal.json"
STORE_JSON = "store.json"
DIGESTS = "commits/commits.sha256"
READ_ATTEMPTS = 3
_LINE = re.compile(r"([0-9a-f]{64})  (plan|pilot|[0-9]{5,7})\.json")
_THREADS = 8


@dataclass(frozen=True)
class SealedHead:
    """The top of a sealed store: what `seal.json` and `commits/commits.sha256` say."""

    seal: Mapping[str, Any]
    seal_bytes: bytes
    digests: Mapping[str, str]
    """sha256 of each commit record, by unit."""
    digests_bytes: bytes

    @property
    def digest(self) -> str:
        """The store's digest."""
        return str(self.seal["commits_digest"])


@dataclass(frozen=True)
class Manifest(SealedHead):
    """All of it: which files, and what their bytes must be."""

    spec: StoreSpec
    record_bytes: Mapping[str, bytes]
    records: Mapping[str, CommitRecord]


def read_head(place: Storage, policy: RetryPolicy) -> SealedHead:
    """Read and check the top of the sealed store at `place`; damage is asked for again.

    Raises:
        StoreNotFoundError: no store is there.
        IncompleteError: it is not sealed.
        CorruptError: the seal and the list of digests do not belong together.
    """
    for attempt in range(READ_ATTEMPTS):
        try:
            return _read_head(place, policy)
        except (CorruptError, UnsafeError):
            if attempt == READ_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _read_head(place: Storage, policy: RetryPolicy) -> SealedHead:
    seal_bytes = read_whole(place, SEAL, policy)
    if seal_bytes is None:
        if read_whole(place, DIGESTS, policy) or read_whole(place, STORE_JSON, policy):
            raise IncompleteError(
                f"{place.url}: the store is not sealed; only sealed stores travel. Finish it with "
                "caskd precompute, or the copy with the caskd store push or pull that began it."
            )
        raise StoreNotFoundError(
            f"{place.url}: expected a sealed store, found no seal.json. Check the place, or list "
            "what is around it with caskd store ls."
        )
    seal = untrusted_json.parse_json(seal_bytes, SEAL)
    if not untrusted_json.is_seal(seal):
        raise CorruptError(f"{place.url}/{SEAL}: not a seal.")
    digests_bytes = read_whole(place, DIGESTS, policy) or b""
    if hashlib.sha256(digests_bytes).hexdigest() != seal["commits_digest"]:
        raise CorruptError(f"{place.url}/{DIGESTS}: differs from what the seal says.")
    matches = [_LINE.fullmatch(line) for line in digests_bytes.decode().splitlines()]
    if not all(matches):
        raise CorruptError(f"{place.url}/{DIGESTS}: not a list of digests.")
    digests = {match[2]: match[1] for match in matches if match}
    return SealedHead(seal, seal_bytes, digests, digests_bytes)


def read_record_bytes(place: Storage, head: SealedHead, unit: str, policy: RetryPolicy) -> bytes:
    """The commit record of `unit`, as the list of digests says.

    Raises:
        CorruptError: it is missing or differs, also when asked again.
    """
    name = f"commits/{unit}.json"
    for _ in range(READ_ATTEMPTS):
        data = read_whole(place, name, policy)
        if data is None:
            raise CorruptError(f"{place.url}/{name}: missing from a sealed store.")
        if hashlib.sha256(data).hexdigest() == head.digests.get(unit):
            return data
    raise CorruptError(f"{place.url}/{name}: its sha256 differs from {DIGESTS}.")


def parse_record(data: bytes, unit: str) -> CommitRecord:
    """A commit record that names only files which travel.

    Raises:
        UnsafeError: it names another.
    """
    record = CommitRecord.from_json(data, unit)
    for item in record.file_records:
        if not item.name.startswith("data.zarr/") and (unit, item.name) != (PLAN, STORE_JSON):
            raise UnsafeError(
                f"commits/{unit}.json: names {value_text(item.name)}, which no commit may."
            )
    return record


def read_checked(place: Storage, unit: str, item: FileRecord, policy: RetryPolicy) -> bytes:
    """A file of a commit, with the right crc32c and sha256.

    Raises:
        CorruptError: missing, or damaged also when asked again.
    """
    for _ in range(READ_ATTEMPTS):
        try:
            data = read_file(place, item.name, item.size, policy)
        except FileNotFoundError:
            raise CorruptError(f"{place.url}/{item.name}: missing, commit {unit} has it.") from None
        right = f"{google_crc32c.value(data):08x}" == item.crc32c
        if right and hashlib.sha256(data).hexdigest() == item.sha256:
            return data
    raise CorruptError(
        f"{place.url}/{item.name}: its bytes differ from commit {unit}, {READ_ATTEMPTS} times in a "
        "row. Check it there with caskd store verify, or push it again."
    )


def read_spec(place: Storage, plan: CommitRecord, policy: RetryPolicy) -> tuple[StoreSpec, bytes]:
    """`store.json` as the plan's record says."""
    for item in plan.file_records:
        if item.name == STORE_JSON:
            data = read_checked(place, PLAN, item, policy)
            return StoreSpec.from_json(data, f"{place.url}/{STORE_JSON}"), data
    raise CorruptError(f"{place.url}/commits/plan.json: names no {STORE_JSON}.")


def check_units(where: str, head: SealedHead, spec: StoreSpec) -> None:
    """Check that the store has the commits that its geometry asks for.

    Raises:
        CorruptError: it has others.
    """
    if len(head.digests) > spec.num_shards + 2 or [*head.digests] != all_units(spec):
        raise CorruptError(f"{where}/{DIGESTS}: its commits are not those of store.json.")


def read_manifest(place: Storage, policy: RetryPolicy) -> Manifest:
    """Read and check everything that says what the sealed store at `place` consists of."""
    head = read_head(place, policy)
    plan = parse_record(read_record_bytes(place, head, PLAN, policy), PLAN)
    spec, _ = read_spec(place, plan, policy)
    check_units(place.url, head, spec)
    with ThreadPoolExecutor(_THREADS) as pool:
        units = list(head.digests)
        fetched = pool.map(lambda unit: read_record_bytes(place, head, unit, policy), units)
        record_bytes = dict(zip(units, fetched, strict=True))
    records = {unit: parse_record(data, unit) for unit, data in record_bytes.items()}
    return Manifest(**vars(head), spec=spec, record_bytes=record_bytes, records=records)

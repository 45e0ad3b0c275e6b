"""The manifest of a sealed store: all its files and digests, each level checked by the one above.

seal.json -> commits_digest -> commits/commits.sha256 -> commit records -> files
"""

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import google_crc32c

from caskd.store.commits import CommitRecord, FileRecord, all_units, commit_record
from caskd.store.errors import CorruptError, IncompleteError, StoreNotFoundError, UnsafeError
from caskd.store.format import DATA, DIGEST_LIST, SEAL, STORE_JSON, StoreSpec, untrusted_json
from caskd.store.io import refuse_mixup, value_text
from caskd.store.storage import RetryPolicy, Storage, read_file, read_whole

PLAN = commit_record.PLAN
READ_ATTEMPTS = 3
_LINE = re.compile(r"([0-9a-f]{64})  (plan|pilot|[0-9]{5,7})\.json")
_THREADS = 8


@dataclass(frozen=True)
class SealedHead:
    """The content of `seal.json` and `commits/commits.sha256`."""

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
    """Every file of a sealed store, with its size and digests."""

    spec: StoreSpec
    record_bytes: Mapping[str, bytes]
    records: Mapping[str, CommitRecord]


def read_head(storage: Storage, policy: RetryPolicy) -> SealedHead:
    """Read and check the seal and the list of digests; damaged responses are requested again.

    Raises:
        StoreNotFoundError: the storage holds no store.
        IncompleteError: the store is not sealed.
        CorruptError: the list of digests differs from the seal.
    """
    for attempt in range(READ_ATTEMPTS):
        try:
            return _read_head(storage, policy)
        except (CorruptError, UnsafeError):
            if attempt == READ_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _read_head(storage: Storage, policy: RetryPolicy) -> SealedHead:
    seal_bytes = read_whole(storage, SEAL, policy)
    if seal_bytes is None:
        if read_whole(storage, DIGEST_LIST, policy) or read_whole(storage, STORE_JSON, policy):
            raise IncompleteError(
                f"{storage.url}: the store is not sealed; expected a sealed one; finish it with "
                "caskd precompute, or rerun the caskd store push or pull that was copying it"
            )
        refuse_mixup(storage.url, storage.url, "store")
        raise StoreNotFoundError(
            f"{storage.url}: no {SEAL}; expected a sealed store; check the URL, or list the stores "
            "near it with caskd store ls"
        )
    seal = untrusted_json.parse_json(seal_bytes, SEAL)
    if not untrusted_json.is_seal(seal):
        raise CorruptError(f"{storage.url}/{SEAL}: not a seal")
    digests_bytes = read_whole(storage, DIGEST_LIST, policy) or b""
    if hashlib.sha256(digests_bytes).hexdigest() != seal["commits_digest"]:
        raise CorruptError(f"{storage.url}/{DIGEST_LIST}: its sha256 differs from {SEAL}")
    matches = [_LINE.fullmatch(line) for line in digests_bytes.decode().splitlines()]
    if not all(matches):
        raise CorruptError(f"{storage.url}/{DIGEST_LIST}: not a list of digests")
    digests = {match[2]: match[1] for match in matches if match}
    return SealedHead(seal, seal_bytes, digests, digests_bytes)


def read_record_bytes(storage: Storage, head: SealedHead, unit: str, policy: RetryPolicy) -> bytes:
    """The bytes of the commit record of `unit`, checked against the list of digests.

    Raises:
        CorruptError: it is missing, or differs in every attempt.
    """
    name = commit_record.record_name(unit)
    for _ in range(READ_ATTEMPTS):
        data = read_whole(storage, name, policy)
        if data is None:
            raise CorruptError(f"{storage.url}/{name}: missing from a sealed store")
        if hashlib.sha256(data).hexdigest() == head.digests.get(unit):
            return data
    raise CorruptError(f"{storage.url}/{name}: its sha256 differs from {DIGEST_LIST}")


def parse_record(data: bytes, unit: str) -> CommitRecord:
    """Parse a commit record and check that it names only files of the store's data.

    Raises:
        UnsafeError: it names another file.
    """
    record = CommitRecord.from_json(data, unit)
    for item in record.file_records:
        if not item.name.startswith(f"{DATA}/") and (unit, item.name) != (PLAN, STORE_JSON):
            raise UnsafeError(
                f"{commit_record.record_name(unit)}: names {value_text(item.name)}; "
                f"expected only files of {DATA}"
            )
    return record


def read_checked(storage: Storage, unit: str, item: FileRecord, policy: RetryPolicy) -> bytes:
    """The bytes of a file of a commit, checked against its crc32c and sha256.

    Raises:
        CorruptError: it is missing, or damaged in every attempt.
    """
    for _ in range(READ_ATTEMPTS):
        try:
            data = read_file(storage, item.name, item.size, policy)
        except FileNotFoundError:
            raise CorruptError(
                f"{storage.url}/{item.name}: missing, but commit {unit} names it"
            ) from None
        right = f"{google_crc32c.value(data):08x}" == item.crc32c
        if right and hashlib.sha256(data).hexdigest() == item.sha256:
            return data
    raise CorruptError(
        f"{storage.url}/{item.name}: its bytes differ from commit {unit} in {READ_ATTEMPTS} "
        "attempts",
        cure="check the source with caskd store verify, then push it again",
    )


def read_spec(storage: Storage, plan: CommitRecord, policy: RetryPolicy) -> tuple[StoreSpec, bytes]:
    """`store.json`, parsed and as bytes, checked against the plan's record."""
    for item in plan.file_records:
        if item.name == STORE_JSON:
            data = read_checked(storage, PLAN, item, policy)
            return StoreSpec.from_json(data, f"{storage.url}/{STORE_JSON}"), data
    raise CorruptError(
        f"{storage.url}/{commit_record.record_name(PLAN)}: does not name {STORE_JSON}"
    )


def check_units(where: str, head: SealedHead, spec: StoreSpec) -> None:
    """Check that the list of digests names the commits of the store's geometry.

    Raises:
        CorruptError: it names others.
    """
    if len(head.digests) > spec.num_shards + 2 or [*head.digests] != all_units(spec):
        raise CorruptError(f"{where}/{DIGEST_LIST}: its commits are not those of {STORE_JSON}")


def read_manifest(storage: Storage, policy: RetryPolicy) -> Manifest:
    """Read and check the seal, the list of digests and all commit records of a sealed store."""
    head = read_head(storage, policy)
    plan = parse_record(read_record_bytes(storage, head, PLAN, policy), PLAN)
    spec, _ = read_spec(storage, plan, policy)
    check_units(storage.url, head, spec)
    with ThreadPoolExecutor(_THREADS) as pool:
        units = list(head.digests)
        fetched = pool.map(lambda unit: read_record_bytes(storage, head, unit, policy), units)
        record_bytes = dict(zip(units, fetched, strict=True))
    records = {unit: parse_record(data, unit) for unit, data in record_bytes.items()}
    return Manifest(**vars(head), spec=spec, record_bytes=record_bytes, records=records)

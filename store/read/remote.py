"""Reads a store from `s3://`, `gs://` or `hf://` through a local cache of shard files.

The store's folder in the cache holds the files that are always needed (seal, digests, records read
so far, every zarr.json), and shard files that the cache may evict. Each file is checked against its
record when it is fetched; the chain of checks starts at the seal, as for a local store.
"""

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.commits import CommitRecord, FileRecord, Ledger, commit_record
from caskd.store.errors import CorruptError, StoreError
from caskd.store.format import (
    DIGEST_LIST,
    SEAL,
    STORE_JSON,
    Array,
    ExampleIndex,
    ShardFile,
    StoreSpec,
    layout,
)
from caskd.store.io import descriptors, files
from caskd.store.read.arrays import StoreArrays
from caskd.store.read.manifest import (
    SealedHead,
    check_units,
    parse_record,
    read_checked,
    read_head,
    read_record_bytes,
    read_spec,
)
from caskd.store.read.open_files import OPEN_FILES
from caskd.store.read.shard_cache import ShardCache
from caskd.store.storage import RetryPolicy, Storage, open_storage

NUM_THREADS = 64  # most of them wait for a response
MAX_AHEAD = 256  # files whose prefetch has not finished
_EVICTIONS = 8


def open_remote_arrays(
    url: str, *, cache: ShardCache | None = None, policy: RetryPolicy | None = None
) -> "RemoteArrays":
    """The arrays of the sealed store at a remote URL; as `TeacherStore.open_remote`."""
    storage, policy = open_storage(url), policy or RetryPolicy()
    head = read_head(storage, policy)
    source = RemoteSource(storage, head, cache or ShardCache.from_environment(), policy)
    plan = source.fetch_record(commit_record.PLAN)
    spec, data = read_spec(storage, plan, policy)
    check_units(storage.url, head, spec)
    source.put_head(data)
    ledger = RemoteLedger(source, spec)
    source.fetch_metadata(plan)
    if spec.row_encoding.uses_id_orders:
        source.fetch_metadata(source.fetch_record(commit_record.PILOT))
    return RemoteArrays(source, spec, ledger)


class RemoteSource:
    """One remote store and its folder in the cache."""

    def __init__(
        self, storage: Storage, head: SealedHead, cache: ShardCache, policy: RetryPolicy
    ) -> None:
        self.storage, self.head, self.cache, self.policy = storage, head, cache, policy
        self.name = storage.url.rstrip("/").rpartition("/")[2]
        self.root = cache.root / head.digest
        num_threads = descriptors.share(NUM_THREADS, 8)  # each has a connection open
        self.pool = ThreadPoolExecutor(num_threads, thread_name_prefix="caskd-fetch")

    def renewed(self) -> "RemoteSource":
        """The same store, with connections and threads of this process."""
        storage = open_storage(self.storage.url)
        return RemoteSource(storage, self.head, self.cache, self.policy)

    def put_head(self, store_json: bytes) -> None:
        """Keep the seal, the list of digests and store.json."""
        contents = {
            SEAL: self.head.seal_bytes,
            DIGEST_LIST: self.head.digests_bytes,
            STORE_JSON: store_json,
        }
        for name, data in contents.items():
            if self._kept(name) != data:
                self.cache.put(f"{self.head.digest}/{name}", data)

    def fetch_record(self, unit: str) -> CommitRecord:
        """Fetch the commit record of `unit` and keep it."""
        name = commit_record.record_name(unit)
        data = self._kept(name)
        if hashlib.sha256(data).hexdigest() != self.head.digests.get(unit):
            data = read_record_bytes(self.storage, self.head, unit, self.policy)
            self.cache.put(f"{self.head.digest}/{name}", data)
        return parse_record(data, unit)

    def _kept(self, name: str) -> bytes:
        """A file of the store's folder in the cache; empty if it is missing.

        Raises:
            UnreadableError: it exists but cannot be read.
        """
        path = self.root / name
        with files.reading(str(path)):
            return path.read_bytes() if path.is_file() else b""

    def fetch(self, unit: str, item: FileRecord) -> Path:
        """Fetch a file of a commit; the cache may evict it at any later time."""
        return self.cache.keep(
            f"{self.head.digest}/{item.name}",
            item.size,
            lambda: read_checked(self.storage, unit, item, self.policy),
        )

    def fetch_metadata(self, record: CommitRecord) -> None:
        """Fetch every zarr.json that a record names."""
        named = [item for item in record.file_records if item.name.endswith("/zarr.json")]
        list(self.pool.map(lambda item: self.fetch(record.unit, item), named))

    def drop(self, name: str) -> None:
        """Remove a file that was damaged on the local disk."""
        self.cache.drop(f"{self.head.digest}/{name}")


class RemoteLedger(Ledger):
    """The records of a remote store; checking a file fetches it."""

    def __init__(self, source: RemoteSource, spec: StoreSpec) -> None:
        super().__init__(source.root, spec)
        self.name = source.name
        self._source, self._digests = source, dict(source.head.digests)
        self._locks = [threading.Lock() for _ in range(NUM_THREADS)]

    @property
    def sealed(self) -> bool:
        """True: only sealed stores are read from a remote URL."""
        return True

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of every record, as the store had them when it was opened."""
        return self._digests

    def record(self, unit: str) -> CommitRecord:
        """The record of `unit`, compared with the seal."""
        self._source.fetch_record(unit)
        return super().record(unit)

    def item(self, unit: str, name: str) -> FileRecord:
        """The entry of the file `name` in the record of `unit`; other files may be missing."""
        if unit not in self._records:
            with self._locks[hash(unit) % NUM_THREADS]:  # all files of a shard need this record
                if unit not in self._records:
                    record = self.record(unit)
                    self._records[unit] = {item.name: item for item in record.file_records}
        if name not in self._records[unit]:
            raise CorruptError(f"{self.name}/commits/{unit}.json: does not name {name}")
        return self._records[unit][name]

    def check_file(self, unit: str, name: str) -> None:
        """Fetch the file unless the cache has it; fetching compares it with its record."""
        self._source.fetch(unit, self.item(unit, name))


class RemoteArrays(StoreArrays):
    """Arrays whose shard files the cache may evict."""

    def __init__(self, source: RemoteSource, spec: StoreSpec, ledger: RemoteLedger) -> None:
        super().__init__(source.root, spec, ledger)
        self.location = None  # a cache may be emptied at any time
        self.name = source.name
        self._source = source
        self._prefetched: set[str] = set()  # files prefetched and not read yet
        self._num_ahead = 0  # prefetches that have not finished
        self._lock = threading.Lock()

    @property
    def reopen_as(self) -> tuple[Any, ...]:
        """Arguments of `TeacherStore.open_remote` for a copy in another process."""
        return self._source.storage.url, self._source.cache, self._source.policy

    def renewed(self) -> "RemoteArrays":
        """The same arrays for a forked process: no lock, thread or connection of the parent."""
        source = self._source.renewed()
        return RemoteArrays(source, self.spec, RemoteLedger(source, self.spec))

    def seal(self) -> dict[str, Any]:
        """The seal, as it was when the store was opened."""
        return dict(self._source.head.seal)

    def _check_metadata(self, array: layout.ArrayLayout) -> None:
        self.ledger.check_file(self._metadata_unit(array), array.metadata_key)  # fetches it
        super()._check_metadata(array)

    def _admit(self, array: layout.ArrayLayout, shard: int) -> None:
        super()._admit(array, shard)
        self._prefetched.discard(array.key(shard))

    def _shard_file(self, array: layout.ArrayLayout, shard: int) -> ShardFile:
        for _ in range(_EVICTIONS):
            try:
                return super()._shard_file(array, shard)
            except FileNotFoundError:  # evicted between fetching and opening
                self._admit(array, shard)
        return super()._shard_file(array, shard)

    def _disk_chunk(self, array: layout.ArrayLayout, chunk: int) -> Array:
        try:
            return super()._disk_chunk(array, chunk)
        except CorruptError:
            # The file was intact when it was fetched: either the local disk damaged it since, or
            # the store itself holds invalid values. A fresh copy decides.
            key = array.key(chunk // -(-array.shard // array.chunk))
            OPEN_FILES.drop((self._number, key))
            self._source.drop(key)
            return super()._disk_chunk(array, chunk)

    def prefetch(
        self, chosen: npt.NDArray[np.int64], index: ExampleIndex, fields: Sequence[str]
    ) -> None:
        """Start to fetch the shard files that reading `chosen` will touch, and return."""
        for names, starts, counts in (
            (("token_ids", "is_response"), index.token_start[chosen], index.token_count[chosen]),
            (self._arrays_behind(fields), index.row_start[chosen], index.row_count[chosen]),
        ):
            size = self._layouts[names[0]].shard  # equal for all arrays of the axis
            starts, last = starts[counts > 0] // size, (starts + counts - 1)[counts > 0] // size
            for shard in {*starts.tolist(), *last.tolist()}:
                for name in names:
                    self._fetch_ahead(self._layouts[name], shard)

    def _arrays_behind(self, fields: Sequence[str]) -> Sequence[str]:
        """The row arrays that reading some fields touches; `num_kept` for no field."""
        return self.spec.row_encoding.arrays_behind(fields) or ["num_kept"]

    def _fetch_ahead(self, array: layout.ArrayLayout, shard: int) -> None:
        key = array.key(shard)
        if key in self._prefetched or (self._number, key) in OPEN_FILES:
            return
        if self._num_ahead >= MAX_AHEAD:
            return
        with self._lock:
            self._num_ahead += 1
        self._prefetched.add(key)
        self._source.pool.submit(self._fetch_quietly, self._unit_of(array.name, shard), key)

    def _fetch_quietly(self, unit: str, key: str) -> None:
        """Fetch a file in the background; a failure shows again when the file is read."""
        with suppress(StoreError):
            self.ledger.check_file(unit, key)
        with self._lock:
            self._num_ahead -= 1

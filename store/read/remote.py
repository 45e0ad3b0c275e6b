"""Reading a store straight from `s3://`, `gs://` or `hf://`, through a cache of shard files.

The local folder of a store holds what is always needed (seal, digests, records read so far, every
zarr.json) and, as they come and go, shard files. Each is checked against its record when it is
fetched; the chain from the seal downwards is the same as for a store on disk.

Legend: B examples asked for.
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
from caskd.store.format import ExampleIndex, ShardFile, StoreSpec, layout
from caskd.store.read.arrays import StoreArrays
from caskd.store.read.manifest import (
    DIGESTS,
    SEAL,
    STORE_JSON,
    SealedHead,
    check_units,
    parse_record,
    read_checked,
    read_head,
    read_record_bytes,
    read_spec,
)
from caskd.store.read.shard_cache import ShardCache
from caskd.store.storage import RetryPolicy, Storage, open_storage

Array = npt.NDArray[Any]

NUM_THREADS = 64  # they wait for answers most of the time
MAX_AHEAD = 256  # files asked for and not there yet
_EVICTIONS = 8


def open_remote_arrays(
    url: str, *, cache: ShardCache | None = None, policy: RetryPolicy | None = None
) -> "RemoteArrays":
    """Open the arrays of the sealed store at a remote URL.

    Args:
        url: `s3://BUCKET/PATH`, `gs://BUCKET/PATH` or `hf://datasets/USER/NAME`.
        cache: where fetched files are kept; from the environment by default.
        policy: how often a request is tried.

    Raises:
        StoreNotFoundError: there is none.
        IncompleteError: it is not sealed.
        StoreError: the place does not answer, or refuses.
    """
    place, policy = open_storage(url), policy or RetryPolicy()
    head = read_head(place, policy)
    source = RemoteSource(place, head, cache or ShardCache.from_environment(), policy)
    plan = source.fetch_record(commit_record.PLAN)
    spec, data = read_spec(place, plan, policy)
    check_units(place.url, head, spec)
    source.put_head(data)
    ledger = RemoteLedger(source, spec)
    source.fetch_metadata(plan)
    if spec.encoding == "compact":
        source.fetch_metadata(source.fetch_record(commit_record.PILOT))
    return RemoteArrays(source, spec, ledger)


class RemoteSource:
    """One remote store and its folder in the cache."""

    def __init__(
        self, place: Storage, head: SealedHead, cache: ShardCache, policy: RetryPolicy
    ) -> None:
        self.place, self.head, self._cache, self._policy = place, head, cache, policy
        self.name = place.url.rstrip("/").rpartition("/")[2]
        self.root = cache.root / head.digest
        self.pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="caskd-fetch")

    def put_head(self, store_json: bytes) -> None:
        """Keep what the store begins with."""
        contents = {
            SEAL: self.head.seal_bytes, DIGESTS: self.head.digests_bytes, STORE_JSON: store_json,
        }  # fmt: skip
        for name, data in contents.items():
            path = self.root / name
            if not (path.is_file() and path.read_bytes() == data):
                self._cache.put(f"{self.head.digest}/{name}", data)

    def fetch_record(self, unit: str) -> CommitRecord:
        """The commit record of `unit`, kept in the folder."""
        name = commit_record.record_name(unit)
        path = self.root / name
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != self.head.digests.get(unit):
            data = read_record_bytes(self.place, self.head, unit, self._policy)
            self._cache.put(f"{self.head.digest}/{name}", data)
        return parse_record(data, unit)

    def fetch(self, unit: str, item: FileRecord) -> Path:
        """A file of a commit; it may be evicted any time after."""
        return self._cache.keep(
            f"{self.head.digest}/{item.name}",
            item.size,
            lambda: read_checked(self.place, unit, item, self._policy),
        )

    def fetch_metadata(self, record: CommitRecord) -> None:
        """Every zarr.json that a record names."""
        named = [item for item in record.file_records if item.name.endswith("/zarr.json")]
        list(self.pool.map(lambda item: self.fetch(record.unit, item), named))

    def drop(self, name: str) -> None:
        """Forget a file that is damaged on the local disk."""
        self._cache.drop(f"{self.head.digest}/{name}")


class RemoteLedger(Ledger):
    """The records of a remote store; a file is fetched when it is asked for."""

    def __init__(self, source: RemoteSource, spec: StoreSpec) -> None:
        super().__init__(source.root, spec)
        self.name = source.name
        self._source = source
        self._locks = [threading.Lock() for _ in range(NUM_THREADS)]

    def record(self, unit: str) -> CommitRecord:
        """The record of `unit`, compared with the seal."""
        self._source.fetch_record(unit)
        return super().record(unit)

    def item(self, unit: str, name: str) -> FileRecord:
        """What the record of `unit` says of the file `name`; other files need not be here."""
        if unit not in self._records:
            with self._locks[hash(unit) % NUM_THREADS]:  # the files of a shard come together
                if unit not in self._records:
                    record = self.record(unit)
                    self._records[unit] = {item.name: item for item in record.file_records}
        if name not in self._records[unit]:
            raise CorruptError(f"{self.name}/commits/{unit}.json: does not name {name}.")
        return self._records[unit][name]

    def check_file(self, unit: str, name: str) -> None:
        """Have the file here; what is here was compared with its record when it came."""
        self._source.fetch(unit, self.item(unit, name))


class RemoteArrays(StoreArrays):
    """Arrays whose shard files come and go."""

    def __init__(self, source: RemoteSource, spec: StoreSpec, ledger: RemoteLedger) -> None:
        super().__init__(source.root, spec, ledger)
        self.name = source.name
        self._source = source
        self._asked: set[str] = set()  # asked for, and not read yet
        self._num_ahead = 0  # of these, not here yet
        self._lock = threading.Lock()

    def _admit(self, array: layout.ArrayLayout, shard: int) -> None:
        super()._admit(array, shard)
        self._asked.discard(array.key(shard))

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
            # It was right when it came, so the local disk has damaged it, or the store is wrong:
            # a fresh copy tells which.
            key = array.key(chunk // -(-array.shard // array.chunk))
            opened = self._open_files.pop(key, None)
            if opened is not None:
                opened.close()
            self._source.drop(key)
            return super()._disk_chunk(array, chunk)

    def prefetch(
        self, chosen: npt.NDArray[np.int64], index: ExampleIndex, fields: Sequence[str]
    ) -> None:
        """Start to fetch the shard files that reading `chosen` will touch, and return."""
        for names, starts, counts in (
            (("token_ids", "is_response"), index.token_start[chosen], index.token_count[chosen]),
            (self._on_disk(tuple(fields)), index.row_start[chosen], index.row_count[chosen]),
        ):
            size = self._layouts[names[0]].shard  # of all arrays of the axis
            starts, last = starts[counts > 0] // size, (starts + counts - 1)[counts > 0] // size
            for shard in {*starts.tolist(), *last.tolist()}:
                for name in names:
                    self._fetch_ahead(self._layouts[name], shard)

    def _on_disk(self, fields: Sequence[str]) -> Sequence[str]:
        """The row arrays behind some fields; those behind `num_kept` if there are none."""
        if self.spec.encoding != "compact":
            return [*fields] or ["num_kept"]
        names = [array.name for array in layout.layouts_of(self.spec)]
        drawn = [*(name for name in names if name.startswith("sampled_")), "num_kept"]
        behind = {
            "sampled_ids": drawn,
            "sampled_counts": drawn,
            "topk_ids": [*(name for name in names if name.startswith("topk_id")), "num_kept"],
            "topk_logits": ["topk_logit_steps", "num_kept", "logsumexp"],
        }
        return sorted({name for field in fields for name in behind.get(field, (field,))})

    def _fetch_ahead(self, array: layout.ArrayLayout, shard: int) -> None:
        key = array.key(shard)
        if key in self._asked or key in self._open_files or self._num_ahead >= MAX_AHEAD:
            return
        with self._lock:
            self._num_ahead += 1
        self._asked.add(key)
        self._source.pool.submit(self._fetch_quietly, self._unit_of(array.name, shard), key)

    def _fetch_quietly(self, unit: str, key: str) -> None:
        """A fetch that nobody waits for; what is wrong shows when the file is read."""
        with suppress(StoreError):
            self.ledger.check_file(unit, key)
        with self._lock:
            self._num_ahead -= 1

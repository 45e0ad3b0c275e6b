"""Lists the stores of a location: the location itself, or the folders directly inside it."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from caskd.store.errors import CaskdError, StoreNotFoundError, UnreadableError
from caskd.store.format import DIGEST_LIST, SEAL, STORE_JSON, StoreSpec, untrusted_json
from caskd.store.io import bytes_text, escape_control, refuse_mixup
from caskd.store.storage import RetryPolicy, Storage, open_storage, read_whole, retry

NUM_THREADS = 16


@dataclass(frozen=True)
class StoreEntry:
    """One listed store; an incomplete one has only `url` and `state`."""

    url: str
    state: str
    """`sealed`, `not sealed`, or `unreadable` (no permission, another version, damaged)."""
    teacher: str = ""
    num_rows: int = 0
    num_bytes: int = 0
    digest: str = ""


def list_stores(url: str | Path, *, policy: RetryPolicy | None = None) -> list[StoreEntry]:
    """The store at `url`, or else the stores directly inside it.

    Raises:
        StoreNotFoundError: no store was found.
        StoreError: the storage does not respond, or refuses.
    """
    storage, policy = open_storage(url), policy or RetryPolicy()
    own_entry = _entry(storage, policy)
    if own_entry is not None:
        return [own_entry]
    names = [name for name in retry(storage.children, storage.url, policy) if name.endswith("/")]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        inside = [storage.inside(name.rstrip("/")) for name in names]
        found = [entry for entry in pool.map(lambda p: _entry(p, policy), inside) if entry]
    if not found:
        refuse_mixup(storage.url, storage.url, "store")
        raise StoreNotFoundError(
            f"{storage.url}: no store found; push one with caskd store push, or check the path"
        )
    return found


def _entry(storage: Storage, policy: RetryPolicy) -> StoreEntry | None:
    """The entry of the store at `storage`; None if it holds no store."""
    try:
        store_json = read_whole(storage, STORE_JSON, policy)
    except UnreadableError:
        return StoreEntry(storage.url, "unreadable")
    if store_json is None:
        claimed = read_whole(storage, DIGEST_LIST, policy) is not None
        return StoreEntry(storage.url, "not sealed") if claimed else None
    try:
        spec = StoreSpec.from_json(store_json, f"{storage.url}/{STORE_JSON}")
        seal_bytes = read_whole(storage, SEAL, policy)
        if seal_bytes is None:
            return StoreEntry(storage.url, "not sealed", spec.teacher, spec.num_rows)
        seal = untrusted_json.parse_json(seal_bytes, f"{storage.url}/{SEAL}")
        if not untrusted_json.is_seal(seal):
            return StoreEntry(storage.url, "unreadable")
    except CaskdError:
        return StoreEntry(storage.url, "unreadable")
    size = sum(seal["bytes"].values())
    digest = seal["commits_digest"]
    return StoreEntry(storage.url, "sealed", spec.teacher, spec.num_rows, size, digest)


def listing_lines(entries: list[StoreEntry], *, as_json: bool) -> Iterator[str]:
    """The listing as text: one line per store, or one JSON array."""
    if as_json:
        yield json.dumps([vars(entry) for entry in entries], indent=1)
        return
    width = max(len(escape_control(entry.url)) for entry in entries)
    for entry in entries:
        url, teacher = escape_control(entry.url), escape_control(entry.teacher)
        size = bytes_text(entry.num_bytes) if entry.num_bytes else "-"
        line = f"{url:<{width}}  {entry.state:<10}  {entry.num_rows:>14,} rows"
        yield f"{line}  {size:>14}  {entry.digest[:12]:<12}  {teacher}".rstrip()

"""Which stores are at a place: the place itself, or what lies directly inside it."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from caskd.store.errors import CaskdError, StoreNotFoundError
from caskd.store.format import DIGEST_LIST, SEAL, STORE_JSON, StoreSpec, untrusted_json
from caskd.store.io import clean
from caskd.store.storage import RetryPolicy, Storage, open_storage, read_whole, retry

NUM_THREADS = 16


@dataclass(frozen=True)
class StoreEntry:
    """One store at a place; only `url` and `state` are known of one that is not complete."""

    url: str
    state: str
    """`sealed`, `not sealed`, or `unreadable` (of another version, or damaged)."""
    teacher: str = ""
    num_rows: int = 0
    num_bytes: int = 0
    digest: str = ""


def list_stores(url: str | Path, *, policy: RetryPolicy | None = None) -> list[StoreEntry]:
    """The stores at `url`: itself if it is one, else those directly inside.

    Raises:
        StoreNotFoundError: there is none.
        StoreError: the place does not answer, or refuses.
    """
    place, policy = open_storage(url), policy or RetryPolicy()
    itself = _entry(place, policy)
    if itself is not None:
        return [itself]
    names = [name for name in retry(place.children, place.url, policy) if name.endswith("/")]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        inside = [place.inside(name.rstrip("/")) for name in names]
        found = [entry for entry in pool.map(lambda p: _entry(p, policy), inside) if entry]
    if not found:
        raise StoreNotFoundError(f"{place.url}: no store there. Push one with caskd store push.")
    return found


def _entry(place: Storage, policy: RetryPolicy) -> StoreEntry | None:
    """What is at `place`; None if it is no store."""
    store_json = read_whole(place, STORE_JSON, policy)
    if store_json is None:
        begun = read_whole(place, DIGEST_LIST, policy) is not None
        return StoreEntry(place.url, "not sealed") if begun else None
    try:
        spec = StoreSpec.from_json(store_json, f"{place.url}/{STORE_JSON}")
        seal_bytes = read_whole(place, SEAL, policy)
        if seal_bytes is None:
            return StoreEntry(place.url, "not sealed", spec.teacher, spec.num_rows)
        seal = untrusted_json.parse_json(seal_bytes, f"{place.url}/{SEAL}")
        if not untrusted_json.is_seal(seal):
            return StoreEntry(place.url, "unreadable")
    except CaskdError:
        return StoreEntry(place.url, "unreadable")
    size = sum(seal["bytes"].values())
    digest = seal["commits_digest"]
    return StoreEntry(place.url, "sealed", spec.teacher, spec.num_rows, size, digest)


def listing_lines(entries: list[StoreEntry], *, as_json: bool) -> Iterator[str]:
    """One line for each store."""
    if as_json:
        yield json.dumps([vars(entry) for entry in entries], indent=1)
        return
    width = max(len(clean(entry.url)) for entry in entries)
    for entry in entries:
        size = f"{entry.num_bytes / 1e6:,.1f} MB" if entry.num_bytes else "-"
        line = f"{clean(entry.url):<{width}}  {entry.state:<10}  {entry.num_rows:>14,} rows"
        yield f"{line}  {size:>14}  {entry.digest[:12]:<12}  {clean(entry.teacher)}".rstrip()

"""Copying a sealed store between places, so that the copy is the store or is not sealed.

    claim     commits/commits.sha256 is created first, exclusively: it names the one store that
              this place will hold, and two copies of different stores cannot mix
    send      every file that a commit record names is checked (crc32c, sha256) before it is sent,
              and read back where it arrived; what is there already is not sent again
    records   then the commit records, then the card
    seal      seal.json last: without it nobody reads the copy

Stopped anywhere, the same call goes on. Nothing but these files travels.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from caskd.store.commits import FileRecord, commit_record, seal_content
from caskd.store.errors import CorruptError, IdentityError, UsageError
from caskd.store.format import (
    COMMITS,
    DIGEST_LIST,
    README,
    SEAL,
    STAGING,
    STORE_JSON,
    StoreSpec,
    canonical_json,
    identity_differences,
)
from caskd.store.io import Progress, progress, shown
from caskd.store.read import READ_ATTEMPTS, Manifest, read_checked, read_manifest
from caskd.store.storage import (
    DirectoryStorage,
    RetryPolicy,
    Storage,
    open_storage,
    read_whole,
    retry,
    sha256_of,
)

NUM_THREADS = 8
ROUNDS = 3


@dataclass(frozen=True)
class CopyReport:
    """What a push or pull did."""

    num_files: int
    num_bytes: int
    num_sent: int
    """Files that were not there yet, or not right."""
    digest: str
    """Digest of the store, the same at both ends."""


def push_store(
    store: str | Path, url: str | Path, *, quiet: bool = True, policy: RetryPolicy | None = None
) -> CopyReport:
    """Copy a sealed store from a directory to a place.

    Args:
        store: the store's directory.
        url: a directory, `s3://BUCKET/PATH`, `gs://BUCKET/PATH` or `hf://datasets/USER/NAME`.
        quiet: show no progress.
        policy: how often a request is tried.

    Raises:
        IncompleteError: the store is not sealed; only sealed stores travel.
        IdentityError: another store is there.
        CorruptError: bytes differ from the commit records, at either end, also when tried again.
        StoreError: the place does not answer or refuses; the same call goes on where it stopped.
    """
    return copy_store(open_storage(store), open_storage(url), "push", quiet=quiet, policy=policy)


def pull_store(
    url: str | Path, directory: str | Path, *, quiet: bool = True, policy: RetryPolicy | None = None
) -> CopyReport:
    """Copy a sealed store from a place to a directory; arguments and errors as in `push_store`."""
    return copy_store(
        open_storage(url), open_storage(directory), "pull", quiet=quiet, policy=policy
    )


def copy_store(
    source: Storage, target: Storage, label: str, *, quiet: bool, policy: RetryPolicy | None = None
) -> CopyReport:
    """Copy a sealed store between any two places."""
    policy = policy or RetryPolicy()
    manifest = read_manifest(source, policy)
    claim(target, manifest, policy)
    work = [
        (unit, item) for unit, record in manifest.records.items() for item in record.file_records
    ]
    total = sum(item.size for _, item in work)
    with progress(label, total, "bytes", quiet=quiet) as bar:
        num_sent = _send(source, target, work, policy, bar)
    names = {commit_record.record_name(unit): data for unit, data in manifest.record_bytes.items()}
    card = _read_card(source, policy)
    _put_small(target, names if card is None else {**names, README: card}, policy)
    for place in (source, target):
        if isinstance(place, DirectoryStorage):
            _check_totals(place, manifest)
    create(target, SEAL, manifest.seal_bytes, policy)
    retry(target.flush, target.url, policy)
    return CopyReport(len(work), total, num_sent, manifest.digest)


Work = tuple[str, FileRecord]


def _send(
    source: Storage, target: Storage, work: list[Work], policy: RetryPolicy, bar: Progress
) -> int:
    """Bring every file to the target: look, send what is not there, look again.

    Returns:
        How many files were sent.

    Raises:
        CorruptError: what arrived is wrong, `ROUNDS` times.
    """
    num_sent, pending = 0, work
    for _ in range(ROUNDS):
        absent = _each(pending, lambda w: None if _holds(target, w[1], policy) else w, bar)
        if not absent:
            return num_sent
        _each(absent, lambda w: _send_one(source, target, w, policy))
        retry(target.flush, target.url, policy)
        num_sent, pending = num_sent + len(absent), absent
    absent = _each(pending, lambda w: None if _holds(target, w[1], policy) else w, bar)
    if absent:
        raise CorruptError(
            f"{target.url}/{absent[0][1].name}: arrived damaged {ROUNDS} times. "
            "Check the network and the disk, then run the same command again."
        )
    return num_sent


def _each(
    work: Iterable[Work], do: Callable[[Work], Work | None], bar: Progress | None = None
) -> list[Work]:
    """Run `do` on each in a few threads; returns what it returned, reports where that was None."""
    left = []
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        futures = {pool.submit(do, item): item for item in work}
        try:
            for future in as_completed(futures):
                result = future.result()
                if result is not None:
                    left.append(result)
                elif bar is not None:
                    bar.advance(futures[future][1].size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(left, key=lambda item: item[1].name)


def _holds(target: Storage, item: FileRecord, policy: RetryPolicy) -> bool:
    """Whether the target has this very file."""
    where = f"{target.url}/{item.name}"
    try:
        size = retry(lambda: target.size(item.name), where, policy)
        return size == item.size and sha256_of(target, item.name, size, policy) == item.sha256
    except FileNotFoundError:
        return False


def _send_one(source: Storage, target: Storage, work: Work, policy: RetryPolicy) -> None:
    unit, item = work
    data = read_checked(source, unit, item, policy)
    retry(lambda: target.write(item.name, data), f"{target.url}/{item.name}", policy)


def _put_small(target: Storage, contents: dict[str, bytes], policy: RetryPolicy) -> None:
    """Write metadata files that are not there yet as they should be."""

    def differs(name: str) -> bool:
        return read_whole(target, name, policy) != contents[name]

    def put(name: str) -> None:
        retry(lambda: target.write(name, contents[name]), f"{target.url}/{name}", policy)

    pending = list(contents)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for _ in range(ROUNDS + 1):
            wrong = list(pool.map(differs, pending))
            pending = [name for name, bad in zip(pending, wrong, strict=True) if bad]
            list(pool.map(put, pending))
            retry(target.flush, target.url, policy)
            if not pending:
                return
    raise CorruptError(f"{target.url}/{pending[0]}: arrived damaged. Run the same command again.")


def _read_card(source: Storage, policy: RetryPolicy) -> bytes | None:
    """The card, which no digest covers: what two readings agree on."""
    data = read_whole(source, README, policy)
    for _ in range(READ_ATTEMPTS):
        again = read_whole(source, README, policy)
        if again == data:
            return data
        data = again
    raise CorruptError(f"{source.url}/{README}: reads differently each time. Check the network.")


def _check_totals(place: DirectoryStorage, manifest: Manifest) -> None:
    """Check that the seal says what the commit records add up to."""
    totals, _ = seal_content(place.root, manifest.spec)
    if canonical_json(totals) != manifest.seal_bytes:
        raise CorruptError(f"{place.url}/{SEAL}: differs from what the commits add up to.")


def claim(target: Storage, manifest: Manifest, policy: RetryPolicy) -> None:
    """Make the target this store's, or see that it is already.

    Raises:
        IdentityError: it holds another store, or one that is being written.
        UsageError: it holds something else.
    """
    if read_whole(target, DIGEST_LIST, policy) is None:
        theirs = read_whole(target, STORE_JSON, policy)
        if theirs is not None:
            raise IdentityError(_other_store(target.url, manifest, theirs))
        found = retry(target.children, target.url, policy)
        foreign = [name for name in found if name.rstrip("/") not in _OWN_NAMES]
        if foreign:
            raise UsageError(
                f"{target.url}: holds {shown(foreign[0])} but no store. Give an empty or new place."
            )
    create(target, DIGEST_LIST, manifest.digests_bytes, policy)


_OWN_NAMES = frozenset({STAGING, COMMITS, ".gitattributes", README})


def _other_store(where: str, manifest: Manifest, store_json: bytes) -> str:
    theirs = StoreSpec.from_json(store_json, f"{where}/{STORE_JSON}")
    differences = list(identity_differences(theirs.identity, manifest.spec.identity))
    if not differences:
        return (
            f"{where}: holds a store of the same capture that is not sealed. "
            "Finish it with caskd precompute, or give another place."
        )
    field, a, b = differences[0]
    return (
        f"{where}: holds another store ({field} is {shown(a)} there, {shown(b)} "
        "here). Give another place, or remove what is there."
    )


def create(target: Storage, name: str, data: bytes, policy: RetryPolicy) -> None:
    """Create a file that decides; one with our content is ours, whoever heard the answer.

    Raises:
        IdentityError: there is one with other content.
        CorruptError: ours arrived damaged.
    """
    where = f"{target.url}/{name}"
    created = retry(lambda: target.create(name, data), where, policy)
    if any(read_whole(target, name, policy) == data for _ in range(READ_ATTEMPTS)):
        return
    if created:
        raise CorruptError(f"{where}: arrived damaged. Remove it, then run the same command again.")
    raise IdentityError(
        f"{target.url}: holds another store (its {name} differs from ours). "
        "Give another place, or remove what is there."
    )

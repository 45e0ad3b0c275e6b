"""Copies a sealed store between two storages; an interrupted copy is never sealed.

    check     refuse a target that holds anything else, then a source with damaged files: a refusal
              leaves the target as it was
    claim     create commits/commits.sha256 first, exclusively: it names the one store that the
              target will hold, so that copies of two stores cannot mix
    send      check every file that a commit record names (crc32c, sha256), send those that the
              target lacks, and check them at the target
    records   write the commit records, then the card
    seal      write seal.json last: without it no reader opens the copy

The same call resumes an interrupted copy. No other file is copied.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from caskd.store.commits import FileRecord, commit_record, seal_content
from caskd.store.errors import CaskdError, CorruptError, IdentityError, UsageError
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
from caskd.store.io import Progress, files, progress, value_text
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
_OWN_NAMES = frozenset({STAGING, COMMITS, ".gitattributes", README})

UnitFile = tuple[str, FileRecord]
"""A commit unit (`plan`, `pilot` or a shard number) and one file that its record names."""


@dataclass(frozen=True)
class CopyReport:
    """Result of a push or pull."""

    num_files: int
    num_bytes: int
    num_sent: int
    """Files that the target lacked or had damaged."""
    digest: str
    """Digest of the store, equal at both ends."""


def push_store(
    store: str | Path, url: str | Path, *, quiet: bool = True, policy: RetryPolicy | None = None
) -> CopyReport:
    """Copy a sealed store from a directory to another storage.

    Args:
        store: the store's directory.
        url: a directory, `s3://BUCKET/PATH`, `gs://BUCKET/PATH` or `hf://datasets/USER/NAME`.
        quiet: show no progress.
        policy: retries of each request.

    Raises:
        IncompleteError: the store is not sealed.
        IdentityError: the target holds another store.
        CorruptError: bytes at either end differ from the commit records, after retries.
        StoreError: the storage does not respond or refuses; the same call resumes.
    """
    return copy_store(open_storage(store), open_storage(url), "push", quiet=quiet, policy=policy)


def pull_store(
    url: str | Path, directory: str | Path, *, quiet: bool = True, policy: RetryPolicy | None = None
) -> CopyReport:
    """Copy a sealed store to a directory; arguments and errors as in `push_store`."""
    return copy_store(
        open_storage(url), open_storage(directory), "pull", quiet=quiet, policy=policy
    )


def copy_store(
    source: Storage, target: Storage, label: str, *, quiet: bool, policy: RetryPolicy | None = None
) -> CopyReport:
    """Copy a sealed store between any two storages."""
    policy = policy or RetryPolicy()
    manifest = read_manifest(source, policy)
    work = [
        (unit, item) for unit, record in manifest.records.items() for item in record.file_records
    ]
    total = sum(item.size for _, item in work)
    if isinstance(source, DirectoryStorage):
        _check_source(source, manifest, work)
    is_new = _check_target(target, manifest, policy)
    if is_new and isinstance(source, DirectoryStorage):
        with progress("check", total, "bytes", quiet=quiet) as bar:
            _in_threads(work, lambda w: _check_file(source, w, policy), bar)
    _create(target, DIGEST_LIST, manifest.digests_bytes, policy)
    with progress(label, total, "bytes", quiet=quiet) as bar:
        num_sent = _send(source, target, work, policy, bar)
    contents = {
        commit_record.record_name(unit): data for unit, data in manifest.record_bytes.items()
    }
    card = _read_card(source, policy)
    _put_small(target, contents if card is None else {**contents, README: card}, policy)
    if isinstance(target, DirectoryStorage):
        _check_totals(target, manifest)
    _create(target, SEAL, manifest.seal_bytes, policy)
    retry(target.flush, target.url, policy)
    return CopyReport(len(work), total, num_sent, manifest.digest)


def _check_source(source: DirectoryStorage, manifest: Manifest, work: list[UnitFile]) -> None:
    """Refuse a damaged source, as far as names and sizes show, before the target is asked.

    Raises:
        CorruptError: a file is missing or has a wrong size, or the totals differ from the records.
        UnreadableError: a file cannot be opened.
    """
    _check_totals(source, manifest)
    for unit, item in work:
        commit_record.check_size(source.root, unit, item)
        with files.open_inside(source.root, item.name):
            pass


def _check_file(source: Storage, work: UnitFile, policy: RetryPolicy) -> None:
    read_checked(source, *work, policy)


def _check_target(target: Storage, manifest: Manifest, policy: RetryPolicy) -> bool:
    """Refuse a target that cannot hold this store; nothing is written.

    Returns:
        Whether no copy of this store has claimed the target yet.

    Raises:
        IdentityError: the target holds another store, or a capture in progress.
        UsageError: the target holds other files.
    """
    is_new = not _agrees(target, DIGEST_LIST, manifest.digests_bytes, policy)
    if is_new:
        refusal = _refusal(target, manifest, policy)
        # Another copy of this store may have begun meanwhile; its claim comes before its files.
        if refusal and not _agrees(target, DIGEST_LIST, manifest.digests_bytes, policy):
            raise refusal
    _agrees(target, SEAL, manifest.seal_bytes, policy)
    return is_new


def _agrees(target: Storage, name: str, data: bytes, policy: RetryPolicy) -> bool:
    """Whether the target has this file, with this content.

    Raises:
        IdentityError: the file has other content, however often it is read.
    """
    for _ in range(READ_ATTEMPTS):
        found = read_whole(target, name, policy)
        if found is None or found == data:
            return found is not None
    raise IdentityError(_other_content(target, name))


def _other_content(target: Storage, name: str) -> str:
    return (
        f"{target.url}: holds another store (its {name} differs from ours). "
        "Pass another location, or remove that store."
    )


def _refusal(target: Storage, manifest: Manifest, policy: RetryPolicy) -> CaskdError | None:
    """Why a target that no copy has claimed cannot be used; None for an empty one."""
    store_json = read_whole(target, STORE_JSON, policy)
    if store_json is not None:
        return IdentityError(_other_store(target.url, manifest, store_json))
    if read_whole(target, commit_record.record_name(commit_record.PLAN), policy) is not None:
        return IdentityError(
            f"{target.url}: holds the plan of a capture; expected a new or empty location. "
            "Pass another one."
        )
    found = retry(target.children, target.url, policy)
    foreign = [name for name in found if name.rstrip("/") not in _OWN_NAMES]
    if not foreign:
        return None
    return UsageError(
        f"{target.url}: holds {value_text(foreign[0])} but no store; expected a new or "
        "empty location. Pass another one."
    )


def _other_store(where: str, manifest: Manifest, store_json: bytes) -> str:
    """Error text for a target that already has a store.json."""
    existing = StoreSpec.from_json(store_json, f"{where}/{STORE_JSON}")
    differences = list(identity_differences(existing.identity, manifest.spec.identity))
    if not differences:
        return (
            f"{where}: holds an unsealed store of the same capture; expected a sealed one; "
            "finish it with caskd precompute, or pass another location"
        )
    field, there, here = differences[0]
    return (
        f"{where}: holds another store ({field} is {value_text(there)} there, {value_text(here)} "
        "here); pass another location, or remove that store"
    )


def _create(target: Storage, name: str, data: bytes, policy: RetryPolicy) -> None:
    """Create a file that decides a race; an equal file counts as ours (a response may be lost).

    Raises:
        IdentityError: the file exists with other content.
        CorruptError: our file arrived damaged.
    """
    where = f"{target.url}/{name}"
    if _agrees(target, name, data, policy):
        return
    created = retry(lambda: target.create(name, data), where, policy)
    if any(read_whole(target, name, policy) == data for _ in range(READ_ATTEMPTS)):
        return
    if created:
        raise CorruptError(
            f"{where}: arrived damaged", cure="remove it, then run the same command again"
        )
    raise IdentityError(_other_content(target, name))


def _send(
    source: Storage, target: Storage, work: list[UnitFile], policy: RetryPolicy, bar: Progress
) -> int:
    """Check every file at the target, send those that are missing or wrong, and check again.

    Returns:
        Number of files sent.

    Raises:
        CorruptError: a file was still wrong after `ROUNDS` rounds.
    """
    num_sent, pending = 0, work
    for _ in range(ROUNDS):
        absent = _in_threads(pending, lambda w: None if _holds(target, w[1], policy) else w, bar)
        if not absent:
            return num_sent
        _in_threads(absent, lambda w: _send_file(source, target, w, policy))
        retry(target.flush, target.url, policy)
        num_sent, pending = num_sent + len(absent), absent
    absent = _in_threads(pending, lambda w: None if _holds(target, w[1], policy) else w, bar)
    if absent:
        raise CorruptError(
            f"{target.url}/{absent[0][1].name}: arrived damaged {ROUNDS} times",
            cure="check the network and the disk, then run the same command again",
        )
    return num_sent


def _in_threads(
    work: Iterable[UnitFile],
    call: Callable[[UnitFile], UnitFile | None],
    bar: Progress | None = None,
) -> list[UnitFile]:
    """Run `call` on each file in threads; return its results, and advance `bar` for each None."""
    results = []
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        futures = {pool.submit(call, item): item for item in work}
        try:
            for future in as_completed(futures):
                result = future.result()
                if result is not None:
                    results.append(result)
                elif bar is not None:
                    bar.advance(futures[future][1].size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(results, key=lambda item: item[1].name)


def _holds(target: Storage, item: FileRecord, policy: RetryPolicy) -> bool:
    """Whether the target has this file with this size and sha256."""
    where = f"{target.url}/{item.name}"
    try:
        size = retry(lambda: target.size(item.name), where, policy)
        return size == item.size and sha256_of(target, item.name, size, policy) == item.sha256
    except FileNotFoundError:
        return False


def _send_file(source: Storage, target: Storage, work: UnitFile, policy: RetryPolicy) -> None:
    unit, item = work
    data = read_checked(source, unit, item, policy)
    retry(lambda: target.write(item.name, data), f"{target.url}/{item.name}", policy)


def _put_small(target: Storage, contents: dict[str, bytes], policy: RetryPolicy) -> None:
    """Write the metadata files that the target lacks or has with other content."""

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
    raise CorruptError(
        f"{target.url}/{pending[0]}: arrived damaged", cure="run the same command again"
    )


def _read_card(source: Storage, policy: RetryPolicy) -> bytes | None:
    """The card, read until two readings agree, because no digest covers it."""
    data = read_whole(source, README, policy)
    for _ in range(READ_ATTEMPTS):
        again = read_whole(source, README, policy)
        if again == data:
            return data
        data = again
    raise CorruptError(
        f"{source.url}/{README}: reads differently each time", cure="check the network"
    )


def _check_totals(storage: DirectoryStorage, manifest: Manifest) -> None:
    """Check that the totals in the seal are the sums over the commit records."""
    totals, _ = seal_content(storage.root, manifest.spec)
    if canonical_json(totals) != manifest.seal_bytes:
        raise CorruptError(f"{storage.url}/{SEAL}: differs from the totals of the commit records")

"""Whose a place is: files that are created exclusively and decide between copies of two stores."""

from caskd.store import safety
from caskd.store.errors import CorruptError, IdentityError, UsageError
from caskd.store.manifest import DIGESTS, READ_ATTEMPTS, STORE_JSON, Manifest
from caskd.store.places import Place, read_whole
from caskd.store.retries import RetryPolicy, retry
from caskd.store.spec import StoreSpec, identity_differences

CARD = "README.md"


def claim(target: Place, manifest: Manifest, policy: RetryPolicy) -> None:
    """Make the target this store's, or see that it is already.

    Raises:
        IdentityError: it holds another store, or one that is being written.
        UsageError: it holds something else.
    """
    if read_whole(target, DIGESTS, policy) is None:
        theirs = read_whole(target, STORE_JSON, policy)
        if theirs is not None:
            raise IdentityError(_other_store(target.url, manifest, theirs))
        found = retry(target.children, target.url, policy)
        foreign = [name for name in found if name.rstrip("/") not in _OWN_NAMES]
        if foreign:
            raise UsageError(
                f"{target.url}: holds {safety.shown(foreign[0])} but no store. "
                "Give an empty or new place."
            )
    create(target, DIGESTS, manifest.digests_bytes, policy)


_OWN_NAMES = frozenset({"staging", "commits", ".gitattributes", CARD})


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
        f"{where}: holds another store ({field} is {safety.shown(a)} there, {safety.shown(b)} "
        "here). Give another place, or remove what is there."
    )


def create(target: Place, name: str, data: bytes, policy: RetryPolicy) -> None:
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

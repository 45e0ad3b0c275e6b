"""TeacherStore: opens a store and reads examples as numpy arrays, without torch.

Opening takes the same time for a store of any size.

Legend: C orders of ids, V vocabulary.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.commits import commit_record
from caskd.store.errors import IdentityError, IncompleteError, StoreNotFoundError, UsageError
from caskd.store.format import (
    SEAL,
    STORE_JSON,
    Array,
    ExampleIndex,
    StoreSpec,
    array_checks,
    layout,
)
from caskd.store.io import files, refuse_mixup
from caskd.store.read.arrays import StoreArrays
from caskd.store.read.batch import StoreBatch, assemble
from caskd.store.read.location import replaced
from caskd.store.read.shard_cache import ShardCache
from caskd.store.storage import RetryPolicy, is_remote


class TeacherStore:
    """A store opened for reading with `TeacherStore.open`.

    Only files that a commit record names are read. A record is checked when its shard is first
    read, and a chunk's crc32c when the chunk is decoded.
    """

    def __init__(self, arrays: StoreArrays) -> None:
        self.root, self.spec, self.name = arrays.root, arrays.spec, arrays.name
        self._arrays_here, self._process = arrays, os.getpid()

    @property
    def _arrays(self) -> StoreArrays:
        """The arrays; a forked process gets its own, because threads do not survive a fork."""
        if self._process != os.getpid():
            self._arrays_here, self._process = self._arrays_here.renewed(), os.getpid()
        return self._arrays_here

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its URL; another process opens it again, and finds it unchanged."""
        digest = self.digest if self.sealed else None
        return _opened_again, (self._arrays.reopen_as, digest)

    @classmethod
    def open(cls, url: str | Path, *, allow_unsealed: bool = False) -> "TeacherStore":
        """Open the store at `url`: a directory, or `s3://`, `gs://`, `hf://` through a cache.

        Raises:
            StoreNotFoundError: `url` holds no store.
            IncompleteError: the store is not sealed yet and `allow_unsealed` is false.
        """
        if is_remote(url):
            return cls.open_remote(str(url))
        root = Path(url).absolute()  # the working directory of the process may change
        if files.regular_size(root / STORE_JSON, f"{url}/{STORE_JSON}") is None:
            refuse_mixup(root, str(url), "store")
            hint = "" if root.is_dir() else " (no such directory)"
            raise StoreNotFoundError(
                f"{url}: no {STORE_JSON}{hint}; expected a store; "
                "check the path, or write a store with caskd precompute"
            )
        data = files.read_small(root, STORE_JSON)
        store = cls(StoreArrays(root, StoreSpec.from_json(data, f"{url}/{STORE_JSON}")))
        store._arrays.ledger.check_spec(data)
        if not (store.sealed or allow_unsealed):
            raise IncompleteError(
                f"{url}: the store is not sealed ({store.num_committed_shards()} of "
                f"{store.spec.num_shards} shards are committed); "
                "run caskd precompute again to finish it"
            )
        return store

    @classmethod
    def open_remote(
        cls, url: str, *, cache: ShardCache | None = None, policy: RetryPolicy | None = None
    ) -> "TeacherStore":
        """Open the sealed store at a remote URL.

        Args:
            url: `s3://BUCKET/PATH`, `gs://BUCKET/PATH` or `hf://datasets/USER/NAME`.
            cache: keeps fetched files; by default the cache that the environment configures.
            policy: how requests are retried.

        Raises:
            StoreNotFoundError: `url` holds no store.
            IncompleteError: the store is not sealed.
            StoreError: the storage does not respond, or refuses the request.
        """
        from caskd.store.read.remote import open_remote_arrays

        return cls(open_remote_arrays(url, cache=cache, policy=policy))

    def __len__(self) -> int:
        return self.spec.num_examples

    @property
    def sealed(self) -> bool:
        """Whether the store is finished."""
        return self._arrays.ledger.sealed

    @cached_property
    def seal(self) -> dict[str, Any]:
        """Totals and digest of a sealed store."""
        return self._arrays.seal()

    @property
    def digest(self) -> str:
        """Digest over all commits of a sealed store; equal digests mean equal stores."""
        return str(self.seal["commits_digest"])

    def num_committed_shards(self) -> int:
        """Number of shards committed so far."""
        present = commit_record.committed_units(self.root)
        return sum(
            commit_record.shard_unit(shard) in present for shard in range(self.spec.num_shards)
        )

    @cached_property
    def index(self) -> ExampleIndex:
        """The example axis (about 30 bytes an example)."""
        columns = {a.name: self._arrays.whole(a.name) for a in layout.EXAMPLE_LAYOUTS}
        index = ExampleIndex(**columns)
        array_checks.check_index(index, self.spec, self.name)
        return index

    @cached_property
    def vocab(self) -> list[bytes]:
        """Bytes of each token, index = id."""
        joined, offsets = (
            self._arrays.whole("vocab_bytes").tobytes(),
            self._arrays.whole("vocab_offsets"),
        )
        array_checks.check_vocab(offsets, len(joined), self.name)
        return [joined[a:b] for a, b in pairwise(offsets.tolist())]

    @property
    def id_order(self) -> npt.NDArray[np.uint32] | None:
        """Orders of ids [C, V]; None where the encoding uses none."""
        return self._arrays.id_order

    @property
    def row_fields(self) -> tuple[str, ...]:
        """Names of the row fields; they depend on the store's kind."""
        return self.spec.row_kind.fields

    def row_counts(self) -> npt.NDArray[np.int32]:
        """Rows of each example."""
        return self.index.row_count

    def token_counts(self) -> npt.NDArray[np.int32]:
        """Tokens of each example."""
        return self.index.token_count

    def prefetch(self, indices: Sequence[int] | Array, fields: Sequence[str] | None = None) -> None:
        """Start to fetch the files that reading these examples needs, if the store is remote."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        self._arrays.prefetch(chosen, self.index, self.row_fields if fields is None else fields)

    def read(
        self, indices: Sequence[int] | Array, fields: Sequence[str] | None = None
    ) -> StoreBatch:
        """Read examples, tokens and rows.

        Args:
            indices: example indices, in any order, repeats allowed.
            fields: row fields to decode; all fields of the store by default.

        Raises:
            UsageError: an index out of range, or an unknown field.
            IncompleteError: a row's shard is not committed.
            CorruptError: committed bytes are missing or differ.
        """
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise UsageError(
                f"example {int(chosen.max() if chosen.min() >= 0 else chosen.min())}: expected 0 "
                f"to {len(self) - 1}; pass an index in this range"
            )
        unknown = sorted({*(fields or ())} - {*self.row_fields})
        if unknown:
            raise UsageError(
                f"field {unknown[0]!r}: not in a {self.spec.kind} store; expected some of "
                f"{', '.join(self.row_fields)}; pass these"
            )
        index = self.index
        tokens = self._arrays.gather_fields(
            ("token_ids", "is_response"), index.token_start[chosen], index.token_count[chosen]
        )
        wanted = self.row_fields if fields is None else fields
        rows = self._arrays.gather_fields(wanted, index.row_start[chosen], index.row_count[chosen])
        return assemble(chosen, index, tokens["token_ids"], tokens["is_response"], rows)


def _opened_again(arguments: tuple[Any, ...], digest: str | None) -> TeacherStore:
    """The store of a pickle.

    Raises:
        IdentityError: another store is at its URL now.
    """
    url, *options = arguments
    if options:
        store = TeacherStore.open_remote(url, cache=options[0], policy=options[1])
    else:
        store = TeacherStore.open(url, allow_unsealed=digest is None)
    if digest is not None and store.digest != digest:
        raise IdentityError(replaced(str(url), SEAL))
    return store

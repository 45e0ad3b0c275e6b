"""The arrays of a local store: files checked against their commit record, chunks by checksum.

Legend: k cells per row.
"""

import itertools
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.commits import Ledger, commit_record, read_seal
from caskd.store.errors import CorruptError, UnreadableError, UnsafeError
from caskd.store.format import (
    FIELD_DTYPES,
    Array,
    ExampleIndex,
    ShardFile,
    StoreSpec,
    array_checks,
    layout,
    untrusted_json,
)
from caskd.store.io import files, is_limit_reached
from caskd.store.read.chunk_cache import ChunkCache, Pieces, split_at_chunks
from caskd.store.read.location import Location
from caskd.store.read.open_files import OPEN_FILES

CACHE_BYTES = 256 << 20
SHARD_TABLES = 16  # shards whose tables stay in memory, 1 to 2 MB each
_numbers = itertools.count()


class StoreArrays:
    """Reads row fields and plan arrays by name, through caches of decoded chunks."""

    def __init__(self, root: Path, spec: StoreSpec, ledger: Ledger | None = None) -> None:
        self.root, self.spec, self.name = root, spec, root.name
        rows = spec.row_layouts()
        fixed = (*layout.TOKEN_LAYOUTS, *layout.EXAMPLE_LAYOUTS, *layout.VOCAB_LAYOUTS)
        self._layouts = {array.name: array for array in (*fixed, layout.ID_ORDER, *rows)}
        self._row_arrays = frozenset(array.name for array in rows)
        self._encoding = spec.row_encoding
        self._tables = self._encoding.tables(spec.vocab_size, spec.shard_rows)
        self._table_names = frozenset(array.name for array in self._tables)
        self._shard_names = self._table_names | {
            name for name, derived in self._encoding.derived.items() if derived.of_shard
        }
        self._chunks_of_shard = spec.shard_rows // spec.chunk_rows
        self.ledger = ledger or Ledger(root, spec)
        self._limits = array_checks.value_limits(spec)
        self._known_metadata: dict[str, int] = {}
        self.location: Location | None = Location(root)
        self._number = next(_numbers)
        weakref.finalize(self, OPEN_FILES.drop_store, self._number).atexit = False
        self._caches: dict[str, ChunkCache] = {}
        self._chunk_shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        self._gathering = threading.Lock()  # no chunk may be evicted while it is copied

    @property
    def reopen_as(self) -> tuple[Any, ...]:
        """Arguments of `TeacherStore.open` for a copy in another process."""
        return (self.root,)

    def renewed(self) -> "StoreArrays":
        """The same arrays for a forked process: no lock of the parent, whose threads are gone."""
        return StoreArrays(self.root, self.spec)

    def seal(self) -> dict[str, Any]:
        """Totals and digest of a sealed store."""
        return read_seal(self.root)

    @cached_property
    def id_order(self) -> npt.NDArray[np.uint32] | None:
        """Orders of ids [C, V]; None where the encoding uses none."""
        if not self.spec.row_encoding.uses_id_orders:
            return None
        orders = self.whole(layout.ID_ORDER.name).reshape(-1, self.spec.vocab_size)
        array_checks.check_id_order(orders, self.name)
        return orders

    def gather(self, name: str, starts: Array, counts: Array) -> Array:
        """Entries starts[i] to starts[i] + counts[i] of a field, concatenated."""
        return self.gather_fields((name,), starts, counts)[name]

    def gather_fields(self, names: Sequence[str], starts: Array, counts: Array) -> dict[str, Array]:
        """`gather` for several fields of one axis."""
        pieces: dict[int, Pieces] = {}  # by chunk size, how the runs are cut
        total, found = int(counts.sum()), {}
        with self._gathering, self._watched():
            for name in names:
                shape, dtype = self._chunk_of(name)
                if shape[0] not in pieces:
                    pieces[shape[0]] = split_at_chunks(starts, counts, shape[0])
                found[name] = np.empty((total, *shape[1:]), dtype)
                self._gather(name, pieces[shape[0]], found[name])
        return found

    def _gather(self, name: str, pieces: Pieces, out: Array) -> None:
        """Copy pieces of one field into `out`."""
        cache, at = self._cache(name), 0
        for group in pieces.groups(cache.slots):
            stop = at + int(group.counts.sum())
            cache.take(group, out[at:stop])
            at = stop

    def prefetch(
        self, chosen: npt.NDArray[np.int64], index: ExampleIndex, fields: Sequence[str]
    ) -> None:
        """Fetch ahead what reading `chosen` needs; a local disk needs nothing."""

    def _chunk_of(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a field's chunk."""
        if name not in self._chunk_shapes:
            self._chunk_shapes[name] = self._find_chunk(name)
        return self._chunk_shapes[name]

    def _find_chunk(self, name: str) -> tuple[tuple[int, ...], str]:
        if name in self._layouts:
            array = self._layouts[name]
            return array.shape(array.chunk), array.dtype
        spec, encoding = self.spec, self._encoding
        if name in encoding.derived:
            shapes = {array.name: array.shape(array.chunk) for array in self._tables}
            shape = encoding.derived_shape(
                name, spec.num_cells, spec.chunk_rows, shapes, spec.vocab_size
            )
            return shape, encoding.derived[name].dtype
        is_cells = name in {cells.name for cells in spec.row_kind.cells}
        shape = (spec.chunk_rows, spec.num_cells) if is_cells else (spec.chunk_rows,)
        return shape, FIELD_DTYPES[name]

    def _cache(self, name: str) -> ChunkCache:
        """The decoded chunks of a field; the caches of all row fields hold about equal rows."""
        if name not in self._caches:
            shape, dtype = self._chunk_of(name)
            entries = CACHE_BYTES // (8 * self.spec.num_cells + 64)
            if name not in FIELD_DTYPES:
                entries *= 2  # token arrays hold prompts too, often as long as the responses
            if name in self._shard_names:
                slots = min(self.spec.num_shards, SHARD_TABLES)
            else:
                rows = self.spec.chunk_rows if name in self._encoding.derived else shape[0]
                length = self._length(name) or rows
                slots = min(-(-length // rows), max(2, entries // rows))
            self._caches[name] = ChunkCache(slots, shape, dtype, partial(self._decode, name))
        return self._caches[name]

    def _decode(self, name: str, chunk: int, out: Array) -> None:
        """Decode a chunk of a field into `out`."""
        if name in self._layouts:
            out[:] = self._disk_chunk(self._layouts[name], chunk)
            return
        encoding = self._encoding
        if name in encoding.derived:
            sources = encoding.derived[name].sources
        else:
            sources = encoding.sources[name]
        if name in self._shard_names:
            chunk *= self._chunks_of_shard
        stored = {source: self._stored(source, chunk) for source in sources}
        encoding.decode(name, stored, self.id_order, out)

    def _stored(self, name: str, chunk: int) -> Array:
        """The values of an array for the rows of a chunk of cells.

        A chunk of a column covers several chunks of cells, a table all of a shard.
        """
        if name in self._shard_names:  # one chunk per shard: a table, or derived from tables
            return self._cache(name).get(chunk // self._chunks_of_shard)
        if name not in self._layouts:
            return self._cache(name).get(chunk)
        array = self._layouts[name]
        if array.cells is not None:
            return self._disk_chunk(array, chunk)
        rows, column = self.spec.chunk_rows, array.chunk
        start = chunk * rows
        return self._cache(name).get(start // column)[start % column : start % column + rows]

    def _disk_chunk(self, array: layout.ArrayLayout, chunk: int) -> Array:
        try:
            return self._read_chunk(array, chunk)
        except UnreadableError as error:
            # Other parts of the process may need many open files: give up those of the stores.
            if not (is_limit_reached(error) and OPEN_FILES.clear()):
                raise
        return self._read_chunk(array, chunk)

    def _read_chunk(self, array: layout.ArrayLayout, chunk: int) -> Array:
        per_shard = -(-array.shard // array.chunk)
        shard, number = divmod(chunk, per_shard)
        self._admit(array, shard)
        with files.reading(f"{self.name}/{array.key(shard)}"):
            try:
                values = self._shard_file(array, shard).chunk(number)
                array_checks.check_values(array.name, values, self._limits)
            except (CorruptError, FileNotFoundError) as error:
                first = shard * array.shard + number * array.chunk
                raise CorruptError(
                    f"{self.name}/{array.key(shard)}: {error}; entries from {first:,} on are lost",
                    cure="run caskd store verify to see what else is damaged",
                ) from None
        return values

    def _admit(self, array: layout.ArrayLayout, shard: int) -> None:
        """Compare a file with its commit record before it is opened."""
        if (self._number, array.key(shard)) not in OPEN_FILES:
            self.ledger.check_file(self._unit_of(array.name, shard), array.key(shard))
            if array.name not in self._known_metadata:
                self._check_metadata(array)

    def _shard_file(self, array: layout.ArrayLayout, shard: int) -> ShardFile:
        key = array.key(shard)
        return OPEN_FILES.get((self._number, key), lambda: ShardFile(self.root / key, array))

    def _unit_of(self, name: str, shard: int) -> str:
        if name == layout.ID_ORDER.name:
            return commit_record.PILOT
        return commit_record.shard_unit(shard) if name in self._row_arrays else commit_record.PLAN

    def _metadata_unit(self, array: layout.ArrayLayout) -> str:
        is_pilot = array.name == layout.ID_ORDER.name
        return commit_record.PILOT if is_pilot else commit_record.PLAN

    def _length(self, name: str) -> int | None:
        """Entries on the first axis of an array; None for vocab_bytes, whose length varies."""
        spec = self.spec
        if name in self._table_names:
            return spec.num_shards * self._layouts[name].shard
        if name in self._row_arrays or name in FIELD_DTYPES or name in spec.row_encoding.derived:
            return spec.num_shards * spec.shard_rows
        if name in ("token_ids", "is_response"):
            return spec.num_tokens
        if name == "vocab_offsets":
            return spec.vocab_size + 1
        if name == layout.ID_ORDER.name:
            return layout.num_orders(spec.num_rows) * spec.vocab_size
        return None if name == "vocab_bytes" else spec.num_examples

    def _check_metadata(self, array: layout.ArrayLayout) -> None:
        """Refuse any zarr.json but the one that this version writes (codecs, shape, dtype)."""
        where = f"{self.name}/{array.metadata_key}"
        self.ledger.item(self._metadata_unit(array), array.metadata_key)
        found = untrusted_json.parse_json(files.read_small(self.root, array.metadata_key), where)
        length = self._length(array.name)
        if length is None:
            try:
                length = found["shape"][0]
            except (KeyError, IndexError, TypeError):
                length = -1
            if not untrusted_json.is_count(
                length, array_checks.MAX_TOKEN_BYTES * self.spec.vocab_size
            ):
                raise CorruptError(f"{where}: not the metadata of vocab_bytes")
        if found != array.metadata(length):
            version = self.spec.format_version
            raise UnsafeError(
                f"{where}: differs from the metadata that format version {version} defines"
            )
        self._known_metadata[array.name] = length

    def whole(self, name: str) -> Array:
        """All entries of an array of the plan or the pilot."""
        array = self._layouts[name]
        with self._watched():
            if name not in self._known_metadata:
                self._check_metadata(array)
            return self._read_whole(array, self._known_metadata[name])

    def _watched(self) -> AbstractContextManager[None]:
        return self.location.watched() if self.location else nullcontext()

    def _read_whole(self, array: layout.ArrayLayout, length: int) -> Array:
        whole = np.empty(-(-length // array.chunk) * array.chunk, array.dtype)
        for chunk in range(len(whole) // array.chunk):
            start = chunk * array.chunk
            whole[start : start + array.chunk] = self._disk_chunk(array, chunk)
        return whole[:length]

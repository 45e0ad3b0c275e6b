"""The arrays of a store on disk: trusted by their commit record, checked chunk by chunk.

Legend: k cells per row.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.commits import Ledger, commit_record
from caskd.store.errors import CorruptError, UnsafeError
from caskd.store.format import (
    ExampleIndex,
    ShardFile,
    StoreSpec,
    array_checks,
    decode_draws,
    decode_ids,
    decode_logits,
    layout,
    untrusted_json,
)
from caskd.store.io import files
from caskd.store.read.chunk_cache import ChunkCache, Pieces, cut

Array = npt.NDArray[Any]

CACHE_BYTES = 256 << 20
MAX_OPEN_FILES = 256


class StoreArrays:
    """Fields by name; a compact store's cells are made from what is on disk."""

    def __init__(self, root: Path, spec: StoreSpec, ledger: Ledger | None = None) -> None:
        self.root, self.spec, self.name = root, spec, root.name
        rows = layout.layouts_of(spec)
        fixed = (*layout.TOKEN_LAYOUTS, *layout.EXAMPLE_LAYOUTS, *layout.VOCAB_LAYOUTS)
        self._layouts = {array.name: array for array in (*fixed, layout.ID_ORDER, *rows)}
        self._row_arrays = frozenset(array.name for array in rows)
        self.ledger = ledger or Ledger(root, spec)
        self._limits = array_checks.value_limits(spec)
        self._known_metadata: dict[str, int] = {}
        self._open_files: OrderedDict[str, ShardFile] = OrderedDict()
        self._caches: dict[str, ChunkCache] = {}
        self._gathering = threading.Lock()  # a chunk's slot must stay its own while it is copied

    @cached_property
    def id_order(self) -> npt.NDArray[np.uint32] | None:
        """Orders of ids [C, V]; None where the encoding has none."""
        if self.spec.encoding != "compact":
            return None
        orders = self.whole(layout.ID_ORDER.name).reshape(-1, self.spec.vocab_size)
        array_checks.check_id_order(orders, self.name)
        return orders

    def gather(self, name: str, starts: Array, counts: Array) -> Array:
        """Entries starts[i] to starts[i] + counts[i] of a field, concatenated."""
        return self.gather_fields((name,), starts, counts)[name]

    def gather_fields(self, names: Sequence[str], starts: Array, counts: Array) -> dict[str, Array]:
        """The same of several fields of one axis."""
        pieces: dict[int, Pieces] = {}
        with self._gathering:
            return {name: self._gather(name, starts, counts, pieces) for name in names}

    def _gather(self, name: str, starts: Array, counts: Array, pieces: dict[int, Pieces]) -> Array:
        """A field; `pieces` remembers by chunk size how the runs are cut."""
        shape, dtype = self._chunk_of(name)
        if shape[0] not in pieces:
            pieces[shape[0]] = cut(starts, counts, shape[0])
        found = np.empty((int(counts.sum()), *shape[1:]), dtype)
        cache, at = self._cache(name), 0
        for group in pieces[shape[0]].groups(cache.slots):
            stop = at + int(group.counts.sum())
            cache.take(group, found[at:stop])
            at = stop
        return found

    def prefetch(
        self, chosen: npt.NDArray[np.int64], index: ExampleIndex, fields: Sequence[str]
    ) -> None:
        """Nothing is fetched from a local disk."""

    def _chunk_of(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a field's chunk."""
        if name in self._layouts:
            array = self._layouts[name]
            return array.shape(array.chunk), array.dtype
        return (self.spec.chunk_rows, self.spec.num_cells), layout.FIELD_DTYPES[name]

    def _cache(self, name: str) -> ChunkCache:
        """The decoded chunks of a field; all fields of a row keep about as many rows."""
        if name not in self._caches:
            shape, dtype = self._chunk_of(name)
            entries = CACHE_BYTES // (8 * self.spec.num_cells + 64)
            if name not in layout.FIELD_DTYPES:
                entries *= 2  # a question is often as long as its answer
            length = self._length(name) or shape[0]
            slots = min(-(-length // shape[0]), max(2, entries // shape[0]))
            self._caches[name] = ChunkCache(slots, shape, dtype, partial(self._decode, name))
        return self._caches[name]

    def _decode(self, name: str, chunk: int, out: Array) -> None:
        """Decode a chunk of a field into `out`."""
        if name in self._layouts:
            out[:] = self._disk_chunk(self._layouts[name], chunk)
            return
        num_kept = self._beside("num_kept", chunk)
        if name in ("sampled_ids", "sampled_counts"):
            out[:] = self._draws(chunk, num_kept)[name == "sampled_counts"]
        elif name == "topk_ids":
            codes = self._disk_chunk(self._layouts["topk_id_codes"], chunk)
            assert self.id_order is not None
            decode_ids(codes, self._beside("topk_id_order", chunk), num_kept, self.id_order, out)
        else:
            steps = self._disk_chunk(self._layouts["topk_logit_steps"], chunk)
            decode_logits(steps, num_kept, self._beside("logsumexp", chunk), out)

    def _draws(self, chunk: int, num_kept: Array) -> tuple[Array, Array]:
        """`sampled_ids` and `sampled_counts` of a chunk; the order of both comes from both."""
        steps, tallies = (
            self._disk_chunk(self._layouts[name], chunk)
            for name in ("sampled_place_steps", "sampled_place_counts")
        )
        assert self.id_order is not None
        return decode_draws(
            steps, tallies, self._beside("sampled_id_order", chunk), num_kept, self.id_order
        )

    def _beside(self, name: str, chunk: int) -> Array:
        """The part of a column that belongs to a chunk of cells, which lies in one of its own."""
        rows, column = self.spec.chunk_rows, self._layouts[name].chunk
        start = chunk * rows
        return self._cache(name).get(start // column)[start % column : start % column + rows]

    def _disk_chunk(self, array: layout.ArrayLayout, chunk: int) -> Array:
        per_shard = -(-array.shard // array.chunk)
        shard, number = divmod(chunk, per_shard)
        self._admit(array, shard)
        try:
            values = self._shard_file(array, shard).chunk(number)
            array_checks.check_values(array.name, values, self._limits)
            return values
        except (CorruptError, OSError) as error:
            first = shard * array.shard + number * array.chunk
            raise CorruptError(
                f"{self.name}/{array.key(shard)}: {error}; entries from {first:,} on are lost. "
                "Run caskd store verify to see what else is wrong."
            ) from None

    def _admit(self, array: layout.ArrayLayout, shard: int) -> None:
        """Compare a file that is about to be opened with its commit record."""
        if array.key(shard) not in self._open_files:
            self.ledger.check_file(self._unit_of(array.name, shard), array.key(shard))
            if array.name not in self._known_metadata:
                self._check_metadata(array)

    def _shard_file(self, array: layout.ArrayLayout, shard: int) -> ShardFile:
        key = array.key(shard)
        if key not in self._open_files:
            if len(self._open_files) >= MAX_OPEN_FILES:
                self._open_files.popitem(last=False)[1].close()
            self._open_files[key] = ShardFile(self.root / key, array)
        self._open_files.move_to_end(key)
        return self._open_files[key]

    def _unit_of(self, name: str, shard: int) -> str:
        if name == layout.ID_ORDER.name:
            return commit_record.PILOT
        return commit_record.shard_unit(shard) if name in self._row_arrays else commit_record.PLAN

    def _length(self, name: str) -> int | None:
        """Entries on the first axis of an array; None for vocab_bytes, whose own is free."""
        spec = self.spec
        if name in self._row_arrays or name in layout.FIELD_DTYPES:
            return spec.num_shards * spec.shard_rows
        if name in ("token_ids", "is_response"):
            return spec.num_tokens
        if name == "vocab_offsets":
            return spec.vocab_size + 1
        if name == layout.ID_ORDER.name:
            return layout.num_orders(spec.num_rows) * spec.vocab_size
        return None if name == "vocab_bytes" else spec.num_examples

    def _check_metadata(self, array: layout.ArrayLayout) -> None:
        """Accept only the zarr.json that this version writes: no other codec, shape or dtype."""
        where = f"{self.name}/{array.metadata_key}"
        is_pilot = array.name == layout.ID_ORDER.name
        self.ledger.item(
            commit_record.PILOT if is_pilot else commit_record.PLAN, array.metadata_key
        )
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
                raise CorruptError(f"{where}: not the metadata of an array.")
        if found != array.metadata(length):
            raise UnsafeError(f"{where}: differs from what format version 1 says of this array.")
        self._known_metadata[array.name] = length

    def whole(self, name: str) -> Array:
        """A whole array of the plan or the pilot."""
        array = self._layouts[name]
        if name not in self._known_metadata:
            self._check_metadata(array)
        length = self._known_metadata[name]
        return self._read_whole(array, length)

    def _read_whole(self, array: layout.ArrayLayout, length: int) -> Array:
        whole = np.empty(-(-length // array.chunk) * array.chunk, array.dtype)
        for chunk in range(len(whole) // array.chunk):
            start = chunk * array.chunk
            whole[start : start + array.chunk] = self._disk_chunk(array, chunk)
        return whole[:length]

"""The arrays of a store on disk: trusted by their commit record, checked chunk by chunk.

Legend: k cells per row.
"""

import json
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store import commits, encoding, files, layout
from caskd.store.chunk_cache import ChunkCache
from caskd.store.errors import CorruptError, IncompleteError, UnsafeError
from caskd.store.shard_file import ShardFile
from caskd.store.spec import StoreSpec

Array = npt.NDArray[Any]

CACHE_BYTES = 256 << 20
MAX_OPEN_FILES = 64


class StoreArrays:
    """Fields by name; a compact store's topk_ids and topk_logits are made from what is on disk."""

    def __init__(self, root: Path, spec: StoreSpec) -> None:
        self.root, self.spec, self.name = root, spec, root.name
        rows = layout.row_layouts(spec.encoding, spec.top_k, spec.chunk_rows, spec.shard_rows)
        fixed = (*layout.TOKEN_LAYOUTS, *layout.EXAMPLE_LAYOUTS, *layout.VOCAB_LAYOUTS)
        self._layouts = {array.name: array for array in (*fixed, layout.ID_ORDER, *rows)}
        self._row_arrays = frozenset(array.name for array in rows)
        self._trusted: set[str] = set()
        self._known_metadata: dict[str, int] = {}
        self._open_files: OrderedDict[str, ShardFile] = OrderedDict()
        self._cache = ChunkCache(CACHE_BYTES)

    @cached_property
    def id_order(self) -> npt.NDArray[np.uint32] | None:
        """Ids, most frequent first; None where the encoding has none."""
        return self.whole(layout.ID_ORDER.name) if self.spec.encoding == "compact" else None

    def gather(self, name: str, starts: Array, counts: Array) -> Array:
        """Entries starts[i] to starts[i] + counts[i] of a field, concatenated."""
        parts = [
            self._slice(name, start, start + count)
            for start, count in zip(starts.tolist(), counts.tolist(), strict=True)
            if count
        ]
        return np.concatenate(parts) if parts else self._nothing(name)

    def _nothing(self, name: str) -> Array:
        dtypes = {"topk_ids": "uint32", "topk_logits": "float32"}
        if name in dtypes:
            return np.zeros((0, self.spec.top_k), dtypes[name])
        return np.zeros(0, self._layouts[name].dtype)

    def _slice(self, name: str, start: int, stop: int) -> Array:
        size = self._layouts[name].chunk if name in self._layouts else self.spec.chunk_rows
        first, last = start // size, (stop - 1) // size
        parts = []
        for chunk in range(first, last + 1):
            base = chunk * size
            parts.append(self._chunk(name, chunk)[max(start - base, 0) : stop - base])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _chunk(self, name: str, chunk: int) -> Array:
        """A decoded chunk of a field, from the cache if it is there."""
        values = self._cache.get((name, chunk))
        if values is None:
            if name in self._layouts:
                values = self._disk_chunk(self._layouts[name], chunk)
            else:
                values = self._cells(name, chunk)
            self._cache.put((name, chunk), values)
        return values

    def _cells(self, name: str, chunk: int) -> Array:
        """A chunk of topk_ids or topk_logits of a compact store."""
        rows = self.spec.chunk_rows
        start, stop = chunk * rows, (chunk + 1) * rows
        num_kept = self._slice("num_kept", start, stop)
        if name == "topk_ids":
            codes = self._disk_chunk(self._layouts["topk_id_codes"], chunk)
            assert self.id_order is not None
            return encoding.decode_ids(codes, num_kept, self.id_order)
        steps = self._disk_chunk(self._layouts["topk_logit_steps"], chunk)
        return encoding.decode_logits(steps, num_kept, self._slice("logsumexp", start, stop))

    def _disk_chunk(self, array: layout.ArrayLayout, chunk: int) -> Array:
        per_shard = -(-array.shard // array.chunk)
        shard, number = divmod(chunk, per_shard)
        try:
            return self._shard_file(array, shard).chunk(number)
        except (CorruptError, OSError) as error:
            first = shard * array.shard + number * array.chunk
            raise CorruptError(
                f"{self.name}/{array.key(shard)}: {error}; entries from {first:,} on are lost. "
                "Run caskd store verify to see what else is wrong."
            ) from None

    def _shard_file(self, array: layout.ArrayLayout, shard: int) -> ShardFile:
        key = array.key(shard)
        if key not in self._open_files:
            self._trust(self._unit_of(array.name, shard))
            if array.name not in self._known_metadata:
                self._check_metadata(array)
            if len(self._open_files) >= MAX_OPEN_FILES:
                self._open_files.popitem(last=False)[1].close()
            self._open_files[key] = ShardFile(self.root / key, array)
        self._open_files.move_to_end(key)
        return self._open_files[key]

    def _unit_of(self, name: str, shard: int) -> str:
        if name == layout.ID_ORDER.name:
            return commits.PILOT
        return commits.shard_unit(shard) if name in self._row_arrays else commits.PLAN

    def _length(self, name: str) -> int | None:
        """Entries on the first axis of an array; None for vocab_bytes, whose own is free."""
        spec = self.spec
        if name in self._row_arrays:
            return spec.num_shards * spec.shard_rows
        if name in ("token_ids", "is_response"):
            return spec.num_tokens
        if name == "vocab_offsets":
            return spec.vocab_size + 1
        if name == layout.ID_ORDER.name:
            return spec.vocab_size
        return None if name == "vocab_bytes" else spec.num_examples

    def _check_metadata(self, array: layout.ArrayLayout) -> None:
        """Accept only the zarr.json that this version writes: no other codec, shape or dtype."""
        where = f"{self.name}/{array.metadata_key}"
        try:
            found = json.loads(files.read_small(self.root / array.metadata_key))
            length = self._length(array.name)
            if length is None:
                length = int(found["shape"][0])
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise CorruptError(f"{where}: not the metadata of an array.") from None
        if found != array.metadata(length):
            raise UnsafeError(f"{where}: differs from what format version 1 says of this array.")
        self._known_metadata[array.name] = length

    def whole(self, name: str) -> Array:
        """A whole array of the plan or the pilot."""
        array = self._layouts[name]
        self._trust(self._unit_of(name, 0))
        if name not in self._known_metadata:
            self._check_metadata(array)
        length = self._known_metadata[name]
        return self._slice(name, 0, length) if length else np.zeros(0, array.dtype)

    def _trust(self, unit: str) -> None:
        """Check the commit record of `unit` and the sizes of its files, once."""
        if unit in self._trusted:
            return
        if not commits.is_committed(self.root, unit):
            if files.regular_size(self.root / "seal.json") is not None:
                raise CorruptError(f"{self.name}/commits/{unit}.json: missing from a sealed store.")
            raise IncompleteError(f"{self.name}: {unit} is not committed yet.")
        for item in commits.read_record(self.root, unit).file_records:
            commits.check_size(self.root, unit, item)
        self._trusted.add(unit)

"""Examples on disk while their source is read: found again one by one, in any order.

A source has no order of its own, and the store's is that of digests. The file has no name, so that
nothing stays behind a process that was killed.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from caskd.precompute.imports.examples import COUNTS, Cells, ForeignExample, example_digest
from caskd.store.corpus import TokenizedExample, num_rows

_COUNTED = (*COUNTS, "pad_rows")


@dataclass(frozen=True)
class SpooledExample:
    """An example of a source with its cleaned cells."""

    token_ids: np.ndarray[Any, np.dtype[np.uint32]]
    is_response: np.ndarray[Any, np.dtype[np.uint8]]
    cells: Cells
    task: str

    def tokenized(self, index: int) -> TokenizedExample:
        """The example on a store's axes; `index` is its position by digest."""
        if num_rows(self.is_response) == 0:
            return TokenizedExample(
                self.token_ids[:0], self.is_response[:0], "empty", index, self.task
            )
        return TokenizedExample(self.token_ids, self.is_response, "ok", index, self.task)


@dataclass
class Spool:
    """A temporary file of examples. A context manager; create it with `Spool.beside`."""

    file: IO[bytes]
    places: list[tuple[bytes, int]] = field(default_factory=list)
    """Digest and offset of each example."""

    @classmethod
    def beside(cls, store: str) -> "Spool":
        """In the nearest existing folder above a store, which has to have room for it anyway."""
        folder = Path(store).absolute().parent
        while not folder.is_dir():
            folder = folder.parent
        return cls(tempfile.TemporaryFile(dir=folder))

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *failure: Any) -> None:
        self.file.close()

    def append(self, example: ForeignExample, cells: Cells) -> None:
        """Write an example with its cleaned cells."""
        tokens, mask = example.token_ids, example.is_response
        cells.counts["pad_rows"] = example.num_pad_rows
        self.places.append((example_digest(tokens, mask, cells, example.task), self.file.tell()))
        counts = np.array([cells.counts[name] for name in _COUNTED], np.int64)
        task = np.frombuffer(example.task.encode(), np.uint8)
        text = tokens.astype(np.uint32), mask.astype(np.uint8)
        for part in (*text, cells.ids, cells.logprobs, counts, task):
            np.lib.format.write_array(self.file, part, allow_pickle=False)

    def sort(self) -> None:
        """Bring the examples into the order of their digests."""
        self.places.sort()

    def digest(self) -> str:
        """sha256 over the digests of all examples in the present order."""
        return hashlib.sha256(b"".join(digest for digest, _ in self.places)).hexdigest()

    def read(self, index: int) -> SpooledExample:
        """The example at a position of the present order."""
        self.file.seek(self.places[index][1])
        tokens, mask, ids, logprobs, counts, task = (
            np.lib.format.read_array(self.file, allow_pickle=False) for _ in range(6)
        )
        numbers = Counter(dict(zip(_COUNTED, counts.tolist(), strict=True)))
        return SpooledExample(tokens, mask, Cells(ids, logprobs, numbers), bytes(task).decode())

    def __iter__(self) -> Iterator[SpooledExample]:
        return map(self.read, range(len(self.places)))

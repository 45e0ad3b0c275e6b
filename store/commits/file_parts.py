"""Finished parts of a file, so that a kill loses one part and workers can share the file.

`OUT.parts/` holds `request.json`, which says what the file is made from, and one file per finished
part. Files are created whole and exclusively; the worker that finds all parts joins them into OUT
and removes the folder. No clock, no worker's identity and no retry changes the result.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from caskd.store.errors import IdentityError, UsageError
from caskd.store.format import identity_differences
from caskd.store.io import check_readable, files, read_json_object

REQUEST = "request.json"


class FileParts(ABC):
    """The parts of one file, some of them finished."""

    suffix: str
    """Of a part's name."""
    what: str
    """What the parts are of, for errors."""

    def __init__(self, out: Path, request: Mapping[str, Any], num_parts: int) -> None:
        """Open existing parts, or start new ones.

        Args:
            out: the file to write.
            request: what it is made from, in JSON types.
            num_parts: number of parts that the work is split into.

        Raises:
            IdentityError: existing parts, or the file at `out`, belong to another request.
        """
        self.out = out
        self.folder = out.with_name(out.name + ".parts")
        self.num_parts = num_parts
        self._request: Mapping[str, Any] = json.loads(json.dumps(request))
        if self.is_finished():
            return
        files.make_directories(self.folder)
        content = json.dumps(request, indent=1, sort_keys=True).encode()
        if not files.create_exclusive(self.folder / REQUEST, content):
            self._check_same()

    @abstractmethod
    def is_finished(self) -> bool:
        """Whether the whole file exists.

        Raises:
            IdentityError: it belongs to another request.
        """

    def differences(self, theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """Fields in which another request differs from this one, with both values."""
        yield from identity_differences(theirs, self._request)

    def _check_same(self) -> None:
        try:
            theirs = read_json_object(self.folder / REQUEST)
        except (OSError, ValueError) as error:
            check_readable(error, str(self.folder / REQUEST))
            raise UsageError(
                f"{self.folder}: holds no parts of {self.what}; expected such parts or no "
                "folder; remove it or choose another --out"
            ) from None
        difference = next(self.differences(theirs), None)
        if difference is not None:
            raise IdentityError(
                f"{self.folder}: holds parts of another request, {difference_text(difference)}; "
                "expected parts of this one; rerun that command to resume it, or remove the folder "
                "to start again"
            )

    def missing(self, worker: int = 0, num_workers: int = 1) -> list[int]:
        """Unfinished parts of this worker, which has every `num_workers`-th part."""
        if self.out.exists():
            return []
        return [
            part
            for part in range(worker, self.num_parts, num_workers)
            if not self.path(part).exists()
        ]

    def path(self, part: int) -> Path:
        """File of a part."""
        return self.folder / f"{part:05d}{self.suffix}"

    def write_part(self, part: int, content: bytes) -> None:
        """Write a finished part, unless another process has written it already."""
        try:
            files.create_exclusive(self.path(part), content)
        except FileNotFoundError:
            if not self.out.exists():  # else another worker has joined all parts meanwhile
                raise


def difference_text(difference: tuple[str, Any, Any]) -> str:
    """A field in which two requests differ, in words."""
    field, theirs, ours = difference
    return f"{field} is {theirs!r} there but {ours!r} now"

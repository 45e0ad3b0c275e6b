"""Finished parts of a predictions file, so that a kill loses one part and workers can share.

`OUT.parts/` holds `request.json` (the model, its settings and the data) and one Parquet file per
finished part. Files are created whole and exclusively; the worker that finds all parts joins them
into OUT and removes the folder. No clock, no worker's identity and no retry changes the result.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from caskd.eval.answers import (
    WHOLE,
    Predictions,
    predictions_bytes,
    read_own_columns,
    read_predictions,
    table_of,
)
from caskd.models import may_be_same_config
from caskd.store.errors import IdentityError, UsageError
from caskd.store.format import identity_differences
from caskd.store.io import check_readable, check_room, files, read_json_object

REQUEST = "request.json"
CONFIG_DIGEST = "model.config_digest"


def check_out(out: Path) -> None:
    """Stop before any work if `out` cannot become a predictions file.

    Raises:
        UsageError: another file exists at `out`, or its name does not end in .parquet.
    """
    if out.suffix != ".parquet":
        raise UsageError(f"--out {out}: expected a name that ends in .parquet; rename it")
    check_room(out, "--out")
    if out.exists() or out.is_symlink():
        try:
            read_predictions(str(out))
        except UsageError:
            raise UsageError(
                f"--out {out}: exists and is not a predictions file; expected a new file or an "
                "earlier predictions file; remove it, or choose another --out"
            ) from None


class Parts:
    """The parts of one predictions file, some of them finished."""

    def __init__(self, out: Path, request: Mapping[str, Any], num_parts: int) -> None:
        """Open existing parts, or start new ones.

        Args:
            out: the predictions file to write.
            request: its metadata: model, decoding, tasks and data.
            num_parts: number of parts that the examples are split into.

        Raises:
            IdentityError: existing parts, or the file at `out`, belong to another request.
        """
        self.out = out
        self.folder = out.with_name(out.name + ".parts")
        self.num_parts = num_parts
        self._request: Mapping[str, Any] = json.loads(json.dumps(request))
        if self.finished() is not None:
            return
        files.make_directories(self.folder)
        content = json.dumps(request, indent=1, sort_keys=True).encode()
        if not files.create_exclusive(self.folder / REQUEST, content):
            self._check_same()

    def _check_same(self) -> None:
        try:
            theirs = read_json_object(self.folder / REQUEST)
        except (OSError, ValueError) as error:
            check_readable(error, str(self.folder / REQUEST))
            raise UsageError(
                f"{self.folder}: holds no parts of caskd predict; expected such parts or no "
                "folder; remove it or choose another --out"
            ) from None
        difference = next(_differences(theirs, self._request), None)
        if difference is not None:
            raise IdentityError(
                f"{self.folder}: holds parts of another request, {_text(difference)}; expected "
                "parts of this one; rerun that command to resume it, or remove the folder to start "
                "again"
            )

    def finished(self) -> Predictions | None:
        """The whole file, if it exists.

        Raises:
            IdentityError: it belongs to another request.
        """
        if not self.out.exists():
            return None
        whole = read_predictions(str(self.out))
        theirs = {name: whole.metadata.get(name) for name in self._request}
        difference = next(_differences(theirs, self._request), None)
        if difference is not None:
            scoring = difference[0].partition(".")[0] in ("quality", "tasks")
            other = ", or rescore it with caskd eval --task-metric" if scoring else ""
            raise IdentityError(
                f"--out {self.out}: belongs to another request, {_text(difference)}; expected a "
                f"new file; remove it or choose another --out{other}"
            )
        return whole

    def missing(self, worker: int = 0, num_workers: int = 1) -> list[int]:
        """Unfinished parts of this worker, which has every `num_workers`-th part."""
        if self.out.exists():
            return []
        return [
            part
            for part in range(worker, self.num_parts, num_workers)
            if not self._path(part).exists()
        ]

    def write(self, part: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a finished part, unless another process has written it already."""
        try:
            files.create_exclusive(
                self._path(part), predictions_bytes(table_of(rows), self._request)
            )
        except FileNotFoundError:
            if not self.out.exists():  # else another worker has joined all parts meanwhile
                raise

    def join(self) -> Predictions | None:
        """Write the whole file once every part is finished, and remove the parts.

        Returns:
            The predictions in the order of the data, or None while parts are missing.

        Raises:
            UsageError: a part cannot be read.
            IdentityError: another request wrote the file first.
        """
        if not self.out.exists():
            if self.missing():
                return None
            try:
                tables = [self._read(part) for part in range(self.num_parts)]
            except FileNotFoundError:
                return self.finished()  # another worker was faster
            table = pa.concat_tables(tables).sort_by("source_index")
            content = predictions_bytes(table, self._request)
            files.create_exclusive(self.out, content, scratch=self.folder)
        files.remove_tree(self.folder)
        return self.finished()

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:05d}.parquet"

    def _read(self, part: int) -> pa.Table:
        path = self._path(part)
        try:
            table = read_own_columns(path)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError):
            raise UsageError(
                f"{path}: is damaged; expected a complete part; remove it and rerun the command"
            ) from None
        columns = [
            table.column(name) if name in table.column_names else pa.nulls(len(table), kind)
            for name, kind in zip(WHOLE.names, WHOLE.types, strict=True)
        ]
        return pa.table(columns, schema=WHOLE)


def _differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Fields in which two requests differ; an older config_digest is not compared."""
    for field, first, second in identity_differences(theirs, ours):
        if field != CONFIG_DIGEST or not may_be_same_config(first, second):
            yield field, first, second


def _text(difference: tuple[str, Any, Any]) -> str:
    field, theirs, ours = difference
    return f"{field} is {theirs!r} there but {ours!r} now"

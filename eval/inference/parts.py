"""Finished parts of a predictions file: the request is the model, its settings and the data."""

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
from caskd.store.commits import FileParts, difference_text
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import check_room, files

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


class Parts(FileParts):
    """The parts of one predictions file, some of them finished."""

    suffix = ".parquet"
    what = "caskd predict"

    def is_finished(self) -> bool:
        """Whether the whole file exists.

        Raises:
            IdentityError: it belongs to another request.
        """
        return self.finished() is not None

    def differences(self, theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """Fields in which two requests differ; an older config_digest is not compared."""
        for field, first, second in super().differences(theirs):
            if field != CONFIG_DIGEST or not may_be_same_config(first, second):
                yield field, first, second

    def finished(self) -> Predictions | None:
        """The whole file, if it exists.

        Raises:
            IdentityError: it belongs to another request.
        """
        if not self.out.exists():
            return None
        whole = read_predictions(str(self.out))
        theirs = {name: whole.metadata.get(name) for name in self._request}
        difference = next(self.differences(theirs), None)
        if difference is not None:
            scoring = difference[0].partition(".")[0] in ("quality", "tasks")
            other = ", or rescore it with caskd eval --task-metric" if scoring else ""
            raise IdentityError(
                f"--out {self.out}: belongs to another request, {difference_text(difference)}; "
                f"expected a new file; remove it or choose another --out{other}"
            )
        return whole

    def write(self, part: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a finished part, unless another process has written it already."""
        self.write_part(part, predictions_bytes(table_of(rows), self._request))

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

    def _read(self, part: int) -> pa.Table:
        path = self.path(part)
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

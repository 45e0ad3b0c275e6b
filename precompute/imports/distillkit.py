"""Reads DistillKit's compressed Parquet: `data_*.parquet` beside compression_config.yaml.

Legend: T tokens of an example, N = T - 1 its rows, k values of a row, B bytes of a row.

Row r predicts token r + 1: vLLM gives none for the first token. A pad token ends every example that
is shorter than the sampler's limit, so that the last row predicts padding.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.precompute.imports.examples import ABSENT, ForeignExample
from caskd.precompute.imports.source import Reading, Source, regular_files, source_error
from caskd.store.corpus import parquet_batches
from caskd.store.errors import CaskdError, UsageError, reason
from caskd.store.exchange import (
    CONFIG_FILE,
    IGNORED,
    NO_PROBABILITY,
    Compression,
    decode_ids,
    decode_values,
    parse_compression,
)
from caskd.store.io import StrangeFileError, check_readable, read_regular

COLUMNS = ("input_ids", "compressed_logprobs", "bytepacked_indices")
_LEGACY, _LABELS = "packed_indices", "labels"
"""Columns of an older codec, and of exports: -100 marks a token without a row."""


def open_distillkit(source: str, reading: Reading) -> Source:
    """The examples of a folder of DistillKit's sampler.

    Raises:
        UsageError: a file is missing or is no such file.
    """
    folder = Path(source)
    files = regular_files(source, ".parquet") if folder.is_dir() else []
    if not files:
        raise source_error(
            source, "no .parquet file", f"a folder with data_*.parquet and {CONFIG_FILE}"
        )
    settings = folder / CONFIG_FILE
    try:
        compression = parse_compression(read_regular(settings), str(settings))
    except UsageError:
        raise
    except (OSError, StrangeFileError) as error:
        check_readable(error, str(settings))
        raise source_error(
            source, f"no readable {CONFIG_FILE} ({reason(error)})", "the one of the sampler"
        ) from None
    examples = (example for file in files for example in _file_examples(file, compression, reading))
    return Source(examples, precision=compression.exact_dtype)


def _file_examples(
    file: Path, compression: Compression, reading: Reading
) -> Iterator[ForeignExample]:
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            _check_columns(table.schema_arrow.names, file)
            labels = [_LABELS] if _LABELS in table.schema_arrow.names else []
            names = [*COLUMNS, *labels]
            for batch in parquet_batches(table, names):
                columns = [batch.column(name) for name in names]
                for row in range(batch.num_rows):
                    yield _example([column[row] for column in columns], compression, reading)
                    number += 1
    except (GeneratorExit, KeyboardInterrupt):
        raise
    except UsageError:
        raise
    except Exception as error:
        if not isinstance(error, CaskdError | ValueError | OSError | TypeError):
            raise
        check_readable(error, str(file))
        raise source_error(
            str(file), f"record {number}: {reason(error)}", "a file as DistillKit's sampler writes"
        ) from None


def _check_columns(names: list[str], file: Path) -> None:
    if _LEGACY in names:
        raise source_error(
            str(file), "DistillKit's legacy logit compression", f"columns {', '.join(COLUMNS)}"
        )
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise source_error(str(file), f"no column {missing[0]!r}", f"columns {', '.join(COLUMNS)}")


def _example(values: list[Any], compression: Compression, reading: Reading) -> ForeignExample:
    tokens = _numbers(values[0].values)
    data = _rows(values[1].values, compression.value_bytes, "compressed_logprobs")
    packed = _rows(values[2].values, compression.id_bytes, "bytepacked_indices")
    expected = max(len(tokens) - 1, 0)
    for name, found in (("compressed_logprobs", data), ("bytepacked_indices", packed)):
        if len(found) != expected:
            raise StrangeFileError(f"{name} has {len(found)} rows, not {expected}")
    if len(tokens) and int(tokens.max()) >= 1 << 32:
        raise StrangeFileError(f"input_ids hold {int(tokens.max())}")
    if len(values) > len(COLUMNS):  # of an export, whose last token is no padding
        labels = _numbers(values[-1].values, least=IGNORED)
        if len(labels) != len(tokens):
            raise StrangeFileError(f"labels have {len(labels)} entries, not {len(tokens)}")
        num, has_row = len(tokens), labels != IGNORED
    else:
        num = reading.num_kept(tokens.astype(np.int64))
        has_row = np.ones(num, bool)
    chosen = np.flatnonzero(has_row[1:])
    logprobs = decode_values(data[chosen], compression)
    ids = np.where(logprobs == NO_PROBABILITY, ABSENT, decode_ids(packed[chosen], compression))
    return ForeignExample(
        token_ids=tokens[:num].astype(np.int64),
        is_response=has_row.astype(np.uint8),
        ids=ids,
        logprobs=logprobs,
        num_pad_rows=expected - max(num - 1, 0),
    )


def _numbers(array: Any, least: int = 0) -> npt.NDArray[Any]:
    """A list of numbers of a record.

    Raises:
        StrangeFileError: it is missing, or holds none.
    """
    if array is None or array.null_count:
        raise StrangeFileError("input_ids or labels are missing")
    found: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    if found.dtype.kind not in "iu" or (
        found.dtype.kind == "i" and len(found) and found.min() < least
    ):
        raise StrangeFileError("input_ids or labels are not ids")
    return found


def _rows(array: Any, size: int, name: str) -> npt.NDArray[np.uint8]:
    """A list of byte lists of a record as [N, size].

    Raises:
        StrangeFileError: a row is missing or has another size.
    """
    if array is None or array.null_count:
        raise StrangeFileError(f"{name} has a missing row")
    flat = array.flatten()
    data: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    if flat.null_count or (len(data) and data.dtype != np.uint8):
        raise StrangeFileError(f"{name} are not bytes")
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    if (lengths != size).any():
        other = int(lengths[lengths != size][0])
        raise StrangeFileError(f"a row of {name} has {other} bytes; {CONFIG_FILE} means {size}")
    return data.astype(np.uint8, copy=False).reshape(len(lengths), size)

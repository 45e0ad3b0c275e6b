"""Write a sealed store in the format of another program.

Legend: T tokens of an example, N its rows, w cells of a row, k of the store.

Each writer takes one example at a time. A row is about the token at its position; a token without a
row (context, or a teacher that was not finite) has no cells.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from caskd.store.cells import kept_cells
from caskd.store.errors import UsageError
from caskd.store.exchange.distillkit import CONFIG_FILE, Compression, encode_ids, encode_values
from caskd.store.format import TOPK, StoreSpec
from caskd.store.io import check_room, claimed, progress
from caskd.store.read import TeacherStore

ExportFormat = Literal["distillkit", "axolotl", "parquet"]
IGNORED, NO_PROBABILITY = -100, -10_000.0
"""Label of a token without a row; log-probability of a cell that only fills DistillKit's table."""
_EXAMPLES_OF_FILE = 256


@dataclass(frozen=True)
class ExportedExample:
    """An example of a store, its rows at the tokens that they are about."""

    token_ids: npt.NDArray[np.int64]
    """[T]"""
    positions: npt.NDArray[np.int64]
    """[N] of the tokens with a row, ascending, each at least 1"""
    ids: npt.NDArray[np.int64]
    """[N, k]"""
    logprobs: npt.NDArray[np.float32]
    """[N, k]"""
    num_kept: npt.NDArray[np.int64]
    """[N]"""
    task: str


@dataclass
class ExportReport:
    """What was written."""

    num_examples: int = 0
    num_rows: int = 0
    num_skipped: int = 0
    """Examples without a row."""
    num_files: int = 0


def export_store(store: TeacherStore, name: ExportFormat, out: Path) -> ExportReport:
    """Write a store into a new folder, which appears when it is complete.

    Args:
        store: sealed, of kind topk.
        name: of the format.
        out: a new or empty folder.

    Raises:
        UsageError: the store holds draws, or `out` is in use or not empty.
    """
    if store.spec.kind != TOPK.name:
        raise UsageError(
            f"{store.name}: a store of kind {store.spec.kind!r}; expected kind {TOPK.name!r}, "
            "whose rows are log-probabilities; pass a store that was precomputed without --sample"
        )
    _check_empty(out)
    work = out.absolute().with_name(f".{out.absolute().name}.exporting")
    with claimed(work, "--out"):
        _check_empty(out)
        check_room(out, "--out")
        written = work / "data"
        shutil.rmtree(written, ignore_errors=True)  # of an export that was killed
        written.mkdir(parents=True)
        try:
            report = _write(store, name, written)
            try:
                os.replace(written, out)
            except OSError as error:
                raise UsageError(
                    f"--out {out}: {os.strerror(error.errno or 0)}: another process wrote to it "
                    "meanwhile; expected a new or empty folder; pass another --out"
                ) from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return report


def _check_empty(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(
            f"--out {out}: is a file or a folder with files; expected a new or empty folder; pass "
            "another --out"
        )


def _write(store: TeacherStore, name: ExportFormat, folder: Path) -> ExportReport:
    import pyarrow as pa
    import pyarrow.parquet as pq

    report, convert = ExportReport(), _WRITERS[name]
    if name == "distillkit":
        import yaml

        settings = exact_settings(store.spec)
        (folder / CONFIG_FILE).write_text(yaml.safe_dump(settings), encoding="utf-8")
    with progress("export", len(store), "examples") as bar:
        for start in range(0, len(store), _EXAMPLES_OF_FILE):
            chosen = range(start, min(start + _EXAMPLES_OF_FILE, len(store)))
            examples = [one for one in exported(store, chosen) if len(one.positions)]
            report.num_skipped += len(chosen) - len(examples)
            bar.advance(len(chosen))
            if not examples:
                continue
            records = [convert(one, store.spec) for one in examples]
            table = pa.Table.from_pylist(records, schema=_schema(name))
            pq.write_table(table, folder / f"data_{report.num_files:05d}.parquet")
            report.num_files += 1
            report.num_examples += len(examples)
            report.num_rows += sum(len(one.positions) for one in examples)
    return report


def exported(store: TeacherStore, chosen: range) -> Iterator[ExportedExample]:
    """Examples of a store with log-probabilities, rescaled as every reader does."""
    fields = ("topk_ids", "topk_logits", "num_kept", "logsumexp", "tail_mass")
    batch, index = store.read(chosen, fields), store.index
    kept = batch.column("num_kept").astype(np.int64)
    ids = batch.column("topk_ids").astype(np.int64)
    logprobs = batch.column("topk_logits") - batch.column("logsumexp")[:, None]
    if not store.spec.row_encoding.exact and store.spec.capture_fields["tail"] != "unknown":
        logprobs = _rescaled(logprobs, kept, batch.column("tail_mass"))
    for n, example in enumerate(chosen):
        rows = slice(batch.row_offsets[n], batch.row_offsets[n + 1])
        known = kept[rows] > 0
        yield ExportedExample(
            token_ids=batch.token_ids[batch.token_offsets[n] : batch.token_offsets[n + 1]].astype(
                np.int64
            ),
            positions=batch.logit_positions[rows][known] + 1,
            ids=ids[rows][known],
            logprobs=logprobs[rows][known],
            num_kept=kept[rows][known],
            task=store.spec.tasks[int(index.task[example])],
        )


def _rescaled(
    logprobs: npt.NDArray[np.float32], kept: npt.NDArray[np.int64], tail: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Rounded log-probabilities whose kept mass is 1 - tail."""
    cells = kept_cells(kept, logprobs.shape[1])
    mass = np.where(cells, np.exp(logprobs.astype(np.float64)), 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(kept > 0, np.log((1 - tail.astype(np.float64)) / mass), 0)
    shift = np.where(np.isfinite(shift), shift, 0)
    return (logprobs + shift[:, None]).astype(np.float32)


def exact_settings(spec: StoreSpec) -> dict[str, Any]:
    """compression_config.yaml of rows whose values are all exact, in float32."""
    return {
        "d": spec.vocab_size,
        "k": spec.top_k,
        "exact_k": spec.top_k,
        "exact_dtype": "float32",
        "polynomial_terms": None,
        "term_dtype": "float32",
        "residual_bins": [],
        "delta_encoding": False,
        "error_diffusion": False,
        "normalize_t": False,
    }


def _compression(spec: StoreSpec) -> Compression:
    return Compression(
        max(spec.vocab_size, 2), spec.top_k, spec.top_k, "float32", (), "float32", (), False, False
    )


def _labels(example: ExportedExample) -> list[int]:
    """The tokens with a row; the others are ignored."""
    labels = np.full(len(example.token_ids), IGNORED, np.int64)
    labels[example.positions] = example.token_ids[example.positions]
    return labels.tolist()  # type: ignore[no-any-return]


def _distillkit_record(example: ExportedExample, spec: StoreSpec) -> dict[str, Any]:
    """A record of DistillKit's sampler; row r is about token r + 1, and every row has k cells."""
    k, num = spec.top_k, len(example.token_ids) - 1
    ids = np.tile(np.arange(k), (num, 1))
    values = np.full((num, k), NO_PROBABILITY, np.float32)
    cells = kept_cells(example.num_kept, k)
    rows = example.positions - 1
    values[rows] = np.where(cells, example.logprobs, NO_PROBABILITY)
    for row, found, kept in zip(rows, example.ids, example.num_kept, strict=True):
        free = np.setdiff1d(np.arange(2 * k), found[:kept])[: k - kept]
        ids[row] = np.concatenate([found[:kept], free])
    return {
        "input_ids": example.token_ids.tolist(),
        "compressed_logprobs": encode_values(values).tolist(),
        "bytepacked_indices": encode_ids(ids, _compression(spec)).tolist(),
        "labels": _labels(example),
    }


def _axolotl_record(example: ExportedExample, spec: StoreSpec) -> dict[str, Any]:
    """The columns that axolotl's trainer reads; row j is about token j + 1, and has k cells."""
    k, num = spec.top_k, len(example.token_ids)
    ids = np.tile(np.arange(k), (num, 1))
    values = np.full((num, k), -np.inf, np.float32)
    mask = np.zeros((num, k), np.int64)
    cells = kept_cells(example.num_kept, k)
    rows = example.positions - 1
    ids[rows] = np.where(cells, example.ids, ids[rows])
    values[rows] = np.where(cells, example.logprobs, -np.inf)
    mask[rows] = cells
    return {
        "input_ids": example.token_ids.tolist(),
        "attention_mask": [1] * num,
        "labels": _labels(example),
        "target_token_ids": ids.tolist(),
        "target_logprobs": values.tolist(),
        "target_mask": mask.tolist(),
    }


def _parquet_record(example: ExportedExample, spec: StoreSpec) -> dict[str, Any]:
    """Lists of unequal length: row n is about token n, null where it has no row."""
    ids: list[Any] = [None] * len(example.token_ids)
    values: list[Any] = [None] * len(example.token_ids)
    for n, (position, kept) in enumerate(zip(example.positions, example.num_kept, strict=True)):
        ids[position] = example.ids[n, :kept].tolist()
        values[position] = example.logprobs[n, :kept].tolist()
    return {
        "input_ids": example.token_ids.tolist(),
        "labels": _labels(example),
        "target_token_ids": ids,
        "target_logprobs": values,
        "task": example.task,
    }


_WRITERS: dict[ExportFormat, Callable[[ExportedExample, StoreSpec], dict[str, Any]]] = {
    "distillkit": _distillkit_record,
    "axolotl": _axolotl_record,
    "parquet": _parquet_record,
}


def _schema(name: ExportFormat) -> Any:
    import pyarrow as pa

    ids, numbers = pa.list_(pa.int64()), pa.list_(pa.float32())
    data = pa.list_(pa.list_(pa.uint8()))
    columns = {
        "distillkit": {
            "input_ids": pa.list_(pa.uint64()),
            "compressed_logprobs": data,
            "bytepacked_indices": data,
            "labels": ids,
        },
        "axolotl": {
            "input_ids": ids,
            "attention_mask": ids,
            "labels": ids,
            "target_token_ids": pa.list_(ids),
            "target_logprobs": pa.list_(numbers),
            "target_mask": pa.list_(ids),
        },
        "parquet": {
            "input_ids": ids,
            "labels": ids,
            "target_token_ids": pa.list_(ids),
            "target_logprobs": pa.list_(numbers),
            "task": pa.string(),
        },
    }
    return pa.schema(list(columns[name].items()))

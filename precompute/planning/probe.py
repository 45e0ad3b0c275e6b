"""A short run of the teacher over a few batches of the capture: time, memory and bytes, measured.

Legend: R rows, k cells per row, C orders of ids, V vocabulary.
"""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.planning import forecast
from caskd.precompute.planning.forecast import Batch, Stratum
from caskd.precompute.rows import Fields, targets_of
from caskd.precompute.teacher import TeacherSource, TransformersTeacher, fixed_kernels
from caskd.store.errors import UsageError
from caskd.store.format import (
    StoreSpec,
    encode_shards,
    encode_whole,
    fit_orders,
    layout,
)
from caskd.store.io import Progress, progress
from caskd.store.read import TeacherStore
from caskd.store.write import ShardExample, pilot_rows

PROBE_SECONDS = 60.0
PROBE_ROWS = 1 << 15
FIRST_TOKENS = 512


@dataclass(frozen=True)
class Measured:
    """What a probe saw; the rows are those of its batches."""

    load_seconds: float
    seconds_per_token: list[float]  # of each stratum, padding included
    batch_tokens: int
    memory: tuple[str, int]
    """Whose peak it is (gpu, process), and bytes."""
    rows: Fields


def run_probe(
    config: PrecomputeConfig, source: TeacherSource, root: Path, plan_bytes: int
) -> dict[str, Any]:
    """Load the teacher, run a few batches of the planned store at `root`, and extrapolate.

    Raises:
        UsageError: the teacher does not load, or not one example fits into memory.
    """
    store = TeacherStore.open(root, allow_unsealed=True)
    index, spec = store.index, store.spec
    strata = forecast.strata_of(
        index.token_count, index.row_start, index.row_count, spec.shard_rows, config.token_budget
    )
    with fixed_kernels(config.deterministic):
        measured = _measure(config, source, store, strata)
    sizes, encode_seconds = encoded_bytes(spec, measured.rows)
    forward = forecast.forward_seconds(strata, measured.seconds_per_token)
    encoding = encode_seconds * spec.num_rows
    # Rows are encoded behind the teacher's back: the slower of the two sets the pace.
    seconds = max(forward, encoding) + forward * forecast.pilot_share(spec)
    per_row = {name: n for name, n in sizes.items() if name != "id_order"}
    total = plan_bytes + sizes.get("id_order", 0) + sum(per_row.values()) * spec.num_rows
    return {
        "num_rows": len(measured.rows["num_kept"]),
        "batch_tokens": measured.batch_tokens,
        "load_seconds": measured.load_seconds,
        "forward_seconds": forward,
        "encode_seconds": encoding,
        "seconds": seconds,
        "rows_per_second": spec.num_rows / seconds,
        "memory_of": measured.memory[0],
        "memory_bytes": measured.memory[1],
        "bytes": int(total),
        "bytes_per_row": {name: round(n, 3) for name, n in sorted(per_row.items())},
        "break_even": forecast.break_even(seconds, forward),
    }


def _measure(
    config: PrecomputeConfig, source: TeacherSource, store: TeacherStore, strata: Sequence[Stratum]
) -> Measured:
    began = time.monotonic()
    teacher = TransformersTeacher(
        source,
        vocab_size=store.spec.vocab_size,
        rule=targets_of(store.spec),
        device=config.device,
    )
    load_seconds = time.monotonic() - began
    limit = _affordable_tokens(teacher, store, strata, config.token_budget)
    seconds, tokens = np.zeros(len(strata)), np.zeros(len(strata))
    answers: list[Fields] = []
    most_rows = min(PROBE_ROWS, store.spec.num_rows // 2)
    began, rounds, num_rows = time.monotonic(), 0, 0
    with progress("probe", int(PROBE_SECONDS), "s", quiet=not sys.stderr.isatty()) as bar:
        shown = 0.0
        while rounds == 0 or _goes_on(time.monotonic() - began, rounds, num_rows / most_rows):
            for n, stratum in enumerate(strata):
                batch = _part(stratum.batches[_spread(rounds, len(stratum.batches))], limit, rounds)
                took, rows = _timed(teacher, store, batch)
                seconds[n] += took
                tokens[n] += batch.num_tokens
                answers.append(rows)
                num_rows += len(rows["num_kept"])
                shown = _advance(bar, shown, time.monotonic() - began)
            rounds += 1
    rows = {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}
    return Measured(load_seconds, list(seconds / tokens), limit, _memory(teacher.device), rows)


def _goes_on(elapsed: float, rounds: int, done: float) -> bool:
    """Whether another round fits into the probe's time, and into its share of rows."""
    return max(elapsed / PROBE_SECONDS, done) * (rounds + 1) / rounds <= 1


def _advance(bar: Progress, shown: float, elapsed: float) -> float:
    now = min(elapsed, PROBE_SECONDS)
    bar.advance(int(now) - int(shown))
    return now


def _spread(turn: int, amount: int) -> int:
    """A place in a range: turns cover it evenly however many there are (by the golden ratio)."""
    return int((0.5 + turn * 0.6180339887) % 1 * amount)


def _part(batch: Batch, limit: int, turn: int) -> Batch:
    """Examples of a batch, evenly spaced, that have at most `limit` tokens; one at least."""
    if batch.num_tokens <= limit:
        return batch
    amount = max(1, limit // batch.longest)
    places = (np.arange(amount) * len(batch.examples) // amount + turn) % len(batch.examples)
    # The longest one stays: it is what the others are padded to.
    chosen = batch.examples[np.unique([0, *places[1:]])]
    return Batch(chosen, batch.longest * len(chosen), batch.longest)


def _affordable_tokens(
    teacher: TransformersTeacher, store: TeacherStore, strata: Sequence[Stratum], budget: int
) -> int:
    """Tokens of a probe's batch: the capture's own where two rounds of them fit into the time.

    The first passes are dropped: they pay for what is loaded and compiled once.
    """
    middle = strata[len(strata) // 2].batches
    small = _part(middle[len(middle) // 2], min(FIRST_TOKENS, budget), 0)
    _timed(teacher, store, small)
    took, _ = _timed(teacher, store, small)
    affordable = int(small.num_tokens / took * PROBE_SECONDS / (2 * len(strata)))
    limit = max(min(budget, affordable), 1)
    if limit == budget:  # fast: the largest batch as it will be, for memory and for its kernels
        _timed(teacher, store, strata[0].batches[0])
    return limit


def _timed(teacher: TransformersTeacher, store: TeacherStore, batch: Batch) -> tuple[float, Fields]:
    examples = _shard_examples(store, batch)
    began = time.monotonic()
    try:
        rows = teacher.rows(examples)
    except MemoryError as error:
        raise UsageError(
            f"out of memory on {len(examples)} examples of up to {batch.longest:,} tokens "
            f"({error}); the capture would halve such batches: type a smaller --token-budget"
        ) from error
    return time.monotonic() - began, rows


def _shard_examples(store: TeacherStore, batch: Batch) -> list[ShardExample]:
    read, counts = store.read(batch.examples, fields=()), store.row_counts()
    cuts = [slice(*edges) for edges in pairwise(read.token_offsets.tolist())]
    return [
        ShardExample(int(n), read.token_ids[cut], read.is_response[cut], 0, int(counts[n]))
        for n, cut in zip(batch.examples, cuts, strict=True)
    ]


def _memory(device: torch.device) -> tuple[str, int]:
    """Peak bytes so far: of the fullest GPU, or of this process."""
    if device.type == "cuda":
        peaks = map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))
        return "gpu", max(peaks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return "process", peak if sys.platform == "darwin" else 1024 * peak


def encoded_bytes(spec: StoreSpec, rows: Fields) -> tuple[dict[str, float], float]:
    """Bytes a row of each array once it is encoded, and seconds a row of encoding.

    `id_order`, which a store has once, is whole. Its orders come from some rows and encode others,
    as a pilot does for a capture.
    """
    encoding, ids = spec.row_encoding, spec.row_kind.id_field
    num_rows, orders, sizes = len(rows["num_kept"]), None, {}
    pilot = np.zeros(num_rows, np.bool_)
    if encoding.uses_id_orders:
        amount = max(1, min(pilot_rows(spec.num_rows), num_rows // 2))
        pilot[np.linspace(0, num_rows - 1, amount).astype(np.int64)] = True
        orders = fit_orders(
            rows[ids][pilot], rows["num_kept"][pilot], spec.vocab_size,
            layout.num_orders(spec.num_rows),
        )  # fmt: skip
        whole = encode_whole(layout.ID_ORDER, orders.reshape(-1))
        sizes["id_order"] = float(sum(map(len, whole.values())))
    others = np.flatnonzero(~pilot) if not pilot.all() else np.arange(num_rows)
    if len(others) > spec.chunk_rows:
        others = others[: len(others) - len(others) % spec.chunk_rows]
    began = time.monotonic()
    part = {name: values[others] for name, values in rows.items()}
    stored = encoding.encode(part, orders)
    chunk = min(len(others), spec.chunk_rows)
    for array in encoding.layouts(spec.num_cells, chunk, len(others)):
        files = encode_shards(array, stored[array.name])
        sizes[array.name] = sum(map(len, files)) / len(others)
    return sizes, (time.monotonic() - began) / len(others)

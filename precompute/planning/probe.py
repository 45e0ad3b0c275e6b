"""`caskd plan --probe`: run the teacher on a few batches; measure time, memory and bytes.

Legend: R rows, k cells per row, V vocabulary.
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from caskd.models import num_in_batch
from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.planning import forecast
from caskd.precompute.planning.alternatives import (
    ALTERNATIVES,
    ManyTargets,
    alternative_spec,
    fitting_alternatives,
    mean_cells,
    of_flags,
)
from caskd.precompute.planning.forecast import PlannedBatch, Stratum
from caskd.precompute.rows import Fields
from caskd.precompute.teacher import LocalTeacher, Teacher, TeacherSource
from caskd.store.errors import UsageError
from caskd.store.format import StoreSpec, encode_shards
from caskd.store.io import Progress, progress
from caskd.store.read import TeacherStore
from caskd.store.write import ShardExample

PROBE_SECONDS = 60.0
PROBE_ROWS = 1 << 15
OTHER_SECONDS, OTHER_ROWS = 20.0, 1 << 13  # of `ALTERNATIVES`
FIRST_TOKENS = 512


@dataclass(frozen=True)
class ProbeResult:
    """Measurements of a probe."""

    load_seconds: float
    seconds_per_token: list[float]  # of each stratum, padding included
    batch_tokens: int
    memory: tuple[str, int]
    """Whose peak it is (`gpu` or `process`), and its bytes."""
    rows: Fields
    """Rows of all batches that ran."""
    others: Fields
    """Rows of `ALTERNATIVES`; empty where another process has the teacher's logits."""


def run_probe(
    config: PrecomputeConfig, source: TeacherSource, root: Path, plan_bytes: int
) -> dict[str, Any]:
    """Load the teacher, run a few batches of the planned store at `root`, and extrapolate.

    Raises:
        UsageError: the teacher does not load, or a batch does not fit into memory.
    """
    store = TeacherStore.open(root, allow_unsealed=True)
    index, spec = store.index, store.spec
    strata = forecast.strata_of(
        index.token_count, index.row_start, index.row_count, spec.shard_rows, config.token_budget
    )
    measured = _measure(source, store, strata, config.token_budget)
    sizes, encode_seconds = encoded_bytes(spec, measured.rows)
    forward = forecast.forward_seconds(strata, measured.seconds_per_token)
    encoding = encode_seconds * spec.num_rows
    seconds = forecast.capture_seconds(forward, encoding)
    total = plan_bytes + sum(sizes.values()) * spec.num_rows
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
        "bytes_per_row": {name: round(n, 3) for name, n in sorted(sizes.items())},
        "break_even": forecast.break_even(seconds, forward),
        "alternatives": alternative_sizes(spec, measured.others),
    }


def _measure(
    source: TeacherSource, store: TeacherStore, strata: Sequence[Stratum], token_budget: int
) -> ProbeResult:
    """Run one batch of each stratum in turn, until the probe's time or rows are used up."""
    began = time.monotonic()
    with closing(source.load(store.spec)) as teacher:
        load_seconds = time.monotonic() - began
        limit = _affordable_tokens(teacher, store, strata, token_budget)
        seconds, tokens = np.zeros(len(strata)), np.zeros(len(strata))
        parts: list[Fields] = []
        most_rows = min(PROBE_ROWS, store.spec.num_rows // 2)
        began, rounds, num_rows = time.monotonic(), 0, 0
        with progress("probe", int(PROBE_SECONDS), "s", quiet=not sys.stderr.isatty()) as bar:
            shown = 0.0
            while rounds == 0 or _has_room(time.monotonic() - began, rounds, num_rows / most_rows):
                for n, stratum in enumerate(strata):
                    batch = stratum.batches[_spread(rounds, len(stratum.batches))]
                    batch = _subset(batch, limit, rounds)
                    duration, rows = _timed(teacher, store, batch)
                    seconds[n] += duration
                    tokens[n] += batch.num_tokens
                    parts.append(rows)
                    num_rows += len(rows["num_kept"])
                    shown = _advance(bar, shown, time.monotonic() - began)
                rounds += 1
        memory = teacher.peak_memory()
        others = _other_rows(source, teacher, store, strata, limit)
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return ProbeResult(load_seconds, list(seconds / tokens), limit, memory, rows, others)


def _other_rows(
    source: TeacherSource,
    teacher: Teacher,
    store: TeacherStore,
    strata: Sequence[Stratum],
    limit: int,
) -> Fields:
    """Rows of `ALTERNATIVES` from a batch of each stratum in turn."""
    if not isinstance(teacher, LocalTeacher):
        return {}
    num_columns = min(store.spec.vocab_size, source.num_ids)
    many = ManyTargets(fitting_alternatives(num_columns))
    parts: list[Fields] = []
    most_rows = min(OTHER_ROWS, store.spec.num_rows // 2)
    began, num_rows = time.monotonic(), 0
    for rounds in range(max(len(stratum.batches) for stratum in strata)):
        if rounds and (num_rows >= most_rows or time.monotonic() - began > OTHER_SECONDS):
            break
        for stratum in (each for each in strata if rounds < len(each.batches)):  # no batch twice
            batch = stratum.batches[_spread(rounds, len(stratum.batches))]
            examples = _shard_examples(store, _subset(batch, limit, rounds))
            parts.append(dict(teacher.rows_for(many, examples)))
            num_rows += sum(example.row_count for example in examples)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def alternative_sizes(spec: StoreSpec, rows: Fields) -> list[dict[str, Any]]:
    """Bytes per row of each of `ALTERNATIVES`, tables included.

    Args:
        spec: the planned store's.
        rows: of `ManyTargets`; empty for none.
    """
    found = []
    for flags, capture in ALTERNATIVES.items():
        own = of_flags(rows, flags)
        if not own:
            continue
        other = alternative_spec(spec, capture)
        sizes, _ = encoded_bytes(other, own)
        found.append({
            "flags": flags, "bytes_per_row": round(sum(sizes.values()), 2),
            "encoding": other.encoding, "mean_cells": round(mean_cells(own), 2),
            "num_rows": len(own["num_kept"]),
        })  # fmt: skip
    return found


def _has_room(elapsed: float, rounds: int, share_of_rows: float) -> bool:
    """Whether another round fits into the probe's time, and into its share of rows."""
    return max(elapsed / PROBE_SECONDS, share_of_rows) * (rounds + 1) / rounds <= 1


def _advance(bar: Progress, shown: float, elapsed: float) -> float:
    now = min(elapsed, PROBE_SECONDS)
    bar.advance(int(now) - int(shown))
    return now


def _spread(turn: int, count: int) -> int:
    """Index of a range for this turn; any number of turns covers it evenly (golden ratio)."""
    return int((0.5 + turn * 0.6180339887) % 1 * count)


def _subset(batch: PlannedBatch, limit: int, turn: int) -> PlannedBatch:
    """Evenly spaced examples of a batch with at most `limit` tokens; at least one example."""
    if batch.num_tokens <= limit:
        return batch
    count = num_in_batch(batch.longest, limit)
    positions = (np.arange(count) * len(batch.examples) // count + turn) % len(batch.examples)
    # Keep the longest example: the others are padded to it.
    chosen = batch.examples[np.unique([0, *positions[1:]])]
    return PlannedBatch(chosen, batch.longest * len(chosen), batch.longest)


def _affordable_tokens(
    teacher: Teacher, store: TeacherStore, strata: Sequence[Stratum], budget: int
) -> int:
    """Tokens of a probe's batch: the capture's own if two rounds of those fit into the time.

    The first passes are not measured: they pay the one-time costs of loading and compiling.
    """
    middle = strata[len(strata) // 2].batches
    small = _subset(middle[len(middle) // 2], min(FIRST_TOKENS, budget), 0)
    _timed(teacher, store, small)
    duration, _ = _timed(teacher, store, small)
    affordable = int(small.num_tokens / duration * PROBE_SECONDS / (2 * len(strata)))
    limit = max(min(budget, affordable), 1)
    if limit == budget:  # fast enough to run the largest batch, for its memory and its kernels
        _timed(teacher, store, strata[0].batches[0])
    return limit


def _timed(teacher: Teacher, store: TeacherStore, batch: PlannedBatch) -> tuple[float, Fields]:
    examples = _shard_examples(store, batch)
    began = time.monotonic()
    try:
        rows = dict(teacher.rows(examples))  # waits until they are computed
    except MemoryError as error:
        raise UsageError(
            f"--probe: out of memory on {len(examples)} examples of up to {batch.longest:,} tokens "
            f"({error}); expected a batch that fits; pass a smaller --token-budget (the capture "
            "halves such batches)"
        ) from error
    return time.monotonic() - began, rows


def _shard_examples(store: TeacherStore, batch: PlannedBatch) -> list[ShardExample]:
    read, counts = store.read(batch.examples, fields=()), store.row_counts()
    parts = [slice(*edges) for edges in pairwise(read.token_offsets.tolist())]
    return [
        ShardExample(int(n), read.token_ids[part], read.is_response[part], 0, int(counts[n]))
        for n, part in zip(batch.examples, parts, strict=True)
    ]


def encoded_bytes(spec: StoreSpec, rows: Fields) -> tuple[dict[str, float], float]:
    """Encode rows as the store would; measure bytes per row of each array, and seconds per row.

    Fewer rows than a shard has are encoded as a smaller shard, which takes a few bytes more.
    """
    encoding, num_rows = spec.row_encoding, len(rows["num_kept"])
    shard = min(num_rows, spec.shard_rows)
    chunk = min(shard, spec.chunk_rows)
    shard -= shard % chunk
    layouts = encoding.layouts(spec.num_cells, chunk, shard)
    sizes: Counter[str] = Counter()
    began, last = time.monotonic(), num_rows - num_rows % shard
    for start in range(0, last, shard):
        part = {name: values[start : start + shard] for name, values in rows.items()}
        stored = encoding.encode(part, spec.vocab_size)
        for array in (*layouts, *encoding.tables(spec.vocab_size, shard)):
            sizes[array.name] += sum(map(len, encode_shards(array, stored[array.name])))
    seconds = time.monotonic() - began
    return {name: size / last for name, size in sizes.items()}, seconds / last

"""The capture: fill every missing shard, seal, and say what comes next."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.planning import check_job, plan_job
from caskd.precompute.rules import row_rule
from caskd.precompute.shard import TokenBudget, fill_shard
from caskd.precompute.teacher import Teacher, TransformersTeacher, fixed_kernels
from caskd.store.progress import progress
from caskd.store.reader import TeacherStore
from caskd.store.writer import StoreWriter


def precompute(config: PrecomputeConfig) -> TeacherStore | None:
    """Run the teacher over a corpus into a sealed store; running again completes what is missing.

    Returns:
        The store; None with `dry_run`.

    Raises:
        UsageError: a flag, a file or a value that cannot be.
        IdentityError: a store of another identity is there.
    """
    job = check_job(config)
    spec = plan_job(config, job)
    if config.dry_run:
        return None
    writer = StoreWriter(config.store)
    if writer.sealed:
        print(f"{config.store}: sealed, nothing to do; next: {_next_command(config)}")
        return TeacherStore.open(config.store)
    missing = writer.missing_shards()
    started, seconds = time.time(), 0.0
    if missing:
        with fixed_kernels(config.deterministic):
            teacher = TransformersTeacher(
                job.source,
                vocab_size=spec.vocab_size,
                rule=row_rule(spec),
                device=config.device,
            )
            begin = time.monotonic()
            non_finite = _fill_missing(writer, missing, teacher, config)
            seconds = time.monotonic() - begin
        _warn_non_finite(non_finite)
        facts = _environment(config, teacher.device, started, seconds)
        writer.record_environment({**facts, "num_shards": len(missing)})
    totals = writer.seal()
    _print_summary(config, totals, seconds)
    return TeacherStore.open(config.store)


def _fill_missing(
    writer: StoreWriter, missing: Sequence[int], teacher: Teacher, config: PrecomputeConfig
) -> int:
    """Fill shards while the one before is encoded and written; returns non-finite examples."""
    spec, num_non_finite, filler = writer.spec, 0, row_rule(writer.spec).filler
    budget = TokenBudget(config.token_budget, fixed=config.deterministic)
    _run_pilot(writer, teacher, budget)
    done = spec.num_rows - _rows_in(writer, missing)
    with (
        progress("capture", spec.num_rows, "rows", done=done) as bar,
        _one_behind() as behind,
    ):
        for shard in missing:
            work, rows = writer.shard(shard), filler(spec.shard_rows)
            non_finite = fill_shard(work, teacher, rows, budget, bar.advance)
            num_non_finite += len(non_finite)
            behind(partial(writer.commit, work, rows, non_finite))
    return num_non_finite


def _run_pilot(writer: StoreWriter, teacher: Teacher, budget: TokenBudget) -> None:
    """Let the encoding see a few rows first, where it wants to know which ids are frequent."""
    work = writer.pilot()
    if work is not None:
        rows = row_rule(writer.spec).filler(work.num_rows)
        with progress("pilot", work.num_rows, "rows") as bar:
            fill_shard(work, teacher, rows, budget, bar.advance)
        writer.commit_pilot(rows)


@contextmanager
def _one_behind() -> Iterator[Callable[[Callable[[], Any]], None]]:
    """A background thread for one task at a time: what it raises, the next call or the end raises.

    Interrupted from outside, it still finishes the task in hand: those rows are computed.
    """
    running: Future[Any] | None = None

    def submit(task: Callable[[], Any]) -> None:
        nonlocal running
        if running is not None:
            running.result()
        running = pool.submit(task)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="caskd-write") as pool:
        yield submit
        if running is not None:
            running.result()


def _rows_in(writer: StoreWriter, shards: Sequence[int]) -> int:
    index = TeacherStore.open(writer.root, allow_unsealed=True).index
    inside = np.isin(index.row_start // writer.spec.shard_rows, shards)
    return int(index.row_count[inside].sum())


def _environment(
    config: PrecomputeConfig, device: torch.device, started: float, seconds: float
) -> dict[str, Any]:
    """What surrounded an attempt; no host, user or path."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = ("caskd", "torch", "transformers", "tokenizers", "numpy", "zarr", "numcodecs")
    return {
        "python": platform.python_version(),
        "packages": {package: version(package) for package in packages},
        "device": f"{device.type} {name}",
        "num_threads": torch.get_num_threads(),
        "num_cores": os.cpu_count(),
        "token_budget": config.token_budget,
        "deterministic": config.deterministic,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(seconds, 3),
    }


def _warn_non_finite(num_examples: int) -> None:
    if num_examples:
        print(
            f"warning: the teacher gave NaN or Inf in {num_examples:,} examples; those rows are "
            "kept without a teacher (num_kept 0). Try --dtype bfloat16 or float32."
        )


def _print_summary(config: PrecomputeConfig, totals: dict[str, Any], seconds: float) -> None:
    num_rows, num_bytes = totals["num_rows"], sum(totals["bytes"].values())
    statuses = ", ".join(f"{count:,} {name}" for name, count in totals["statuses"].items())
    print(f"{config.store}: sealed, {num_rows:,} rows of {totals['num_examples']:,} examples")
    print(f"  examples    {statuses}")
    print(f"  size        {num_bytes:,} bytes, {num_bytes / num_rows:.1f} a row")
    print(f"  time        {seconds:.1f} s in this run")
    print(f"next: {_next_command(config)}")


def _next_command(config: PrecomputeConfig) -> str:
    return f"caskd train --store {config.store} --student MODEL --out RUN --objective cat-dist"

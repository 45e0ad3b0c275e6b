"""Measure the blocks of the Triton kernels on this GPU, and write the fastest into caskd's cache.

    python benchmarks/bench_blocks.py
    TRITON_INTERPRET=1 python benchmarks/bench_blocks.py --device cpu --rows 2 --columns 5003

Training and captures on this device then use them (CASKD_CACHE, by default ~/.cache/caskd). Only
kernels whose results do not depend on their block are measured; each candidate's result must equal
that of the default bit for bit, or the exit code is 1. Writes benchmarks/results/blocks.csv.

Legend: n rows of a tile, V vocabulary.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from store_rows import RESULTS, setting, write_table
from torch import Tensor

from caskd.models.kernels import CANDIDATES, Block, block_for, candidates, write_measured
from caskd.precompute.rows import triton_passes
from caskd.train.loss import triton_kernels
from caskd.train.loss.tile import GradTerms

PLACES = {"differentiate": triton_kernels, "maxima": triton_passes}


def calls(num_rows: int, num_columns: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Each kernel on a tile [n, V] of the kind that it gets in practice."""
    torch.manual_seed(0)
    tile = torch.randn(num_rows, num_columns, device=device)
    rows = torch.arange(num_rows, device=device)
    weight = torch.rand(num_rows, device=device)
    terms = GradTerms(tile.amax(1), weight, rows % num_columns, -weight, None)
    kernels = triton_kernels.TritonKernels(tile, torch.bfloat16)
    product = tile.bfloat16()
    return {
        "differentiate": lambda: kernels.differentiate_(tile, rows, terms),
        "maxima": lambda: triton_passes.TritonPasses().maxima(product)[0],
    }


def milliseconds(call: Callable[[], Tensor], rounds: int, device: torch.device) -> float:
    """Median of some rounds, after one that compiles."""
    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken[1:])


def measure(
    name: str, call: Callable[[], Tensor], blocks: list[Block], rounds: int, device: torch.device
) -> dict[Block, float | None]:
    """Milliseconds of a kernel with each block; None where its result is not the first one's."""
    found: dict[Block, float | None] = {}
    expected: Tensor | None = None
    for block in blocks:
        with mock.patch.object(PLACES[name], "block_for", lambda *_, chosen=block: chosen):
            result = call().clone()
            expected = result if expected is None else expected
            same = torch.equal(result, expected)
            found[block] = milliseconds(call, rounds, device) if same else None
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=4096, help="of a tile")
    parser.add_argument("--columns", type=int, nargs="+", default=[49_152, 128_256, 248_320])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--notes", default="")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    args = parser.parse_args()
    device = torch.device(args.device)
    is_gpu = device.type == "cuda"
    capability = torch.cuda.get_device_capability(device) if is_gpu else None
    table, fastest = [], {}
    for num_columns in args.columns:
        for name, call in calls(args.rows, num_columns, device).items():
            default = block_for("read", device, num_columns)  # is measured for no device
            blocks = list(dict.fromkeys([default, *candidates(capability, num_columns)]))
            found = measure(name, call, blocks, args.rounds, device)
            timed = {block: took for block, took in found.items() if took is not None}
            fastest[name, num_columns] = min(timed, key=timed.__getitem__)
            for block, took in found.items():
                table.append({
                    "kernel": name, "columns": num_columns, "block_columns": block.columns,
                    "num_warps": block.num_warps, "is_default": block == default,
                    "ms": "results differ" if took is None else f"{took:.4g}",
                    "is_fastest": block == fastest[name, num_columns],
                })  # fmt: skip
            best = fastest[name, num_columns]
            print(
                f"{name:14} V {num_columns:8,}: {best.columns} columns and {best.num_warps} warps, "
                f"{timed[best]:.3f} ms; the default takes {timed[default]:.3f} ms"
            )
    columns = {
        "device": torch.cuda.get_device_name(device) if is_gpu else "cpu, interpreter",
        "capability": "" if capability is None else f"sm_{capability[0]}{capability[1]}",
        "rows": args.rows, "torch": torch.__version__, **setting(args.notes),
    }  # fmt: skip
    write_table("blocks", table, columns, args.out)
    print(f"wrote {write_measured(fastest, device)}")
    assert {line["kernel"] for line in table} == set(CANDIDATES)
    return int(any(line["ms"] == "results differ" for line in table))


if __name__ == "__main__":
    sys.exit(main())

"""Time and memory of the fused loss against cross-entropy and naive distillation.

    python benchmarks/bench_loss.py                          # the grid of this machine's device
    python benchmarks/bench_loss.py --cells 1024x576x49152   # one cell, rows x width x vocabulary

Each round runs every variant once, in turn, so that a machine that slows down slows all of them; on
a GPU, whose allocator would hand memory from one to the other, each has its rounds in a row.
Seconds are medians over rounds, ratios medians of the rounds' ratios. Memory is the peak over the
inputs and the gradients that the variant leaves. Writes benchmarks/results/loss_cpu.csv, or
loss_cuda.csv on a GPU; what cannot be measured has a line that says so.

Dimension letters: N rows, k stored cells, V vocabulary, H hidden width.
"""

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu_profile import add_profile
from rival_losses import RIVALS, why_not
from store_rows import RESULTS, setting, write_table
from torch import Tensor

from caskd.train.loss import TeacherRows, cascade_aware_loss
from caskd.train.loss.api import fitting_tile_rows

Loss = Callable[[Tensor, Tensor], Tensor]
Cell = tuple[int, int, int]
CPU_CELLS: list[Cell] = [(1024, 576, 49152), (4096, 576, 49152), (1024, 2048, 128256)]
GPU_CELLS: list[Cell] = [
    (rows, width, vocab)
    for width in (576, 2048, 4096)
    for vocab in (49152, 152064)
    for rows in (4096, 16384)
]
KEPT = (1.0, 0.6, 0.3)
NEEDS_HOURS = {
    "naive gather distillation",
    "chunk + checkpoint distillation",
    "chunk + checkpoint cross-entropy",
}
"""Left out of cells with a wide head on a CPU."""
REFERENCES = {
    "over_dense": "dense cross-entropy",
    "over_compiled": "compiled cross-entropy",
    "over_chunked": "torch chunked cross-entropy",
    "over_cut": "cut-cross-entropy, exact",
    "over_bucket": "naive bucket distillation",
}
MIB = 1 << 20


@dataclass(frozen=True)
class Run:
    """One forward and backward."""

    wall: float
    cpu: float
    peak_mib: float


def make_inputs(cell: Cell, top_k: int, device: str) -> tuple[Tensor, Tensor, TeacherRows]:
    """Hidden [N, H], head [V, H] and teacher rows whose top-k holds 0.95 of the mass."""
    num_rows, hidden_size, vocab_size = cell
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    hidden = torch.randn(num_rows, hidden_size, dtype=dtype, device=device)
    weight = torch.randn(vocab_size, hidden_size, dtype=dtype, device=device) / hidden_size**0.5
    some = torch.randperm(vocab_size, device=device)[:top_k]
    offset = torch.randint(0, vocab_size, (num_rows, 1), device=device)
    ids = (some + offset) % vocab_size
    logits = torch.randn(num_rows, top_k, device=device).sort(dim=1, descending=True).values
    tail_mass = torch.full((num_rows,), 0.05, device=device)
    logsumexp = logits.logsumexp(1) - torch.log1p(-tail_mass)
    num_kept = torch.full((num_rows,), top_k, device=device)
    return hidden, weight, TeacherRows(ids[:, 0], ids, logits, num_kept, logsumexp, tail_mass)


def labels_kept(hidden: Tensor, weight: Tensor, teacher: TeacherRows, keep: float) -> Tensor:
    """[N] labels: the teacher's argmax on that fraction of rows, nobody's on the others."""
    student = torch.cat([(part @ weight.T).argmax(1) for part in hidden.split(256)])
    wrong = (teacher.argmax + 1) % len(weight)
    wrong = torch.where(wrong == student, (wrong + 1) % len(weight), wrong)
    kept = torch.arange(len(hidden), device=hidden.device) < round(keep * len(hidden))
    shuffled = kept[torch.randperm(len(hidden), device=hidden.device)]
    return torch.where(shuffled, teacher.argmax, wrong)


def make_variants(
    cell: Cell,
    hidden: Tensor,
    weight: Tensor,
    teacher: TeacherRows,
    tile_rows: Sequence[int],
) -> tuple[dict[str, Loss], dict[str, str]]:
    """Losses of (hidden, weight) by name, and those that cannot be measured with the reason."""
    device = hidden.device.type
    labels = {keep: labels_kept(hidden, weight, teacher, keep) for keep in KEPT}
    variants: dict[str, Loss] = {}
    absent: dict[str, str] = {}
    for name, rival in RIVALS.items():
        reason = why_not(name, device)
        if reason is None and device == "cpu" and cell[1] > 1024 and name in NEEDS_HOURS:
            reason = "left out of wide heads on a CPU"
        if reason is None:
            variants[name] = partial(rival, labels=labels[1.0], teacher=teacher)
        else:
            absent[name] = reason

    def ours(
        hidden: Tensor, weight: Tensor, *, keep: float, impl: Any, tile: int | None = None
    ) -> Tensor:
        return cascade_aware_loss(
            hidden, weight, labels[keep], teacher, objective="cat-dist", impl=impl, tile_rows=tile
        ).loss

    has_kernels = device == "cuda" and find_spec("triton") is not None
    for impl in ("torch", "triton") if has_kernels else ("torch",):
        for keep in KEPT:
            variants[f"caskd {impl}, {keep:g} kept"] = partial(ours, keep=keep, impl=impl)
    for tile in tile_rows:
        impl = "triton" if has_kernels else "torch"
        name = f"caskd {impl}, 1 kept, tiles of {tile}"
        variants[name] = partial(ours, keep=1.0, impl=impl, tile=tile)
    if not has_kernels:
        absent["caskd triton"] = "needs a CUDA device and triton"
    return variants, absent


def run_once(loss: Loss, inputs: tuple[Tensor, Tensor]) -> Run:
    """Forward and backward on fresh leaves that share the inputs' memory."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    device = inputs[0].device
    base = _start_of_peak(device)
    wall, cpu = time.perf_counter(), time.process_time()
    loss(*leaves).backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    gradients = sum(leaf.grad.nbytes for leaf in leaves if leaf.grad is not None)
    return Run(wall, cpu, (_peak(device) - base - gradients) / MIB)


def _start_of_peak(device: torch.device) -> int:
    """Bytes held now; the peak is measured from here on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    """Bytes, from Linux' account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}: this benchmark needs Linux")


def measure(
    variants: dict[str, Loss], inputs: tuple[Tensor, Tensor], rounds: int
) -> dict[str, list[Run] | str]:
    """Runs of each variant, or why there are none. A first round at full size is not counted."""
    runs: dict[str, list[Run] | str] = {name: [] for name in variants}
    for turn, name in turns(list(variants), rounds, inputs[0].device):
        so_far = runs[name]
        if isinstance(so_far, str):
            continue
        if not turn and inputs[0].is_cuda:
            torch.cuda.empty_cache()
        try:
            run = run_once(variants[name], inputs)
        except torch.OutOfMemoryError:
            runs[name] = "out of memory"
            continue
        except Exception as error:
            if name.startswith("caskd"):
                raise
            runs[name] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        if turn:
            so_far.append(run)
        print(f"  {turn}/{rounds} {name}: {run.wall:.3f} s", flush=True)
    return runs


def turns(names: list[str], rounds: int, device: torch.device) -> Iterator[tuple[int, str]]:
    """(round, variant) in the order of running; round 0 is the one that is not counted."""
    if device.type == "cuda":
        yield from ((turn, name) for name in names for turn in range(rounds + 1))
    else:
        yield from ((turn, name) for turn in range(rounds + 1) for name in names)


def lines_of(runs: dict[str, list[Run] | str], clock: str) -> list[dict[str, Any]]:
    """A table line for each variant; ratios are of the seconds of `clock`."""
    lines = []
    for name, own in runs.items():
        if isinstance(own, str):
            lines.append({"variant": name, "status": own})
            continue
        seconds = [getattr(run, clock) for run in own]
        line: dict[str, Any] = {"variant": name, "status": "measured"}
        line["wall_s"] = round(statistics.median(run.wall for run in own), 4)
        line["cpu_s"] = round(statistics.median(run.cpu for run in own), 4)
        line |= {"least_s": round(min(seconds), 4), "most_s": round(max(seconds), 4)}
        line["peak_mib"] = round(max(run.peak_mib for run in own), 1)
        for column, reference in REFERENCES.items():
            line[column] = _ratio(seconds, runs.get(reference), clock)
        lines.append(line)
    return lines


def _ratio(seconds: list[float], reference: list[Run] | str | None, clock: str) -> float | None:
    """Median of the rounds' ratios; none where the clock was too coarse for the reference."""
    if not isinstance(reference, list):
        return None
    pairs = zip(seconds, (getattr(run, clock) for run in reference), strict=True)
    ratios = [ours / theirs for ours, theirs in pairs if theirs > 0]
    return round(statistics.median(ratios), 3) if ratios else None


def bench_cell(cell: Cell, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The table lines of one cell."""
    num_rows, hidden_size, vocab_size = cell
    size = {"N": num_rows, "H": hidden_size, "V": vocab_size, "k": args.top_k}
    hidden, weight, teacher = make_inputs(cell, args.top_k, args.device)
    tile_rows = min(num_rows, fitting_tile_rows(vocab_size, hidden.device))
    size |= {"tile_mib": round(tile_rows * vocab_size * 4 / MIB, 1)}
    print(size)
    variants, absent = make_variants(cell, hidden, weight, teacher, args.tile_rows)
    if args.only:
        variants = {n: loss for n, loss in variants.items() if any(w in n for w in args.only)}
    runs = measure(variants, (hidden, weight), args.rounds)
    lines = lines_of(runs, "wall" if args.device == "cuda" else "cpu")
    if args.profile and "caskd triton, 1 kept" in variants:
        call = partial(run_once, variants["caskd triton, 1 kept"], (hidden, weight))
        add_profile(args.out / "profile.txt", f"loss {cell}, all rows", call)
    lines += [{"variant": name, "status": f"not measured: {why}"} for name, why in absent.items()]
    for line in lines:
        print("  ", {column: value for column, value in line.items() if value is not None})
    return [size | {"dtype": str(hidden.dtype).removeprefix("torch.")} | line for line in lines]


def parse_cell(text: str) -> Cell:
    """'1024x576x49152' as numbers."""
    rows, width, vocab = (int(part) for part in text.split("x"))
    return rows, width, vocab


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", type=parse_cell, metavar="NxHxV")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--notes", default="", help="a column of the table, e.g. a shared machine")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    parser.add_argument(
        "--tile-rows", nargs="+", type=int, default=[], help="tiles to time beside the fitting one"
    )
    parser.add_argument("--only", nargs="+", help="variants that have one of these in their names")
    parser.add_argument("--profile", action="store_true", help="kernels, into OUT/profile.txt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    on_gpu = args.device == "cuda"
    table = []
    columns = {"rounds": args.rounds, "threads": 1, "torch": torch.__version__}
    if on_gpu:
        columns["gpu"] = torch.cuda.get_device_name()
    columns |= setting(args.notes)
    for cell in args.cells or (GPU_CELLS if on_gpu else CPU_CELLS):
        table += bench_cell(cell, args)
        write_table(f"loss_{args.device}", table, columns, args.out)  # what is measured stays
    if not on_gpu:
        for rows, width, vocab in GPU_CELLS:
            size = {"N": rows, "H": width, "V": vocab, "k": args.top_k, "dtype": "bfloat16"}
            table.append(size | {"variant": "all", "status": "not measured: needs a CUDA device"})
        write_table(f"loss_{args.device}", table, columns, args.out)


if __name__ == "__main__":
    main()

"""Time of the fused loss against plain cross-entropy and naive distillation, on a CPU.

    python benchmarks/bench_loss.py --rounds 5

Each round runs every variant once, in turn, so that a machine that slows down slows all of them;
the figures are medians over rounds. Writes benchmarks/results/loss_cpu.csv.

Dimension letters: N rows, k stored cells, V vocabulary, H hidden width.
"""

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from hardware import hardware
from torch import Tensor
from torch.nn import functional as F

from caskd.train.losses import TeacherRows, cascade_aware_loss

RESULTS = Path(__file__).parent / "results" / "loss_cpu.csv"
TIMED = {"wall_s": time.perf_counter, "cpu_s": time.process_time}
Loss = Callable[[Tensor, Tensor], Tensor]


def make_inputs(
    num_rows: int, hidden_size: int, vocab_size: int, top_k: int
) -> tuple[Tensor, Tensor, TeacherRows]:
    """Hidden [N, H], head [V, H] and teacher rows whose top-k holds about 0.95 of the mass."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_rows, hidden_size, generator=generator)
    weight = torch.randn(vocab_size, hidden_size, generator=generator) / hidden_size**0.5
    ids = torch.rand(num_rows, vocab_size, generator=generator).topk(top_k, dim=1).indices
    logits = torch.randn(num_rows, top_k, generator=generator).sort(dim=1, descending=True).values
    tail_mass = torch.full((num_rows,), 0.05)
    logsumexp = logits.logsumexp(1) - torch.log1p(-tail_mass)
    num_kept = torch.full((num_rows,), top_k)
    return hidden, weight, TeacherRows(ids[:, 0], ids, logits, num_kept, logsumexp, tail_mass)


def labels_kept(
    hidden: Tensor, weight: Tensor, teacher: TeacherRows, keep_fraction: float
) -> Tensor:
    """[N] labels: the teacher's argmax on that fraction of rows, nobody's on the others."""
    student = (hidden @ weight.T).argmax(1)
    wrong = (teacher.argmax + 1) % len(weight)
    wrong = torch.where(wrong == student, (wrong + 1) % len(weight), wrong)
    kept = torch.arange(len(hidden)) < round(keep_fraction * len(hidden))
    shuffle = torch.randperm(len(hidden), generator=torch.Generator().manual_seed(1))
    return torch.where(kept[shuffle], teacher.argmax, wrong)


def naive_bucket(hidden: Tensor, weight: Tensor, labels: Tensor, teacher: TeacherRows) -> Tensor:
    """Half cross-entropy, half bucketed distillation, as one would write it on whole logits."""
    logprobs = (hidden @ weight.T).log_softmax(1)
    mass = (teacher.topk_logits - teacher.logsumexp[:, None]).exp()
    cells = (mass * logprobs.gather(1, teacher.topk_ids)).sum()
    outside = logprobs.scatter(1, teacher.topk_ids, -torch.inf).logsumexp(1)
    label = logprobs.gather(1, labels[:, None]).sum()
    return -0.5 * label - 0.5 * (cells + (teacher.tail_mass * outside).sum())


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """torch's own fused loss (2.13 or newer), at 256 rows: its default is far slower on a CPU."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=256)
    return F.linear_cross_entropy(hidden, weight, labels, reduction="sum", options=options)


def make_variants(hidden: Tensor, weight: Tensor, teacher: TeacherRows) -> dict[str, Loss]:
    """Losses of (hidden, weight) by name."""
    every, some = (labels_kept(hidden, weight, teacher, keep) for keep in (1.0, 0.6))

    def ours(objective: str, labels: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        return cascade_aware_loss(hidden, weight, labels, teacher, objective=objective).loss

    def dense(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(hidden @ weight.T, every, reduction="sum")

    variants: dict[str, Loss] = {"dense cross-entropy": dense}
    if hasattr(F, "linear_cross_entropy"):
        variants["torch chunked cross-entropy"] = partial(chunked_cross_entropy, labels=every)
    else:
        print("torch chunked cross-entropy: skipped, it needs torch 2.13")
    variants["naive bucket distillation"] = partial(naive_bucket, labels=every, teacher=teacher)
    variants["caskd dist, all rows kept"] = partial(ours, "dist", every)
    variants["caskd cat-dist, 0.6 kept"] = partial(ours, "cat-dist", some)
    return variants


def measure(variants: dict[str, Loss], inputs: tuple[Tensor, Tensor], rounds: int) -> list[dict]:
    """One row per variant: median, least and greatest seconds of forward and backward."""
    seconds: dict[str, dict[str, list[float]]] = {
        name: {clock: [] for clock in TIMED} for name in variants
    }
    for turn in range(rounds + 1):
        for name, loss in variants.items():
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            start = {clock: read() for clock, read in TIMED.items()}
            loss(*leaves).backward()
            for clock, read in TIMED.items():
                if turn > 0:  # the first round warms up
                    seconds[name][clock].append(read() - start[clock])
    return [
        {"variant": name}
        | {clock: round(statistics.median(times), 3) for clock, times in clocks.items()}
        | {"cpu_s_min": round(min(clocks["cpu_s"]), 3), "cpu_s_max": round(max(clocks["cpu_s"]), 3)}
        for name, clocks in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--notes", default="", help="a column of the table, e.g. a shared machine")
    args = parser.parse_args()
    torch.set_num_threads(1)
    hidden, weight, teacher = make_inputs(args.rows, args.hidden, args.vocab, args.top_k)
    variants = make_variants(hidden, weight, teacher)
    table = measure(variants, (hidden, weight), args.rounds)
    reference = table[0]
    setting = {
        "N": args.rows,
        "H": args.hidden,
        "V": args.vocab,
        "k": args.top_k,
        "dtype": "float32",
        "threads": 1,
        "rounds": args.rounds,
        "hardware": hardware(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "notes": args.notes,
    }
    for row in table:
        row["cpu_over_dense"] = round(row["cpu_s"] / reference["cpu_s"], 3)
        print(row)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*table[0], *setting])
        writer.writeheader()
        writer.writerows(row | setting for row in table)
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()

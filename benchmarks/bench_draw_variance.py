"""Error of a row's gradient with draws, with a head and draws, and with a top-k.

    python benchmarks/bench_draw_variance.py OUT/logprobs.npy --unigram OUT/labels.npy

Takes the teacher's log-probabilities that bench_store_choice.py captured. The gradient of the
cross-entropy by the student's logits is q - t, with the student's q and the target t, so that its
error is that of t. With p the teacher's distribution, h ids of the head, r the probability outside
of it and N draws, the variance summed over the V logits is

* (1 - sum p^2) / N for draws of the whole distribution,
* (r^2 - sum of p^2 outside of the head) / N for draws behind a head.

Neither has a bias. A top-k has no variance but a bias: with a bucket for its tail, the tail's
gradient follows the student's own tail. `bias2` is its square, for a student that knows the
frequencies of tokens alone; `drop` ignores the tail, `renormalise` scales the top-k to 1.
`measured` is the mean of |t - p|^2 over rows and `--repeats` draws of the rows that caskd stores.
Writes results/draw_variance.csv.

Dimension letters: R rows, V vocabulary.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_store_choice import ARMS
from store_rows import setting, write_table
from torch import Tensor

from caskd.precompute.rows import targets_from
from caskd.store import StoreBatch
from caskd.store.write import ShardExample
from caskd.train.data import teacher_rows


def dense_target(rows: dict[str, np.ndarray], vocab_size: int) -> Tensor:
    """[R, V] the target that training makes of stored draws."""
    size, nothing = len(rows["num_kept"]), np.zeros(0, np.int64)
    ends = np.array([0, size])
    batch = StoreBatch(nothing, nothing, nothing, ends, ends, nothing,
                       np.zeros(size, np.uint32), **rows)  # type: ignore[arg-type]  # fmt: skip
    teacher = teacher_rows(batch)
    target = torch.zeros(size, vocab_size)
    return target.scatter_add_(1, teacher.topk_ids, teacher.topk_logits.exp())


def measured(logprobs: Tensor, capture: dict[str, Any], repeats: int) -> float:
    """Mean of |t - p|^2 over rows and draws."""
    p, nothing = logprobs.exp(), np.zeros(0, np.uint32)
    labels, errors = torch.zeros(len(p), dtype=torch.int64), []
    for repeat in range(repeats):
        targets = targets_from({**capture, "sample_seed": repeat})
        example = ShardExample(0, nothing, nothing.astype(np.uint8), 0, len(p))
        rows = targets.fields(logprobs, labels, targets.numbers([example]))
        errors.append(float((dense_target(rows, p.shape[1]) - p).pow(2).sum(1).mean()))
    return float(np.mean(errors))


def closed(p: Tensor, capture: dict[str, Any]) -> float:
    """Mean of the closed form over rows."""
    rest = p.double().sort(descending=True).values[:, capture.get("head", 0) :]
    variance = (rest.sum(1) ** 2 - (rest**2).sum(1)) / capture["num_samples"]
    return float(variance.mean())


def bias2(p: Tensor, student: Tensor, top_k: int, tail: str) -> float:
    """Mean squared bias of a top-k's target."""
    ids = p.topk(top_k, dim=1).indices
    head = torch.zeros_like(p).scatter(1, ids, p.gather(1, ids))
    if tail == "bucket":
        own = student.expand_as(p).scatter(1, ids, 0.0)
        head = head + own * ((1 - head.sum(1)) / own.sum(1))[:, None]
    if tail == "renormalise":
        head = head / head.sum(1, keepdim=True)
    return float((head - p).pow(2).sum(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logprobs", type=Path)
    parser.add_argument("--unigram", type=Path, required=True, help="labels: their frequencies")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--notes", default="", help="text of the notes column")
    args = parser.parse_args()
    torch.set_num_threads(1)
    every = np.load(args.logprobs, mmap_mode="r")
    rows = np.random.default_rng(0).choice(every.shape[0] * every.shape[1], args.rows, False)
    logprobs = torch.from_numpy(every.reshape(-1, every.shape[2])[np.sort(rows)])
    p = logprobs.exp()
    labels = np.load(args.unigram).reshape(-1)
    counts = np.bincount(labels[labels >= 0], minlength=p.shape[1]) + 0.5
    student = torch.from_numpy(counts / counts.sum()).float()
    table: list[dict[str, Any]] = []
    for arm, capture in ARMS.items():
        if capture is None or "num_samples" not in capture:
            continue
        found = measured(logprobs, capture, args.repeats)
        table.append({"arm": arm, "closed_form": round(closed(p, capture), 6),
                      "measured": round(found, 6), "bias2": 0})  # fmt: skip
        print(table[-1], flush=True)
    for top_k in (8, 16, 64):
        for tail in ("bucket", "drop", "renormalise"):
            error = round(bias2(p, student, top_k, tail), 6)
            table.append({"arm": f"top{top_k} {tail}", "closed_form": 0, "bias2": error})
            print(table[-1], flush=True)
    columns = {"V": p.shape[1], "rows": args.rows, "repeats": args.repeats}
    write_table("draw_variance", table, columns | setting(args.notes))


if __name__ == "__main__":
    main()

"""Quality of a student under every treatment of the teacher's tail.

    python benchmarks/bench_tails.py --teacher HuggingFaceTB/SmolLM2-135M --text wiki.txt

One small student, randomly initialised, learns from one teacher on the same rows under every tail
mode and k. `sampled` stands for k samples of the teacher's whole distribution, `all` for the whole
distribution, `labels` for cross-entropy without a teacher. The table has, on held-out rows, the
student's NLL of the text, its KL from the teacher's dense distribution, and the expected
calibration error of its most likely token. Writes benchmarks/results/tails.csv, one line per seed.

The vocabulary is the V most frequent tokens of the text, and the teacher's distribution is
conditioned on them: with the full vocabulary a student this small learns little but frequencies
within minutes.

Dimension letters: S sequences, T tokens of each, N rows, k cells, V vocabulary.
"""

import argparse
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from store_rows import setting, write_table
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel

from caskd.models import open_model, open_tokenizer
from caskd.train.loss import TeacherRows, cascade_aware_loss

TAILS = ("drop", "renormalise", "bucket", "sampled")
CELLS = (8, 16, 64)
LENGTH = 64
NUM_BINS = 15


@dataclass(frozen=True)
class Setting:
    """Settings that all students share."""

    folder: str
    steps: int
    w: float
    num_held_out: int
    """Sequences at the end that are not used for training."""
    batch_size: int = 16
    hidden_size: int = 128
    lr: float = 3e-3


@torch.no_grad()
def capture(teacher: str, text: Path, folder: Path, num_sequences: int, vocab_size: int) -> None:
    """Write inputs, labels (-1: not in the vocabulary) and log-probs, [S, T-1] and [S, T-1, V]."""
    tokenizer = open_tokenizer(teacher, "teacher")
    ids = tokenizer(text.read_text()[: num_sequences * LENGTH * 8])["input_ids"]
    if len(ids) < num_sequences * LENGTH:
        raise SystemExit(f"{text} has {len(ids)} tokens, expected {num_sequences * LENGTH}")
    tokens = torch.tensor(ids[: num_sequences * LENGTH]).view(num_sequences, LENGTH)
    counts = tokens.flatten().bincount(minlength=len(tokenizer))
    columns = counts.topk(vocab_size).indices.sort().values
    place = torch.full((len(counts),), -1)
    place[columns] = torch.arange(vocab_size)
    model = open_model(teacher, "teacher", dtype="float32").eval()
    head = model.get_output_embeddings().weight[columns]
    shape = (num_sequences, LENGTH - 1, vocab_size)
    logprobs = np.lib.format.open_memmap(folder / "logprobs.npy", "w+", np.float32, shape)
    for start in range(0, num_sequences, 16):
        hidden = model.base_model(tokens[start : start + 16, :-1]).last_hidden_state
        logprobs[start : start + 16] = (hidden @ head.T).log_softmax(2).numpy()
    inputs = place[tokens[:, :-1]]
    np.save(folder / "inputs.npy", inputs.masked_fill(inputs < 0, vocab_size).numpy())
    np.save(folder / "labels.npy", place[tokens[:, 1:]].numpy())


def teacher_rows(logprobs: Tensor, tail: str, top_k: int) -> TeacherRows:
    """Teacher rows as a store holds them, from dense distributions [N, V]."""
    if tail == "sampled":
        return sampled_rows(logprobs, top_k)
    values, ids = logprobs.topk(top_k, dim=1)
    tail_mass = logprobs.scatter(1, ids, -torch.inf).exp().sum(1)
    num_kept = torch.full((len(ids),), top_k)
    return TeacherRows(ids[:, 0], ids, values, num_kept, torch.zeros(len(ids)), tail_mass)


def sampled_rows(logprobs: Tensor, num_draws: int) -> TeacherRows:
    """Sampled rows from distributions [N, V]: distinct ids and their fractions of the draws."""
    draws = logprobs.exp().multinomial(num_draws, replacement=True).sort(dim=1).values
    is_first = torch.ones_like(draws, dtype=torch.bool)
    is_first[:, 1:] = draws[:, 1:] != draws[:, :-1]
    cell = is_first.cumsum(1) - 1
    counts = torch.zeros(draws.shape).scatter_add_(1, cell, torch.ones(draws.shape))
    ids = torch.zeros_like(draws).scatter_(1, cell, draws)
    nothing = torch.zeros(len(draws))
    shares = (counts / num_draws).log()
    return TeacherRows(logprobs.argmax(1), ids, shares, is_first.sum(1), nothing, nothing)


class Student(nn.Module):
    """Two layers and a head."""

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=vocab_size + 1,  # the last id stands for all other tokens
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
        self.body = LlamaModel(config)
        self.head = nn.Parameter(torch.randn(vocab_size, hidden_size) * 0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        """Hidden states [S, T-1, H]."""
        hidden: Tensor = self.body(inputs, use_cache=False).last_hidden_state
        return hidden


def train_one(task: tuple[Setting, str, int, int]) -> dict[str, Any]:
    """Train one student and return its held-out figures."""
    shared, tail, top_k, seed = task
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    started = time.process_time()
    folder = Path(shared.folder)
    inputs, labels = (torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("inputs", "labels"))
    logprobs = np.load(folder / "logprobs.npy", mmap_mode="r")
    student = Student(shared.hidden_size, logprobs.shape[2])
    optimizer = torch.optim.AdamW(student.parameters(), lr=shared.lr, weight_decay=0.0)
    order = batches(len(inputs) - shared.num_held_out, shared.batch_size, seed)
    for step, chosen in enumerate(itertools.islice(order, shared.steps)):
        optimizer.param_groups[0]["lr"] = shared.lr * min(1, 2 * (1 - step / shared.steps))
        there = labels[chosen] >= 0
        dense = torch.from_numpy(logprobs[chosen.numpy()])[there]
        hidden = student(inputs[chosen])[there]
        loss = student_loss(
            hidden, student.head, labels[chosen][there], dense, tail, top_k, shared.w
        )
        optimizer.zero_grad()
        (loss / len(dense)).backward()
        optimizer.step()
    held_out = slice(len(inputs) - shared.num_held_out, None)
    figures = evaluate(student, inputs[held_out], labels[held_out], logprobs[held_out])
    line = {"tail": tail, "k": top_k or "", "seed": seed, **figures}
    print(line, flush=True)
    return line | {"cpu_s": round(time.process_time() - started, 1)}


def student_loss(
    hidden: Tensor, head: Tensor, labels: Tensor, dense: Tensor, tail: str, top_k: int, w: float
) -> Tensor:
    """The loss of a student, summed over rows [N]."""
    if tail == "labels":
        return cascade_aware_loss(hidden, head, labels, None, objective="xent").loss
    if tail == "all":
        logits = hidden @ head.T
        label = F.cross_entropy(logits, labels, reduction="sum")
        return w * label + (1 - w) * F.cross_entropy(logits, dense.exp(), reduction="sum")
    mode: Any = "none" if tail == "sampled" else tail
    rows = teacher_rows(dense, tail, top_k)
    return cascade_aware_loss(hidden, head, labels, rows, objective="dist", w=w, tail=mode).loss


def batches(num_sequences: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches of sequence indices, over epochs."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(num_sequences, generator=generator).split(batch_size):
            if len(chosen) == batch_size:
                yield chosen


@torch.no_grad()
def evaluate(
    student: Student, inputs: Tensor, labels: Tensor, logprobs: np.ndarray
) -> dict[str, float]:
    """Means over the held-out rows."""
    parts = []
    for i in range(0, len(inputs), 16):
        there = labels[i : i + 16] >= 0
        label = labels[i : i + 16][there]
        teacher = torch.from_numpy(np.array(logprobs[i : i + 16]))[there]
        ours = (student(inputs[i : i + 16])[there] @ student.head.T).log_softmax(1)
        confidence, best = ours.max(1)
        nll = -ours.gather(1, label[:, None]).squeeze(1)
        kl = (teacher.exp() * (teacher - ours)).sum(1)
        parts.append(torch.stack([nll, kl, confidence.exp(), (best == label).float()]))
    nll, kl, confidence, correct = torch.cat(parts, 1).double()
    figures = {"nll": nll.mean(), "kl": kl.mean(), "ece": calibration_error(confidence, correct)}
    figures |= {"accuracy": correct.mean(), "confidence": confidence.mean()}
    return {name: round(float(value), 4) for name, value in figures.items()}


def calibration_error(confidence: Tensor, correct: Tensor) -> Tensor:
    """Expected calibration error over bins of equal width."""
    bins = (confidence * NUM_BINS).long().clamp_max(NUM_BINS - 1)
    gap = torch.zeros(NUM_BINS, dtype=torch.float64).index_add_(0, bins, correct - confidence)
    return gap.abs().sum() / len(confidence)


def summarize(lines: list[dict[str, Any]]) -> None:
    """Print means and standard deviations over seeds."""
    for key, group in itertools.groupby(lines, key=lambda line: (line["tail"], line["k"])):
        runs = list(group)
        words = []
        for name in ("nll", "kl", "ece"):
            values = [run[name] for run in runs]
            words.append(f"{name} {np.mean(values):.4f} (sd {np.std(values):.4f})")
        print(f"{key[0]:>12} {key[1]!s:>3}  {'  '.join(words)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="transformers causal LM")
    parser.add_argument("--text", type=Path, required=True, help="plain text, 0.3 MB or more")
    parser.add_argument("--sequences", type=int, default=560, help=f"sequences of {LENGTH} tokens")
    parser.add_argument("--held-out", type=int, default=80, help="number of held-out sequences")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--w", type=float, default=0.0, help="weight of the labels")
    parser.add_argument("--workers", type=int, default=2, help="single-threaded processes")
    parser.add_argument("--notes", default="", help="text of the notes column, e.g. shared machine")
    args = parser.parse_args()
    kinds = [("labels", 0), *itertools.product(TAILS, CELLS), ("all", 0)]
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(args.workers)
        capture(args.teacher, args.text, Path(folder), args.sequences, args.vocab)
        shared = Setting(folder, args.steps, args.w, args.held_out)
        tasks = [(shared, *kind, seed) for kind in kinds for seed in range(args.seeds)]
        with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
            lines = pool.map(train_one, tasks, chunksize=1)
    summarize(lines)
    columns = {"teacher": args.teacher.rstrip("/").split("/")[-1], "text": args.text.name}
    columns |= {"V": args.vocab, "w": args.w, "steps": args.steps, "torch": torch.__version__}
    columns |= {"sequences": args.sequences, "held_out": args.held_out, "tokens_each": LENGTH}
    write_table("tails", lines, columns | setting(args.notes))


if __name__ == "__main__":
    main()

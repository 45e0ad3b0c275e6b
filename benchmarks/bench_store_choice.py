"""Which store to make: students trained from each kind of store, against its bytes per row.

    python benchmarks/bench_store_choice.py OUT --teacher HuggingFaceTB/SmolLM2-135M \\
        --text wiki.txt c4.jsonl

One small student, from the same initial weights per seed, learns from one teacher for the same
steps through a real store of every arm: written and read by caskd, and trained with the store's
default tail mode. `full` is the teacher's whole distribution, which no store holds; `labels` has no
teacher.
Held-out figures of each arm: NLL of the text, KL from the teacher's whole distribution, expected
calibration error, and the area under the deferral curve of a next-token cascade (the student's
confidence defers to the teacher), in one pool for all arms. Each seed draws anew, so that intervals
include the draws.

OUT keeps the capture, the stores and one file per run: an interrupted run continues with the same
command, and the table holds the runs so far. Writes results/store_choice.csv (one line per run) and
results/store_choice_means.csv (one line per arm: means, t-intervals over seeds of the difference to
`full`, and bootstrap intervals over seeds and held-out sequences).

The vocabulary is cut to the V most frequent tokens as in bench_tails.py, which makes ids cheaper;
`bytes_per_row_vocab` has the bytes at the teacher's whole vocabulary, from `caskd plan --probe`.

Dimension letters: S sequences, N rows, k cells, V vocabulary, B replicates.
"""

import argparse
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_tails import LENGTH, NUM_BINS, Student, batches, capture
from scipy.stats import t as student_t
from store_rows import bare_identity, setting, write_table
from torch.nn import functional as F

from caskd.precompute.rows import targets_of
from caskd.store.corpus import TokenizedExample
from caskd.store.format import DEFAULT_ENCODING
from caskd.store.read import TeacherStore
from caskd.store.write import ShardWork, StoreWriter, plan_store
from caskd.train.data import fields_to_read, teacher_rows
from caskd.train.loss import cascade_aware_loss
from caskd.train.objectives import resolve_objective, resolve_tail

ARMS: dict[str, dict[str, Any] | None] = {
    "top8": {"kind": "topk", "top_k": 8, "min_mass": 1.0},
    "top16": {"kind": "topk", "top_k": 16, "min_mass": 1.0},
    "top64": {"kind": "topk", "top_k": 64, "min_mass": 1.0},
    "mass99": {"kind": "topk", "top_k": 64, "min_mass": 0.99},
    "draws16": {"kind": "sampled", "num_samples": 16},
    "draws50": {"kind": "sampled", "num_samples": 50},
    "draws100": {"kind": "sampled", "num_samples": 100},
    "head8+draws16": {"kind": "head_sampled", "head": 8, "num_samples": 16},
    "head16+draws32": {"kind": "head_sampled", "head": 16, "num_samples": 32},
    "full": None,
    "labels": None,
}
"""Arm -> what its store keeps; None where there is no store."""
FIGURES = ("nll", "kl", "ece", "audc")
REPLICATES = 1000


@dataclass(frozen=True)
class Setting:
    """Settings that all students share."""

    folder: Path
    steps: int
    w: float
    held_out_every: int = 5
    batch_size: int = 16
    hidden_size: int = 128
    lr: float = 3e-3

    def arrays(self) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Inputs and labels [S, T-1], and the teacher's log-probabilities [S, T-1, V]."""
        inputs, labels = (torch.from_numpy(np.load(self.folder / f"{name}.npy"))
                          for name in ("inputs", "labels"))  # fmt: skip
        return inputs, labels, np.load(self.folder / "logprobs.npy", mmap_mode="r")

    def split(self, num_sequences: int) -> tuple[np.ndarray, np.ndarray]:
        """Sequences for training, and held-out ones spread over all texts."""
        held_out = np.arange(num_sequences) % self.held_out_every == self.held_out_every - 1
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def joined(paths: list[Path], characters: int) -> str:
    """Equal parts of some texts; JSON lines have them in `text`."""
    parts = []
    for path in paths:
        whole = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            whole = "\n".join(json.loads(line)["text"] for line in whole.splitlines())
        parts.append(whole[: characters // len(paths)])
    return "\n".join(parts)


def store_of(shared: Setting, arm: str, seed: int) -> TeacherStore:
    """The store of an arm, written the first time; a top-k is the same for every seed."""
    kept = ARMS[arm]
    assert kept is not None
    path = shared.folder / "stores" / (arm if kept["kind"] == "topk" else f"{arm}-{seed}")
    if (path / "seal.json").exists():
        return TeacherStore.open(path)
    inputs, labels, logprobs = shared.arrays()
    train, _ = shared.split(len(inputs))
    num_ids = logprobs.shape[2]
    vocab = [b"t%d" % i for i in range(num_ids + 1)]  # the last one is any other token
    examples = []
    for n, sequence in enumerate(train):
        last = labels[sequence].masked_fill(labels[sequence] < 0, num_ids).numpy()
        tokens = np.append(inputs[sequence, :1].numpy(), last).astype(np.uint32)
        mask = np.append(0, labels[sequence].numpy() >= 0).astype(np.uint8)
        examples.append(TokenizedExample(tokens, mask, "ok", n, "text"))
    rows = sum(int(example.is_response.sum()) for example in examples)
    draws = {} if kept["kind"] == "topk" else {"sample_seed": seed}
    made = bare_identity({**kept, **draws}, vocab, len(examples), DEFAULT_ENCODING)
    plan_store(path, made, examples, shard_rows=-(-rows // 512) * 512, vocab=vocab)
    writer = StoreWriter(path)

    def fields(work: ShardWork, num_rows: int) -> dict[str, np.ndarray]:
        targets = targets_of(writer.spec)
        found = targets.filler(num_rows)
        for example in work.examples:
            sequence = train[example.index]
            own = labels[sequence][labels[sequence] >= 0]
            logits = torch.from_numpy(logprobs[sequence][labels[sequence].numpy() >= 0])
            part = targets.fields(logits, own, targets.numbers([example]))
            for name, values in part.items():
                found[name][example.row_start : example.row_start + len(own)] = values
        return found

    for shard in writer.missing_shards():
        work = writer.shard(shard)
        writer.commit(work, fields(work, writer.spec.shard_rows))
    writer.seal()
    return TeacherStore.open(path)


def bytes_per_row(store: TeacherStore) -> float:
    """Bytes of the row arrays, with the tables of ids, per row."""
    sizes = store.seal["bytes"]
    names = [array.name for array in store.spec.row_layouts()]
    return round(sum(sizes[name] for name in names) / store.spec.num_rows, 2)


def train_one(shared: Setting, arm: str, seed: int) -> dict[str, np.ndarray]:
    """Train a student; returns the held-out values of each row."""
    inputs, labels, logprobs = shared.arrays()
    train, held_out = shared.split(len(inputs))
    store = None if ARMS[arm] is None else store_of(shared, arm, seed)
    rows = starts = tail = None
    if store is not None:
        objective = resolve_objective("dist", shared.w)
        read = store.read(range(len(store)), fields_to_read(objective, store.spec.kind))
        rows, starts = teacher_rows(read), torch.from_numpy(read.row_offsets)
        tail = resolve_tail(None, store.spec.kind)
    torch.manual_seed(seed)
    student = Student(shared.hidden_size, logprobs.shape[2])
    optimizer = torch.optim.AdamW(student.parameters(), lr=shared.lr, weight_decay=0.0)
    order = batches(len(train), shared.batch_size, seed)
    for step, chosen in enumerate(itertools.islice(order, shared.steps)):
        optimizer.param_groups[0]["lr"] = shared.lr * min(1, 2 * (1 - step / shared.steps))
        sequences = train[chosen.numpy()]
        there = labels[sequences] >= 0
        own, hidden = labels[sequences][there], student(inputs[sequences])[there]
        if arm == "labels":
            loss = cascade_aware_loss(hidden, student.head, own, None, objective="xent").loss
        elif arm == "full":
            dense = torch.from_numpy(logprobs[sequences])[there].exp()
            logits = hidden @ student.head.T
            loss = shared.w * F.cross_entropy(logits, own, reduction="sum")
            loss = loss + (1 - shared.w) * F.cross_entropy(logits, dense, reduction="sum")
        else:
            assert rows is not None
            assert starts is not None
            assert tail is not None
            index = torch.cat([torch.arange(starts[n], starts[n + 1]) for n in chosen])
            loss = cascade_aware_loss(
                hidden, student.head, own, rows.take(index), objective="dist", w=shared.w, tail=tail
            ).loss
        optimizer.zero_grad()
        (loss / len(own)).backward()
        optimizer.step()
    return evaluate(student, inputs[held_out], labels[held_out], logprobs, held_out)


@torch.no_grad()
def evaluate(
    student: Student, inputs: torch.Tensor, labels: torch.Tensor, logprobs: np.ndarray,
    held_out: np.ndarray,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Values of each held-out row [N], with the number of its sequence."""
    parts = []
    for i in range(0, len(inputs), 16):
        there = labels[i : i + 16] >= 0
        label = labels[i : i + 16][there]
        teacher = torch.from_numpy(logprobs[held_out[i : i + 16]])[there]
        ours = (student(inputs[i : i + 16])[there] @ student.head.T).log_softmax(1)
        confidence, best = ours.max(1)
        nll = -ours.gather(1, label[:, None]).squeeze(1)
        kl = (teacher.exp() * (teacher - ours)).sum(1)
        right, large = (best == label).float(), (teacher.argmax(1) == label).float()
        sequence = torch.nonzero(there)[:, 0].float() + i
        parts.append(torch.stack([nll, kl, confidence.exp(), right, large, sequence]))
    names = ("nll", "kl", "confidence", "correct", "large", "sequence")
    return dict(zip(names, torch.cat(parts, 1).numpy(), strict=True))


def figures(run: dict[str, np.ndarray], weight: np.ndarray | None = None) -> np.ndarray:
    """The `FIGURES` of a run [4], with a weight for each row."""
    weight = np.ones(len(run["nll"])) if weight is None else weight
    total = weight.sum()
    means = [float(weight @ run[name]) / total for name in ("nll", "kl")]
    confidence = run["confidence"].astype(np.float64)
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    gap = np.bincount(bins, weight * (run["correct"] - confidence), minlength=NUM_BINS)
    order = np.argsort(confidence, kind="stable")  # the least sure rows are deferred first
    w, gain = weight[order], (run["large"] - run["correct"])[order] * weight[order]
    quality = np.append(0, gain.cumsum()) + weight @ run["correct"]
    audc = float((w / total) @ (quality[1:] + quality[:-1])) / 2 / total
    return np.array([*means, np.abs(gap).sum() / total, audc])


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean over seeds."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


def replicates(runs: dict[str, list[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Figures [B, 4] of each arm on the same resampled seeds and held-out sequences."""
    first = next(iter(runs.values()))
    sequence = first[0]["sequence"].astype(int)
    rng, num = np.random.default_rng(0), int(sequence.max()) + 1
    found: dict[str, list[np.ndarray]] = {arm: [] for arm in runs}
    for _ in range(REPLICATES):
        weight = np.bincount(rng.integers(0, num, num), minlength=num)[sequence].astype(float)
        seeds = rng.integers(0, len(first), len(first))
        for arm, own in runs.items():
            values = {seed: figures(own[seed], weight) for seed in {*seeds.tolist()}}
            found[arm].append(np.mean([values[seed] for seed in seeds.tolist()], axis=0))
    return {arm: np.array(values) for arm, values in found.items()}


def tables(shared: Setting, seeds: int, probed: dict[str, float]) -> tuple[list, list]:
    """One line per run, and one per arm over the seeds that all its rivals have."""
    folder = shared.folder / "runs"
    have = {arm: [s for s in range(seeds) if (folder / f"{arm}-{s}.npz").exists()] for arm in ARMS}
    have = {arm: own for arm, own in have.items() if own}
    common = sorted(set.intersection(*map(set, have.values())))
    loaded = {
        arm: [dict(np.load(folder / f"{arm}-{s}.npz")) for s in common] for arm in have
    }  # fmt: skip
    sizes = {arm: _mean_bytes(shared, arm, common) for arm in have}
    lines, values = [], {}
    for arm, own in loaded.items():
        values[arm] = np.array([figures(run) for run in own])
        for seed, found in zip(common, values[arm], strict=True):
            line = dict(zip(FIGURES, np.round(found, 5).tolist(), strict=True))
            lines.append({"arm": arm, "seed": seed, "bytes_per_row": sizes[arm], **line})
    resampled = replicates(loaded) if common else {}
    means = []
    for arm, found in values.items():
        line = {"arm": arm, "seeds": len(common), "bytes_per_row": sizes[arm],
                "bytes_per_row_vocab": probed.get(arm, "")}  # fmt: skip
        for i, name in enumerate(FIGURES):
            line[name] = round(float(found[:, i].mean()), 5)
            low, high = t_interval(found[:, i] - values["full"][:, i])
            line[f"{name}_less_full"] = round(float((found - values["full"])[:, i].mean()), 5)
            line[f"{name}_t_low"], line[f"{name}_t_high"] = round(low, 5), round(high, 5)
            ends = np.quantile((resampled[arm] - resampled["full"])[:, i], [0.025, 0.975])
            line[f"{name}_boot_low"], line[f"{name}_boot_high"] = np.round(ends, 5).tolist()
        means.append(line)
    return lines, means


def _mean_bytes(shared: Setting, arm: str, seeds: list[int]) -> Any:
    if ARMS[arm] is None:
        return ""
    return round(float(np.mean([bytes_per_row(store_of(shared, arm, s)) for s in seeds])), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", required=True, help="transformers causal LM")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="plain or JSON lines")
    parser.add_argument("--sequences", type=int, default=1536, help=f"of {LENGTH} tokens")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--w", type=float, default=0.0, help="weight of the labels")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS])
    parser.add_argument("--bytes", type=Path, help="JSON: arm -> bytes per row of plan --probe")
    parser.add_argument("--table", action="store_true", help="write the tables of the runs so far")
    parser.add_argument("--notes", default="", help="text of the notes column")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shared = Setting(args.out, args.steps, args.w)
    (args.out / "runs").mkdir(parents=True, exist_ok=True)
    if not (args.out / "labels.npy").exists():
        text = args.out / "text.txt"
        text.write_text(joined(args.text, args.sequences * LENGTH * 6), encoding="utf-8")
        capture(args.teacher, text, args.out, args.sequences, args.vocab)
    for seed, arm in itertools.product(range(args.seeds), args.arms):
        done = args.out / "runs" / f"{arm}-{seed}.npz"
        if args.table or done.exists():
            continue
        run = train_one(shared, arm, seed)
        part = done.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez(file, **run)  # type: ignore[arg-type]
        os.replace(part, done)
        print(
            arm, seed, dict(zip(FIGURES, figures(run).round(4).tolist(), strict=True)), flush=True
        )
    probed = json.loads(args.bytes.read_text()) if args.bytes else {}
    lines, means = tables(shared, args.seeds, probed)
    columns = {"V": args.vocab, "w": args.w, "steps": args.steps, "sequences": args.sequences}
    columns |= {"texts": " ".join(path.name for path in args.text)} | setting(args.notes)
    write_table("store_choice", lines, columns)
    write_table("store_choice_means", means, columns)


if __name__ == "__main__":
    main()

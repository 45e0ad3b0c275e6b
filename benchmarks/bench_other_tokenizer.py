"""Quality of a student with another tokenizer, by objective, in bits per byte of unread answers.

    python benchmarks/bench_other_tokenizer.py --teacher MODEL --data FILE.jsonl --work DIR

The teacher's rows are captured once, from the shortest answers of the data. A small student, whose
byte-level tokenizer is made from the training text, then learns from them under every objective and
seed. The random mask keeps as many spans as cat-alm does with the same seed. DIR keeps the stores,
and a run that is there already is not repeated. Writes benchmarks/results/other_tokenizer.csv: one
line for each run, and one for each difference from xent with a Student interval over the seeds.
"""

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from store_rows import setting, write_table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from caskd.precompute import PrecomputeConfig, precompute
from caskd.train import TrainConfig, train

ARMS = ("xent", "alm", "cat-alm", "random-xent")


def split_data(path: Path, work: Path, num_train: int, num_held_out: int) -> list[Path]:
    """Write the shortest examples to two files; every n-th is held out."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    pairs = [
        {"prompt": r["prompt"] + "\n", "response": r.get("response", r.get("target"))}
        for r in records
    ]
    total = num_train + num_held_out
    pairs = sorted(
        (pair for pair in pairs if len(pair["response"]) > 20),
        key=lambda pair: len(pair["prompt"] + pair["response"]),
    )[:total]
    every = total // num_held_out
    parts = {
        "train": [pair for n, pair in enumerate(pairs) if n % every],
        "held_out": pairs[::every],
    }
    for name, part in parts.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in part))
    return [work / f"{name}.jsonl" for name in parts]


def capture(teacher: str, data: Path, store: Path) -> None:
    """Capture the teacher, unless the store is there."""
    precompute(
        PrecomputeConfig(
            teacher=teacher, data=(str(data),), store=str(store), top_k=8, device="cpu"
        )
    )


def make_student(folder: Path, text: Path, vocab_size: int, hidden_size: int, seed: int) -> Path:
    """A random model, with a byte-level tokenizer made from the text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    pairs = [json.loads(line) for line in text.read_text().splitlines()]
    backend.train_from_iterator(
        [part for pair in pairs for part in pair.values()],
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<end>"],
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_one(arguments: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    """Train one student and return its figures on the held-out answers."""
    work: Path = arguments.work
    out = work / f"{arm}-{seed}"
    if not (out / "done").exists():
        shutil.rmtree(out, ignore_errors=True)
        student = make_student(
            work / "student", work / "train.jsonl", arguments.vocab, arguments.hidden, seed
        )
        source = work / f"cat-alm-{seed}" if arm.startswith("random") else None
        train(
            TrainConfig(
                store=(str(work / "train-store"),),
                student=str(student),
                out=out,
                steps=arguments.steps,
                objective=arm,
                keep_fraction_from=source,
                global_batch_size=16,
                micro_batch_size=16,
                lr=arguments.lr,
                warmup_steps=arguments.steps // 10,
                seed=seed,
                dtype="float32",
                eval_store=str(work / "held_out-store"),
                eval_every=arguments.steps // 2,
            )
        )
        shutil.rmtree(out / "checkpoints")
        (out / "done").touch()
    evaluations = [json.loads(line) for line in (out / "eval.jsonl").read_text().splitlines()]
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    bits = [line["nats_per_byte"] / math.log(2) for line in evaluations]
    return {
        "arm": arm,
        "seed": seed,
        "bits_per_byte": round(bits[-1], 5),
        "at_half_the_steps": round(bits[1], 5),
        "accuracy": round(evaluations[-1]["accuracy"], 5),
        "keep_fraction": round(float(np.mean([line["keep_fraction"] for line in steps])), 4),
    }


def differences(runs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each arm less xent with the same seed: mean, and its 95 % interval over the seeds."""
    values = {arm: {r["seed"]: r["bits_per_byte"] for r in runs if r["arm"] == arm} for arm in ARMS}
    for arm in ARMS[1:]:
        seeds = sorted(values[arm].keys() & values["xent"].keys())
        differ = np.array([values[arm][seed] - values["xent"][seed] for seed in seeds])
        half = stats.t.ppf(0.975, len(differ) - 1) * stats.sem(differ)
        yield {
            "arm": f"{arm} less xent",
            "seed": f"{len(seeds)} seeds",
            "bits_per_byte": round(float(differ.mean()), 5),
            "low": round(float(differ.mean() - half), 5),
            "high": round(float(differ.mean() + half), 5),
        }


def main() -> None:
    """Run every arm and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--examples", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=80)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--notes", default="")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for data in split_data(arguments.data, arguments.work, arguments.examples, arguments.held_out):
        capture(arguments.teacher, data, data.with_name(f"{data.stem}-store"))
    runs: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        runs += [run_one(arguments, arm, seed) for arm in ARMS]
        print(*runs[-len(ARMS) :], sep="\n", flush=True)
        table = [*runs, *(differences(runs) if seed else ())]
        write_table("other_tokenizer", table, setting(arguments.notes))


if __name__ == "__main__":
    main()

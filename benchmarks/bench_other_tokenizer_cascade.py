"""Cascades of students with another tokenizer than their teacher, by objective.

    python benchmarks/bench_other_tokenizer_cascade.py --work DIR

The tasks, the label noise and the teacher are those of `caskd demo`; the teacher reads characters,
the students have a byte-level tokenizer that is made from the training text. For each seed and
objective the commands train, export and predict run once, and eval measures all cascades together.
Every arm of a seed starts from the same weights; random-xent keeps as many spans as cat-alm does
with that seed. DIR keeps everything, and what is there already is not repeated. Writes
benchmarks/results/other_tokenizer_cascade.csv: one line for each run, and one for each difference
between two arms with its two 95 % intervals: the bootstrap over examples and seeds, and Student's t
over seeds.
"""

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from store_rows import setting, write_table
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from caskd.cli.demo.demo_models import TEACHER, tiny_llama
from caskd.cli.demo.demo_tasks import write_corpus
from caskd.cli.main import run_command

ARMS = {
    "xent": ("xent",),
    "alm": ("alm",),
    "cat-alm": ("cat-alm",),
    "random-xent": ("random-xent",),
    "cat-xent": ("cat-xent",),
    "cat-alm-1to1": ("cat-alm", "--match", "bytes-1to1"),
}
"""Arm -> its objective and further options of caskd train."""
PAIRS = [(arm, "xent") for arm in ARMS if arm != "xent"] + [
    ("cat-alm", "random-xent"), ("cat-alm", "cat-xent"), ("cat-alm-1to1", "cat-alm"),
]  # fmt: skip
WORDS = r" ?[A-Za-z]+| ?[0-9]{1,2}|."
"""Tokens never cross these borders: up to two digits, or one word."""


def call(command: str, *words: str) -> None:
    """Run a caskd command, which must succeed."""
    print("$ caskd", command, *words, flush=True)
    assert run_command(command, words) == 0


def make_student(folder: Path, text: Path, seed: int) -> None:
    """A random model of the demo's size, with a byte-level tokenizer made from the text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    core.decoder = decoders.ByteLevel()
    records = [json.loads(line) for line in text.read_text().splitlines()]
    core.train_from_iterator(
        [record[name] for record in records for name in ("prompt", "response")],
        trainers.BpeTrainer(
            vocab_size=512, special_tokens=["<pad>", "<bos>", "<eos>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    config = tiny_llama(hidden_size=64, num_layers=2)
    config.vocab_size = len(tokenizer)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prepare(work: Path, num_train: int, num_test: int) -> None:
    """Write the tasks, capture the teacher on both parts, and let it answer the test questions."""
    if not (work / "teacher.parquet").exists():
        work.mkdir(parents=True, exist_ok=True)
        write_corpus(work / "train.jsonl", 0, "train", num_train, 0.15)
        write_corpus(work / "test.jsonl", 0, "test", num_test)
        for part in ("train", "test"):
            call(
                "precompute", "--teacher", str(TEACHER), "--data", str(work / f"{part}.jsonl"),
                "--store", str(work / f"{part}-store"), "--top-k", "16", "--dtype", "float32",
            )  # fmt: skip
        predict(work, TEACHER, "teacher")


def predict(work: Path, model: Path, name: str) -> None:
    """Answer the test questions."""
    call(
        "predict", "--model", str(model), "--data", str(work / "test.jsonl"),
        "--out", str(work / f"{name}.parquet"), "--max-new-tokens", "24", "--batch-size", "128",
        "--dtype", "float32",
    )  # fmt: skip


def run_one(work: Path, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train, export and predict; return the figures of the training."""
    run, name = work / f"run-{arm}-{seed}", f"{arm}-{seed}"
    if not (work / f"{name}.parquet").exists():
        for folder in (run, work / name):
            shutil.rmtree(folder, ignore_errors=True)
        make_student(work / "student", work / "train.jsonl", seed)
        objective, *options = ARMS[arm]
        if arm.startswith("random"):
            options = ["--keep-fraction-from", str(work / f"run-cat-alm-{seed}")]
        call(
            "train", "--store", str(work / "train-store"), "--student", str(work / "student"),
            "--out", str(run), "--objective", objective, "--steps", str(steps),
            "--global-batch-size", "64", "--micro-batch-size", "64", "--lr", "6e-3",
            "--warmup-steps", str(steps // 6), "--seed", str(seed), "--dtype", "float32",
            "--eval-store", str(work / "test-store"), *options,
        )  # fmt: skip
        call("export", str(run), str(work / name))
        predict(work, work / name, name)
        shutil.rmtree(run / "checkpoints")
        shutil.rmtree(work / name)
    last = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "arm": arm,
        "seed": seed,
        "bits_per_byte": round(last["nats_per_byte"] / math.log(2), 5),
        "keep_fraction": round(float(np.mean([line["keep_fraction"] for line in lines])), 4),
    }


def measure(work: Path, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add each run's quality and area, and the differences between arms."""
    shutil.rmtree(work / "report", ignore_errors=True)
    named = sorted(runs, key=lambda run: (list(ARMS).index(run["arm"]), run["seed"]))
    files = [f"{run['arm']}={work}/{run['arm']}-{run['seed']}.parquet" for run in named]
    call(
        "eval", *(word for file in files for word in ("--small", file)),
        "--large", str(work / "teacher.parquet"), "--rule", "average",
        "--out", str(work / "report"),
    )  # fmt: skip
    summary = json.loads((work / "report" / "summary.json").read_text())
    return add_figures(named, summary)


def add_figures(runs: list[dict[str, Any]], summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the table, from the runs in the order of --small and eval's summary."""
    table = []
    for run, small in zip(runs, summary["smalls"], strict=True):
        figures = small["all"]
        wanted = ("quality_small", "quality_large", "audc", "audc_over_random")
        table.append({**run, **{name: round(figures[name], 5) for name in wanted}})
    for first, second in PAIRS:
        for measure in ("audc", "quality_small", "audc_over_random"):
            table += contrast_line(summary["contrasts"], first, second, measure)
        table += byte_line(runs, first, second)
    return table


def contrast_line(
    contrasts: list[dict[str, Any]], first: str, second: str, measure: str
) -> list[dict[str, Any]]:
    """One figure of an arm less that of another; empty if eval has not compared them."""
    for found in contrasts:
        names = found["first"], found["second"]
        if found["task"] != "all" or found["measure"] != measure or {*names} != {first, second}:
            continue
        sides = {side: found[side] for side in ("low", "high", "seed_low", "seed_high")}
        difference = found["difference"]
        if names != (first, second):
            difference = -difference
            sides = {
                side: None if (value := sides[opposite(side)]) is None else -value for side in sides
            }
        rounded = {k: None if v is None else round(v, 5) for k, v in sides.items()}
        figures = {"measure": measure, "difference": round(difference, 5), **rounded}
        return [{"arm": f"{first} less {second}", "seed": f"{found['num_seeds']} seeds", **figures}]
    return []


def opposite(side: str) -> str:
    """Name of the other end of an interval."""
    return side.replace("low", "high") if "low" in side else side.replace("high", "low")


def byte_line(runs: list[dict[str, Any]], first: str, second: str) -> list[dict[str, Any]]:
    """Bits per byte of an arm less those of another, seed by seed."""
    values = {
        arm: {r["seed"]: r["bits_per_byte"] for r in runs if r["arm"] == arm}
        for arm in (first, second)
    }
    seeds = sorted(values[first].keys() & values[second].keys())
    if len(seeds) < 2:
        return []
    differ = np.array([values[first][seed] - values[second][seed] for seed in seeds])
    half = stats.t.ppf(0.975, len(differ) - 1) * stats.sem(differ)
    figures = {"measure": "bits_per_byte", "difference": round(float(differ.mean()), 5)}
    ends = {"seed_low": differ.mean() - half, "seed_high": differ.mean() + half}
    return [
        {
            "arm": f"{first} less {second}",
            "seed": f"{len(seeds)} seeds",
            **figures,
            **{name: round(float(value), 5) for name, value in ends.items()},
        }
    ]


def main() -> None:
    """Run every arm and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="default: all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--train", type=int, default=16000)
    parser.add_argument("--test", type=int, default=1200)
    parser.add_argument("--notes", default="")
    arguments = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(1)
    prepare(arguments.work, arguments.train, arguments.test)
    runs: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for arm in arguments.arm or ARMS:
            runs.append(run_one(arguments.work, arm, seed, arguments.steps))
            print(runs[-1], flush=True)
    table = measure(arguments.work, runs)
    write_table("other_tokenizer_cascade", table, setting(arguments.notes))


if __name__ == "__main__":
    main()

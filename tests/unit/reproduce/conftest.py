"""Makes the modules of examples/reproduce_cat importable, and a small working folder."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.figures import blank_figures

from caskd.eval.answers import predictions_bytes, table_of
from caskd.eval.config import EvalConfig
from caskd.eval.evaluate import evaluate

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "reproduce_cat"))

COUNT = 120
SKILL = {"xent": 0.9, "random-xent": 0.9, "cat-xent": 1.2, "cat-dist": 1.2, "large": 1.6}
PLAN = {
    "generation": {
        "noisy20-clean-teacher": dict.fromkeys(("xent", "cat-xent", "random-xent"), range(5)),
        "clean": {
            **dict.fromkeys(("xent", "cat-xent", "random-xent"), range(5)),
            **dict.fromkeys(("dist", "cat-dist"), range(3)),
        },
    },
    "classification": {"clean": {"xent": range(5)}},
}
FINISHED = {
    ("noisy20-clean-teacher", "report"): ("xent", "cat-xent", "random-xent"),
    ("clean", "report"): ("xent", "cat-xent", "random-xent"),
    ("clean", "report-rules"): ("cat-xent", "cat-dist"),
}


def write_predictions(path, arm, seed):
    """Predictions of a model that is right on easy questions, with matching confidence."""
    generator = np.random.default_rng([seed, len(arm)])
    hard = np.random.default_rng(99).uniform(size=COUNT)
    right = generator.uniform(size=COUNT) < np.clip(SKILL[arm] - hard, 0.0, 1.0)
    rows = [
        {
            "example_id": f"e{i}", "source_index": i, "prompt_digest": f"p{i}",
            "question_digest": f"q{i}", "task": "sum" if i % 2 else "sort", "text": "x",
            "token_ids": [1, 2], "reference": "x", "quality": float(right[i]),
            "token_logprobs": [float(-hard[i]), float(-generator.uniform())],
            "prompt_tokens": 3, "output_tokens": 2, "seconds": 0.5,
        }
        for i in range(COUNT)
    ]  # fmt: skip
    size = 100 if arm == "large" else 10
    header = {
        "model": {"name": arm, "num_parameters": size, "tokenizer_digest": "t"},
        "quality": "exact_match", "decoding": {}, "data_digest": "d",
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(predictions_bytes(table_of(rows), header))


def write_run(folder, arm, seed):
    """A finished run: its predictions and its metrics."""
    write_predictions(folder / "test.parquet", arm, seed)
    (folder / "run").mkdir()
    keep = 1.0 if arm == "xent" else 0.75
    lines = [{"step": step, "keep_fraction": keep, "teacher_accuracy": 0.7}
             for step in range(1, 41)]  # fmt: skip
    (folder / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


@pytest.fixture(scope="session")
def work_folder(tmp_path_factory):
    """A working folder with some finished arms, evaluated by the real `caskd eval`."""
    root = tmp_path_factory.mktemp("work")
    pools = {
        pool: {"conditions": {name: {arm: list(seeds) for arm, seeds in arms.items()}
                              for name, arms in conditions.items()}}
        for pool, conditions in PLAN.items()
    }  # fmt: skip
    (root / "plan.json").write_text(json.dumps({"scale": "cpu", "pools": pools}))
    (root / "run.json").write_text(json.dumps({"hardware": "2 CPU cores"}))
    write_predictions(root / "large.parquet", "large", 0)
    folder = root / "generation"
    for (condition, name), arms in FINISHED.items():
        seeds = {arm: list(PLAN["generation"][condition][arm]) for arm in arms}
        if name == "report-rules":
            seeds = {arm: [0, 1] for arm in arms}
        measure_arms(root, folder / condition, name, seeds)
    job = {"job": "generation/clean/xent-0/run/checkpoints", "seconds": 7.0}
    (root / "seconds.jsonl").write_text(json.dumps(job) + "\n")
    return root


def measure_arms(root, folder, name, seeds):
    """Write the missing runs, and evaluate them with `caskd eval`."""
    smalls = []
    for arm, own in seeds.items():
        for seed in own:
            run = folder / f"{arm}-{seed}"
            if not run.exists():
                write_run(run, arm, seed)
            smalls.append(f"{arm}={run / 'test.parquet'}")
    rule = ("average", "min", "quantile-0.4") if name == "report-rules" else ("average",)
    with blank_figures():
        evaluate(
            EvalConfig(small=tuple(smalls), large=str(root / "large.parquet"), rule=rule,
                       out=str(folder / name))
        )  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps({"arms": seeds}))

"""Predictions files made by hand."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caskd.eval.answers import digest, predictions_bytes, table_of
from caskd.eval.config import EvalConfig
from caskd.eval.study import analyze


@pytest.fixture
def predictions_file(tmp_path):
    """Write a predictions file; what is not given is the same in every file."""

    def write(
        name, qualities, *, model="model", parameters=10, order=None, metadata=None, **columns
    ):
        count = len(qualities)
        generator = np.random.default_rng(len(name))
        rows = [
            {
                "example_id": f"e{i}",
                "source_index": i,
                "prompt_digest": f"p{i}",
                "question_digest": f"q{i}",
                "task": "sum" if i % 2 else "sort",
                "text": "x",
                "token_ids": [1, 2],
                "token_logprobs": generator.uniform(-3, 0, 2).astype(np.float32).tolist(),
                "reference": "x",
                "quality": float(qualities[i]),
                "prompt_tokens": 3 + i,
                "output_tokens": 2,
                "seconds": 0.5,
                **{key: values[i] for key, values in columns.items()},
            }
            for i in (range(count) if order is None else order)
        ]
        header = {
            "model": {"name": model, "num_parameters": parameters, "tokenizer_digest": "t"},
            "quality": "exact_match",
            "decoding": {},
            "data_digest": "d",
            **(metadata or {}),
        }
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(predictions_bytes(table_of(rows), header))
        return str(path)

    return write


@pytest.fixture
def compare_arms(predictions_file, tmp_path):
    """Compare arms as `caskd eval` does.

    Takes for each arm its seeds, each with a score [E] and the small model's quality [E], and the
    large model's quality [E]; returns the contrasts of the areas.
    """

    def compare(arms, large):
        small = [
            f"{arm}={predictions_file(f'{arm}-{seed}', quality, token_logprobs=_below_zero(score))}"
            for arm, seeds in arms.items()
            for seed, (score, quality) in enumerate(seeds)
        ]
        config = EvalConfig(
            small=tuple(small), large=predictions_file("large", large), rule=("average",),
            out=str(tmp_path / "report"),
        )  # fmt: skip
        return analyze(config).comparisons.between_arms

    return compare


def _below_zero(score):
    """Log-probabilities whose rule `average` orders the answers as this score does."""
    return (score.min() - score - 0.1)[:, None]


@pytest.fixture
def study(predictions_file):
    """Files of a study in which everything is there to be found.

    Prompts say how hard they are; the small model's log-probabilities, margins, entropies and
    hidden states say it too; it is right where the prompt is easy, the large one nearly always.
    """

    def write(name, *, skill=1.0, parameters=10, seed=0, count=240, first=0, model=None):
        generator = np.random.default_rng([seed, count, first])
        hard = np.random.default_rng([99, first]).uniform(size=count)
        right = generator.uniform(size=count) < np.clip(1.2 * skill - hard, 0.0, 1.0)
        lengths = generator.integers(1, 6, count)
        unsure = hard[:, None] * generator.uniform(0.5, 1.5, (count, 6))
        tokens = [row[:length] for row, length in zip(unsure, lengths, strict=True)]
        number = range(first, first + count)
        file = predictions_file(
            name, right, model=model or name, parameters=parameters,
            example_id=[f"e{i}" for i in number],
            question_digest=[digest(prompt(i, hard[i - first]).encode()) for i in number],
            token_ids=[[1] * length for length in lengths],
            token_logprobs=[(-row).tolist() for row in tokens],
            output_tokens=lengths.tolist(),
            text=["a b c d e" if one else "a c b e d" for one in right],
            reference=["a b c d e"] * count,
        )  # fmt: skip
        extra = {
            "token_margins": [(2.0 - row).tolist() for row in tokens],
            "token_entropies": [row.tolist() for row in tokens],
            "option_logprobs": [np.log([0.9 - 0.6 * h, 0.1 + 0.6 * h]).tolist() for h in hard],
            "hidden": [[h, *generator.normal(size=3)] for h in hard],
        }
        table = pq.read_table(file)
        for column, values in extra.items():
            table = table.append_column(column, pa.array(values, pa.list_(pa.float32())))
        pq.write_table(table, file)
        return file

    return write


def prompt(number, hard):
    """The question of an example of the study."""
    return f"{'hard' if hard > 0.5 else 'easy'} question {number}"

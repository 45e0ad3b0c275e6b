"""Predictions files made by hand."""

import numpy as np
import pytest

from caskd.eval.predictions import write_predictions


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
        write_predictions(path, rows, header)
        return str(path)

    return write

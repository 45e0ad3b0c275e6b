"""How far captures and answers of two backends, or of two dtypes, are apart.

    caskd precompute --backend vllm --dtype bfloat16 ... --store A
    caskd precompute --dtype bfloat16 ... --store B
    python benchmarks/bench_engine_rounding.py --stores A B --stores A C --answers X Y

The stores of a pair hold one corpus with one k; the two files are predictions of one request.
Appends to benchmarks/results/engine_rounding.csv: of rows, the shares with one argmax and with one
set of k ids, and the distances of the label's log-probability in nats and of the tail mass; of
answers, the share of equal texts and the distances of their tokens' log-probabilities.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from store_rows import RESULTS, setting, write_table

from caskd.eval.answers import read_predictions
from caskd.store import TeacherStore

NAME = "engine_rounding"


def described(store: TeacherStore) -> str:
    """Backend, dtype and devices of a capture."""
    capture = store.spec.identity["capture"]
    words = [capture.get("engine", "transformers"), capture["load_dtype"]]
    if capture["quantization"]:
        words.append(f"{capture['quantization']['method']} {capture['quantization']['bits']} bits")
    if capture.get("tensor_parallel", 1) > 1:
        words.append(f"{capture['tensor_parallel']} devices")
    return ", ".join(words)


def of_rows(folders: list[str]) -> dict[str, Any]:
    """Distances of the rows of two stores."""
    stores = [TeacherStore.open(folder) for folder in folders]
    a, b = (store.read(range(len(store))) for store in stores)
    assert np.array_equal(a.labels, b.labels)
    label = np.abs(
        (a.column("label_logit") - a.column("logsumexp"))
        - (b.column("label_logit") - b.column("logsumexp"))
    )
    tail = np.abs(a.column("tail_mass") - b.column("tail_mass"))
    pairs = zip(a.column("topk_ids"), b.column("topk_ids"), strict=True)
    shared = [len(set(own.tolist()) & set(other.tolist())) / len(own) for own, other in pairs]
    return {
        "what": "rows",
        "first": described(stores[0]),
        "second": described(stores[1]),
        "model": stores[0].spec.identity["teacher"]["name"],
        "count": len(a.labels),
        "argmax_or_text_equal": round(float((a.column("argmax") == b.column("argmax")).mean()), 4),
        "ids_shared": round(float(np.mean(shared)), 4),
        "logprob_median": f"{np.median(label):.2g}",
        "logprob_max": f"{label.max():.2g}",
        "tail_max": f"{tail.max():.2g}",
    }


def of_answers(files: list[str]) -> dict[str, Any]:
    """Distances of two files of answers; those of log-probabilities where the texts are equal."""
    found = [read_predictions(file) for file in files]
    a, b = (predictions.columns.to_pylist() for predictions in found)
    same = [(x, y) for x, y in zip(a, b, strict=True) if x["text"] == y["text"]]
    apart = [
        np.abs(np.subtract(x["token_logprobs"], y["token_logprobs"]))
        for x, y in same
        if x["token_logprobs"]
    ]
    values = np.concatenate(apart)
    names = []
    for predictions in found:
        model = predictions.metadata["model"]
        words = [model.get("engine", "transformers"), model["dtype"]]
        if model.get("tensor_parallel", 1) > 1:
            words.append(f"{model['tensor_parallel']} devices")
        names.append(", ".join(words))
    return {
        "what": "answers",
        "first": names[0],
        "second": names[1],
        "model": Path(found[0].metadata["model"]["name"]).name,
        "count": len(a),
        "argmax_or_text_equal": round(len(same) / len(a), 4),
        "logprob_median": f"{np.median(values):.2g}",
        "logprob_max": f"{values.max():.2g}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", nargs=2, action="append", default=[])
    parser.add_argument("--answers", nargs=2, action="append", default=[])
    parser.add_argument("--notes", default="")
    options = parser.parse_args()
    table = [*map(of_rows, options.stores), *map(of_answers, options.answers)]
    facts = setting(options.notes)
    file = RESULTS / f"{NAME}.csv"
    earlier = list(csv.DictReader(file.open())) if file.exists() else []
    write_table(NAME, [*earlier, *({**row, **facts} for row in table)], {})


if __name__ == "__main__":
    main()

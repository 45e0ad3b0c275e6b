"""examples/long_outcomes.py: wide public tables become the rows of `caskd eval --outcomes`."""

import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from caskd.eval.outcomes import read_table

SCRIPT = Path(__file__).resolve().parents[3] / "examples" / "long_outcomes.py"


def convert(*files, out):
    spec = importlib.util.spec_from_file_location("long_outcomes", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main([*map(str, files), "--out", str(out)])
    return read_table((str(out),), ("weak",), "strong", None)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_router_bench(tmp_path, suffix):
    wide = pa.table(
        {
            "sample_id": ["mmlu.0", "mmlu.1", "gsm.0"],
            "eval_name": ["mmlu", "mmlu", "gsm"],
            "prompt": ["a", "b", "c"],
            "weak": [0.0, 1.0, 0.5],
            "strong": [1.0, 1.0, 0.25],
            "weak|model_response": ["x", "x", "x"],
            "weak|total_cost": [1.0, 2.0, 3.0],
            "strong|total_cost": [10.0, 20.0, 30.0],
            "oracle_model_to_route_to": ["strong", "weak", "weak"],
        }
    )
    path = tmp_path / f"wide{suffix}"
    (pc.write_csv if suffix == ".csv" else pq.write_table)(wide, path)
    table = convert(path, out=tmp_path / "long.parquet")
    weak, strong = table.models["weak"], table.models["strong"]
    assert weak.strings("example_id") == ["mmlu.0", "mmlu.1", "gsm.0"]
    assert weak.strings("task") == ["mmlu", "mmlu", "gsm"]
    assert weak.numbers("quality").tolist() == [0.0, 1.0, 0.5]
    assert strong.numbers("cost").tolist() == [10.0, 20.0, 30.0]


def test_llm_router_bench(tmp_path):
    def write(name, model, scores, **changes):
        records = [
            {"index": i + 1, "prompt": "p", "prompt_tokens": 7, "completion_tokens": i,
             "cost": 0.5, "score": score}
            for i, score in enumerate(scores)
        ]  # fmt: skip
        run = {"dataset_name": "aime", "split": "test", "model_name": model, "records": records}
        (tmp_path / name).write_text(json.dumps({**run, "demo": False, **changes}))
        return tmp_path / name

    table = convert(
        write("aime-test-weak-20250102_000000.json", "weak", [1.0, 0.0, 1.0]),
        write("aime-test-weak-20250101_000000.json", "weak", [0.0, 1.0, 0.0]),
        write("aime-test-strong-20250101_000000.json", "strong", [1.0, None, 0.0]),
        write("aime-test-strong-20250103_000000.json", "strong", [0.0] * 3, demo=True),
        out=tmp_path / "long.parquet",
    )
    assert table.models["weak"].strings("example_id") == ["aime-test-1", "aime-test-3"]
    assert table.models["weak"].numbers("quality").tolist() == [1.0, 1.0]
    assert table.models["strong"].numbers("quality").tolist() == [1.0, 0.0]
    assert table.num_incomplete == 1


def test_other_files_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"expected \.csv"):
        convert(tmp_path / "x.pkl", out=tmp_path / "long.parquet")

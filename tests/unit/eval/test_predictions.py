"""The predictions file: what is written is read, and nothing else passes for one."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caskd.eval.answers import read_predictions
from caskd.eval.curves.cost import flops
from caskd.store.errors import UsageError


def test_round_trip(predictions_file):
    file = predictions_file("a", [1, 0, 1], token_logprobs=[[-1.0], [-2.0, -3.0], [-0.5]])
    read = read_predictions(file)
    assert len(read) == 3
    assert read.source == "a.parquet"
    assert read.num_parameters == 10
    assert read.strings("example_id") == ["e0", "e1", "e2"]
    assert read.numbers("quality").tolist() == [1.0, 0.0, 1.0]
    assert read.columns.column("token_logprobs").to_pylist() == [[-1.0], [-2.0, -3.0], [-0.5]]


def test_log_probabilities_follow_their_example(predictions_file):
    read = read_predictions(predictions_file("a", [1, 0], token_logprobs=[[-1.0], [-2.0, -3.0]]))
    swapped = read.take([1, 0])
    assert swapped.columns.column("token_logprobs").to_pylist() == [[-2.0, -3.0], [-1.0]]


def write_text(path):
    path.write_text("not a table")


def write_plain_table(path):
    pq.write_table(pa.table({"a": [1]}), path)


def write_foreign_metadata(path):
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"caskd": "[1]"}), path)


@pytest.mark.parametrize("write", [write_text, write_plain_table, write_foreign_metadata])
def test_other_files_are_refused(tmp_path, write):
    write(tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="expected a predictions file"):
        read_predictions(str(tmp_path / "x.parquet"))


def test_a_missing_file_says_how_to_write_it(tmp_path):
    with pytest.raises(UsageError, match=r"does not exist; .*caskd predict"):
        read_predictions(str(tmp_path / "no.parquet"))


def test_an_empty_file_is_refused(predictions_file):
    with pytest.raises(UsageError, match="holds no example"):
        read_predictions(predictions_file("a", []))


def test_an_example_that_is_there_twice_is_refused(predictions_file):
    file = predictions_file("a", [1, 1, 0], example_id=["x", "y", "x"])
    with pytest.raises(UsageError, match="duplicate example id 'x'"):
        read_predictions(file)


def test_a_missing_value_is_refused(predictions_file):
    with pytest.raises(UsageError, match="values are missing"):
        read_predictions(predictions_file("a", [1, 0], reference=["x", None]))


def test_a_later_version_is_refused(predictions_file):
    with pytest.raises(UsageError, match="version is 2; expected 1"):
        read_predictions(predictions_file("a", [1], metadata={"version": 2}))


def test_a_missing_column_is_refused(tmp_path, predictions_file):
    table = pq.read_table(predictions_file("a", [1])).drop_columns(["quality"])
    pq.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(UsageError, match="columns are missing"):
        read_predictions(str(tmp_path / "b.parquet"))


def test_a_mixture_costs_what_a_token_uses(predictions_file):
    model = {"name": "m", "num_parameters": 100, "num_active_parameters": 30}
    read = read_predictions(predictions_file("a", [1, 0], metadata={"model": model}))
    assert (read.num_parameters, read.num_active_parameters) == (100, 30)
    prompt, answer = flops(read)
    assert (prompt[0], answer[0]) == (60 * 3, 60 * 2)
    unknown = {**model, "num_active_parameters": None}
    read = read_predictions(predictions_file("b", [1, 0], metadata={"model": unknown}))
    assert read.num_active_parameters == 100


@pytest.mark.parametrize("active", [-5, 0, True, 101, "30", 2.5])
def test_nonsense_active_parameters_are_refused(predictions_file, active):
    model = {"name": "m", "num_parameters": 100, "num_active_parameters": active}
    with pytest.raises(UsageError, match="num_active_parameters"):
        read_predictions(predictions_file("a", [1, 0], metadata={"model": model}))

"""Outcome tables, files and flags that are refused in one line."""

import pytest
from helpers.outcome_tables import measure, rows

from caskd.store.errors import UsageError


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"quality": "nan"}, ("quality", "nan")),
        ({"quality": ""}, ("quality", "finite number")),
        ({"quality": "good"}, ("quality", "good")),
        ({"quality": "inf"}, ("quality", "inf")),
        ({"quality": "-1e308"}, ("quality", "-1e308", "1e+100")),
        ({"cost": "1e308"}, ("cost", "1e308", "1e+100")),
        ({"score": "nan"}, ("score", "nan")),
        ({"cost": "-1"}, ("cost", "-1")),
        ({"cost": ""}, ("cost", "tiny", "40")),
        ({"example_id": ""}, ("example_id",)),
        ({"example_id": "q" * 5000}, ("example_id", "5,000", "4,096")),
        ({"model": "other"}, ("tiny", "big", "other")),
        ({"task": "third"}, ("q0", "even", "third")),
        ({"confidence": 0.5}, ("score and confidence",)),
    ],
)
def test_odd_tables_are_refused(tmp_path, changes, facts):
    table = rows(**changes)
    if "confidence" in changes:
        table = [{**row, "confidence": 0.5} for row in table]
    with pytest.raises(UsageError) as caught:
        measure(tmp_path, table)
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_of_too_many_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("caskd.eval.outcomes.tables.MOST_ROWS", 79)
    with pytest.raises(UsageError, match="79 rows"):
        measure(tmp_path, rows())


def test_a_score_that_one_row_lacks_is_named(tmp_path):
    table = rows()
    table[3]["score"] = ""
    with pytest.raises(UsageError, match=r"q3.*tiny.*no score.*1 such"):
        measure(tmp_path, table)


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("t.pkl", b"\x80\x04.", ("pickle",)),
        ("t.txt", b"x", (".txt", ".parquet")),
        ("missing.csv", None, ("--outcomes", "no such file")),
        ("t.csv", b"example_id,model,quality,quality\nq,tiny,1,1\n", ("quality", "twice")),
        ("t.csv", b"id,tiny\nq,1\n", ("example_id", "quality", "long_outcomes")),
        ("t.csv", b"example_id,model,quality\n", ("--outcomes", "no records")),
        ("t.parquet", b"PAR1 no", ("Parquet",)),
        ("t.jsonl", b"\x80\x04.\n", ("t.jsonl",)),
    ],
)
def test_odd_files_are_refused(tmp_path, name, content, facts):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        measure(tmp_path, (str(tmp_path / name),))
    assert "--data" not in str(caught.value)
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"rule": ("average",)},
        {"bleu": "13a"},
        {"task_metric": ("chrf",)},
        {"token_cascade": ("x.parquet",)},
        {"data": ("d.jsonl",)},
        {"small": ("tiny", "tiny")},
        {"small": ("big",)},
        {"large": ""},
    ],
)
def test_flags_that_need_answers_are_refused(tmp_path, options):
    with pytest.raises(UsageError):
        measure(tmp_path, rows(), **options)

"""Names of what is compared."""

import pytest

from caskd.eval.answers import read_runs, seeds_of, split_name
from caskd.store.errors import UsageError


def test_a_name_and_a_file(tmp_path, monkeypatch):
    assert split_name("cat=a.parquet") == ("cat", "a.parquet")
    assert split_name("a.parquet") == (None, "a.parquet")
    assert split_name("=a.parquet") == (None, "=a.parquet")
    assert split_name("lr=3=a.parquet") == ("lr", "3=a.parquet")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3.parquet").write_text("")
    assert split_name("lr=3.parquet") == (None, "lr=3.parquet")  # a file of that name is there


def test_seeds_of_an_arm_may_stand_anywhere(predictions_file):
    files = [predictions_file(name, [1, 0], model="m") for name in ("a", "b", "c", "d")]
    runs = read_runs([f"cat={files[0]}", f"xent={files[1]}", f"cat={files[2]}", files[3]])
    assert [run.arm for run in runs] == ["cat", "xent", "cat", "m (d)"]
    assert [run.label for run in runs] == ["cat seed 0", "xent", "cat seed 1", "m (d)"]
    assert [run.predictions.source[0] for run in runs] == ["a", "b", "c", "d"]
    assert seeds_of([run.arm for run in runs]) == {"cat": [0, 2], "xent": [1], "m (d)": [3]}


def test_the_same_file_twice_is_no_second_seed(predictions_file):
    file = predictions_file("a", [1, 0], model="m")
    assert [run.arm for run in read_runs([file, file])] == ["m (a) #1", "m (a) #2"]


def test_a_named_file_that_is_missing():
    with pytest.raises(UsageError, match=r"no/cat\.parquet: does not exist"):
        read_runs(["cat=no/cat.parquet"])

"""A folder in the place of another kind is named, with the command that takes it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caskd.cli.main import main
from caskd.store.errors import UsageError
from caskd.store.io import is_predictions, refuse_mixup, refuse_occupied
from caskd.store.io.mixups import kind_of

FOLDERS = {
    "store": ["store.json", "config.json"],
    "run": ["config.json", "metrics.jsonl", "checkpoints"],
    "checkpoint": ["state.json", "weights", "COMPLETE"],
    "adapter": ["adapter_config.json", "adapter_model.safetensors"],
    "report": ["index.html", "summary.json", "curve.csv"],
    "parts": ["request.json"],
    "model": ["config.json", "model.safetensors"],
}


@pytest.fixture
def folders(tmp_path):
    for kind, names in FOLDERS.items():
        (tmp_path / kind).mkdir()
        for name in names:
            (tmp_path / kind / name).touch()
    return tmp_path


def test_every_kind_is_recognised_and_refused_for_every_other(folders):
    for kind in FOLDERS:
        assert kind_of(folders / kind) == kind
        for wanted in FOLDERS:
            if wanted == kind:
                refuse_mixup(folders / kind, "--x", wanted)
                continue
            with pytest.raises(UsageError, match=r"^--x: is .*; expected .*; \w"):
                refuse_mixup(folders / kind, "--x", wanted)


def test_what_is_unknown_is_left_to_others(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "config.json").touch()
    for name in ("none", "new", "killed"):
        refuse_mixup(tmp_path / name, "--x", "store")


def test_a_predictions_file_is_no_data(tmp_path, capsys):
    file = tmp_path / "a.parquet"
    table = pa.table({"prompt": ["a"], "response": ["b"]})
    pq.write_table(table, file)
    assert not is_predictions(file)
    header = {"caskd": json.dumps({"format": "caskd-predictions"})}
    pq.write_table(table.replace_schema_metadata(header), file)
    assert is_predictions(file)
    words = ["plan", "--teacher", str(tmp_path), "--store", str(tmp_path / "s")]
    assert main([*words, "--data", str(file)]) == 2
    assert "is a predictions file of caskd predict; expected a data file" in capsys.readouterr().err


def test_a_run_does_not_start_in_a_store(folders):
    refuse_occupied(folders / "run", "--out", reused="run")
    with pytest.raises(UsageError, match="is a teacher store; expected a new or empty folder"):
        refuse_occupied(folders / "store", "--out", reused="run")


def test_store_commands_name_the_kind(folders, capsys):
    for words in (["info"], ["verify"], ["repair"], ["ls"]):
        assert main(["store", *words, str(folders / "run")]) == 2
        assert "is a training run" in capsys.readouterr().err

"""A damaged or refused store: the line ends with what to do."""

import pickle

import pytest
from helpers import stores

from caskd.cli.main import main
from caskd.store.errors import CorruptError, UnsafeError, UsageError, error_line


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (CorruptError("a/seal.json: not a seal"), "caskd store verify"),
        (UnsafeError("a/store.json: not valid JSON"), "copy it again"),
    ],
)
def test_a_line_without_a_step_gets_that_of_its_kind(error, step):
    assert error_line(error).startswith(f"{error}; ")
    assert step in error_line(error)


def test_a_line_with_a_step_stays():
    assert error_line(UsageError("--x 1: expected 2")) == "--x 1: expected 2"
    own = CorruptError("a: is missing", cure="restore it")
    assert error_line(own) == str(own) == "a: is missing; restore it"


@pytest.mark.parametrize("name", ["teacher, use A/seal.json", "a: train/seal.json", "a; run b"])
def test_words_of_a_name_are_no_step(name):
    assert "caskd store verify" in error_line(CorruptError(f"{name}: not a seal"))


def test_an_error_keeps_its_step_between_processes():
    error = pickle.loads(pickle.dumps(CorruptError("a: is missing", cure="restore it")))
    assert error_line(error) == "a: is missing; restore it"


def test_the_command_line_shows_it(tmp_path, capsys):
    stores.make_store(tmp_path / "s")
    (tmp_path / "s" / "seal.json").write_text("{}")
    assert main(["store", "info", str(tmp_path / "s")]) == 1
    said = capsys.readouterr().err
    assert "seal.json" in said
    assert "caskd store verify" in said
    assert said.count("\n") == 1

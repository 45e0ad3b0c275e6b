"""A damaged or refused store: the line ends with what to do."""

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
    for error in (CorruptError("a: arrived damaged. Remove it"), UsageError("--x 1: expected 2")):
        assert error_line(error) == str(error)
    own = CorruptError("a: is missing; restore it")
    assert error_line(own) == str(own)


def test_the_command_line_shows_it(tmp_path, capsys):
    stores.make_store(tmp_path / "s")
    (tmp_path / "s" / "seal.json").write_text("{}")
    assert main(["store", "info", str(tmp_path / "s")]) == 1
    said = capsys.readouterr().err
    assert "seal.json" in said
    assert "caskd store verify" in said
    assert said.count("\n") == 1

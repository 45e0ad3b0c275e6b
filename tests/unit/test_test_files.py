"""What holds for the files of the tests themselves."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by their bare names, so that one of two of a name is not collected."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))

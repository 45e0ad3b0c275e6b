"""Rules that hold wherever the product reads or prints what a stranger wrote."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("cli", "eval", "models", "precompute", "store", "train")
OWN_JSON = {
    "store/io/strange_files.py": "the one reader",
    "store/corpus/files.py": "records: columns that nobody reads may hold NaN, or a key twice",
    "store/corpus/vocabulary.py": "written by the tokenizer in memory",
    "store/write/planner.py": "written by itself",
    "store/commits/file_parts.py": "written by itself",
    "eval/curves/cost.py": "TOML",
    "cli/config_file.py": "TOML",
}
"""Modules that parse without `caskd.store.io`, and why."""


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """File, name and node of every call in the product."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield path.relative_to(ROOT).as_posix(), ast.unparse(node.func), node


def test_json_has_one_reader() -> None:
    parsers = ("json.load", "json.loads", "tomllib.load", "tomllib.loads")
    assert {file for file, name, _ in calls() if name in parsers} == OWN_JSON.keys()


def test_lines_are_printed_by_one_function() -> None:
    # The last line of a process, when its streams may be gone, has a printer of its own.
    printers = {"cli/streams.py", "store/io/console.py"}
    assert {file for file, name, _ in calls() if name == "print"} == printers


def test_nothing_is_unpickled_and_tables_are_read_in_bounded_batches() -> None:
    refused = ("torch.load", "pickle.load", "pickle.loads", "pq.read_table", "to_pandas")
    assert not [(file, name) for file, name, _ in calls() if name in refused]

"""Fixtures of several integration tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import tiny_tokenizer, write_jsonl

from caskd.cli.main import main


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., int]:
    """Run `caskd import dataset tmp_path/rows.jsonl` into tmp_path/store."""
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def call(records: list[dict[str, Any]], *flags: str) -> int:
        write_jsonl(tmp_path / "rows.jsonl", records)
        words = ["import", "dataset", str(tmp_path / "rows.jsonl"), "--teacher-name", "T"]
        where = ["--tokenizer", str(tmp_path / "tokenizer"), "--store", str(tmp_path / "store")]
        return main([*words, *where, *flags])

    return call

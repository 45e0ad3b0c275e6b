"""Repeated flags are merged, and the rest of a command line does not change."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caskd.cli.arguments import merge_repeated, multi_value_flags

FLAGS = frozenset({"--small", "--data-files"})


@dataclass
class Config:
    small: tuple[str, ...]
    data_files: list[str] | None = None
    out: str = ""
    steps: int = 1


def test_multi_value_flags_are_the_sequences() -> None:
    assert multi_value_flags(Config) == FLAGS


@pytest.mark.parametrize(
    ("typed", "merged"),
    [
        ("--small A --small B", "--small A B"),
        ("--small A B", "--small A B"),
        ("--small A --out o --small B", "--small A B --out o"),
        ("--small=A --small=B", "--small A B"),
        ("--small A B --small C --out o", "--small A B C --out o"),
        ("--data_files A --data-files B", "--data-files A B"),
        ("--steps 1 --steps 2", "--steps 1 --steps 2"),
        ("--small A --resume --small B --lr -1", "--small A B --resume --lr -1"),
        ("run.ckpt out", "run.ckpt out"),
        ("--small A -- --small B", "--small A -- --small B"),
        ("", ""),
    ],
)
def test_merge(typed: str, merged: str) -> None:
    assert merge_repeated(typed.split(), FLAGS) == merged.split()


words = st.lists(st.sampled_from(["--small", "--data-files", "--out", "--resume", "a", "b", "-1"]))


@given(words)
def test_merging_twice_changes_nothing(typed: list[str]) -> None:
    once = merge_repeated(typed, FLAGS)
    assert merge_repeated(once, FLAGS) == once


@given(words)
def test_no_value_is_lost_or_made_up(typed: list[str]) -> None:
    merged = merge_repeated(typed, FLAGS)
    assert sorted(set(merged)) == sorted(set(typed))
    for flag in FLAGS:
        assert merged.count(flag) <= 1
    others = [word for word in typed if word not in FLAGS]
    assert sorted(word for word in merged if word not in FLAGS) == sorted(others)

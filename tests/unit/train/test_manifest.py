"""A checkpoint counts only if it is complete and undamaged."""

import os
from pathlib import Path

import pytest

from caskd.store.errors import CorruptError, UnsafeError, UsageError
from caskd.train.checkpoint import (
    checkpoint_path,
    find_checkpoint,
    is_complete,
    newest_complete,
    verify,
)
from caskd.train.checkpoint.manifest import complete


def make(run: Path, step: int, *, whole: bool = True) -> Path:
    checkpoint = checkpoint_path(run, step)
    (checkpoint / "deepspeed").mkdir(parents=True)
    (checkpoint / "deepspeed" / "a.pt").write_bytes(b"weights")
    (checkpoint / "state.json").write_bytes(b"{}")
    if whole:
        complete(checkpoint)
    return checkpoint


def test_a_complete_checkpoint_verifies(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 3)
    assert is_complete(checkpoint)
    verify(checkpoint)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda c: flip(c / "deepspeed" / "a.pt"), "a.pt differs"),
        (lambda c: (c / "state.json").write_bytes(b"{} "), "state.json differs"),
        (lambda c: (c / "state.json").unlink(), "state.json is missing"),
        (lambda c: (c / "evil.pt").write_bytes(b"x"), "evil.pt is not part"),
        (lambda c: (c / "COMPLETE").write_bytes(b"{"), "COMPLETE record is damaged"),
        (lambda c: (c / "COMPLETE").write_bytes(b'{"files": []}'), "COMPLETE record is damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: object, named: str) -> None:
    checkpoint = make(tmp_path, 3)
    damage(checkpoint)  # type: ignore[operator]
    with pytest.raises(CorruptError, match=named):
        verify(checkpoint)


def test_verify_can_look_at_a_part(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 3)
    flip(checkpoint / "deepspeed" / "a.pt")
    verify(checkpoint, only=("state.json",))


def test_the_newest_complete_one_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, 9)
    expected = make(tmp_path, 10)
    cut_short = make(tmp_path, 12, whole=False)
    assert newest_complete(tmp_path) == expected
    assert f"{cut_short} is not complete" in capsys.readouterr().err


def test_none_complete_is_a_usage_error(tmp_path: Path) -> None:
    make(tmp_path, 1, whole=False)
    with pytest.raises(UsageError, match="no complete checkpoint"):
        newest_complete(tmp_path)


def test_a_run_or_a_checkpoint_may_be_meant(tmp_path: Path) -> None:
    older, newer = make(tmp_path, 1), make(tmp_path, 2)
    assert find_checkpoint(tmp_path) == newer
    assert find_checkpoint(older) == older
    unfinished = make(tmp_path, 3, whole=False)
    with pytest.raises(UsageError, match="unfinished checkpoint"):
        find_checkpoint(unfinished)
    with pytest.raises(UsageError, match="no such directory"):
        find_checkpoint(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="found neither"):
        find_checkpoint(tmp_path / "other")


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_checkpoint_holds_no_link_out_of_it_and_no_pipe(kind: str, tmp_path: Path) -> None:
    checkpoint, secret = tmp_path / "step-00000001", tmp_path / "secret"
    checkpoint.mkdir()
    (checkpoint / "a").write_text("a")
    complete(checkpoint)
    secret.write_text("s")
    if kind == "link":
        (checkpoint / "b").symlink_to(secret)
    else:
        os.mkfifo(checkpoint / "b")
    with pytest.raises(UnsafeError, match="b is a link out of the checkpoint"):
        verify(checkpoint)

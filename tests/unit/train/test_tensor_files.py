"""Tensors in several files: written once, read one by one; damage is a one-line error."""

from pathlib import Path

import pytest
import torch

from caskd.store.errors import CorruptError
from caskd.train.checkpoint.tensor_files import SavedTensors, write_tensors

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b/c": torch.tensor(3.5),
    "d": torch.ones(4, 3, dtype=torch.bfloat16).T,
}


@pytest.mark.parametrize(("piece_bytes", "num_files"), [(1, 3), (25, 2), (10**6, 1)])
def test_what_is_written_is_read(tmp_path: Path, piece_bytes: int, num_files: int) -> None:
    write_tensors(tmp_path / "w", TENSORS.items(), piece_bytes)
    saved = SavedTensors(tmp_path / "w")
    assert len(list((tmp_path / "w").iterdir())) == num_files
    assert set(saved) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert saved[name].dtype == tensor.dtype
        assert torch.equal(saved[name], tensor)


def test_nothing_to_write_is_an_empty_directory(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w", ())
    assert (tmp_path / "w").is_dir()
    assert len(SavedTensors(tmp_path / "w")) == 0


def test_a_missing_name_and_a_damaged_file_are_corrupt(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w", TENSORS.items())
    saved = SavedTensors(tmp_path / "w")
    assert "x" not in saved
    with pytest.raises(CorruptError, match="x is missing"):
        saved["x"]
    (tmp_path / "w" / "00000.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CorruptError, match="not a safetensors file"):
        SavedTensors(tmp_path / "w")

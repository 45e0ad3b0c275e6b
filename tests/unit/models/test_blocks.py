"""Blocks of the kernels: safe defaults, measured ones, and a cache file that anybody may damage."""

import json
from pathlib import Path

import pytest
import torch

from caskd.models import kernels
from caskd.models.kernels import Block, block_for, measured, write_measured

CAPABILITIES = [None, (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
DEVICE = torch.device("cpu")
WIDTH = 128_256


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; gives its file of blocks."""
    monkeypatch.setenv("CASKD_CACHE", str(tmp_path / "cache"))
    block_for.cache_clear()
    yield tmp_path / "cache" / "kernel-blocks.json"
    block_for.cache_clear()


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("num_columns", [1, 31, 50, 4096, 5003, 49_152, 248_320])
def test_every_block_fits_the_shared_memory(capability, num_columns: int) -> None:
    limit = kernels.shared_limit(capability)
    default = kernels.default_block(capability, num_columns)
    blocks = kernels.candidates(capability, num_columns)
    assert blocks
    for block in (default, *blocks):
        assert kernels.shared_bytes(block) <= limit
        assert block.columns & (block.columns - 1) == 0
    assert default.columns <= max(1, 2 * num_columns - 1), "no wider than the next power of two"


def test_less_shared_memory_gives_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.default_block((9, 0), WIDTH) == Block(4096, 8)
    assert max(b.columns for b in kernels.candidates((8, 6), WIDTH)) == 8192  # 64 of 99 KiB
    assert max(b.columns for b in kernels.candidates(None, WIDTH)) == 4096  # 64 of 48 KiB: no
    monkeypatch.setattr("caskd.models.kernels.blocks._SHARED_KIB_ANYWHERE", 16)
    assert kernels.default_block(None, WIDTH) == Block(2048, 8)


def test_a_measured_block_is_used_for_its_bucket_only() -> None:
    default, fast = block_for("differentiate", DEVICE, WIDTH), Block(2048, 4)
    assert default != fast
    write_measured({("differentiate", WIDTH): fast}, DEVICE)
    assert block_for("differentiate", DEVICE, WIDTH) == fast
    assert block_for("differentiate", DEVICE, 131_072) == fast
    assert block_for("differentiate", DEVICE, 131_073) == default
    assert block_for("maxima", DEVICE, WIDTH) == default


def test_sums_do_not_depend_on_a_measurement() -> None:
    """Another block adds in another order: a run resumed after a measurement would differ."""
    default = block_for("read", DEVICE, WIDTH)
    write_measured({(name, WIDTH): Block(2048, 4) for name in ("read", "rest")}, DEVICE)
    assert block_for("read", DEVICE, WIDTH) == block_for("rest", DEVICE, WIDTH) == default


@pytest.mark.parametrize("what", ["caskd", "triton"])
def test_another_version_measures_anew(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    write_measured({("maxima", WIDTH): Block(2048, 4)}, DEVICE)
    real = measured.version
    monkeypatch.setattr(measured, "version", lambda name: "9" if name == what else real(name))
    block_for.cache_clear()
    assert block_for("maxima", DEVICE, WIDTH) == Block(4096, 8)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "\xff", '{"a": 1, "a": 2}', "[" * 100_000, "9" * 5_000]
)
def test_a_damaged_file_is_ignored_and_written_anew(cache: Path, text: str) -> None:
    cache.parent.mkdir()
    cache.write_text(text, encoding="latin-1")
    assert block_for("maxima", DEVICE, WIDTH) == Block(4096, 8)
    write_measured({("maxima", WIDTH): Block(1024, 4)}, DEVICE)
    assert block_for("maxima", DEVICE, WIDTH) == Block(1024, 4)


@pytest.mark.parametrize(
    "value",
    [None, 4096, [4096], [3000, 8], [1 << 20, 8], [4096, 7], [True, 8], ["4096", 8], [-1, 8]],
)
def test_an_impossible_block_is_ignored(cache: Path, value: object) -> None:
    write_measured({("maxima", WIDTH): Block(1024, 4)}, DEVICE)
    [key] = json.loads(cache.read_bytes())
    cache.write_text(json.dumps({key: value}))
    block_for.cache_clear()
    assert block_for("maxima", DEVICE, WIDTH) == Block(4096, 8)


def test_a_folder_in_the_files_place_is_ignored(cache: Path) -> None:
    cache.mkdir(parents=True)
    assert block_for("maxima", DEVICE, WIDTH) == Block(4096, 8)


def test_measurements_are_added(cache: Path) -> None:
    write_measured({("maxima", WIDTH): Block(1024, 4)}, DEVICE)
    write_measured({("differentiate", 50): Block(64, 4)}, DEVICE)
    assert len(json.loads(cache.read_bytes())) == 2
    assert all("triton" in key for key in json.loads(cache.read_bytes()))

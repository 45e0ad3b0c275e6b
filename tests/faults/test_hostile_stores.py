"""Hostile stores are refused in one line, quickly, in little memory, and none of them runs code."""

from collections.abc import Iterator
from pathlib import Path

import fault_attacks
import fault_hostile_stores
import fault_jobs
import fault_run_hostile
import pytest


@pytest.fixture(scope="module")
def where() -> Iterator[Path]:
    with fault_jobs.folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def sound(where: Path) -> dict[str, dict[str, bytes]]:
    return fault_attacks.sound_stores(where / "sound-stores")


@pytest.mark.slow
def test_hostile_stores_are_refused(where: Path, sound: dict[str, dict[str, bytes]]) -> None:
    hostile = fault_attacks.hostile_stores(sound)
    assert len(hostile) >= 60
    tally = fault_run_hostile.run_hostile(where / "hostile", hostile, refused=True)
    assert tally.silent == []
    assert tally.count == len(hostile)


@pytest.mark.slow
def test_mutated_stores_do_no_harm(where: Path, sound: dict[str, dict[str, bytes]]) -> None:
    mutants = fault_hostile_stores.mutants(sound, count=300)
    tally = fault_run_hostile.run_hostile(where / "mutants", mutants, refused=False)
    assert tally.silent == []
    assert tally.notes["refused"] > 200


def test_a_sound_store_is_accepted_by_the_same_judge(
    where: Path, sound: dict[str, dict[str, bytes]]
) -> None:
    stores = [
        (name, fault_hostile_stores.HostileStore(dict(files), name))
        for name, files in sound.items()
    ]
    tally = fault_run_hostile.run_hostile(where / "sound", stores, refused=False)
    assert tally.silent == []
    assert tally.notes["accepted"] == len(stores)

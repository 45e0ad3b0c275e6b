"""Large counts of the fault tests: kills, failing disks, power cuts, damage, races, hostile stores.

    python benchmarks/bench_faults.py [--share 1.0]

One row a class: how many cases, how many were silent or wrong (0 is what we ask for), seconds
(classes that run together share theirs equally). Damage to README.md and environment/, which are
outside the seal, counts as a case that verify need not notice.
Exits 1 if any is not 0. Writes results/faults.csv.
"""

import argparse
import csv
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "faults")]

import fault_attacks  # noqa: E402
import fault_damage  # noqa: E402
import fault_disk  # noqa: E402
import fault_hostile_stores  # noqa: E402
import fault_kills  # noqa: E402
import fault_power  # noqa: E402
import fault_races  # noqa: E402
import fault_repair  # noqa: E402
from fault_jobs import Tally, folder  # noqa: E402
from fault_run_hostile import run_hostile  # noqa: E402

SEED = 2026
Found = dict[str, Tally]


def damage(where: Path, share: float) -> Found:
    """Flips, truncations, swapped and stale files, every missing file."""
    counts = {"flips": 10_000, "truncations": 2_000, "swaps": 500}
    scaled = {name: max(1, int(count * share)) for name, count in counts.items()}
    found = fault_damage.damage(where, scaled, SEED)
    return {f"damage: {name}": tally for name, tally in found.items()}


def hostile(where: Path, share: float) -> Found:
    """Hostile stores, and mutated ones."""
    sound = fault_attacks.sound_stores(where / "stores")
    attacks = fault_attacks.hostile_stores(sound)
    mutants = fault_hostile_stores.mutants(sound, int(2_000 * share), SEED)
    return {
        "strangers: hostile": run_hostile(where / "hostile", attacks, refused=True),
        "strangers: mutated": run_hostile(where / "mutants", mutants, refused=False),
    }


def full_disks(where: Path, share: float) -> Found:
    """Disks of many sizes, where mounting is allowed."""
    if not fault_disk.can_mount():
        print("full disks: no user namespace with mounts here, not run")
        return {}
    step = int((4 << 10) / share)
    found = fault_disk.in_namespace([*range(16 << 10, 448 << 10, step)])
    return {"disk full": Tally(int(str(found["count"])), list(found["silent"]))}  # type: ignore[call-overload]


def one(name: str, run: Callable[..., Tally], count: int | None) -> Callable[[Path, float], Found]:
    """A class of one kind of case; `count` None means all there are."""

    def measured(where: Path, share: float) -> Found:
        if count is None and share >= 1:
            return {name: run(where, None, SEED)}
        return {name: run(where, max(1, int((count or 1000) * share)), SEED)}

    return measured


CLASSES: list[Callable[[Path, float], Found]] = [
    one("kills", fault_kills.kill_loop, 500),
    one("disk errors", fault_disk.error_sweep, None),
    full_disks,
    one("power cuts", fault_power.power_cuts, 2_000),
    damage,
    one("repairs", fault_repair.repairs, 1_000),
    one("races: 8 workers", fault_races.schedules, 200),
    one("races: 2 creators", fault_races.creators, 500),
    lambda where, share: {"races: latecomers": fault_races.latecomers(where)},
    hostile,
]


def main() -> int:
    """Run every class and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="part of the counts")
    share = parser.parse_args().share
    rows, wrong = [], 0
    for measure in CLASSES:
        begin = time.monotonic()
        with folder() as where:
            found = measure(where, share)
        seconds = (time.monotonic() - begin) / max(1, len(found))
        for name, tally in found.items():
            rows.append((name, tally.count, len(tally.silent), round(seconds, 1)))
            wrong += len(tally.silent)
            print(*rows[-1], *tally.silent[:5], flush=True)
    setting = (platform.python_version(), version("zarr"), datetime.now(UTC).date().isoformat())
    with (HERE / "results" / "faults.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("class", "cases", "silent", "seconds", "python", "zarr", "date"))
        table.writerows((*row, *setting) for row in rows)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Repair: after damage to any single file, repair and a capture restore the same bytes."""

import random
from pathlib import Path

from fault_damage import OUTSIDE_THE_SEAL, Change, flips, make, missing, swaps, truncations
from fault_jobs import Tally, everything, plan, work

from caskd.store.verify import repair_store, verify_store


def repairs(where: Path, count: int, seed: int = 0) -> Tally:
    """Damage a sealed store in `count` ways, and remove every file once; repair, rerun, compare."""
    tally, rng = Tally(), random.Random(seed)
    path = make(where / "whole", "fitted2")
    stale = everything(make(where / "stale", "fitted2", noise=1e-3))
    wanted = everything(path)
    files = {
        name: data
        for name, data in wanted.items()
        if not name.endswith("/") and not name.startswith(OUTSIDE_THE_SEAL)
    }
    cases = [
        *flips(files, count // 3, rng),
        *truncations(files, count // 3, rng),
        *swaps(files, stale, count // 3, rng),
        *missing(files),
    ]
    for name, change in cases:
        tally.count += 1
        _damage(path, change)
        report = repair_store(path)
        tally.notes[f"{len(report.shards)} shards again"] += 1
        too_many = [n for n in report.removed if not _of_the_same_unit(n, change)]
        if too_many:
            tally.silent.append(f"{name}: removed {too_many[:2]}")
        # A store without its plan names no files until the plan is restored.
        if (path / "store.json").exists() and "commits/plan.json" not in report.removed:
            known = ("not sealed", "missing")
            problems = verify_store(path).problems
            left = [p for p in problems if not any(text in p for text in known)]
            if left:
                tally.silent.append(f"{name}: repair left {left[:2]}")
        plan(path)
        work(path, random.Random(0))
        if everything(path) != wanted:
            tally.silent.append(f"{name}: the rerun gives other bytes")
            _restore(path, wanted)
        if repair_store(path).removed:
            tally.silent.append(f"{name}: a sound store is repaired")
    return tally


def _damage(path: Path, change: Change) -> None:
    for file, data in change.items():
        (path / file).unlink() if data is None else (path / file).write_bytes(data)


def _of_the_same_unit(name: str, change: Change) -> bool:
    if name in ("seal.json", "commits/commits.sha256") or name in change:
        return True
    units = {_unit(file) for file in change}
    return _unit(name) in units


def _unit(name: str) -> str:
    parts = name.split("/")
    if parts[0] == "commits":
        return parts[1].removesuffix(".json").lstrip("0") or "0"
    return parts[3] if len(parts) > 3 else "plan"


def _restore(path: Path, wanted: dict[str, bytes]) -> None:
    for name in everything(path):
        if not name.endswith("/"):
            (path / name).unlink()
    for name, data in wanted.items():
        if not name.endswith("/"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)

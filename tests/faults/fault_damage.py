"""Damage to a sealed store: flips, truncations, swapped, stale and missing files.

A case is silent if `verify` does not find it, or if reading returns wrong values and no StoreError.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_jobs import Tally, everything, work

from caskd.store.errors import StoreError
from caskd.store.format import TOPK
from caskd.store.read import TeacherStore
from caskd.store.verify import verify_store
from caskd.store.write import StoreWriter

OUTSIDE_THE_SEAL = ("README.md", "environment/")
ENCODINGS = ("compact", "exact", "fitted2")
Change = dict[str, bytes | None]  # file -> new content; None removes it


def make(path: Path, encoding: str, noise: float = 0.0) -> Path:
    """A sealed store; `noise` is added to the teacher's logits."""
    work(path, random.Random(0), noise, encoding)
    StoreWriter(path).record_environment({"attempt": 1})
    return path


def values(path: Path) -> list[Any]:
    """All values that a store returns."""
    store = TeacherStore.open(path)
    batch = store.read(range(len(store)))
    fields = [batch.token_ids, batch.labels, *map(batch.column, TOPK.fields)]
    index = [*vars(store.index).values()]
    return [store.spec, store.digest, store.vocab, *(a.tobytes() for a in (*fields, *index))]


def kind(name: str) -> str:
    """The class of a file."""
    parts = name.split("/")
    if name.endswith("zarr.json"):
        return "zarr.json"
    if parts[0] == "data.zarr":
        return f"array {parts[1]}"
    return parts[0] if parts[0] != "commits" or name.endswith(".sha256") else "commit record"


def flips(files: dict[str, bytes], count: int, rng: random.Random) -> Iterator[tuple[str, Change]]:
    """Changes of single bytes, equally many in each class of files."""
    for name in _spread(files, count, rng):
        data = bytearray(files[name])
        offset = rng.randrange(len(data))
        data[offset] ^= rng.randrange(1, 256)
        yield name, {name: bytes(data)}


def truncations(
    files: dict[str, bytes], count: int, rng: random.Random
) -> Iterator[tuple[str, Change]]:
    """Files that lose their end, their start or all bytes."""
    for name in _spread(files, count, rng):
        data = files[name]
        keep = rng.choice([0, 1, len(data) - 1, rng.randrange(len(data))])
        yield name, {name: data[-keep:] if keep and rng.random() < 0.3 else data[:keep]}


def swaps(
    files: dict[str, bytes], stale: dict[str, bytes], count: int, rng: random.Random
) -> Iterator[tuple[str, Change]]:
    """Files exchanged with each other, or with those of a slightly different capture."""
    differing = [name for name in files if name in stale and stale[name] != files[name]]
    records = [name for name in differing if kind(name) == "commit record"]
    for _ in range(count):
        if rng.random() < 0.4:
            name = rng.choice(differing)
            yield name, {name: stale[name]}
        elif rng.random() < 0.3:
            # A whole commit of the other capture: record and files agree with each other.
            name = rng.choice(records)
            unit = str(int(Path(name).stem))
            whole = [n for n in differing if n.split("/")[3:4] == [unit]]
            yield name, {n: stale[n] for n in (name, *whole)}
        else:
            one = _spread(files, 1, rng)[0]
            alike = [n for n in files if files[n] != files[one] and _same_array(n, one)]
            two = rng.choice(alike or [n for n in files if files[n] != files[one]])
            yield one, {one: files[two], two: files[one]}


def missing(files: dict[str, bytes]) -> Iterator[tuple[str, Change]]:
    """Each file removed."""
    for name in files:
        yield name, {name: None}


def _same_array(one: str, two: str) -> bool:
    return kind(one) == kind(two)


def _spread(files: dict[str, bytes], count: int, rng: random.Random) -> list[str]:
    classes: dict[str, list[str]] = {}
    for name in files:
        classes.setdefault(kind(name), []).append(name)
    order = sorted(classes)
    start = rng.randrange(len(order))
    return [rng.choice(classes[order[(start + i) % len(order)]]) for i in range(count)]


def damage(where: Path, counts: dict[str, int], seed: int = 0) -> dict[str, Tally]:
    """Run `counts` of "flips", "truncations" and "swaps", and remove every file once."""
    tallies = {name: Tally() for name in (*counts, "missing")}
    for encoding in ENCODINGS:
        path, rng = make(where / encoding, encoding), random.Random(seed)
        other = make(where / f"{encoding}-stale", encoding, noise=1e-3)
        files = {n: d for n, d in everything(path).items() if not n.endswith("/")}
        stale, right = everything(other), values(path)
        part = {name: -(-count // len(ENCODINGS)) for name, count in counts.items()}
        cases = {
            "flips": flips(files, part["flips"], rng),
            "truncations": truncations(files, part["truncations"], rng),
            "swaps": swaps(files, stale, part["swaps"], rng),
            "missing": missing(files),
        }
        for name, changes in cases.items():
            for changed, change in changes:
                _try(path, files, (changed, change), right, tallies[name])
    return tallies


def _try(
    path: Path,
    files: dict[str, bytes],
    case: tuple[str, Change],
    right: list[Any],
    tally: Tally,
) -> None:
    name, change = case
    tally.count += 1
    for file, data in change.items():
        (path / file).unlink() if data is None else (path / file).write_bytes(data)
    try:
        if name.startswith(OUTSIDE_THE_SEAL):
            tally.notes["outside the seal"] += 1
        elif not _noticed(path):
            tally.silent.append(f"verify does not notice a change of {name}")
        if not _reads_right(path, right, tally):
            tally.silent.append(f"reading gives other values after a change of {name}")
    finally:
        for file in change:
            (path / file).write_bytes(files[file])


def _noticed(path: Path) -> bool:
    try:
        return not verify_store(path).ok
    except StoreError:
        return True


def _reads_right(path: Path, right: list[Any], tally: Tally) -> bool:
    try:
        found = values(path)
    except StoreError:
        tally.notes["reading raises"] += 1
        return True
    tally.notes["reading gives the right values"] += 1
    return found == right

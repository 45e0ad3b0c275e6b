"""Failing disks: an error at the N-th call, a full disk, a read-only disk."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

from fault_jobs import (
    Tally,
    arrivals,
    environment,
    everything,
    folder,
    hooked,
    job,
    plan,
    reference,
)  # fmt: skip

from caskd.store.errors import IncompleteError, StoreWriteError
from caskd.store.io.faults import PRIMITIVES, Fault
from caskd.store.read import TeacherStore
from caskd.store.write import plan_store


def error_sweep(where: Path, count: int | None, seed: int = 0) -> Tally:
    """Fail the N-th call of each kind, once or from there on, and run again.

    Args:
        where: an empty folder.
        count: how many (kind, N, error) to try at random; all of them when None.
        seed: of that choice.
    """
    wanted, reached, tally = reference(where), arrivals(where), Tally()
    cases = [
        f"{name}:{number}{suffix}"
        for name in PRIMITIVES
        for number in range(1, reached[name] + 1)
        for suffix in (":EIO", "+:ENOSPC")
    ]
    if count is not None:
        cases = random.Random(seed).sample(cases, count)
    for case in cases:
        _fail_and_repeat(where / "failed", Fault(case), case, wanted, tally)
    return tally


def _fail_and_repeat(
    path: Path, fault: Fault, case: str, wanted: dict[str, bytes], tally: Tally
) -> None:
    tally.count += 1
    try:
        with hooked(fault):
            job(path)
        tally.silent.append(f"{case}: no error")
    except StoreWriteError as error:
        if "\n" in str(error) or not str(error).startswith(f"cannot write {path.parent}"):
            tally.silent.append(f"{case}: says {str(error)!r}")
    if not fault.reached:
        tally.silent.append(f"{case}: never reached")
    still_readable(path)
    job(path)
    if everything(path) != wanted:
        tally.silent.append(f"{case}: the store differs after a rerun")
    shutil.rmtree(path)


def still_readable(path: Path) -> int:
    """Read the committed examples of an interrupted store; returns their number."""
    if not (path / "store.json").exists():
        return 0
    store = TeacherStore.open(path, allow_unsealed=True)
    readable = 0
    for example in range(len(store)):
        try:
            store.read([example])
            readable += 1
        except IncompleteError:
            continue
    return readable


def full_disks(where: Path, sizes: list[int]) -> Tally:
    """Run the job on file systems of these sizes, then enlarge them; needs permission to mount."""
    wanted, tally = reference(where), Tally()
    place = where / "mounted"
    place.mkdir()
    for size in sizes:
        _mount(place, f"size={size}")
        path = place / "store"
        tally.count += 1
        try:
            job(path)
            tally.notes["large enough"] += 1
        except StoreWriteError as error:
            tally.notes["full"] += 1
            if "No space left" not in str(error) or str(path) not in str(error):
                tally.silent.append(f"{size} bytes: says {str(error)!r}")
        still_readable(path)
        _mount(place, "remount,size=100m")
        job(path)
        if everything(path) != wanted:
            tally.silent.append(f"{size} bytes: the store differs after a rerun")
        subprocess.run(["umount", "--lazy", place], check=True)
    return tally


def read_only(where: Path) -> list[str]:
    """The errors of planning and filling on a read-only disk, and when they occur."""
    place, said = where / "read-only", []
    place.mkdir()
    _mount(place, "size=1m")
    plan(place / "planned")
    _mount(place, "remount,ro")

    def never() -> None:
        raise AssertionError("examples were tokenized for a place that cannot be written")
        yield

    from helpers import stores

    for task in (
        lambda: plan_store(
            place / "new", stores.identity(), never(), shard_rows=32, vocab=stores.VOCAB
        ),
        lambda: stores.fill(place / "planned"),
    ):
        try:
            task()
            said.append("nothing")
        except StoreWriteError as error:
            said.append(str(error))
    subprocess.run(["umount", "--lazy", place], check=True)
    return said


def _mount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "caskd", place], check=True)


def can_mount() -> bool:
    """Whether this machine allows a user namespace with its own mounts."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


def in_namespace(sizes: list[int]) -> dict[str, object]:
    """Run `full_disks` and `read_only` where this process may mount."""
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, __file__, *map(str, sizes)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    if done.returncode:
        raise AssertionError(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    with folder() as top:
        found = full_disks(top, [int(size) for size in sys.argv[1:]])
        told = read_only(top)
    print(json.dumps({**vars(found), "read_only": told}))

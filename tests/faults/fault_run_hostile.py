"""Runs the subject on hostile stores and judges its responses."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from fault_damage import make
from fault_hostile_stores import HostileStore
from fault_jobs import Tally, environment

SECONDS, BYTES = 1.0, 200 << 20


def run_hostile(where: Path, stores: Iterable[tuple[str, HostileStore]], *, refused: bool) -> Tally:
    """Let the subject use each store.

    Args:
        where: an empty folder.
        stores: name and store.
        refused: whether every store must be refused (a mutant may be valid).
    """
    tally = Tally()
    where.mkdir()
    sound = make(where / "sound", "compact")
    subject = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fault_subject.py")), str(sound)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert subject.stdin is not None
    assert subject.stdout is not None
    with subject:
        for number, (name, store) in enumerate(stores):
            path = where / f"store{number}"
            path.mkdir()
            store.write(path)
            subject.stdin.write(f"{path}\n")
            subject.stdin.flush()
            answer = json.loads(subject.stdout.readline())
            _judge(name, answer, refused, tally)
            shutil.rmtree(path)
        subject.stdin.close()
    return tally


def _judge(name: str, answer: dict[str, object], refused: bool, tally: Tally) -> None:
    tally.count += 1
    tally.notes["refused" if answer["refusals"] else "accepted"] += 1
    if refused and not answer["refusals"]:
        tally.silent.append(f"{name}: accepted")
    for what in ("failures", "events"):
        if answer[what]:
            tally.silent.append(f"{name}: {what} {answer[what]}")
    if float(str(answer["seconds"])) > SECONDS:
        tally.silent.append(f"{name}: {answer['seconds']} s")
    if int(str(answer["bytes"])) > BYTES:
        tally.silent.append(f"{name}: {int(str(answer['bytes'])) >> 20} MiB")

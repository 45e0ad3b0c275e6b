"""Hands strangers' stores to the victim and judges what became of it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from fault_damage import make
from fault_jobs import Tally, environment
from fault_strangers import Stranger

SECONDS, BYTES = 1.0, 200 << 20


def receive(where: Path, strangers: Iterable[tuple[str, Stranger]], *, refused: bool) -> Tally:
    """Let the victim use each store.

    Args:
        where: an empty folder.
        strangers: name and store.
        refused: whether every one of them must be refused (a mutant may be sound).
    """
    tally = Tally()
    where.mkdir()
    sound = make(where / "sound", "compact")
    victim = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fault_victim.py")), str(sound)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert victim.stdin is not None
    assert victim.stdout is not None
    with victim:
        for number, (name, stranger) in enumerate(strangers):
            path = where / f"guest{number}"
            path.mkdir()
            stranger.write(path)
            victim.stdin.write(f"{path}\n")
            victim.stdin.flush()
            answer = json.loads(victim.stdout.readline())
            _judge(name, answer, refused, tally)
            shutil.rmtree(path)
        victim.stdin.close()
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

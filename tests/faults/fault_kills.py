"""SIGKILL at every fault point and at random times, also during recovery and sealing."""

import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

from fault_jobs import (
    NEVER_REACHED,
    Tally,
    arrivals,
    everything,
    job,
    outcome,
    reference,
    run,
    start,
)

from caskd.store.io.faults import Fault

RANDOM_SHARE = 5  # one kill in five comes at a random time instead of at a point


def kill_loop(where: Path, count: int, seed: int = 0) -> Tally:
    """Kill `count` jobs, run each again, and compare with an uninterrupted one."""
    wanted, reached = reference(where), arrivals(where)
    rng, points, tally = random.Random(seed), sorted(reached), Tally()
    begin = time.monotonic()
    run(lambda: job(where / "timed"))
    seconds = time.monotonic() - begin
    for number in range(count):
        path = where / f"killed{number}"
        if number % RANDOM_SHARE == RANDOM_SHARE - 1:
            name = "random time"
            _kill_after(path, rng.uniform(0, seconds))
        else:
            name = points[(number - number // RANDOM_SHARE) % len(points)]
            arrival = rng.randint(1, reached[name])
            ended = run(partial(job, path), Fault(f"{name}:{arrival}:kill"))
            if ended != -signal.SIGKILL:
                tally.silent.append(f"{name}:{arrival} was never reached ({ended})")
        if rng.random() < 0.5:
            # A second kill, somewhere in the recovery.
            fault = Fault(f"*:{rng.randint(1, reached.total())}:kill")
            again = run(partial(job, path), fault)
            if again not in (-signal.SIGKILL, NEVER_REACHED):
                tally.silent.append(f"{name}: the recovery ended with {again}")
        _compare(path, wanted, name, tally)
        shutil.rmtree(path)
    return tally


def _kill_after(path: Path, seconds: float) -> None:
    child = start(lambda: job(path))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    outcome(child)


def _compare(path: Path, wanted: dict[str, bytes], name: str, tally: Tally) -> None:
    tally.count += 1
    tally.notes[name] += 1
    ended = run(lambda: job(path))
    found = everything(path)
    if ended != 0:
        tally.silent.append(f"killed at {name}: the rerun ended with {ended}")
    elif found != wanted:
        differing = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
        tally.silent.append(f"killed at {name}: differs in {differing[:3]}")

"""Several processes on one store: which commits win, and which processes are refused."""

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fault_jobs import (
    OTHER_IDENTITY,
    SHARD_ROWS,
    Tally,
    everything,
    go_on,
    outcome,
    plan,
    start,
    stopped,
    work,
)
from helpers.stores import VOCAB

from caskd.store.format import DEFAULT_ENCODING, ROW_ENCODINGS
from caskd.store.io.faults import Fault, Hook
from caskd.store.verify import verify_store

NUM_WORKERS = 8
NOISE = 1e-3


class Dawdle:
    """A fault hook that sleeps at random and records in a file which commits this process won."""

    def __init__(self, rng: random.Random, notes: Path) -> None:
        self.rng, self.notes = rng, notes

    def __call__(self, name: str, *_paths: Path) -> None:
        """Sleep, or record a win."""
        if self.rng.random() < 0.05:
            time.sleep(self.rng.random() * 0.004)
        if name.endswith((".won", ".lost")):
            with self.notes.open("a") as file:
                file.write(name + "\n")


def at_once(tasks: list[tuple[Callable[[], object], Hook | None]]) -> list[int]:
    """Run tasks in processes that start together; returns their exit codes."""
    gate, opener = os.pipe()

    def waiting(task: Callable[[], object]) -> None:
        os.close(opener)
        os.read(gate, 1)
        task()

    children = [start(lambda task=task: waiting(task), hook) for task, hook in tasks]
    os.close(opener)
    os.close(gate)
    return [outcome(child) for child in children]


def schedules(where: Path, count: int, seed: int = 0) -> Tally:
    """Let 8 workers fill one store, `count` times; every other time, their rows differ slightly."""
    tally = Tally()
    alone = [_alone(where / f"alone{i}", i * NOISE) for i in range(NUM_WORKERS)]
    for number in range(count):
        _one_schedule(where / "shared", number % 2 == 1, random.Random(seed + number), alone, tally)
    return tally


def _alone(path: Path, noise: float) -> dict[str, bytes]:
    work(path, random.Random(0), noise)
    return everything(path)


def _one_schedule(
    path: Path, noisy: bool, rng: random.Random, alone: list[dict[str, bytes]], tally: Tally
) -> None:
    tally.count += 1
    notes = path.with_name("notes")
    notes.write_text("")
    tasks = [
        (
            lambda i=i: work(path, random.Random(rng.random() + i), i * NOISE * noisy),
            Dawdle(random.Random(rng.random()), notes),
        )
        for i in range(NUM_WORKERS)
    ]
    ended = at_once(tasks)
    if ended != [0] * NUM_WORKERS:
        tally.silent.append(f"workers ended with {ended}")
    found = everything(path)
    for problem in _problems(found, noisy, alone, Counter(notes.read_text().split())):
        tally.silent.append(problem)
    if not verify_store(path, full=True).ok:
        tally.silent.append("the store does not verify")
    tally.notes.update(notes.read_text().split())
    shutil.rmtree(path)


def _problems(
    found: dict[str, bytes], noisy: bool, alone: list[dict[str, bytes]], won: Counter[str]
) -> list[str]:
    records = sorted(n for n in alone[0] if n.startswith("commits/0"))
    problems = []
    if (won["plan.won"], won["shard.won"]) != (1, len(records)):
        problems.append(f"decisions: {dict(won)}")
    if not noisy and found != alone[0]:
        problems.append("equal workers left another store than one alone")
    if found.keys() != alone[0].keys():
        problems.append(f"strays: {sorted(found.keys() ^ alone[0].keys())[:3]}")
    for record in records:
        shard = str(int(Path(record).stem))
        names = [n for n in alone[0] if n.split("/")[3:4] == [shard] and n in found]
        whole = [record, *(n for n in names if found[n] != b"" and _of_rows(n))]
        if not any(all(found[n] == other[n] for n in whole) for other in alone):
            problems.append(f"{record}: bytes of more than one worker")
    return problems


def _of_rows(name: str) -> bool:
    encoding = ROW_ENCODINGS["topk", DEFAULT_ENCODING]
    rows = encoding.layouts(4, SHARD_ROWS, SHARD_ROWS)
    rows += encoding.tables(len(VOCAB), SHARD_ROWS)
    return name.split("/")[1] in {array.name for array in rows}


def creators(where: Path, count: int, seed: int = 0) -> Tally:
    """Let two processes with different identities plan one store, `count` times."""
    tally = Tally()
    for number in range(count):
        rng, path = random.Random(seed + number), where / "contested"
        tasks = [
            (
                partial(plan, path, top_k=top_k),
                Dawdle(random.Random(rng.random()), where / "notes"),
            )
            for top_k in (4, 5)
        ]
        ended = at_once(tasks)
        tally.count += 1
        tally.notes[f"winner {ended.index(0) if 0 in ended else None}"] += 1
        if sorted(ended) != [0, OTHER_IDENTITY]:
            tally.silent.append(f"creators ended with {ended}")
        winner = 4 if ended[0] == 0 else 5
        work_alone = where / f"alone-{winner}"
        if not work_alone.exists():
            plan(work_alone, top_k=winner)
        if _without_staging(path) != _without_staging(work_alone):
            tally.silent.append("the plan is not the winner's")
        shutil.rmtree(path)
    return tally


def _without_staging(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in everything(path).items() if "staging" not in name}


def latecomers(where: Path) -> Tally:
    """Stop a worker at each step, let another one finish and seal, then continue the first."""
    tally = Tally()
    for step in ("shard.staged", "shard.published", "plan.staged", "file.link"):
        for noise in (0.0, NOISE):
            path = where / f"late-{step}-{noise}"
            late = start(partial(work, path, random.Random(1), noise), Fault(f"{step}:1:stop"))
            if not stopped(late):
                tally.silent.append(f"{step}: never reached")
                continue
            work(path, random.Random(2))
            before = _without_staging(path)
            go_on(late)
            tally.count += 1
            if outcome(late) != 0:
                tally.silent.append(f"{step}: the late worker failed")
            if everything(path) != before:
                tally.silent.append(f"{step}: a late worker changed a sealed store")
    return tally

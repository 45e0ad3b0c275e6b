"""SIGKILL on workers of a capture by a real (small) model, again and again.

More kills than the suite's: CASKD_CAPTURE_KILLS=100 pytest -s THIS_FILE
"""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import wait

import pytest
from helpers.captures import config_for, fork_caskd, outcome, sealed_files, words_for
from helpers.tiny import ragged_records, save_tiny

from caskd.precompute import plan, precompute
from caskd.store.verify import verify_store
from caskd.store.write import StoreWriter

NUM_KILLS = int(os.environ.get("CASKD_CAPTURE_KILLS", "10"))
NUM_WORKERS, NUM_SHARDS = 4, 24

pytestmark = [pytest.mark.slow]


def announce(pipe: int) -> Callable[[], None]:
    """Let a child say which shard it begins."""

    def prepare() -> None:
        real = StoreWriter.shard

        def shard(self, number):
            os.write(pipe, bytes([number]))
            return real(self, number)

        StoreWriter.shard = shard  # in a fork, which ends with it

    return prepare


class Workers:
    """Four processes on one store; one that is killed is started again."""

    def __init__(self, config, log):
        self.config, self.log = config, log
        self.children, self.pipes = {}, {}
        for index in range(NUM_WORKERS):
            self.start(index)

    def start(self, index):
        reader, writer = os.pipe()
        words = words_for(replace(self.config, worker=index, num_workers=NUM_WORKERS))
        self.children[index] = fork_caskd(words, self.log, announce(writer))
        os.close(writer)
        self.pipes[reader] = index

    def next_shard(self, timeout):
        """A worker and the shard that it begins; None where nobody begins one for a while."""
        # Not select(): it knows no descriptor above 1,023, and the suite may have so many open.
        for pipe in wait(list(self.pipes), timeout):
            said = os.read(pipe, 1)
            if said:
                return self.pipes[pipe], said[0]
            self.end(pipe)
        return None

    def end(self, pipe):
        """See a worker off: a pipe that is closed means that it is at its end."""
        index = self.pipes.pop(pipe)
        os.close(pipe)
        code = outcome(self.children.pop(index))
        assert code == 0, self.log.read_text()

    def kill(self, index):
        """Kill a worker, and start it again."""
        os.kill(self.children[index], signal.SIGKILL)
        code = outcome(self.children.pop(index))
        assert code in (-signal.SIGKILL, 0), self.log.read_text()
        pipe = next(pipe for pipe, owner in self.pipes.items() if owner == index)
        os.close(pipe)
        del self.pipes[pipe]
        self.start(index)

    def finish(self):
        while self.pipes:
            self.next_shard(None)


def test_random_kills_leave_the_bytes_of_an_uninterrupted_run(tmp_path):
    teacher = save_tiny(tmp_path / "big")
    records = ragged_records(50, seed=4)
    shared = {"shard_rows": 32, "token_budget": 64, "deterministic": True, "encoding": "fitted2"}

    whole = config_for(teacher, tmp_path, records, **shared)
    store = precompute(whole)
    assert store.spec.num_shards >= NUM_SHARDS
    wanted = sealed_files(whole.store)
    rng, kills, log, rounds = random.Random(0), Counter(), tmp_path / "log", 0

    def more():  # a large count ends when a kill has met every shard
        unmet = NUM_KILLS >= 100 and len(kills) < store.spec.num_shards
        return kills.total() < NUM_KILLS or unmet

    while more():
        killed = replace(whole, store=str(tmp_path / f"killed{rounds}"))
        plan(killed)
        workers = Workers(killed, log)
        while workers.pipes and more():
            begun = workers.next_shard(None)
            # Half at once, half a little later: in the forward, the encoding or the commit.
            if begun is not None and (not kills[begun[1]] or rng.random() < 0.6):
                index, shard = begun
                if rng.random() < 0.5:
                    time.sleep(rng.uniform(0, 0.05))
                workers.kill(index)
                kills[shard] += 1
        workers.finish()
        assert sealed_files(killed.store) == wanted
        assert verify_store(killed.store, full=True).ok
        shutil.rmtree(killed.store)
        rounds += 1
    print(f"\n{kills.total()} kills of {NUM_WORKERS} workers in {rounds} stores of "
          f"{store.spec.num_shards} shards; {len(kills)} shards were being computed at a kill; "
          "every store byte-identical")  # fmt: skip
    assert "Traceback" not in log.read_text()
    assert NUM_KILLS < 100 or len(kills) == store.spec.num_shards

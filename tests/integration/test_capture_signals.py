"""Captures that receive SIGTERM, SIGINT or SIGKILL, in processes of their own."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from helpers.captures import config_for, fork_caskd, outcome, sealed_files, words_for
from helpers.tiny import ragged_records, save_tiny

from caskd.precompute import precompute
from caskd.precompute.workers.signals import Stopped, stop_signals
from caskd.store.io import faults
from caskd.store.read import TeacherStore

RECORDS = ragged_records(60, seed=9)
ONE_LINE = "shards committed; run the same command again to go on"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "big")


def small(teacher, folder, encoding):
    folder.mkdir()
    shared = {"shard_rows": 32, "token_budget": 40, "deterministic": True, "encoding": encoding}
    return config_for(teacher, folder, RECORDS, **shared)


def wait_for(what, child, log):
    """Wait until `what()`, while the child is alive."""
    while not what():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), log.read_text()
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("number", "encoding", "code"),
    [
        (signal.SIGTERM, "fitted2", 143),
        (signal.SIGINT, "exact", 130),
        (signal.SIGHUP, "exact", 129),
        (signal.SIGKILL, "fitted2", -signal.SIGKILL),
    ],
)
def test_a_run_that_is_ended_is_completed_to_the_same_bytes(
    teacher, tmp_path, number, encoding, code
):
    whole, torn = (small(teacher, tmp_path / name, encoding) for name in ("whole", "torn"))
    precompute(whole)
    log, commits = tmp_path / "log", Path(torn.store, "commits")

    def dawdle_after_three():  # or all may be done before a busy machine lets the signal be sent
        def hook(name, *paths):
            if name == "shard.staged" and len(list(commits.glob("0*.json"))) >= 3:
                time.sleep(0.5)

        faults.hook = hook
        # A suite that was started in the background has it ignored, and captures respect that.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    child = fork_caskd(words_for(torn), log, dawdle_after_three)
    wait_for(lambda: len(list(commits.glob("0*.json"))) >= 3, child, log)
    os.kill(child, number)
    assert outcome(child) == code, log.read_text()
    store = TeacherStore.open(torn.store, allow_unsealed=True)
    done = store.num_committed_shards()
    assert 3 <= done < store.spec.num_shards
    if number != signal.SIGKILL:
        last = log.read_text().splitlines()[-1]
        assert last.endswith(f"with {done} of {store.spec.num_shards} {ONE_LINE}"), last
        assert "Traceback" not in log.read_text()
        (record,) = Path(torn.store, "environment").iterdir()
        attempt = json.loads(record.read_text())
        assert (attempt["outcome"], attempt["num_shards"]) == ("stopped", done)
    precompute(torn)
    assert sealed_files(torn.store) == sealed_files(whole.store)


def test_what_is_being_written_is_finished_and_a_second_signal_does_not_wait(teacher, tmp_path):
    config, log = small(teacher, tmp_path / "torn", "exact"), tmp_path / "log"

    def write_for_ever():
        def hook(name, *paths):
            if name == "shard.staged" and Path(config.store, "commits/00001.json").exists():
                threading.Event().wait()

        faults.hook = hook

    child = fork_caskd(words_for(config), log, write_for_ever)
    staged = Path(config.store, "staging")
    commits = Path(config.store, "commits")
    wait_for(lambda: (commits / "00001.json").exists() and list(staged.glob("*/*")), child, log)
    os.kill(child, signal.SIGTERM)
    wait_for(lambda: "a second signal" in log.read_text(), child, log)
    os.kill(child, signal.SIGTERM)
    assert outcome(child) == -signal.SIGTERM
    precompute(config)


def test_before_a_plan_it_says_so(teacher, tmp_path):
    config, log = small(teacher, tmp_path / "torn", "exact"), tmp_path / "log"

    def stop_at_planning():
        faults.hook = lambda name, *paths: os.kill(os.getpid(), signal.SIGTERM)

    assert outcome(fork_caskd(words_for(config), log, stop_at_planning)) == 143
    assert "nothing is planned yet" in log.read_text().splitlines()[-1]


def test_handlers_are_put_back_and_a_swallowed_signal_is_raised_again():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_signals() as stop:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            stop.seen = True
        assert stop.seen
        with pytest.raises(Stopped, match="SIGTERM"):
            stop.check()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_what_a_shell_has_put_off_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            stop.check()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

"""Push and pull over a broken network, against a real S3 server.

More schedules and kills than the suite's: CASKD_SCHEDULES=1000 CASKD_KILLS=200 pytest THIS_FILE
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.s3_server import BUCKET, FAULTS, FaultProxy, environment, s3_server
from helpers.stores import make_store, tree

from caskd.store.errors import IdentityError, StoreError
from caskd.store.share import pull_store, push_store
from caskd.store.storage import RetryPolicy, open_storage
from caskd.store.verify import verify_store

NUM_SCHEDULES = int(os.environ.get("CASKD_SCHEDULES", "50"))
NUM_KILLS = int(os.environ.get("CASKD_KILLS", "20"))
PART = 10
QUICK = RetryPolicy(attempts=8, first_pause=0.001, longest_pause=0.01)

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture(scope="module")
def proxy(server: int) -> Iterator[FaultProxy]:
    with FaultProxy(server) as made:
        yield made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "store"
    make_store(path, num=4, shard_rows=16)
    return path


def use(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for name, value in environment(port).items():
        monkeypatch.setenv(name, value)


def until_done(copy, after_failure) -> int:  # type: ignore[no-untyped-def]
    """Run `copy` until it succeeds; return the number of failures."""
    for failures in range(40):
        try:
            copy()
        except IdentityError:
            raise  # nobody else is there: a false conflict
        except StoreError:
            after_failure()
        else:
            return failures
    raise AssertionError("never done")


@pytest.mark.parametrize("part", range(-(-NUM_SCHEDULES // PART)))
def test_schedules_of_faults(
    part: int, server: int, proxy: FaultProxy, source: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    expected = tree(source)
    for seed in range(part * PART, min((part + 1) * PART, NUM_SCHEDULES)):
        url, target = f"s3://{BUCKET}/schedule-{seed}", tmp_path / str(seed)
        proxy.schedule(seed, probability=0.3)

        def nothing_sealed_is_incomplete(url: str = url, seed: int = seed) -> None:
            use(monkeypatch, server)
            if open_storage(url).size("seal.json") is not None:
                pull_store(url, tmp_path / f"check-{seed}")
            use(monkeypatch, proxy.port)

        use(monkeypatch, proxy.port)
        until_done(
            lambda url=url: push_store(source, url, policy=QUICK), nothing_sealed_is_incomplete
        )
        nothing_sealed_is_incomplete()

        def nothing_local_is_incomplete(target: Path = target) -> None:
            if (target / "seal.json").exists():
                assert tree(target) == expected

        until_done(
            lambda url=url, target=target: pull_store(url, target, policy=QUICK),
            nothing_local_is_incomplete,
        )
        assert tree(target) == expected, seed
        assert tree(tmp_path / f"check-{seed}") == expected, seed
    assert proxy.hit == set(FAULTS)


def killed_at(request: int, words: list[str], proxy: FaultProxy) -> None:
    """Run a command and kill it with SIGKILL when its `request`-th request arrives."""
    proxy.num_requests = 0
    command = subprocess.Popen(
        [sys.executable, "-m", "caskd.cli", "store", *words],
        env={**os.environ, **environment(proxy.port)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def plan(number: int, head: bytes) -> str | None:
        if number == request:
            command.send_signal(signal.SIGKILL)
        return None

    proxy.plan = plan
    assert command.wait(timeout=120) == -signal.SIGKILL


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_kill_and_go_on(
    direction: str, server: int, proxy: FaultProxy, source: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    use(monkeypatch, server)
    rng, expected = random.Random(direction), tree(source)
    full = f"s3://{BUCKET}/full-{direction}"
    push_store(source, full)
    proxy.schedule(0, probability=0)
    use(monkeypatch, proxy.port)
    if direction == "push":
        push_store(source, f"s3://{BUCKET}/counted")
    else:
        pull_store(full, tmp_path / "counted")
    num_requests = proxy.num_requests
    use(monkeypatch, server)
    for kill in range(NUM_KILLS // 2):
        url, target = f"s3://{BUCKET}/kill-{direction}-{kill}", tmp_path / str(kill)
        words = ["push", str(source), url] if direction == "push" else ["pull", full, str(target)]
        killed_at(rng.randrange(num_requests), words, proxy)
        if direction == "push":
            if open_storage(url).size("seal.json") is None:
                with pytest.raises(StoreError):
                    pull_store(url, tmp_path / f"early-{kill}")
                assert not (tmp_path / f"early-{kill}").exists()
                push_store(source, url)
            pull_store(url, target)
        else:
            if (target / "seal.json").exists():
                assert verify_store(target, full=True).ok
            pull_store(full, target)
        assert tree(target) == expected
        assert verify_store(target, full=True).ok

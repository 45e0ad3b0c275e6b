"""If a rank gets SIGTERM, dies or hangs, the other ranks end, and the run can be resumed."""

import json
import signal
import time
from pathlib import Path

import pytest
from helpers.training import capture
from helpers.warm import WarmProcess, start_ranks

from caskd.train.checkpoint import newest_complete

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

TIMEOUT_MINUTES = 0.5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lost")
    capture(directory)
    return directory


def launch(root: Path, out: Path) -> list[WarmProcess]:
    """Two ranks that will train for a long time."""
    words = [
        "-m", "caskd.cli", "train", "--store", str(root / "store"),
        "--student", str(root / "student"), "--out", str(out), "--steps", "100000",
        "--save-every", "2", "--keep-checkpoints", "2", "--global-batch-size", "8",
        "--micro-batch-size", "4", "--dtype", "float32",
        "--timeout-minutes", str(TIMEOUT_MINUTES),
    ]  # fmt: skip
    return start_ranks(2, words)


def start(root: Path, out: Path) -> list[WarmProcess]:
    """Two ranks that have taken four steps."""
    processes = launch(root, out)
    metrics = out / "metrics.jsonl"
    for _ in range(1800):
        assert all(process.poll() is None for process in processes)
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 4:
            return processes
        time.sleep(0.1)
    raise AssertionError("the ranks did not start to train")


def end(processes: list[WarmProcess]) -> None:
    for process in processes:
        process.kill()


def finish(process: WarmProcess) -> tuple[int, str]:
    """Exit code and stderr; not answering within the timeout and some is a failure."""
    return process.wait(60 * TIMEOUT_MINUTES + 60), process.stderr


def test_sigterm_on_one_rank_saves_and_ends_all(root: Path, tmp_path: Path) -> None:
    processes = start(root, tmp_path / "run")
    try:
        processes[1].send_signal(signal.SIGTERM)
        assert [finish(process)[0] for process in processes] == [143, 143]
    finally:
        end(processes)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["stopped"] is True
    steps = len(lines)
    assert newest_complete(tmp_path / "run").name == f"step-{steps:08d}"


@pytest.mark.parametrize("lost", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_lost_ends_the_other_one(
    root: Path, tmp_path: Path, lost: signal.Signals
) -> None:
    processes = start(root, tmp_path / "run")
    try:
        processes[1].send_signal(lost)
        code, errors = finish(processes[0])
    finally:
        end(processes)
    assert code == 1, errors[-3000:]
    assert "did not respond within --timeout-minutes 0.5" in errors
    assert "Traceback" not in errors
    newest_complete(tmp_path / "run")


def test_all_ranks_of_a_second_run_learn_that_it_is_refused(root: Path, tmp_path: Path) -> None:
    """Only rank 0 tries to hold --out; rank 1 must not wait for it."""
    out = tmp_path / "run"
    first = start(root, out)
    second = launch(root, out)
    try:
        ends = [finish(process) for process in second]
        assert all(process.poll() is None for process in first)
        first[0].send_signal(signal.SIGTERM)
        assert [finish(process)[0] for process in first] == [143, 143]
    finally:
        end([*first, *second])
    assert [code for code, _ in ends] == [2, 2]
    assert "in use by another caskd process" in ends[0][1]
    assert "rank 0 refused to start" in ends[1][1]
    assert all(errors.count("caskd:") == 1 for _, errors in ends)

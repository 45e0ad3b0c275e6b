"""Processes of their own that have their imports behind them, and ranks without a launcher.

Each is a fork of one server, which has torch, transformers and DeepSpeed loaded and nothing else:
no thread, no model, no group. What differs from `python -m caskd.cli`: it starts at once, and it
runs no function of `atexit`.
"""

import multiprocessing
import os
import runpy
import shutil
import socket
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
LOADED = (
    "deepspeed", "transformers.models.llama.modeling_llama", "transformers.generation",
    "transformers.trainer", "caskd.cli.main", "caskd.precompute.workers.run",
    "caskd.train.run.loop", "helpers.training",
)  # fmt: skip


def _begin(words: Sequence[str], environment: Mapping[str, str], here: str, logs: str) -> None:
    """Become `python WORDS` with this environment in this folder; print to LOGS.out and .err."""
    for descriptor, name in ((1, "out"), (2, "err")):
        with open(f"{logs}.{name}", "ab") as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(here)
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


class WarmProcess:
    """`python WORDS`, started.

    Args:
        words: a script or `-m MODULE`, and its arguments.
        more: variables of the environment besides those of this process.
    """

    def __init__(self, words: Sequence[str], more: Mapping[str, str] | None = None) -> None:
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder)
        self._logs = f"{folder}/log"
        CONTEXT.set_forkserver_preload(list(LOADED))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(more or {})}
        self._process = CONTEXT.Process(
            target=_begin, args=(list(words), environment, os.getcwd(), self._logs), daemon=True
        )
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, minus a signal's number, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        """The exit code; an AssertionError if it does not end in time."""
        self._process.join(timeout)
        code = self._process.exitcode
        assert code is not None, f"still running after {timeout} s: {self.stderr[-3000:]}"
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it, and wait until it has ended."""
        self._process.kill()
        self._process.join()

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return Path(f"{self._logs}.out").read_text()

    @property
    def stderr(self) -> str:
        """What it has said on stderr so far."""
        path = Path(f"{self._logs}.err")
        return path.read_text() if path.exists() else ""


def start_ranks(count: int, words: Sequence[str], **more: str) -> list[WarmProcess]:
    """Start the ranks of one machine with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": "", **more,
    }  # fmt: skip
    return [
        WarmProcess(words, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]


def run_ranks(count: int, words: Sequence[str], timeout: float = 300, **more: str) -> None:
    """Run ranks to their ends; if one fails, end all, as torchrun does, and raise AssertionError.

    Args:
        count: of ranks.
        words: as of `WarmProcess`.
        timeout: in seconds.
        more: variables of the environment.
    """
    ranks = start_ranks(count, words, **more)
    deadline = time.monotonic() + timeout
    try:
        while any(rank.poll() is None for rank in ranks) and not any(r.poll() for r in ranks):
            assert time.monotonic() < deadline, [rank.stderr[-2000:] for rank in ranks]
            time.sleep(0.05)
        codes = [rank.poll() for rank in ranks]
        said = [rank.stderr[-4000:] for rank in ranks]
        assert codes == [0] * count, f"exit codes {codes}: {said}"
    finally:
        for rank in ranks:
            rank.kill()
